"""The last stage of a run: a segmentation network trained on the label maps, and its yardsticks; and its single step.

    segmenter/adaptive/   model/ trained on the last label maps, and predictions/ for the scored split
    segmenter/bce/        the same network from the same start, trained on stage 0's label maps
    segmenter/mask/       the same, trained on true masks: what the label maps are measured by

Only the yardstick `mask`, when it is asked for, trains on ground truth; nothing of it reaches the other two.
"""

import time
from dataclasses import replace
from pathlib import Path

from accelerate import PartialState

from ..config import RunConfig, SegmenterConfig
from ..data import TaggedImages, load_images
from ..files import weights_digest
from ..inference.checkpoints import read_classifier
from ..labels.hub_store import open_label_maps
from ..labels.label_maps import LabelMaps, MaskLabels
from ..labels.store import LabelStore
from ..processes import alone_in
from ..references import local_checkpoint
from ..training.device import use_cpu
from ..training.folder import FitSummary
from ..training.segmenter import create_segmenter, start_preprocessing, train_segmenter
from .bench import Bench
from .single import predict_with_checkpoint
from .stage import Stage


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
    with alone_in(output_dir, PartialState(cpu=use_cpu())):
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
    if isinstance(label_maps, LabelStore) and label_maps.note:
        inputs["labels_note"] = label_maps.note
    return train_segmenter(
        model,
        images,
        label_maps,
        section.training,
        output_dir=output_dir,
        seed=seed,
        inputs=inputs,
        preprocessing=start_preprocessing(section),
    )


def train_and_predict(bench: Bench, stage: Stage, source: Stage | None, classifier: Stage) -> None:
    """Train a segmenter and predict the split that is scored; each part is done once.

    Args:
        bench: of the run.
        stage: to fill.
        source: whose label maps it is trained on; `None` for true masks.
        classifier: whose trunk is the start, where the recipe says so.
    """
    config = bench.config
    section = config.segmenter or SegmenterConfig()
    folder, masked = bench.run_dir / stage.name, bench.segmenter_data.masked
    if source is not None:
        images: TaggedImages = bench.images
        label_maps: LabelMaps = LabelStore(source.final_store(bench.run_dir))
    elif masked is not None:
        images, label_maps = masked, MaskLabels(masked)
    else:
        raise ValueError(f"{stage.name}: no image has a mask")
    start = bench.run_dir / classifier.name / "model" if section.starts_from_classifier else None
    # One seed for all: the same start, order and augmentation, so that only the labels differ.
    fitted = _train_on(label_maps, images, section, start, folder, config.seed)
    labels = stage.name.rpartition("/")[2]
    bench.note_duration(f"segmenter on {labels} labels: training", fitted.seconds)
    if bench.segmenter_data.scored is None:
        return
    started = time.perf_counter()
    # Photos of the size that the network was trained on, unless the recipe says otherwise.
    prediction = replace(section.prediction, image_size=section.prediction.image_size or section.training.image_size)
    summary = predict_with_checkpoint(
        fitted.model_dir, bench.segmenter_data.scored, prediction, folder / "predictions", config.data.strict
    )
    bench.process.wait_for_everyone()
    if summary.num_labelled:
        bench.note_duration(f"segmenter on {labels} labels: prediction", time.perf_counter() - started)
