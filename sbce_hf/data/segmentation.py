"""Training samples for dense prediction: images with label maps, checked before anything long starts."""

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from ..config import CropTrainingConfig
from ..errors import UserError
from .decoding import is_of_the_file
from .schema import IGNORE_INDEX, TaggedImages
from .transforms import jitter_colors
from .validation import listing

logger = logging.getLogger(__name__)


class LabelMaps(Protocol):
    """Label maps by image id, as a `LabelStore` on this machine and `HubLabelMaps` have them."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The foreground classes; class `c` has the value `c + 1`."""

    @property
    def complete(self) -> bool:
        """Whether an image without a label map will never get one."""

    def __contains__(self, image_id: str) -> bool: ...

    def read(self, image_id: str) -> NDArray[np.uint8]:
        """The label map of an image, `uint8` of shape `(H, W)`."""


class MaskLabels:
    """True masks as label maps: the yardstick for label maps that were made without masks.

    A network trained on these uses ground truth; nothing that is called weakly supervised may be made from it.

    Args:
        images: those without a mask have no label map.
    """

    complete = True

    def __init__(self, images: TaggedImages) -> None:
        self._images = images.with_masks()
        self._indices = {image_id: index for index, image_id in enumerate(self._images.image_ids)}
        self.class_names = images.class_names

    def __contains__(self, image_id: str) -> bool:
        return image_id in self._indices

    def read(self, image_id: str) -> NDArray[np.uint8]:
        """The mask of an image, `uint8` of shape `(H, W)`; see [`TaggedImages.mask`]."""
        return self._images.mask(self._indices[image_id])


def check_label_maps(images: TaggedImages, label_maps: LabelMaps) -> tuple[TaggedImages, str]:
    """Read every label map once and check what training relies on.

    Images without a label map, such as those that labelling has skipped, are left out.

    Args:
        images: the training set.
        label_maps: of these images; those of others are not looked at.

    Returns:
        the images that have a label map, and a hash of the label maps' content.

    Raises:
        ValueError: other classes, labelling was interrupted, no label map at all, or one that is unreadable, has a
            value that is no class, says nothing, or is not of its image's size; names the image.
    """
    if label_maps.class_names != images.class_names:
        raise UserError(
            f"label maps: have the classes {list(label_maps.class_names)}, expected the images' "
            f"{list(images.class_names)} in this order; label these images, or set data.classes to the label maps'"
        )
    ids = images.image_ids
    kept = [index for index, image_id in enumerate(ids) if image_id in label_maps]
    missing = [image_id for image_id in ids if image_id not in label_maps]
    if missing and not label_maps.complete:
        raise UserError(
            f"label maps: {len(missing)} of {len(ids)} images have none ({listing(missing)}), and the store is not "
            "complete; run the command that labels again, it continues where it stopped"
        )
    if not kept:
        raise UserError(
            f"label maps: none of the {len(ids)} images has one (first image: {ids[0]!r}); expected label maps of the "
            "same image ids"
        )
    if missing:
        logger.warning("%d of %d images have no label map: %s", len(missing), len(ids), listing(missing))

    def look(index: int) -> bytes:
        values = _checked_label_map(images, index, label_maps)
        return hashlib.sha256(json.dumps([ids[index], values.shape]).encode() + values.tobytes()).digest()

    content = hashlib.sha256(json.dumps(list(label_maps.class_names)).encode())
    # Masks that are painted read their annotations at the first one: once, not once per thread.
    look(kept[0])
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        looks = pool.map(look, kept)
        for digest in tqdm(looks, total=len(kept), desc="check label maps", unit="image", disable=None):
            content.update(digest)
    return images.select(kept) if missing else images, content.hexdigest()


def _checked_label_map(images: TaggedImages, index: int, label_maps: LabelMaps) -> NDArray[np.uint8]:
    image_id = images.dataset["image_id"][index]
    name = f"label map of image {image_id!r}"
    try:
        values = label_maps.read(image_id)
    except Exception as error:
        if not is_of_the_file(error):
            raise
        raise UserError(f"{name}: {type(error).__name__}: {error}; correct it or leave the image out") from error
    if values.ndim != 2 or values.dtype != np.uint8:
        raise UserError(
            f"{name}: got {values.dtype} of shape {values.shape}, expected 8-bit values of shape (H, W), as a "
            "palette or grey PNG has"
        )
    occurring = np.flatnonzero(np.bincount(values.ravel(), minlength=256))
    unknown = occurring[(occurring > images.num_classes) & (occurring != IGNORE_INDEX)]
    if unknown.size:
        raise UserError(
            f"{name}: got value {unknown[0]}, expected 0 (background) to {images.num_classes}, as there are "
            f"{images.num_classes} classes, or {IGNORE_INDEX} (ignore); correct it or leave the image out"
        )
    if occurring.tolist() == [IGNORE_INDEX]:
        raise UserError(
            f"{name}: got {IGNORE_INDEX} (ignore) for every pixel, expected at least one with a class or background; "
            "leave the image out"
        )
    width, height = images.upright_size(index)
    if values.shape != (height, width):
        raise UserError(
            f"{name}: got {values.shape[1]} x {values.shape[0]} pixels, expected {width} x {height} like its image "
            "(after the rotation its EXIF data ask for); make it from this image"
        )
    return values


class SegmentationDataset(Dataset):
    """Images with label maps as training samples; nothing is kept in memory.

    Image and label map are scaled, cut out, padded and mirrored alike. Every random draw comes from a generator seeded
    by (seed, epoch, index), so a sample is the same whatever the number of workers and the order of loading.

    Args:
        images: the training set; see [`check_label_maps`] for what is relied on.
        label_maps: of these images.
        config: sizes and augmentation.
        seed: of the augmentation.
        image_mean: per channel, of values in [0, 1].
        image_std: per channel.
    """

    def __init__(
        self,
        images: TaggedImages,
        label_maps: LabelMaps,
        config: CropTrainingConfig,
        seed: int,
        image_mean: Sequence[float] = (0.485, 0.456, 0.406),
        image_std: Sequence[float] = (0.229, 0.224, 0.225),
    ) -> None:
        self.images, self.label_maps, self.config, self.seed = images, label_maps, config, seed
        self.epoch = 0
        self._ids = images.image_ids
        self._mean = torch.tensor(image_mean, dtype=torch.float32).view(3, 1, 1)
        self._std = torch.tensor(image_std, dtype=torch.float32).view(3, 1, 1)

    def set_epoch(self, epoch: int) -> None:
        """Draw other augmentations; call before the epoch's iterator, and so its workers, are made."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> dict[str, Tensor | int]:
        """One sample; ``S`` is `config.crop_size`.

        Returns:
            `pixel_values` (`float32`, `(3, S, S)`, 0 where the image does not reach), `labels` (`int64`, `(S, S)`, 255
            there; a crop may hold nothing else) and `index`.
        """
        config, size = self.config, self.config.crop_size
        generator = np.random.default_rng([self.seed, self.epoch, index])
        label_map = Image.fromarray(self.label_maps.read(self._ids[index]))
        scale = generator.uniform(config.min_scale, config.max_scale)
        if config.image_size is not None:
            scale *= config.image_size / max(label_map.size)
        scaled = tuple(max(1, round(side * scale)) for side in label_map.size)
        columns, rows = (_Cut.draw(side, size, generator) for side in scaled)

        # As in TrainingDataset, what the reduced JPEG decoding loses stays below what the resize removes anyway.
        image = self.images.image(index, min_side=2 * min(scaled))
        image = _cut_out(image, scaled, columns, rows, Image.Resampling.BILINEAR)
        label_map = _cut_out(label_map, scaled, columns, rows, Image.Resampling.NEAREST)
        if config.flip and generator.random() < 0.5:
            image, label_map = ImageOps.mirror(image), ImageOps.mirror(label_map)
        if config.color_jitter:
            image = jitter_colors(image, config.color_jitter, generator)

        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        where = (slice(rows.target, rows.target + rows.length), slice(columns.target, columns.target + columns.length))
        pixel_values = torch.zeros(3, size, size)
        pixel_values[:, *where] = (pixels / 255 - self._mean) / self._std
        labels = torch.full((size, size), IGNORE_INDEX)
        labels[where] = torch.from_numpy(np.array(label_map)).long()
        return {"pixel_values": pixel_values, "labels": labels, "index": index}


@dataclass(frozen=True)
class _Cut:
    """One axis of a random crop: `length` pixels from `source` of the scaled image go to `target` of the crop."""

    source: int
    target: int
    length: int

    @classmethod
    def draw(cls, side: int, size: int, generator: Generator) -> "_Cut":
        """A random part of `size` pixels, or all `side` pixels at a random place if that is less."""
        slack = side - size
        offset = int(generator.integers(abs(slack) + 1))
        return cls(offset, 0, size) if slack > 0 else cls(0, offset, side)


def _cut_out(
    image: Image.Image, scaled: tuple[int, ...], columns: _Cut, rows: _Cut, resample: Image.Resampling
) -> Image.Image:
    """The crop of `image` resized to `scaled`; only what is in the crop is computed."""
    left, right = (x / scaled[0] * image.width for x in (columns.source, columns.source + columns.length))
    upper, lower = (y / scaled[1] * image.height for y in (rows.source, rows.source + rows.length))
    return image.resize((columns.length, rows.length), resample, box=(left, upper, right, lower))
