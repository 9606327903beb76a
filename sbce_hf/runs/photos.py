"""Photos and tags in memory, through a classifier, to label maps in memory."""

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
from PIL import Image
from transformers import PreTrainedModel

from ..config import LabellingConfig
from ..data.decoding import decode_image, named
from ..data.preprocessing import Preprocessing
from ..errors import UserError
from ..inference.checkpoints import labelling_side, load_classifier
from ..inference.views import class_maps
from ..models.configuration_checks import label_names
from ..models.modeling_spatial_bce import SpatialBceForImageClassification
from ..postprocess.crf import dense_crf
from ..postprocess.rules import apply_rule
from ..references import local_checkpoint
from .layout import result_of


@runtime_checkable
class Loaded(Protocol):
    """What `load_checkpoint` returns."""

    model: PreTrainedModel
    config: Any


def label_photos(
    model: SpatialBceForImageClassification | Loaded | str | os.PathLike[str],
    photos: Sequence[Image.Image | str | os.PathLike[str]],
    tags: Sequence[Sequence[str]] | None,
    config: LabellingConfig | None = None,
) -> list[np.ndarray]:
    """Label a few photos; for many, which should survive a power cut, there is [`label_images`].

    Args:
        model: a trained classifier, what [`load_checkpoint`] returns for one, its folder, a run directory, or a Hub id
            with an optional `@revision`.
        photos: of any modes and sizes, or their files.
        tags: names of the classes on each photo; `None` predicts them.
        config: views, rule and dense CRF; by default one view of the checkpoint's size, the learned thresholds and the
            CRF.

    Returns:
        Label maps, uint8 of shape `(H, W)`: 0 is background, `c + 1` the model's class `c`.

    Raises:
        UserError: another model than a classifier, a tag that is no class of it, not one list of tags for each photo,
            or a file that is none.

    Examples:
        >>> from PIL import Image
        >>> from sbce_hf import SpatialBceConfig, SpatialBceForImageClassification, label_photos
        >>> names = {0: "cup", 1: "plate"}
        >>> config = SpatialBceConfig(trunk="test_resnet", id2label=names, label2id={"cup": 0, "plate": 1})
        >>> model = SpatialBceForImageClassification(config)
        >>> (label_map,) = label_photos(model, [Image.new("RGB", (48, 32))], [["plate"]])
        >>> label_map.shape, set(label_map.flat) <= {0, 2}
        ((32, 48), True)
    """
    model, default = _classifier(model)
    config = config or default
    names = label_names(model.config)
    labels = None
    if tags is not None:
        if len(tags) != len(photos):
            raise UserError(f"tags: got {len(tags)}, expected one list for each of {len(photos)} photos")
        for number, own in enumerate(tags):
            if isinstance(own, str) or any(tag not in names for tag in own):
                raise UserError(f"tags of photo {number}: got {own!r}, expected a list of {list(names)}")
        labels = np.array([[name in own for name in names] for own in tags], np.float32)
    known = config.known_classes if labels is not None else "predicted"
    config = replace(config, known_classes=known)
    upright = [_picture(photo) for photo in photos]
    found = []
    for photo, maps in zip(
        upright, class_maps(model, upright, labels, config, preprocessing=Preprocessing.of(model.config)), strict=True
    ):
        label_map = apply_rule(maps, config).label_map
        if config.crf is not None:
            label_map = dense_crf(np.asarray(photo), label_map, maps.classes.tolist(), config.crf)
        found.append(label_map)
    return found


def _classifier(
    model: SpatialBceForImageClassification | Loaded | str | os.PathLike[str],
) -> tuple[SpatialBceForImageClassification, LabellingConfig]:
    """The classifier, and how it labels by default."""
    if isinstance(model, (str, os.PathLike)):
        folder = local_checkpoint(result_of(model, "classifier"))
        return load_classifier(folder), LabellingConfig(image_size=labelling_side(folder), scales=(1.0,))
    found, config = cast(Any, model), cast(Any, LabellingConfig(scales=(1.0,)))
    if not isinstance(model, PreTrainedModel) and isinstance(model, Loaded):
        found, config = model.model, model.config
    if not isinstance(found, SpatialBceForImageClassification):
        raise UserError(
            f"model: got a {type(found).__name__}, expected a classifier of this package, its folder, a run directory "
            "or a Hub id; what needs no tags is for predict_images"
        )
    return found, config


def _picture(photo: Image.Image | str | os.PathLike[str]) -> Image.Image:
    if isinstance(photo, Image.Image):
        return photo.convert("RGB")
    if not isinstance(photo, (str, os.PathLike)):
        raise UserError(f"photos: got a {type(photo).__name__}, expected Pillow's images or files")
    with named(f"photo {os.fspath(photo)}"):
        return decode_image(os.fspath(photo))
