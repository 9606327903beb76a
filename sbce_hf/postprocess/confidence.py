"""How sure a network is of a class in one image, beside how sure it is of that class as a rule.

A threshold that is a share of each map's own peak gives a class as much of a photo where the network hardly sees it as
where it is certain. What a network is less sure of than usual is more often small, or half hidden, than large.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from .rules import ClassMaps, peaks

# Confidence moves a threshold by this factor at most, either way.
MOST = 3.0


def confidence_of(maps: ClassMaps) -> np.ndarray:
    """How sure the network is of each known class: `-log(1 - P)` at the peak of its map.

    Unlike the probability, it goes on growing where the sigmoid has saturated.

    Args:
        maps: of one image.

    Returns:
        `(K,)` float64, above 0.
    """
    return np.logaddexp(0, peaks(maps.logits).astype(np.float64))


def with_confidence(maps: ClassMaps, usual: Mapping[int, float], weight: float) -> ClassMaps:
    """The maps with what each class's threshold is divided by: confidence in units of what is usual, to a power.

    Args:
        maps: of one image.
        usual: by class, what [`confidence_of`] usually says of it; a class that is not in it has confidence 1.
        weight: the power; 0 gives 1 everywhere.
    """
    own = confidence_of(maps)
    known = np.array([usual.get(int(index), value) for index, value in zip(maps.classes, own, strict=True)])
    # In logarithms: a map may be so low that its confidence is 0.
    with np.errstate(divide="ignore", invalid="ignore"):
        moved = np.nan_to_num(weight * (np.log(own) - np.log(known)))
    return replace(maps, confidence=np.exp(moved.clip(-np.log(MOST), np.log(MOST))))
