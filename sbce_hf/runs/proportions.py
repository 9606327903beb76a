"""The foreground proportions that a run's rounds are trained with: estimated, or given as a table."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from ..config import RunConfig
from ..data import TaggedImages, load_images
from ..data.schema import IGNORE_INDEX
from ..errors import UserError
from ..files import file_digest
from ..labels.hub_store import HubLabelMaps, open_label_maps
from ..labels.proportions import ProportionTable, clamp_proportions
from ..labels.store import LabelStore
from ..models.configuration_spatial_bce import SpatialBceConfig
from ..models.modeling_trunk import create_trunk
from ..training.backbones import resolve_backbone


def estimate_proportions(
    store: LabelStore | HubLabelMaps,
    images: TaggedImages,
    config: RunConfig,
    previous: ProportionTable | None = None,
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
    shares = shares[[rows[image_id] for image_id in images.image_ids]]
    clamped, lost = _clamped(shares, images, config)
    if previous is not None and config.proportions.lost == "previous":
        clamped = np.where(lost, previous.join(images), clamped)
    return ProportionTable(images.class_names, tuple(images.image_ids), clamped, lost)


def class_map_stride(config: RunConfig) -> int:
    """Pixels of an image per pixel of a class map and axis; the trunk's own where the recipe leaves it open."""
    fields, _ = resolve_backbone(config.model, "random")
    with torch.device("meta"):
        trunk = create_trunk(SpatialBceConfig(**fields))
    return cast(Any, trunk).feature_info.reduction()[-1]


def _clamped(
    shares: NDArray[np.float64], images: TaggedImages, config: RunConfig
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    num_pixels = max(config.spatial.image_size // class_map_stride(config), 1) ** 2
    return clamp_proportions(shares, images.label_matrix(), config.proportions, num_pixels)


def true_proportions(images: TaggedImages, config: RunConfig) -> ProportionTable:
    """Each class's share of the known pixels of an image's mask, clamped for training: a yardstick.

    Args:
        images: the training set.
        config: as for [`estimate_proportions`].

    Raises:
        UserError: an image without a mask.
    """
    clamped, lost = _clamped(true_shares(images), images, config)
    return ProportionTable(images.class_names, tuple(images.image_ids), clamped, lost, from_masks=True)


def true_shares(images: TaggedImages) -> NDArray[np.float64]:
    """Each class's share of the known pixels of each image's mask, `(n, C)` float64.

    Raises:
        UserError: an image without a mask.
    """
    ids, masked = images.image_ids, images.with_masks()
    missing = set(ids) - set(masked.image_ids)
    if missing:
        raise UserError(
            f"{len(missing)} of {len(ids)} images have no mask (first: {min(missing)!r}); proportions are read off "
            "masks only where all have one. Without --masks they are estimated from --labels"
        )
    shares = np.zeros((len(ids), images.num_classes))
    for row in range(len(ids)):
        mask = masked.mask(row)
        counts = np.bincount(mask[mask != IGNORE_INDEX], minlength=images.num_classes + 1)
        shares[row] = counts[1 : images.num_classes + 1] / max(counts.sum(), 1)
    return shares


def write_proportions(config: RunConfig, output: Path, labels: str | None) -> ProportionTable:
    """Write a table for `proportions.file`, of the training split.

    Args:
        config: its `data`, `model`, `proportions` and `spatial.image_size` are used.
        output: the file.
        labels: a label store or a Hub id, see [`open_label_maps`]; `None` reads masks.
    """
    images = load_images(config.data, config.data.train_split)
    if labels is None:
        table = true_proportions(images, config)
    else:
        table = estimate_proportions(open_label_maps(labels, images.class_names), images, config)
    table.save(output)
    return table


def given_proportions(config: RunConfig, images: TaggedImages) -> tuple[ProportionTable, str] | None:
    """The table that the config names, and the hash of its file; `None` if it names none.

    Raises:
        FileNotFoundError: no such file.
        UserError: no table, one of other images or classes, or one whose origin the config does not say.
    """
    section = config.proportions
    if section.file is None:
        return None
    table = ProportionTable.load(section.file)
    if table.from_masks != section.from_masks:
        was, expected = ("masks", "true") if table.from_masks else ("label maps", "false")
        raise UserError(
            f"proportions.file {section.file}: was read off {was}; expected proportions.from_masks={expected}, "
            "so that every result says so"
        )
    clamped, lost = _clamped(table.join(images), images, config)
    given = ProportionTable(images.class_names, tuple(images.image_ids), clamped, lost, table.from_masks)
    return given, file_digest(Path(section.file))
