"""Training samples for dense prediction: crops of images and their label maps."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.random import Generator
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from ..config import CropTrainingConfig, TrainingConfig
from ..data.preprocessing import IMAGENET, Preprocessing
from ..data.schema import IGNORE_INDEX, TaggedImages
from ..data.transforms import augment, jitter_colors
from ..labels.label_maps import LabelMaps


class _Crops(Dataset):
    """What the training sets of label maps share; nothing is kept in memory.

    Args:
        images: the training set; see [`check_label_maps`] for what is relied on.
        label_maps: of these images.
        seed: of the augmentation.
        preprocessing: of the photos.
    """

    def __init__(self, images: TaggedImages, label_maps: LabelMaps, seed: int, preprocessing: Preprocessing) -> None:
        self.images, self.label_maps, self.seed = images, label_maps, seed
        self.epoch = 0
        self._ids = images.image_ids
        self._preprocessing = preprocessing

    def set_epoch(self, epoch: int) -> None:
        """Draw other augmentations; call before the epoch's iterator, and so its workers, are made."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self._ids)

    def _padded(
        self, image: Image.Image, label_map: Image.Image, columns: "Cut", rows: "Cut", size: int
    ) -> tuple[Tensor, Tensor]:
        """Pixels `(3, size, size)`, 0 where the image does not reach, and labels `(size, size)`, 255 there."""
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        where = (slice(rows.target, rows.target + rows.length), slice(columns.target, columns.target + columns.length))
        pixel_values = torch.zeros(3, size, size)
        pixel_values[:, *where] = self._preprocessing(pixels)
        labels = torch.full((size, size), IGNORE_INDEX)
        labels[where] = torch.from_numpy(np.array(label_map)).long()
        return pixel_values, labels


class SegmentationDataset(_Crops):
    """Images with label maps as training samples; nothing is kept in memory.

    Image and label map are scaled, cut out, padded and mirrored alike. Every random draw comes from a generator seeded
    by (seed, epoch, index), so a sample is the same whatever the number of workers and the order of loading.

    Args:
        images: the training set; see [`check_label_maps`] for what is relied on.
        label_maps: of these images.
        config: sizes and augmentation.
        seed: of the augmentation.
        preprocessing: of the photos.
    """

    def __init__(
        self,
        images: TaggedImages,
        label_maps: LabelMaps,
        config: CropTrainingConfig,
        seed: int,
        preprocessing: Preprocessing = IMAGENET,
    ) -> None:
        super().__init__(images, label_maps, seed, preprocessing)
        self.config = config

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
        columns, rows = (Cut.draw(side, size, generator) for side in scaled)

        # As in TrainingDataset, what the reduced JPEG decoding loses stays below what the resize removes anyway.
        image = self.images.image(index, min_side=2 * min(scaled))
        image = cut_out(image, scaled, columns, rows, self._preprocessing.resample)
        label_map = cut_out(label_map, scaled, columns, rows, Image.Resampling.NEAREST)
        if config.flip and generator.random() < 0.5:
            image, label_map = ImageOps.mirror(image), ImageOps.mirror(label_map)
        if config.color_jitter:
            image = jitter_colors(image, config.color_jitter, generator)

        pixel_values, labels = self._padded(image, label_map, columns, rows, size)
        return {"pixel_values": pixel_values, "labels": labels, "index": index}


class LabelledDataset(_Crops):
    """Training samples of a classifier that learns from label maps: as [`TrainingDataset`]'s, at a random scale.

    Image and label map are cut out of the square to which a classifier's images are resized, scaled.

    Args:
        images: the training set; see [`check_label_maps`] for what is relied on.
        label_maps: of these images.
        config: size, scales and augmentation.
        seed: of the augmentation.
        preprocessing: of the photos.
    """

    def __init__(
        self,
        images: TaggedImages,
        label_maps: LabelMaps,
        config: TrainingConfig,
        seed: int,
        preprocessing: Preprocessing = IMAGENET,
    ) -> None:
        super().__init__(images, label_maps, seed, preprocessing)
        self.config = config
        self._labels = torch.from_numpy(images.label_matrix())

    def __getitem__(self, index: int) -> dict[str, Tensor | int]:
        """One sample; ``S`` is `config.image_size`.

        Returns:
            `pixel_values` (`float32`, `(3, S, S)`, 0 where the image does not reach), `labels` (`float32`, `(C,)`, the
            image's tags), `label_maps` (`int64`, `(S, S)`, 255 where unknown or outside), `proportions` (`float64`,
            `(C,)`, shares of what is known) and `index`.
        """
        config, size = self.config, self.config.image_size
        generator = np.random.default_rng([self.seed, self.epoch, index])
        side = max(1, round(size * generator.uniform(config.min_scale, config.max_scale)))
        columns, rows = (Cut.draw(side, size, generator) for _ in range(2))
        image = self.images.image(index, min_side=2 * side)
        image = cut_out(image, (side, side), columns, rows, self._preprocessing.resample)
        label_map = Image.fromarray(self.label_maps.read(self._ids[index]))
        label_map = cut_out(label_map, (side, side), columns, rows, Image.Resampling.NEAREST)
        if config.augmentation.flip and generator.random() < 0.5:
            image, label_map = ImageOps.mirror(image), ImageOps.mirror(label_map)
        image = augment(image, replace(config.augmentation, flip=False), generator)
        pixel_values, label_maps = self._padded(image, label_map, columns, rows, size)
        counts = torch.bincount(label_maps.flatten(), minlength=IGNORE_INDEX + 1).double()
        known = (size**2 - counts[IGNORE_INDEX]).clamp(min=1)
        labels = self._labels[index]
        return {
            "pixel_values": pixel_values,
            "labels": labels,
            "label_maps": label_maps,
            "proportions": counts[1 : 1 + len(labels)] / known,
            "index": index,
        }


@dataclass(frozen=True)
class Cut:
    """One axis of a random crop: `length` pixels from `source` of the scaled image go to `target` of the crop."""

    source: int
    target: int
    length: int

    @classmethod
    def draw(cls, side: int, size: int, generator: Generator) -> "Cut":
        """A random part of `size` pixels, or all `side` pixels at a random place if that is less."""
        slack = side - size
        offset = int(generator.integers(abs(slack) + 1))
        return cls(offset, 0, size) if slack > 0 else cls(0, offset, side)

    def times(self, factor: int) -> "Cut":
        """The same part of an axis of `factor` times as many pixels."""
        return Cut(factor * self.source, factor * self.target, factor * self.length)


def cut_out(
    image: Image.Image, scaled: tuple[int, ...], columns: Cut, rows: Cut, resample: Image.Resampling
) -> Image.Image:
    """The crop of `image` resized to `scaled`; only what is in the crop is computed."""
    left, right = (x / scaled[0] * image.width for x in (columns.source, columns.source + columns.length))
    upper, lower = (y / scaled[1] * image.height for y in (rows.source, rows.source + rows.length))
    return image.resize((columns.length, rows.length), resample, box=(left, upper, right, lower))
