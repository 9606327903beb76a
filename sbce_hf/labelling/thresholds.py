"""From class maps to label maps: the rules of the paper, of the released program, and of the BCE stage.

Every rule turns [`ClassMaps`] into scores `(K, H, W)`, how far each known class lies above its threshold; a pixel gets
the class of the highest score if that is above 0, else background.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ..data.schema import IGNORE_INDEX

DEFAULT_CONSTANTS = tuple(round(0.05 * i, 2) for i in range(1, 20))


@dataclass(frozen=True)
class ClassMaps:
    """What the network says about one image, for its `K` known classes, averaged over views.

    Args:
        image_id: of the image.
        classes: `(K,)` int64, indices of the known classes.
        logits: `(K, H, W)` float32 at image size, scaled class maps `exp(tau) * z`; their sigmoid is the paper's `P`.
        threshold_logits: `(K,)` float32; their sigmoid is the adaptive threshold, in the domain of `P`.
        scales: `(K,)` float32, `exp(tau)`.
    """

    image_id: str
    classes: np.ndarray
    logits: np.ndarray
    threshold_logits: np.ndarray
    scales: np.ndarray

    @property
    def probabilities(self) -> np.ndarray:
        """`(K, H, W)` float32, the paper's `P`."""
        return sigmoid(self.logits)


@dataclass(frozen=True)
class Labelled:
    """A rule's answer for one image.

    Args:
        scores: `(K, H, W)` float32, above 0 where the class passes its threshold.
        thresholds: `(K,)` float64, what each class was compared with, in the rule's own domain.
        label_map: `(H, W)` uint8, 0 for background and `c + 1` for class `c`.
    """

    scores: np.ndarray
    thresholds: np.ndarray
    label_map: np.ndarray


def sigmoid(x: np.ndarray) -> np.ndarray:
    """Logistic function that does not overflow."""
    return 0.5 * (1 + np.tanh(0.5 * x))


def unscaled_threshold(threshold: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Move a threshold of `sigmoid(scale * z)` to the domain of `sigmoid(z)`: `sigmoid(logit(t) / scale)`.

    The released program solves this numerically and fails from a scale of about 20 on.

    Args:
        threshold: in (0, 1).
        scale: above 0; broadcast against `threshold`.
    """
    threshold = np.asarray(threshold, np.float64)
    return sigmoid((np.log(threshold) - np.log1p(-threshold)) / scale)


def label_paper(maps: ClassMaps) -> Labelled:
    """`S_c = sigmoid(s_c * z_c) - t_c` (paper, sec. 3.4)."""
    thresholds = sigmoid(maps.threshold_logits.astype(np.float64))
    return _label(maps, maps.probabilities, thresholds)


def label_official(maps: ClassMaps) -> Labelled:
    """The released program: the winning class per pixel, maps divided by their maximum, unscaled thresholds.

    It compares a normalised map with an un-normalised threshold, so every class that wins a pixel keeps at least one.
    """
    probabilities = sigmoid(maps.logits / maps.scales[:, None, None])
    if len(maps.classes):
        winner = probabilities.argmax(axis=0)
        probabilities *= winner == np.arange(len(maps.classes))[:, None, None]
    # sigmoid(logit(t) / s) with t = sigmoid(u) is sigmoid(u / s), which cannot lose a saturated t.
    thresholds = sigmoid(maps.threshold_logits.astype(np.float64) / maps.scales)
    return _label(maps, _divide_by_maximum(probabilities), thresholds)


def label_fixed(maps: ClassMaps, background_threshold: float) -> Labelled:
    """`relu(z) / max` against one constant for all classes; the logit scale cancels."""
    normalized = _divide_by_maximum(np.maximum(maps.logits, 0))
    return _label(maps, normalized, np.full(len(maps.classes), background_threshold))


def label_by_share(maps: ClassMaps, share: float, minimum: float = 0.005) -> Labelled:
    """Move each adaptive threshold so that a share of what passes it passes: below 1 what is sure, above what may be.

    By rank and in logits: a saturated sigmoid still has an order. The answer's thresholds are logits above the
    adaptive ones.

    Args:
        maps: of one image.
        share: of the area of a class, which is where it passes its adaptive threshold.
        minimum: share of the image that the area is taken for where it is smaller, so that a class that passes nowhere
            keeps its highest pixels.
    """
    logits = maps.logits - maps.threshold_logits[:, None, None]
    pixels = logits[0].size if len(logits) else 0
    moved = []
    for values in logits:
        area = max(int((values > 0).sum()), int(minimum * pixels), 1)
        rank = min(int(share * area), pixels - 1)
        moved.append(-np.partition(-values, rank, axis=None)[rank])
    return _label(maps, logits, np.array(moved, np.float64))


RULES: dict[str, Callable[[ClassMaps, float], Labelled]] = {
    "paper": lambda maps, _: label_paper(maps),
    "official": lambda maps, _: label_official(maps),
    "fixed": label_fixed,
}


def apply_rule(rule: str, maps: ClassMaps, background_threshold: float = 0.3) -> Labelled:
    """Apply a rule by its name.

    Args:
        rule: `"paper"`, `"official"` or `"fixed"`.
        maps: of one image.
        background_threshold: constant of the `"fixed"` rule; the others do not use it.

    Raises:
        ValueError: an unknown rule.
    """
    if rule not in RULES:
        raise ValueError(f"labelling rule: got {rule!r}, expected one of {', '.join(RULES)}")
    return RULES[rule](maps, background_threshold)


def _divide_by_maximum(values: np.ndarray) -> np.ndarray:
    maximum = values.max(axis=(1, 2), keepdims=True, initial=0)
    return values / np.where(maximum > 0, maximum, 1)


def _label(maps: ClassMaps, values: np.ndarray, thresholds: np.ndarray) -> Labelled:
    scores = values - thresholds.astype(np.float32)[:, None, None]
    label_map = np.zeros(maps.logits.shape[1:], np.uint8)
    if len(maps.classes):
        best = scores.argmax(axis=0)
        above = np.take_along_axis(scores, best[None], axis=0)[0] > 0
        label_map[above] = (maps.classes + 1).astype(np.uint8)[best[above]]
    return Labelled(scores, thresholds, label_map)


def class_iou(confusion: np.ndarray) -> np.ndarray:
    """Intersection over union of each label.

    Args:
        confusion: `(L, L)` counts, truth in rows, prediction in columns; or `(L, L + 1)` with a last column for pixels
            without any label.

    Returns:
        `(L,)` float64; NaN for a label that neither truth nor prediction has.
    """
    labels = len(confusion)
    intersection = np.diagonal(confusion).astype(np.float64)
    union = confusion.sum(axis=1) + confusion[:, :labels].sum(axis=0) - intersection
    return np.divide(intersection, union, out=np.full(labels, np.nan), where=union > 0)


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
    uses_ground_truth: bool = True
    note: str = "[leak: chosen on ground truth]"

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
    valid = truth != IGNORE_INDEX
    if valid.any() and int(truth[valid].max()) > num_classes:
        raise ValueError(
            f"image {maps.image_id!r}: ground truth has value {truth[valid].max()}, expected 0 to {num_classes} or "
            f"{IGNORE_INDEX}"
        )
    winner, value = np.zeros((height, width), np.int64), np.zeros((height, width), np.float32)
    if len(maps.classes):
        normalized = _divide_by_maximum(np.maximum(maps.logits, 0))
        winner, value = maps.classes[normalized.argmax(axis=0)] + 1, normalized.max(axis=0)
    shape = (num_classes + 1, num_classes + 1, len(steps) + 1)
    # side="left" counts the constants strictly below the value, as the rule's strict comparison does.
    below = np.searchsorted(steps, value[valid], side="left")
    flat = np.ravel_multi_index((truth[valid].astype(np.int64), winner[valid], below), shape)
    return np.bincount(flat, minlength=int(np.prod(shape))).reshape(shape)
