"""The refinement of a run's last label maps by saliency maps of somebody's network.

    saliency/labels/   saliency and saliency_crf: what is salient, with classes from the stage before or the class maps

No mask is read here, but such networks were trained on masks of other photos: every table says that one was used.
"""

import time

from ..config import RunConfig, SaliencyConfig, deciding
from ..data import TaggedImages
from ..data.saliency_maps import SaliencyMaps, check_saliency_maps
from ..labels.store import LabelStore
from ..postprocess.saliency import NOTE, SaliencyMethod
from .bench import Bench
from .guard import hold_back
from .settings import labelling_of
from .single import label_with_checkpoint
from .stage import OUTSIDE, Refinement, Stage

SALIENCY = "saliency"


def check(config: RunConfig, section: SaliencyConfig, images: TaggedImages) -> str:
    """Look at every image's map; returns the hash of all.

    Raises:
        FileNotFoundError: no such folder.
        UserError: maps that are missing or cannot be used; see [`check_saliency_maps`].
    """
    return check_saliency_maps(SaliencyMaps(section, config.data, config.data.train_split), images)


def refine(bench: Bench, stage: Stage) -> None:
    """Label every image again; what is there already is kept."""
    config, folder = bench.config, bench.run_dir / stage.name
    section = config.saliency or SaliencyConfig()
    labelling = labelling_of(config, config.rounds)
    before, classifier = stage.needs[0], stage.needs[-1]
    labels = LabelStore(before.final_store(bench.run_dir), bench.images.class_names)
    maps = SaliencyMaps(section, config.data, config.data.train_split)
    started = time.perf_counter()
    summary = label_with_checkpoint(
        bench.run_dir / classifier.name / "model",
        bench.images,
        labelling,
        folder / "labels",
        config.data.strict,
        method=SaliencyMethod(section, maps, labelling.crf, labels),
        # Of the start: images that were left out since then do not make them other maps.
        inputs={SALIENCY: deciding(section), OUTSIDE: stage.settings[SALIENCY][OUTSIDE]},
        looked=bench.run_dir / classifier.name / "labels",
    )
    bench.process.wait_for_everyone()
    if summary.num_labelled:
        bench.note_duration(f"{stage.name}: labelling", time.perf_counter() - started)
    bench.leave_out(LabelStore(folder / stage.stores[0]).unreadable)
    hold_back(bench, stage)


REFINEMENT = Refinement(refine, note=NOTE, outside=check)
