"""What moves a class's threshold in one image: how sure the network is of it there, and whether it floods the ground.

A threshold that is a share of each map's own peak gives a class as much of a photo where the network hardly sees it as
where it is certain. What a network is less sure of than usual is more often small, or half hidden, than large. And a
class that in most photos reaches beyond what stands out as an object has learned its surroundings, too.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from ..config import LabellingConfig
from .rules import ClassMaps, peaks, relative_to_peak

# Confidence moves a threshold by this factor at most, either way.
MOST = 3.0
# A class that reaches beyond objects has its threshold raised by this factor at most.
MOST_RAISED = 2.0
# Even of a class that is well placed not all lies on what stands out.
ON_OBJECTS = 0.9


@dataclass(frozen=True)
class Usual:
    """What class maps of a network are like as a rule, by class; a class that is not in it moves no threshold.

    Args:
        confidence: what [`confidence_of`] usually says of it, at least 0.
        on_objects: what [`share_on_objects`] usually says of it, in [0, 1].
    """

    confidence: Mapping[int, float] = field(default_factory=dict)
    on_objects: Mapping[int, float] = field(default_factory=dict)


def confidence_of(maps: ClassMaps) -> np.ndarray:
    """How sure the network is of each known class: `-log(1 - P)` at the peak of its map.

    Unlike the probability, it goes on growing where the sigmoid has saturated.

    Args:
        maps: of one image.

    Returns:
        `(K,)` float64, above 0.
    """
    return np.logaddexp(0, peaks(maps.logits).astype(np.float64))


def share_on_objects(maps: ClassMaps, objects: np.ndarray, peak_share: float) -> np.ndarray:
    """How much of what rule `"peak"` gives to each known class, were it alone, lies on objects of whatever class.

    Args:
        maps: of one image.
        objects: `(H, W)` float32, above 1 on objects; see [`irn.ObjectMap`].
        peak_share: the rule's constant, below 1.

    Returns:
        `(K,)` float64 in [0, 1].
    """
    area = relative_to_peak(maps.logits) > peak_share
    return (area & (objects > 1)).sum(axis=(1, 2)) / area.sum(axis=(1, 2))


def with_confidence(maps: ClassMaps, usual: Usual, config: LabellingConfig) -> ClassMaps:
    """The maps with what each class's threshold is divided by.

    It is the confidence in units of what is usual, to the power of `confidence_weight`, times the usual share on
    objects in units of [`ON_OBJECTS`], if that is below 1, to the power of `object_weight`.

    Args:
        maps: of one image.
        usual: of the network.
        config: the two weights; 0 for both gives 1 everywhere.
    """
    own = confidence_of(maps)
    classes = maps.classes.tolist()
    known = np.array([usual.confidence.get(index, value) for index, value in zip(classes, own, strict=True)])
    placed = np.array([usual.on_objects.get(index, ON_OBJECTS) / ON_OBJECTS for index in classes])
    # In logarithms: a map may be so low that its confidence is 0.
    with np.errstate(divide="ignore", invalid="ignore"):
        moved = np.nan_to_num(config.confidence_weight * (np.log(own) - np.log(known)))
    sure = np.exp(moved.clip(-np.log(MOST), np.log(MOST)))
    return replace(maps, confidence=sure * (placed**config.object_weight).clip(1 / MOST_RAISED, 1))
