"""The single steps of a run: train one stage, label one split, estimate proportions, score a label store."""

from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from accelerate import PartialState

from .config import LabellingConfig, RunConfig, to_mapping
from .data import TaggedImages, load_images
from .data.proportions import ProportionTable, clamp_proportions
from .evaluation.confusion import score_store
from .labelling.labeller import LabelSummary, label_images
from .labelling.store import LabelStore
from .models.modeling_spatial_bce import SpatialBceForImageClassification
from .provenance import digest, file_digest
from .training.classifier import create_classifier, train_classifier
from .training.device import use_cpu
from .training.state import FitSummary


def load_model(model_dir: Path) -> SpatialBceForImageClassification:
    """Load a checkpoint for inference, on this process's device.

    Raises:
        FileNotFoundError: the folder holds no checkpoint.
    """
    if not (model_dir / "model.safetensors").is_file():
        raise FileNotFoundError(
            f"{model_dir}: no model.safetensors; expected the model/ folder of a finished training"
        )
    model = SpatialBceForImageClassification.from_pretrained(model_dir).eval()
    return cast(SpatialBceForImageClassification, model.to(cast(Any, PartialState(cpu=use_cpu()).device)))


def label_with_checkpoint(
    model_dir: Path,
    images: TaggedImages,
    labelling: LabellingConfig,
    output_dir: Path,
    strict: bool = False,
    sharded: bool = True,
) -> LabelSummary:
    """Label images with a checkpoint; see [`label_images`]. Unless only one process calls, they share the work."""
    process = PartialState(cpu=use_cpu())
    model = load_model(model_dir)
    weights = file_digest(model_dir / "model.safetensors")
    return label_images(
        model,
        images,
        labelling,
        output_dir=output_dir,
        key=digest({"labelling": to_mapping(labelling), "images": images.manifest_hash, "weights": weights}),
        strict=strict,
        rank=process.process_index if sharded else 0,
        world=process.num_processes if sharded else 1,
    )


def label_split(config: RunConfig, checkpoint: Path, output_dir: Path, split: str | None = None) -> LabelSummary:
    """Label one split with a checkpoint.

    Args:
        config: its `data` and `labelling` are used.
        checkpoint: a model folder.
        output_dir: gets the label stores.
        split: by default the train split.
    """
    images = load_images(config.data, split or config.data.train_split)
    return label_with_checkpoint(checkpoint, images, config.labelling, output_dir, strict=config.data.strict)


def estimate_proportions(
    store: LabelStore, images: TaggedImages, config: RunConfig, previous: ProportionTable | None = None
) -> ProportionTable:
    """Foreground proportions of images from a label store, clamped for training.

    Args:
        store: label maps of all images.
        images: the training set.
        config: its `proportions`, and what decides the size of a class map.
        previous: proportions that lost classes keep if `config.proportions.lost` is `"previous"`.

    Raises:
        ValueError: an image without a label map; names it.
    """
    ids, shares = store.proportions()
    rows = {image_id: row for row, image_id in enumerate(ids)}
    missing = [image_id for image_id in images.image_ids if image_id not in rows]
    if missing:
        raise ValueError(
            f"label store {store.directory}: no label map of image {missing[0]!r}; finish labelling first"
        )
    stride = config.model.get("output_stride") or 8
    num_pixels = max(config.spatial.image_size // stride, 1) ** 2
    shares = shares[[rows[image_id] for image_id in images.image_ids]]
    clamped, lost = clamp_proportions(shares, images.label_matrix(), config.proportions, num_pixels)
    if previous is not None and config.proportions.lost == "previous":
        clamped = np.where(lost, previous.join(images), clamped)
    return ProportionTable(images.class_names, tuple(images.image_ids), clamped, lost)


def train_stage(
    config: RunConfig, kind: Literal["bce", "spatial"], output_dir: Path, checkpoint: str | None, labels: str | None
) -> FitSummary:
    """Train one stage.

    Args:
        config: its `data`, `model`, `seed` and the training section of the kind are used.
        kind: `"bce"` or `"spatial"`.
        output_dir: of the stage.
        checkpoint: model folder to start from; by default the trunk weights.
        labels: label store the proportions of kind `"spatial"` come from.

    Raises:
        ValueError: kind `"spatial"` without labels, or data that does not fit.
    """
    images = load_images(config.data, config.data.train_split)
    proportions = None
    if kind == "spatial":
        if labels is None:
            raise ValueError("--labels: missing; kind spatial needs the label store its proportions come from")
        proportions = estimate_proportions(LabelStore(labels), images, config).join(images)
    if checkpoint is None:
        model = create_classifier(config.model, images.class_names, config.trunk_weights, config.seed)
    else:
        model = SpatialBceForImageClassification.from_pretrained(checkpoint)
    training = config.bce if kind == "bce" else config.spatial
    return train_classifier(model, images, training, kind, proportions, output_dir=output_dir, seed=config.seed)


def evaluate_labels(config: RunConfig, labels: Path, split: str | None = None) -> dict[str, Any]:
    """Score a label store on a split's masks; see [`score_store`].

    Raises:
        ValueError: no split with masks is named.
    """
    split = split or config.data.score_split
    if split is None:
        raise ValueError("data.score_split: null; name a split with masks, as in --split train")
    return score_store(LabelStore(labels), load_images(config.data, split))
