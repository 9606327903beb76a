"""What stage 0's class maps would reach at the constant that is best on ground truth: a yardstick, not a result."""

import shutil
from dataclasses import replace
from functools import partial

from ..evaluation.scan import LEAK_MARK, scan_fixed_threshold_on_ground_truth
from ..files import read_fields, write_json
from ..inference.writing import groups_of
from ..processes import share_of, shared, summed
from .bench import Bench
from .layout import REMEDY
from .settings import labelling_of
from .single import label_with_checkpoint, maps_of
from .stage import Stage

SCAN = "scan.json"


def is_outdated(bench: Bench, stage: Stage) -> bool:
    """Whether the constant was found on masks that have changed since."""
    found = read_fields(bench.run_dir / stage.name / SCAN, {"masks": str | None}, REMEDY) or {}
    return found.get("masks") not in (None, bench.masks_hash)


def best_constant(bench: Bench, stage: Stage) -> None:
    """Find the constant on the scored images' masks, and label these images with it."""
    if bench.scored is None:
        raise ValueError(f"{stage.name}: no image has a mask")
    folder, model_dir = bench.run_dir / stage.name, bench.run_dir / stage.needs[0].name / "model"
    path, labelling = folder / SCAN, replace(labelling_of(bench.config, 0), rule="fixed")
    if bench.process.is_main_process and is_outdated(bench, stage):
        # The label maps first: as long as the scan is there, what is left of them is known to be old.
        shutil.rmtree(folder / "labels", ignore_errors=True)
        path.unlink()
    if not bench.decided(path.is_file()):
        scored, process = bench.scored, bench.process
        # Whole groups, as labelling has them: which images share a batch decides the last bits of their maps.
        groups = groups_of(len(scored), labelling.batch_size)
        own = share_of(process).of(groups)
        in_step = (groups[number] for number in shared(len(groups), process, step=1))
        scan = scan_fixed_threshold_on_ground_truth(
            maps_of(model_dir, scored, labelling, in_step),
            (scored.mask(index) for group in own for index in group),
            scored.num_classes,
            total=partial(summed, process=process),
        )
        values = {"constants": scan.constants.tolist(), "mean_iou": scan.mean_iou.tolist(), "masks": bench.masks_hash}
        if bench.process.is_main_process:
            write_json(path, {"note": LEAK_MARK, "best": scan.best[0], **values})
        bench.process.wait_for_everyone()
    constant = (read_fields(path, {"best": float | int}, REMEDY) or {})["best"]
    labelling = replace(labelling, background_threshold=constant)
    label_with_checkpoint(model_dir, bench.scored, labelling, folder / "labels")
    bench.process.wait_for_everyone()
