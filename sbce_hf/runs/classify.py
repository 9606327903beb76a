"""The stages with a classifier: stage 0 on image tags alone, then the rounds with Spatial-BCE.

bce/       model/, labels/ of the rule "fixed" before and after the CRF, proportions.parquet
round_1/   the same with the recipe's rule; starts from the weights and the label maps, or the proportions they give,
           of the stage before
"""

import time
from dataclasses import replace
from typing import Literal

from ..inference.checkpoints import read_classifier
from ..labels.proportions import ProportionTable
from ..labels.store import LabelStore
from ..postprocess.methods import ShareMethod
from ..training.classifier import FEATURES, create_classifier, train_classifier
from .bench import Bench
from .guard import hold_back
from .proportions import estimate_proportions, given_proportions
from .settings import BCE, cuts_at_given_shares, labelling_of
from .single import label_with_checkpoint
from .stage import Stage

PROPORTIONS = "proportions.parquet"


def train_and_label(bench: Bench, stage: Stage, number: int) -> None:
    """Train the classifier, label every image with it, and read the proportions for the next round off.

    Args:
        bench: of the run.
        stage: to fill; needs the stage before, unless it is stage 0.
        number: of the round; 0 is stage 0.
    """
    config, folder = bench.config, bench.run_dir / stage.name
    previous = label_maps = method = None
    given = given_proportions(config, bench.images)
    if stage.name == BCE:
        kind: Literal["bce", "spatial"] = "bce"
        training, proportions = config.bce, None
        model = create_classifier(config.model, bench.images.class_names, config.trunk_weights, config.seed)
    else:
        before = bench.run_dir / stage.needs[0].name
        kind, training = "spatial", config.spatial
        previous = ProportionTable.load(before / PROPORTIONS)
        proportions = (previous if given is None else given[0]).join(bench.images)
        model = read_classifier(before / "model")
        if training.targets == "labels":
            label_maps = LabelStore(stage.needs[0].final_store(bench.run_dir), bench.images.class_names)
    # Each round draws another order and other augmentations.
    seed = config.seed + 1000 * number
    fitted = train_classifier(
        model,
        bench.images,
        training,
        kind,
        proportions,
        output_dir=folder,
        seed=seed,
        label_maps=label_maps,
        guarded=config.guard is not None,
        # The trunk of all stages, and so its features, are the same.
        features_dir=bench.run_dir / FEATURES,
    )
    bench.note_duration(f"{stage.name}: training", fitted.seconds)
    started = time.perf_counter()
    labelling = labelling_of(config, number)
    if given is not None and cuts_at_given_shares(config):
        shares = given[0].join(bench.images)
        # What a rule would listen to, nobody has to look for.
        labelling = replace(labelling, confidence_weight=0.0, object_weight=0.0)
        method = ShareMethod(labelling, dict(zip(bench.images.image_ids, shares, strict=True)))
    summary = label_with_checkpoint(
        fitted.model_dir,
        bench.images,
        labelling,
        folder / "labels",
        strict=config.data.strict,
        method=method,
        inputs=None if method is None or given is None else {"proportions": given[1]},
    )
    bench.process.wait_for_everyone()
    if summary.num_labelled:
        bench.note_duration(f"{stage.name}: labelling", time.perf_counter() - started)
    # From disk: a process's summary may miss what another one skipped last.
    bench.leave_out(LabelStore(folder / stage.stores[0]).skipped)
    if previous is not None:
        hold_back(bench, stage)
    if bench.process.is_main_process:
        table = estimate_proportions(LabelStore(stage.final_store(bench.run_dir)), bench.images, config, previous)
        table.save(folder / PROPORTIONS)
    bench.process.wait_for_everyone()
