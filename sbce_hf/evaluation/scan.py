"""The `"fixed"` rule over a range of constants, on ground truth: a leak, to compare with."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ..data.schema import IGNORE_INDEX
from ..postprocess.rules import ClassMaps, divide_by_maximum
from .iou import class_iou

# What a number that was chosen on ground truth is marked with.
LEAK_MARK = "[leak: made with ground truth]"
DEFAULT_CONSTANTS = tuple(round(0.05 * i, 2) for i in range(1, 20))


@dataclass(frozen=True)
class FixedThresholdScan:
    """The `"fixed"` rule over a range of constants, scored on ground truth.

    Choosing among them uses masks that weak supervision does not have: a ceiling to compare with, never a result.

    Args:
        constants: `(T,)` float64.
        confusions: `(T, C + 1, C + 1)` int64, truth in rows.
        num_images: scored.
    """

    constants: np.ndarray
    confusions: np.ndarray
    num_images: int

    @property
    def mean_iou(self) -> np.ndarray:
        """`(T,)` mean over labels; those that neither truth nor prediction has are left out."""
        return np.array([np.nanmean(class_iou(confusion)) for confusion in self.confusions])

    @property
    def best(self) -> tuple[float, float]:
        """The constant of the highest mean IoU, and that mean IoU."""
        values = self.mean_iou
        index = int(values.argmax())
        return float(self.constants[index]), float(values[index])


def scan_fixed_threshold_on_ground_truth(
    maps: Iterable[ClassMaps],
    truths: Iterable[np.ndarray],
    num_classes: int,
    constants: Sequence[float] = DEFAULT_CONSTANTS,
    total: Callable[[np.ndarray], np.ndarray] = lambda counts: counts,
) -> FixedThresholdScan:
    """Score the `"fixed"` rule for many constants in one pass over the class maps.

    Args:
        maps: of each image.
        truths: `(H, W)` uint8 ground-truth label map of each image, 255 where unknown.
        num_classes: foreground classes `C`.
        constants: in (0, 1).
        total: adds up the counts of several processes, each of which has its part of the images.

    Raises:
        ValueError: a truth of another size than its maps or with a value above `C`, a constant out of range, another
            number of truths than maps, or no pixel of ground truth.
    """
    steps = np.unique(np.asarray(constants, np.float64))
    if not len(steps) or steps[0] <= 0 or steps[-1] >= 1:
        raise ValueError(f"constants: got {list(constants)}, expected numbers between 0 and 1")
    # counts[truth, winning label, number of constants below its value]: every confusion is a sum over the last axis.
    counts = np.zeros((num_classes + 1, num_classes + 1, len(steps) + 1), np.int64)
    num_images = 0
    for image_maps, truth in zip(maps, truths, strict=True):
        counts += _count_steps(image_maps, truth, num_classes, steps.astype(np.float32))
        num_images += 1
    counts, num_images = total(counts), int(total(np.array([num_images]))[0])
    if not counts.any():
        raise ValueError(f"scan: got {num_images} images without one pixel of ground truth, expected masks")
    confusions = np.empty((len(steps), num_classes + 1, num_classes + 1), np.int64)
    for step, confusion in enumerate(confusions):
        confusion[...] = counts[:, :, step + 1 :].sum(axis=2)
        confusion[:, 0] += counts[:, :, : step + 1].sum(axis=(1, 2))
    return FixedThresholdScan(steps, confusions, num_images)


def _count_steps(maps: ClassMaps, truth: np.ndarray, num_classes: int, steps: np.ndarray) -> np.ndarray:
    height, width = maps.logits.shape[1:]
    if truth.shape != (height, width):
        raise ValueError(f"image {maps.image_id!r}: ground truth is {truth.shape}, its class maps {(height, width)}")
    wrong = (truth > num_classes) & (truth != IGNORE_INDEX)
    if wrong.any():
        raise ValueError(
            f"image {maps.image_id!r}: ground truth has value {truth[wrong].max()}, expected 0 to {num_classes} or "
            f"{IGNORE_INDEX}"
        )
    winner, value = np.zeros((height, width), np.int32), np.zeros((height, width), np.float32)
    for label, logits in zip(maps.classes + 1, maps.logits, strict=True):
        # Map after map: NumPy's argmax over an axis of a few classes takes longer than all the rest.
        normalized = divide_by_maximum(np.maximum(logits[None], 0))[0]
        higher = normalized > value
        np.copyto(value, normalized, where=higher)
        np.copyto(winner, np.int32(label), where=higher)
    # Of so few constants, comparing with each is faster than a binary search. Strictly, as the rule does.
    below = np.zeros((height, width), np.int32)
    for step in steps:
        below += value > step
    # Where the truth says nothing counts in a last row, which is cut off: cheaper than picking pixels out.
    shape = (num_classes + 2, num_classes + 1, len(steps) + 1)
    row = np.minimum(truth, num_classes + 1).astype(np.int32)
    flat = (row * shape[1] + winner) * shape[2] + below
    return np.bincount(flat.ravel(), minlength=int(np.prod(shape))).reshape(shape)[:-1]
