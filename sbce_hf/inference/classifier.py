"""A checkpoint and images in, stores of label maps out."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..config import LabellingConfig, to_mapping
from ..data.preprocessing import IMAGENET, Preprocessing
from ..data.schema import TaggedImages
from ..models.configuration_checks import label_names
from ..models.modeling_spatial_bce import SpatialBceForImageClassification
from ..postprocess.confidence import Usual, confidence_of, share_on_objects, with_confidence
from ..postprocess.crf_pool import CrfPool
from ..postprocess.methods import Method, RuleMethod
from ..postprocess.rules import SOFT_RANGE, ClassMaps, with_thresholds
from ..processes import ALL, Share
from ..progress import LABELLING, tracked
from .views import iterate_class_maps
from .writing import LabelledImage, LabelSummary, groups_of, read_images, write_stores

# Photos of each class that say what its maps are usually like; labels are as good as with all of them.
PHOTOS_PER_CLASS = 12


def listens(config: LabellingConfig) -> bool:
    """Whether label maps depend on what class maps of the network are usually like."""
    return config.rule == "peak" and (config.confidence_weight > 0 or config.object_weight > 0)


def positions_to_look_at(images: TaggedImages, config: LabellingConfig) -> list[int]:
    """The first photos, [`PHOTOS_PER_CLASS`] of each tag; of predicted classes nobody knows where they are."""
    labels = images.label_matrix() > 0
    if config.known_classes == "predicted":
        return list(range(min(len(images), PHOTOS_PER_CLASS * labels.shape[1])))
    wanted = labels & (labels.cumsum(axis=0) <= PHOTOS_PER_CLASS)
    return np.flatnonzero(wanted.any(axis=1)).tolist()


def look_for_usual(
    model: SpatialBceForImageClassification,
    images: TaggedImages,
    config: LabellingConfig,
    preprocessing: Preprocessing = IMAGENET,
    objects: Callable[[np.ndarray], np.ndarray] | None = None,
    shown: bool = True,
) -> Usual:
    """What class maps of a network are usually like: medians over some photos.

    Args:
        model: a trained classifier, on its device. Left in evaluation mode.
        images: of which [`positions_to_look_at`] are looked at; what cannot be read is left out.
        config: views, and what the known classes are.
        preprocessing: of the photos.
        objects: for `config.object_weight`: an [`ObjectMap`], or what answers like one.
        shown: with a progress bar.

    Raises:
        ValueError: `config.object_weight` without `objects`.
    """
    if config.object_weight and objects is None:
        raise ValueError(
            f"labelling.object_weight: got {config.object_weight:g}, but nothing that looks for objects: pass an "
            "ObjectMap of stage 0's network, or set labelling.object_weight to 0"
        )
    sure: dict[int, list[float]] = {}
    placed: dict[int, list[float]] = {}
    positions, labels = positions_to_look_at(images, config), images.label_matrix()
    groups = groups_of(len(positions), config.batch_size)
    for group in tracked(groups, "looking at what is usual", len(groups), unit="batches", shown=shown):
        photos: dict[int, Image.Image] = {}
        for index in group:
            photos |= read_images(images, range(positions[index], positions[index] + 1), strict=False)[0]
        seen = iterate_class_maps(
            model, list(photos.values()), labels[list(photos)], config, preprocessing=preprocessing
        )
        for photo, maps in zip(photos.values(), seen, strict=True):
            _add(sure, maps, confidence_of(maps))
            if objects is not None and len(maps.classes):
                _add(placed, maps, share_on_objects(maps, objects(np.asarray(photo)), config.peak_share))
    return Usual(_medians(sure), _medians(placed))


def _add(found: dict[int, list[float]], maps: ClassMaps, values: np.ndarray) -> None:
    for index, value in zip(maps.classes.tolist(), values.tolist(), strict=True):
        found.setdefault(index, []).append(value)


def _medians(found: dict[int, list[float]]) -> dict[int, float]:
    return {index: float(np.median(values)) for index, values in sorted(found.items())}


def to_refine(maps: ClassMaps, config: LabellingConfig, usual: Usual | None) -> ClassMaps:
    """Class maps with what a [`Method`] goes on from: the rule's thresholds, whichever rule that is, and confidence.

    Args:
        maps: of one image, as they come from the network.
        config: rule, `confidence_weight` and `object_weight`.
        usual: see [`label_images`]; `None` if [`listens`] says no.
    """
    if usual is not None:
        maps = with_confidence(maps, usual, config)
    return with_thresholds(config.rule, maps, config.peak_share)


def label_images(
    model: SpatialBceForImageClassification,
    images: TaggedImages,
    config: LabellingConfig,
    *,
    output_dir: Path,
    key: str,
    checkpoint: str | None = None,
    method: Method | None = None,
    strict: bool = False,
    share: Share = ALL,
    preprocessing: Preprocessing = IMAGENET,
    usual: Usual | None = None,
) -> LabelSummary:
    """Label every image: views, threshold rule or another method, and meanwhile the dense CRF.

    Killed at any moment and called again, it ends with the same bytes. Results depend, in their last bits, on which
    images share a batch; so they are labelled in fixed groups of `config.batch_size`, see [`write_stores`].

    Args:
        model: a trained classifier, on its device. Left in evaluation mode and channels-last memory format.
        images: to label; their tags are the known classes unless `config.known_classes` is `"predicted"`. An image
            without known classes becomes all background.
        config: views, rule, CRF.
        output_dir: gets the method's stores.
        key: of everything the label maps depend on: checkpoint, options, `images.manifest_hash`.
        checkpoint: hash of the model's weights, kept with the label maps.
        method: instead of `config.rule`.
        strict: raise at an unreadable image instead of skipping and listing it.
        share: this process's.
        preprocessing: of the photos; the image processor's.
        usual: for `config.confidence_weight` and `object_weight`, as from [`look_for_usual`], which is asked if it is
            `None`; it has to be given for `object_weight`.

    Returns:
        [`LabelSummary`].

    Raises:
        ValueError: the model's classes are not the images', the stores were made from something else, an unreadable
            image if `strict`, class maps that are not finite, or `object_weight` without `usual`.
        OSError: a store cannot be written.
        RuntimeError: a CRF process died.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from sbce_hf import DataConfig, LabellingConfig, LabelStore, label_images, load_images
        >>> from sbce_hf.training.classifier import create_classifier
        >>> images = load_images(DataConfig(source="shapes", shapes_images=4, shapes_size=48), "train")
        >>> model = create_classifier({"trunk": "test_resnet"}, images.class_names)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     config = LabellingConfig(rule="fixed", scales=(1.0,))
        ...     summary = label_images(model, images, config, output_dir=Path(folder), key="first model")
        ...     print([path.name for path in summary.directories], LabelStore(summary.directories[-1]).complete)
        ['fixed', 'fixed_crf'] True
    """
    chosen: Method = method or RuleMethod(config)
    _check_classes(model, images.class_names)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-arg]
    ids, labels = images.image_ids, images.label_matrix()
    if listens(config) and usual is None:
        usual = look_for_usual(model, images, config, preprocessing, shown=share.rank == 0)

    def label(group: Sequence[int], photos: Sequence[Image.Image], crf: CrfPool | None) -> Iterator[LabelledImage]:
        names = [ids[i] for i in group]
        found = iterate_class_maps(
            model, photos, labels[group], config=config, image_ids=names, preprocessing=preprocessing
        )
        for photo, maps in zip(photos, found, strict=True):
            yield _label(np.asarray(photo), to_refine(maps, config, usual), chosen, crf)

    details = {"method": chosen.name, "config": {**to_mapping(config), **chosen.options}, "checkpoint": checkpoint}
    return write_stores(
        images,
        label,
        config,
        stores={Path(output_dir) / name: details for name in chosen.stores},
        key=key,
        share=share,
        strict=strict,
        group_size=config.batch_size,
        what=LABELLING,
        device=model.device,
    )


def _check_classes(model: SpatialBceForImageClassification, class_names: tuple[str, ...]) -> None:
    names = label_names(model.config)
    # A model that was made from a number of classes alone has names like these.
    unnamed = tuple(f"LABEL_{i}" for i in range(len(names)))
    if len(names) != len(class_names) or names not in (unnamed, tuple(class_names)):
        raise ValueError(
            f"the model's classes are {list(names)}, the images' {list(class_names)}; expected the same names in the "
            "same order (data.classes sets the images')"
        )


def _label(image: np.ndarray, maps: ClassMaps, method: Method, crf: CrfPool | None) -> LabelledImage:
    answer = method(image, maps, crf)
    probabilities = maps.probabilities
    soft = (probabilities > SOFT_RANGE[0]) & (probabilities < SOFT_RANGE[1])
    record = {
        "classes": maps.classes.tolist(),
        "thresholds": answer.thresholds.tolist(),
        "soft_share": soft.mean(axis=(1, 2)).tolist(),
        "mean_probability": probabilities.mean(axis=(1, 2), dtype=np.float64).tolist(),
    }

    def describe(label_map: np.ndarray) -> dict[str, Any]:
        return {**record, "proportions": [float((label_map == c + 1).mean()) for c in record["classes"]]}

    return LabelledImage(answer.label_maps, describe)
