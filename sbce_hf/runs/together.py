"""One set of label maps from several runs that differ in their seed: DIR/together_0-2 from DIR/seed0 to seed2.

labels/       the mean of their walks, before and after the CRF
overlays/     the photos under them
scores.json   where there are masks, which nothing else reads
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import PartialState

from ..config import RunConfig, deciding
from ..data import TaggedImages, load_images
from ..data.preprocessing import Preprocessing
from ..evaluation.quality import StageQuality, stage_quality
from ..evaluation.scores import ScoreRow
from ..files import digest, write_json
from ..inference.checkpoints import load_classifier
from ..inference.classifier import label_images
from ..inference.together import Member, TogetherMethod
from ..labels.store import LabelStore
from ..processes import alone_in, share_of
from ..training.device import use_cpu
from .layout import OVERLAYS
from .overlays import draw_overlays
from .refine import load_walk
from .settings import labelling_of
from .stages import classifier_of, stages_of
from .usual import made_from_checkpoint, usual_of

TOGETHER = "together"


def can_label_together(config: RunConfig) -> bool:
    """Whether runs of a config end in what can be averaged: IRN's walk, on class maps that were cut by a rule."""
    return config.irn is not None and config.saliency is None and config.proportions.file is None


def label_together(
    config: RunConfig, run_dirs: Sequence[Path], output_dir: Path
) -> tuple[list[ScoreRow], StageQuality, Path]:
    """Label the training split with the networks of finished runs. All processes call, and share the work.

    Killed and called again, it goes on where it stopped.

    Args:
        config: of the runs, whichever seed; see [`can_label_together`].
        run_dirs: of at least two runs.
        output_dir: gets the label stores and the scores.

    Returns:
        rows of a table of scores, none without masks; what label maps say of themselves; and the store to use.
    """
    process = PartialState(cpu=use_cpu())
    with alone_in(output_dir, process):
        images = load_images(config.data, config.data.train_split)
        labelling = labelling_of(config, config.rounds)
        members, keys = [], []
        for run_dir in run_dirs:
            member, key = _member(config, run_dir, images)
            members.append(member)
            keys.append(key)
        method = TogetherMethod(members, labelling, labelling.crf)
        summary = label_images(
            members[0].model,
            images,
            labelling,
            output_dir=output_dir / "labels",
            key=digest({"members": keys, "irn": deciding(config)["irn"]}),
            method=method,
            strict=config.data.strict,
            share=share_of(process),
            preprocessing=Preprocessing.of(members[0].model.config),
            usual=members[0].usual,
        )
        process.wait_for_everyone()
        stores = [LabelStore(folder, images.class_names) for folder in summary.directories]
        records = [[store.record(name) for name in sorted(store.done_ids())] for store in stores]
        quality = stage_quality(TOGETHER, images.class_names, records[0], records[-1])
        rows = _score(config, stores, process)
        if process.is_main_process:
            write_json(output_dir / "scores.json", {"rows": [asdict(row) for row in rows]})
        if config.overlays:
            draw_overlays(images, stores[-1], output_dir / OVERLAYS)
        return rows, quality, stores[-1].directory


def _member(config: RunConfig, run_dir: Path, images: TaggedImages) -> tuple[Member, dict[str, Any]]:
    section, labelling = config.irn, labelling_of(config, config.rounds)
    assert section is not None
    stage = run_dir / classifier_of(stages_of(config)).name
    classifier = load_classifier(stage / "model")
    key = made_from_checkpoint(stage / "model", classifier, images, labelling)
    usual = usual_of(stage / "model", classifier, images, labelling, [stage / "labels"], key)
    walk, asked = load_walk(run_dir, section, labelling)
    return Member(classifier, walk, usual), key | asked


def _score(config: RunConfig, stores: Sequence[LabelStore], process: PartialState) -> list[ScoreRow]:
    from ..evaluation.confusion import score_store

    if config.data.score_split is None:
        return []
    scored = load_images(config.data, config.data.score_split)
    rows = []
    for number, store in enumerate(stores):
        found = score_store(store, scored, process=process)
        numbers = {name: found[name] for name in ("mean_iou", "per_class_iou", "num_images")}
        rule = store.meta["config"]["in_words"]
        rows.append(ScoreRow(stage=TOGETHER, rule=rule, crf=number > 0, uses_ground_truth=False, **numbers))
    return rows
