"""The single steps of a run: train one stage, label one split, score a label store; predict."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from accelerate import PartialState

from ..config import CrfConfig, LabellingConfig, PredictionConfig, RunConfig, deciding, from_mapping
from ..data import TaggedImages, load_images
from ..data.photos import load_photos
from ..data.preprocessing import Preprocessing
from ..data.saliency_maps import SaliencyMaps, check_saliency_maps
from ..errors import UserError
from ..evaluation.confusion import score_store
from ..files import digest, file_digest, write_atomic
from ..inference.checkpoints import (
    load_classifier,
    load_segmenter,
    preprocessing_of,
    read_classifier,
    read_segmenter,
    trained_side,
)
from ..inference.classifier import label_images
from ..inference.segmenter import METHOD, foreground_classes, predict_images
from ..inference.views import iterate_class_maps
from ..inference.writing import LabelSummary
from ..labels.hub_store import open_label_maps
from ..labels.store import LabelStore
from ..labels.variants import variants
from ..postprocess.methods import Method
from ..postprocess.rules import ClassMaps
from ..postprocess.saliency import SaliencyMethod
from ..processes import alone_in, share_of
from ..references import local_checkpoint
from ..training.classifier import create_classifier, train_classifier
from ..training.device import use_cpu
from ..training.folder import FitSummary
from .overlays import draw_overlays
from .proportions import estimate_proportions
from .usual import made_from_checkpoint, usual_of


def label_with_checkpoint(
    model_dir: Path,
    images: TaggedImages,
    labelling: LabellingConfig,
    output_dir: Path,
    strict: bool = False,
    method: Method | None = None,
    inputs: Mapping[str, Any] | None = None,
    looked: Path | None = None,
) -> LabelSummary:
    """Label images with a checkpoint; see [`label_images`]. All processes call, and share the work.

    Args:
        model_dir: the classifier.
        images: to label.
        labelling: views, rule, CRF.
        output_dir: gets the stores.
        strict: raise at an unreadable image.
        method: instead of a rule.
        inputs: what the method's label maps depend on besides; plain values.
        looked: where another call with this checkpoint has left [`usual.CONFIDENCE`]; taken up if images and settings
            are the same, too.
    """
    model, process = load_classifier(model_dir), PartialState(cpu=use_cpu())
    made_from = made_from_checkpoint(model_dir, model, images, labelling)
    folders = [folder for folder in (output_dir, looked) if folder is not None]
    usual = usual_of(model_dir, model, images, labelling, folders, made_from)
    return label_images(
        model,
        images,
        labelling,
        output_dir=output_dir,
        key=digest({**made_from, **(inputs or {})}),
        checkpoint=made_from["weights"],
        method=method,
        strict=strict,
        share=share_of(process),
        preprocessing=Preprocessing.of(model.config),
        usual=usual,
    )


def label_split(config: RunConfig, checkpoint: str | Path, output_dir: Path, split: str | None = None) -> LabelSummary:
    """Label one split with a checkpoint.

    Args:
        config: its `data` and `labelling` are used, and `saliency` instead of a threshold rule.
        checkpoint: a model folder, or a Hub id with an optional `@revision`.
        output_dir: gets the label stores.
        split: by default the train split.

    Raises:
        UserError: saliency maps that are missing or cannot be used; see [`check_saliency_maps`]. Or a rule that asks
            for stage 0's network, and the checkpoint does not lie in a run.
    """
    model_dir, labelling, section = local_checkpoint(checkpoint), config.labelling, config.saliency
    split = split or config.data.train_split
    images = load_images(config.data, split)
    method, inputs = None, {}
    if section is not None:
        maps = SaliencyMaps(section, config.data, split)
        inputs = {"saliency": deciding(section), "outside": check_saliency_maps(maps, images)}
        method = SaliencyMethod(section, maps, labelling.crf)
    strict = config.data.strict
    with alone_in(output_dir, PartialState(cpu=use_cpu())):
        return label_with_checkpoint(model_dir, images, labelling, output_dir, strict, method=method, inputs=inputs)


def maps_of(
    model_dir: Path, images: TaggedImages, labelling: LabellingConfig, groups: Iterable[range]
) -> Iterator[ClassMaps]:
    """The class maps of groups of images, in memory."""
    model = load_classifier(model_dir)
    labels, ids = images.label_matrix(), images.image_ids
    for group in groups:
        photos = [images.image(index) for index in group]
        yield from iterate_class_maps(
            model,
            photos,
            labels[list(group)],
            labelling,
            image_ids=[ids[index] for index in group],
            preprocessing=Preprocessing.of(model.config),
        )


def predict_with_checkpoint(
    model_dir: Path,
    images: TaggedImages,
    prediction: PredictionConfig,
    output_dir: Path,
    strict: bool = False,
) -> LabelSummary:
    """Predict label maps; see [`predict_images`]. All processes call, and share the work."""
    model, processor = load_segmenter(model_dir)
    files = [*sorted(model_dir.glob("*.safetensors")), model_dir / "preprocessor_config.json"]
    options = deciding(prediction)
    made_from = {"prediction": options, "images": images.manifest_hash, "checkpoint": [file_digest(f) for f in files]}
    return predict_images(
        model,
        images,
        prediction,
        output_dir=output_dir,
        key=digest(made_from),
        strict=strict,
        share=share_of(PartialState(cpu=use_cpu())),
        preprocessing=preprocessing_of(processor),
    )


def predict_photos(
    checkpoint: str | Path,
    paths: Sequence[str],
    options: Mapping[str, Any],
    output_dir: Path,
    strict: bool = False,
    overlays: bool = True,
) -> LabelSummary:
    """Predict label maps of photos in files and folders.

    Args:
        checkpoint: a segmentation network's model folder, or a Hub id with an optional `@revision`.
        paths: see [`load_photos`].
        options: fields of [`PredictionConfig`]; by default `image_size` is that of the training.
        output_dir: gets the label stores, `skipped.json`, and `overlays/` with the photos under their label maps.
        strict: stop at the first unreadable photo.
        overlays: draw them.

    Returns:
        [`LabelSummary`]; unreadable photos are counted among its images and skipped.
    """
    model_dir = local_checkpoint(checkpoint)
    config, processor = read_segmenter(model_dir)
    side = trained_side(processor, str(checkpoint))
    prediction = from_mapping(PredictionConfig, {"image_size": side, **options}, "prediction")
    results = [output_dir / name for name in (*variants(METHOD, CrfConfig()), "overlays")]
    images = load_photos(paths, foreground_classes(config), strict=strict, exclude=results)
    with alone_in(output_dir, PartialState(cpu=use_cpu())):
        summary = predict_with_checkpoint(model_dir, images, prediction, output_dir, strict)
        if overlays:
            draw_overlays(images, LabelStore(summary.directories[-1]), output_dir / "overlays")
        skipped = {**{image.file: image.reason for image in images.skipped}, **summary.skipped}
        if summary.complete:
            listed = [{"file": file, "reason": reason} for file, reason in sorted(skipped.items())]
            write_atomic(output_dir / "skipped.json", json.dumps(listed, indent=1))
    return replace(summary, num_images=len(images) + len(images.skipped), skipped=skipped)


def train_stage(
    config: RunConfig, kind: Literal["bce", "spatial"], output_dir: Path, checkpoint: str | None, labels: str | None
) -> FitSummary:
    """Train one stage.

    Args:
        config: its `data`, `model`, `seed` and the training section of the kind are used.
        kind: `"bce"` or `"spatial"`.
        output_dir: of the stage.
        checkpoint: model to start from, a folder or a Hub id with an optional `@revision`; by default the trunk
            weights.
        labels: what the proportions of kind `"spatial"` come from; see [`open_label_maps`].

    Raises:
        ValueError: kind `"spatial"` without labels, or data that does not fit.
    """
    if kind == "spatial" and labels is None:
        raise ValueError("--labels: missing; kind spatial needs the label store its proportions come from")
    if config.proportions.file is not None:
        raise UserError(
            "proportions.file: is for sbce run, which marks what comes of it; leave it out, --labels says it"
        )
    model_dir = None if checkpoint is None else local_checkpoint(checkpoint)
    images = load_images(config.data, config.data.train_split)
    proportions = label_maps = None
    training = config.bce if kind == "bce" else config.spatial
    if kind == "spatial" and labels is not None:
        label_maps = open_label_maps(labels, images.class_names)
        if training.targets == "proportions":
            proportions = estimate_proportions(label_maps, images, config).join(images)
    if model_dir is None:
        model = create_classifier(config.model, images.class_names, config.trunk_weights, config.seed)
    else:
        model = read_classifier(model_dir)
    with alone_in(output_dir, PartialState(cpu=use_cpu())):
        return train_classifier(
            model, images, training, kind, proportions, output_dir=output_dir, seed=config.seed, label_maps=label_maps
        )


def evaluate_labels(config: RunConfig, labels: str | Path, split: str | None = None) -> dict[str, Any]:
    """Score a label store on a split's masks; see [`open_label_maps`] and [`score_store`].

    Raises:
        ValueError: no split with masks is named.

    Examples:
        >>> import tempfile
        >>> from sbce_hf import LabelStore, evaluate_labels, load_images, load_recipe
        >>> config = load_recipe("quickstart", {"data": {"shapes_images": 4, "shapes_size": 48}})
        >>> images = load_images(config.data, "train")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = LabelStore.create(folder, images.class_names, key="all background", num_images=len(images))
        ...     for index, image_id in enumerate(images.image_ids):
        ...         store.write(image_id, 0 * images.mask(index), {"classes": [], "proportions": []})
        ...     scores = evaluate_labels(config, folder)
        >>> round(scores["mean_iou"], 2), scores["num_images"]
        (0.17, 4)
    """
    split = split or config.data.score_split
    if split is None:
        raise ValueError("data.score_split: null; name a split with masks, as in --split train")
    label_maps = open_label_maps(labels)
    return score_store(label_maps, load_images(config.data, split))
