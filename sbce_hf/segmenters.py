"""The last stage of a run: a segmentation network trained on the label maps, and its yardsticks; and its single step.

    segmenter/adaptive/   model/ trained on the last label maps, and predictions/ for the scored split
    segmenter/bce/        the same network from the same start, trained on stage 0's label maps
    segmenter/mask/       the same, trained on true masks: what the label maps are measured by

Only the yardstick `mask`, when it is asked for, trains on ground truth; nothing of it reaches the other two.
"""

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .config import RunConfig, SegmenterConfig
from .data import TaggedImages, load_images
from .data.segmentation import LabelMaps, MaskLabels
from .evaluation.confusion import score_store
from .evaluation.curves import write_atomic
from .evaluation.report import SegmenterRow
from .labelling.checkpoint import read_classifier
from .labelling.hub_store import open_label_maps
from .labelling.store import LabelStore
from .provenance import weights_digest
from .references import local_checkpoint
from .steps import predict_with_checkpoint
from .training.segmenter import create_segmenter, train_segmenter
from .training.state import FitSummary

if TYPE_CHECKING:
    from .pipeline import Run

Labels = Literal["adaptive", "bce", "mask"]
FOLDER = "segmenter"


@dataclass(frozen=True)
class SegmenterData:
    """What the segmenter's stage needs besides the run's images; loaded, and so checked, before anything is trained.

    Args:
        masked: training images with a true mask; `None` unless the yardstick is asked for.
        scored: images of the split that segmenters are scored on; `None` scores nothing.
    """

    masked: TaggedImages | None
    scored: TaggedImages | None


def train_segmenter_stage(
    config: RunConfig, labels: str, output_dir: Path, checkpoint: str | None = None
) -> FitSummary:
    """Train a segmentation network on label maps.

    Args:
        config: its `data`, `segmenter` and `seed` are used; without a `segmenter` section the defaults are.
        labels: see [`open_label_maps`]; or `"mask"` for the true masks of the training split.
        output_dir: of the stage.
        checkpoint: classifier whose trunk is the start, where `segmenter.weights` is `"classifier"`: a folder, or a
            Hub id with an optional `@revision`.

    Raises:
        ValueError: no classifier where one is needed, or labels that do not fit.
    """
    section = config.segmenter or SegmenterConfig()
    images = load_images(config.data, config.data.train_split)
    classifier = None
    if section.starts_from_classifier:
        if checkpoint is None:
            raise ValueError(
                "--checkpoint: missing; segmenter.weights is 'classifier', so name the classifier whose trunk is the "
                "start, or --set segmenter.weights=pretrained"
            )
        classifier = local_checkpoint(checkpoint)
    label_maps: LabelMaps
    if labels == "mask":
        images = images.with_masks()
        label_maps = MaskLabels(images)
    else:
        label_maps = open_label_maps(labels, images.class_names)
    return _train_on(label_maps, images, section, classifier, output_dir, config.seed)


def _train_on(
    label_maps: LabelMaps,
    images: TaggedImages,
    section: SegmenterConfig,
    classifier: Path | None,
    output_dir: Path,
    seed: int,
) -> FitSummary:
    """Build the network, from the classifier's folder if that is its start, and train it."""
    start, weights = None, section.weights
    if classifier is not None:
        start = read_classifier(classifier)
        weights = str(classifier / "model.safetensors")
    model = create_segmenter(section, images.class_names, classifier=start, seed=seed)
    # So that a training is not continued from other weights.
    inputs = {"weights": weights_digest(weights)}
    return train_segmenter(
        model, images, label_maps, section.training, output_dir=output_dir, seed=seed, inputs=inputs
    )


def load_segmenter_data(config: RunConfig, images: TaggedImages) -> SegmenterData:
    """Load what is needed, and try the segmenter's own settings.

    Raises:
        ValueError: no masks where they are needed, or settings that do not fit the architecture.
    """
    segmenter = _section(config)
    masked = None
    if "mask" in segmenter.compare:
        masked = images.with_masks()
        if len(masked) == 0:
            raise ValueError(
                f"segmenter.compare: mask is asked for, but split {config.data.train_split!r} has no masks; "
                "leave it out"
            )
    scored = None
    if segmenter.score_split is not None:
        # As the score split, so that its masks are opened now and not after the training.
        scored = load_images(replace(config.data, score_split=segmenter.score_split), segmenter.score_split)
        check_same_classes(images, scored, segmenter.score_split)
        scored = scored.with_masks()
    if not segmenter.starts_from_classifier:
        create_segmenter(segmenter, images.class_names, seed=config.seed)
    return SegmenterData(masked, scored)


def check_same_classes(images: TaggedImages, scored: TaggedImages, split: str) -> None:
    """Raise a `ValueError` if a split that is to be scored has other classes than the training images."""
    if scored.class_names != images.class_names:
        raise ValueError(
            f"split {split!r}: has the classes {list(scored.class_names)}, the training split "
            f"{list(images.class_names)}; set data.classes, so that all splits have the same"
        )


def train_segmenters(run: "Run") -> Path:
    """Train the segmenter and the yardsticks that are asked for; returns the segmenter's model folder."""
    for labels in _all_labels(run):
        _train(run, labels)
    return _folder(run, "adaptive") / "model"


def _train(run: "Run", labels: Labels) -> None:
    config, section = run.config, _section(run.config)
    images, label_maps = _training_set(run, labels)
    classifier = run.run_dir / run.stages[-1] / "model" if section.starts_from_classifier else None
    folder = _folder(run, labels)
    # One seed for all: the same start, order and augmentation, so that only the labels differ.
    fitted = _train_on(label_maps, images, section, classifier, folder, config.seed)
    run.note_duration(f"segmenter on {labels} labels: training", fitted.seconds)
    if run.segmenter_data is None or run.segmenter_data.scored is None:
        return
    started = time.perf_counter()
    # Photos of the size that the network was trained on, unless the recipe says otherwise.
    prediction = replace(section.prediction, image_size=section.prediction.image_size or section.training.image_size)
    summary = predict_with_checkpoint(
        folder / "model", run.segmenter_data.scored, prediction, folder / "predictions", config.data.strict
    )
    run.process.wait_for_everyone()
    if summary.num_labelled:
        run.note_duration(f"segmenter on {labels} labels: prediction", time.perf_counter() - started)


def score_segmenters(run: "Run") -> list[SegmenterRow]:
    """Score every segmenter's predictions, and write `segmenter_scores.json`; empty without ground truth."""
    if run.segmenter_data is None or run.segmenter_data.scored is None:
        return []
    rows = []
    for labels in _all_labels(run):
        for crf in (False, True) if _section(run.config).prediction.crf is not None else (False,):
            store = LabelStore(_folder(run, labels) / "predictions" / ("labels_crf" if crf else "labels"))
            result = score_store(store, run.segmenter_data.scored)
            rows.append(SegmenterRow(labels, crf, result["mean_iou"], result["per_class_iou"], result["num_images"]))
    write_atomic(run.run_dir / "segmenter_scores.json", json.dumps([asdict(row) for row in rows], indent=1))
    return rows


def _training_set(run: "Run", labels: Labels) -> tuple[TaggedImages, LabelMaps]:
    if labels == "mask" and run.segmenter_data is not None and run.segmenter_data.masked is not None:
        masked = run.segmenter_data.masked
        return masked, MaskLabels(masked)
    stage = run.labelled[-1] if labels == "adaptive" else run.stages[0]
    return run.images, run.store(stage, run.with_crf)


def _all_labels(run: "Run") -> list[Labels]:
    return ["adaptive", *_section(run.config).compare]


def _folder(run: "Run", labels: Labels) -> Path:
    return run.run_dir / FOLDER / labels


def _section(config: RunConfig) -> SegmenterConfig:
    if config.segmenter is None:
        raise ValueError("segmenter: missing in the recipe; add a section with at least its training settings")
    return config.segmenter
