"""Training samples: decoded, resized, augmented, normalised.

Every random draw comes from a generator seeded by (seed, epoch, index), so a sample is the same whatever the number of
workers, the order of loading and the state of the global generators.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from ..config import AugmentationConfig
from .preprocessing import IMAGENET, Preprocessing
from .schema import TaggedImages

Operation = Callable[[Image.Image, float], Image.Image]

# RandAugment (Cubuk et al. 2020) with torchvision's ranges: an operation, its strength at magnitude 0 and at 30, and
# whether its sign is drawn. Enhancements are factors around 1.
_PHOTOMETRIC: tuple[tuple[Operation, float, float, bool], ...] = (
    (lambda image, v: image, 0, 0, False),
    (lambda image, v: adjust_brightness(image, 1 + v), 0, 0.9, True),
    (lambda image, v: F.adjust_saturation(image, 1 + v), 0, 0.9, True),
    (lambda image, v: adjust_contrast(image, 1 + v), 0, 0.9, True),
    (lambda image, v: F.adjust_sharpness(image, 1 + v), 0, 0.9, True),
    (lambda image, v: F.posterize(image, round(v)), 8, 4, False),
    (lambda image, v: F.solarize(image, v), 255, 0, False),
    (lambda image, v: F.autocontrast(image), 0, 0, False),
    (lambda image, v: F.equalize(image), 0, 0, False),
)


def _affine(
    image: Image.Image, angle: float = 0.0, shift: Sequence[float] = (0, 0), shear: Sequence[float] = (0, 0)
) -> Any:
    return F.affine(image, angle, list(shift), 1.0, list(shear), interpolation=InterpolationMode.BILINEAR)


_GEOMETRIC: tuple[tuple[Operation, float, float, bool], ...] = (
    (lambda image, v: _affine(image, shear=(np.degrees(np.arctan(v)), 0)), 0, 0.3, True),
    (lambda image, v: _affine(image, shear=(0, np.degrees(np.arctan(v)))), 0, 0.3, True),
    (lambda image, v: _affine(image, shift=(v * image.width, 0)), 0, 150 / 331, True),
    (lambda image, v: _affine(image, shift=(0, v * image.height)), 0, 150 / 331, True),
    (lambda image, v: _affine(image, angle=v), 0, 30, True),
)


def augment(image: Image.Image, config: AugmentationConfig, generator: Generator) -> Image.Image:
    """Mirror, jitter colours, RandAugment.

    Args:
        image: RGB.
        config: what is on, and how strong.
        generator: the only source of randomness.

    Returns:
        RGB of the same size. Without `config.geometric` the proportions of the classes do not change.
    """
    if config.flip and generator.random() < 0.5:
        image = F.horizontal_flip(image)
    if config.color_jitter:
        image = jitter_colors(image, config.color_jitter, generator)
    operations = _PHOTOMETRIC + (_GEOMETRIC if config.geometric else ())
    for _ in range(config.randaugment):
        operation, weakest, strongest, signed = operations[generator.integers(len(operations))]
        sign = -1 if signed and generator.random() < 0.5 else 1
        image = operation(image, sign * (weakest + (strongest - weakest) * config.randaugment_magnitude / 30))
    return image


def jitter_colors(image: Image.Image, strength: float, generator: Generator) -> Image.Image:
    """Change brightness, contrast and saturation, in random order.

    Args:
        image: RGB.
        strength: the factors are drawn evenly from 1 - strength (but at least 0) to 1 + strength.
        generator: the only source of randomness.
    """
    factors = generator.uniform(max(0.0, 1 - strength), 1 + strength, size=3)
    adjust = (adjust_brightness, adjust_contrast, F.adjust_saturation)
    for which in generator.permutation(3):
        image = adjust[which](image, float(factors[which]))
    return image


def adjust_brightness(image: Image.Image, factor: float) -> Image.Image:
    """What torchvision's function of this name does, in half of its time: each value's result is looked up."""
    return image.point(_blended(0, factor) * len(image.getbands()))


def adjust_contrast(image: Image.Image, factor: float) -> Image.Image:
    """What torchvision's function of this name does, in half of its time; see [`adjust_brightness`].

    Args:
        image: RGB.
        factor: 0 gives its mean grey, 1 the image.
    """
    mean = ImageEnhance.Contrast(image).degenerate.getpixel((0, 0))
    return image.point(_blended(cast(tuple[int, ...], mean)[0], factor) * len(image.getbands()))


def _blended(value: int, factor: float) -> list[int]:
    """Pillow's blend of one value with each of 0 to 255."""
    return list(Image.blend(Image.new("L", _RAMP.size, value), _RAMP, factor).tobytes())


_RAMP = Image.fromarray(np.arange(256, dtype=np.uint8)[None])


class TrainingDataset(Dataset):
    """Images as training samples; nothing is kept in memory, masks are never read.

    Args:
        images: the training split.
        size: ``S``, side of the samples; the aspect is not kept.
        augmentation: see [`AugmentationConfig`].
        seed: of the augmentation.
        proportions: of shape `(n, C)`; `None` leaves them out of the samples.
        preprocessing: of the photos.

    Raises:
        ValueError: proportions of another shape.
    """

    def __init__(
        self,
        images: TaggedImages,
        size: int,
        augmentation: AugmentationConfig,
        seed: int,
        proportions: NDArray[np.float64] | None = None,
        preprocessing: Preprocessing = IMAGENET,
    ) -> None:
        expected = (len(images), images.num_classes)
        if proportions is not None and proportions.shape != expected:
            raise ValueError(f"proportions: got shape {proportions.shape}, expected {expected}, images times classes")
        self.images = images
        self.size = size
        self.augmentation = augmentation
        self.seed = seed
        self.epoch = 0
        self._labels = torch.from_numpy(images.label_matrix())
        self._proportions = None if proportions is None else torch.from_numpy(np.asarray(proportions, np.float64))
        self._preprocessing = preprocessing

    def set_epoch(self, epoch: int) -> None:
        """Draw other augmentations; call before the epoch's iterator, and so its workers, are made."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor | int]:
        """One sample.

        Returns:
            `pixel_values` (`float32`, `(3, S, S)`), `labels` (`float32`, `(C,)`), `index`, and with proportions
            `proportions` (`float64`, `(C,)`).
        """
        # Twice the size keeps what the reduced JPEG decoding loses below what the resize removes anyway.
        image = self.images.image(index, min_side=2 * self.size)
        image = image.resize((self.size, self.size), self._preprocessing.resample)
        image = augment(image, self.augmentation, np.random.default_rng([self.seed, self.epoch, index]))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        sample: dict[str, Tensor | int] = {
            "pixel_values": self._preprocessing(pixels),
            "labels": self._labels[index],
            "index": index,
        }
        if self._proportions is not None:
            sample["proportions"] = self._proportions[index]
        return sample
