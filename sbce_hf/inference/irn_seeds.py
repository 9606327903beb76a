"""Seeds for IRN's boundary network (Ahn et al., CVPR 2019), as a [`methods.Method`]: by rank around the thresholds.

The released program takes them by two constants from normalised class maps.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..config import IrnRefinementConfig, to_mapping
from ..data.schema import IGNORE_INDEX
from ..postprocess.crf_pool import CrfPool
from ..postprocess.methods import Answer, then_crf
from ..postprocess.rules import ClassMaps, label_by_share, sigmoid


class SeedMethod:
    """Keeps what is sure and marks the rest with 255: the labels that the boundary network is trained on.

    Sure are the highest pixels of each class, and as background what lies beyond a larger area of every class, each
    after the dense CRF.

    Args:
        config: its shares are used.
    """

    name = "seeds"
    # Both label maps it is made from are after the CRF, where there is one.
    stores: tuple[str, ...] = ("seeds",)

    def __init__(self, config: IrnRefinementConfig) -> None:
        self.config = config
        self.options: Mapping[str, Any] = {"irn": to_mapping(config)}

    def __call__(self, image: np.ndarray, maps: ClassMaps, crf: CrfPool | None) -> Answer:
        """Find the seeds of one image; see [`methods.Method`]."""
        inner, outer = (
            then_crf(image, label_by_share(maps, share).label_map, maps, crf)[-1]
            for share in (self.config.foreground_share, self.config.background_share)
        )
        return Answer([lambda: _combine(inner, outer)], sigmoid(maps.threshold_logits.astype(np.float64)))


def _combine(inner: Callable[[], np.ndarray | None], outer: Callable[[], np.ndarray | None]) -> np.ndarray | None:
    sure, possible = inner(), outer()
    if sure is None or possible is None:
        return None
    seeds = np.where(sure > 0, sure, np.where(possible == 0, 0, IGNORE_INDEX)).astype(np.uint8)
    return None if (seeds == IGNORE_INDEX).all() else seeds
