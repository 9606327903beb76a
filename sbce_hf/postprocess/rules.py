"""From class maps to label maps: rules of the paper, of the released program, of a map's own peak, and two of stage 0.

Every rule turns [`ClassMaps`] into scores `(K, H, W)`, how far each known class lies above its threshold; a pixel gets
the class of the highest score if that is above 0, else background.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np

from ..config import LabellingConfig
from .otsu import otsu_threshold

# Between these probabilities the sigmoid passes at least 2 % of a gradient; a pixel outside has all but left training.
SOFT_RANGE = (0.02, 0.98)
# What a map of zeros is divided by.
_TINY = 1e-12
# However unsure the network is of a class, it keeps what lies above this share of its peak.
_HIGHEST_SHARE = 0.95


@dataclass(frozen=True)
class ClassMaps:
    """What the network says about one image, for its `K` known classes, averaged over views.

    Args:
        image_id: of the image.
        classes: `(K,)` int64, indices of the known classes.
        logits: `(K, H, W)` float32 at image size, scaled class maps `exp(tau) * z`; their sigmoid is the paper's `P`.
        threshold_logits: `(K,)` float32; their sigmoid is the adaptive threshold, in the domain of `P`.
        scales: `(K,)` float32, `exp(tau)`.
        feature_norm: `(H, W)` float32 above 0, length of the trunk's last feature vectors at image size, each view's
            divided by its maximum; `None` where the rule does not ask for it.
        confidence: `(K,)` float64 above 0, above 1 for a class that the network is surer of here than it usually is;
            see [`confidence.with_confidence`]. `None` where nobody asks.
    """

    image_id: str
    classes: np.ndarray
    logits: np.ndarray
    threshold_logits: np.ndarray
    scales: np.ndarray
    feature_norm: np.ndarray | None = None
    confidence: np.ndarray | None = None

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


def label_paper(maps: ClassMaps) -> Labelled:
    """`S_c = sigmoid(s_c * z_c) - t_c` (paper, sec. 3.4)."""
    thresholds = sigmoid(maps.threshold_logits.astype(np.float64))
    return _label(maps, maps.probabilities, thresholds)


def label_peak(maps: ClassMaps, share: float) -> Labelled:
    """Probabilities relative to the map's own peak against one constant for all classes: a threshold without a head.

    A class is not lost, however low its map has become, and in a map that is certain somewhere the threshold is the
    constant; divided by the maps' confidence, if they say any. What a class would then lose whole it keeps.
    """
    shares = _shares(maps, share)
    relative = relative_to_peak(maps.logits)
    weighed = relative * (share / shares).astype(np.float32)[:, None, None]
    constants = np.full(len(maps.classes), share)
    labelled = replace(_label(maps, weighed, constants), thresholds=sigmoid(_peak_thresholds(maps.logits, shares)))
    if maps.confidence is not None:
        give_back(labelled.label_map, _label(maps, relative, constants).label_map, maps.classes + 1)
    return labelled


def give_back(label_map: np.ndarray, other: np.ndarray, values: Iterable[int]) -> None:
    """Give each class that has no pixel in a label map those that it has in another one; changes the first."""
    for value in values:
        if not (label_map == value).any():
            label_map[other == value] = value


def _shares(maps: ClassMaps, share: float) -> np.ndarray:
    """The share of its peak that each class is compared with, `(K,)` float64."""
    if maps.confidence is None:
        return np.full(len(maps.classes), share)
    return np.minimum(share / maps.confidence, max(share, _HIGHEST_SHARE))


def relative_to_peak(logits: np.ndarray) -> np.ndarray:
    """Probabilities divided by each map's peak; above 1 in the few pixels that pass it.

    Single pixels decide nothing: the peak is the probability that a hundredth of the pixels passes.

    Args:
        logits: `(K, H, W)` float32.
    """
    # In logarithms, because a probability may be too low to be told from 0.
    return np.exp(_log_sigmoid(logits) - _log_sigmoid(peaks(logits))[:, None, None])


def peaks(logits: np.ndarray) -> np.ndarray:
    """Of each map the value that a hundredth of the pixels passes, `(K,)`."""
    flat = logits.reshape(len(logits), logits.shape[1] * logits.shape[2])
    rank = flat.shape[1] // 100
    return -np.partition(-flat, rank, axis=1)[:, rank]


def _log_sigmoid(x: np.ndarray) -> np.ndarray:
    return -np.logaddexp(0, -x)


def _peak_thresholds(logits: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Logits of the thresholds of [`label_peak`], `(K,)` float64."""
    threshold = np.log(shares) + _log_sigmoid(peaks(logits).astype(np.float64))
    return threshold - np.log1p(-np.exp(threshold))


def label_mean(maps: ClassMaps) -> Labelled:
    """Each map cut at the share of pixels that its own mean probability gives: by rank, without a head or a constant.

    Once the proportion term holds the mean at the proportion, it is the adaptive threshold. See [`label_at`].
    """
    return label_at(maps, _means(maps))


def label_at(maps: ClassMaps, shares: np.ndarray) -> Labelled:
    """Each map cut at a share of its pixels, by rank, as the weights phase does (paper, sec. 3.2).

    In logits, because a saturated sigmoid has no order left. A map keeps at least its highest pixel. Maps with
    `feature_norm`, which rule `"objects"` asks for, are ranked by `softplus(z)` times the squared length of the
    features, so that objects come before the ground that they are seen with.

    Args:
        maps: of one image.
        shares: `(K,)` in [0, 1].
    """
    if maps.feature_norm is not None:
        values = np.logaddexp(0, maps.logits) * maps.feature_norm**2
        cuts = _rank_thresholds(values, shares)
        return replace(_label(maps, values, cuts), thresholds=cuts / values.max(axis=(1, 2), initial=_TINY))
    logits = _rank_thresholds(maps.logits, shares)
    return replace(_label(maps, maps.logits, logits), thresholds=sigmoid(logits))


def _means(maps: ClassMaps) -> np.ndarray:
    return maps.probabilities.mean(axis=(1, 2), dtype=np.float64)


def _rank_thresholds(values: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Of maps `(K, H, W)`: the values that shares of their pixels pass, `(K,)` float64."""
    flat = values.reshape(len(values), values[0].size if len(values) else 0)
    ranks = [min(max(int(share * flat.shape[1]), 1), flat.shape[1] - 1) for share in shares]
    cut = [-np.partition(-values, rank)[rank] for values, rank in zip(flat, ranks, strict=True)]
    return np.array(cut, np.float64)


def with_thresholds(rule: str, maps: ClassMaps, peak_share: float) -> ClassMaps:
    """The maps with the thresholds that a rule compares them with, for what goes on from where a class passes its own.

    Args:
        rule: for `"peak"` and `"mean"` those of [`label_peak`] and [`label_mean`], for any other the head's, as they
            are.
        maps: of one image.
        peak_share: the constant of `"peak"`.
    """
    if rule == "peak":
        found = _peak_thresholds(maps.logits, _shares(maps, peak_share))
    elif rule == "mean":
        found = _rank_thresholds(maps.logits, _means(maps))
    else:
        return maps
    return replace(maps, threshold_logits=found.astype(np.float32))


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
    return _label(maps, divide_by_maximum(probabilities), thresholds)


def label_fixed(maps: ClassMaps, background_threshold: float) -> Labelled:
    """`relu(z) / max` against one constant for all classes; the logit scale cancels."""
    normalized = divide_by_maximum(np.maximum(maps.logits, 0))
    return _label(maps, normalized, np.full(len(maps.classes), background_threshold))


def label_objects(maps: ClassMaps, object_threshold: float, background_threshold: float, min_kept: float) -> Labelled:
    """[`label_fixed`] with a low constant, within what the features take for an object of whatever class.

    A network that has learned tags answers to what a class is always seen with, too: sky for aeroplanes, water for
    boats. Its features are longer on things than on their ground, the more so as it was trained on a thousand kinds of
    things before; where their length passes Otsu's threshold of the photo is an object (as Wei et al., "Selective
    Convolutional Descriptor Aggregation", 2017, find objects without labels, by the sum of features above its mean).

    Args:
        maps: of one image, with `feature_norm`.
        object_threshold: constant for `relu(z) / max` on objects.
        background_threshold: constant of the rule `"fixed"`, for a class that is lost on objects.
        min_kept: a class is, if it keeps less than this share of what rule `"fixed"` gives it.

    Raises:
        ValueError: maps without `feature_norm`.
    """
    if not len(maps.classes):
        return label_fixed(maps, object_threshold)
    if maps.feature_norm is None:
        raise ValueError(f"image {maps.image_id!r}: no feature_norm; rule 'objects' needs it")
    inside = maps.feature_norm > otsu_threshold(maps.feature_norm)
    plain, low = label_fixed(maps, background_threshold), label_fixed(maps, object_threshold)
    scores = np.where(inside, low.scores, np.minimum(low.scores, -object_threshold))
    label_map = np.where(inside, low.label_map, 0).astype(np.uint8)
    for index, value in enumerate(maps.classes + 1):
        before = plain.label_map == value
        if (label_map == value).sum() < min_kept * before.sum():
            label_map[before] = value
            scores[index] = plain.scores[index]
    return Labelled(scores, low.thresholds, label_map)


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


RULES: dict[str, Callable[[ClassMaps, LabellingConfig], Labelled]] = {
    "paper": lambda maps, _: label_paper(maps),
    "official": lambda maps, _: label_official(maps),
    "peak": lambda maps, config: label_peak(maps, config.peak_share),
    "mean": lambda maps, _: label_mean(maps),
    "fixed": lambda maps, config: label_fixed(maps, config.background_threshold),
    "objects": lambda maps, config: label_objects(
        maps, config.object_threshold, config.background_threshold, config.object_min_kept
    ),
}


def apply_rule(maps: ClassMaps, config: LabellingConfig) -> Labelled:
    """Apply the rule of a config to the maps of one image."""
    return RULES[config.rule](maps, config)


def divide_by_maximum(values: np.ndarray) -> np.ndarray:
    """Each map of `(K, H, W)` divided by its highest value, unless that is 0."""
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
