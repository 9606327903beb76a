"""How the class maps of an image become label maps: what [`label_images`] calls for every image.

The threshold rules are here; `inference/irn.py` has the random walk, `irn_seeds.py` what its network is trained on.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..config import LabellingConfig
from ..labels.variants import variants
from .crf_pool import CrfPool
from .rules import ClassMaps, apply_rule, label_at


@dataclass(frozen=True)
class Answer:
    """What a [`Method`] says about one image.

    Args:
        label_maps: one function per store that returns the label map, `(H, W)` uint8, or waits for the CRF's; or
            `None`, if there is none: the image is skipped.
        thresholds: `(K,)`, what the known classes were compared with.
    """

    label_maps: Sequence[Callable[[], np.ndarray | None]]
    thresholds: np.ndarray


class Method(Protocol):
    """How the class maps of an image become label maps.

    Args:
        name: for the progress bar and the stores' description.
        stores: names of the stores that are filled, in the order of the answers; see [`variants`].
        options: what the stores' description says besides the labelling config.
    """

    name: str
    stores: tuple[str, ...]
    options: Mapping[str, Any]

    def __call__(self, image: np.ndarray, maps: ClassMaps, crf: CrfPool | None) -> Answer:
        """Label one RGB image, `(H, W, 3)` uint8; without a CRF in the config, `crf` is `None`."""


class RuleMethod:
    """A threshold rule, and the dense CRF after it.

    Args:
        config: rule and its constant.
    """

    def __init__(self, config: LabellingConfig) -> None:
        self.config = config
        self.name: str = config.rule
        self.options: Mapping[str, Any] = {}
        self.stores = variants(config.rule, config.crf)

    def __call__(self, image: np.ndarray, maps: ClassMaps, crf: CrfPool | None) -> Answer:
        """Apply the rule; see [`Method`]."""
        labelled = apply_rule(maps, self.config)
        return Answer(then_crf(image, labelled.label_map, maps, crf), labelled.thresholds)


SHARE = "share"


class ShareMethod:
    """Each map cut at a share that is given for its image, instead of a rule; the dense CRF after it.

    Args:
        config: its CRF decides which stores there are.
        shares: by image id, `(C,)` in [0, 1].
    """

    def __init__(self, config: LabellingConfig, shares: Mapping[str, np.ndarray]) -> None:
        self.shares = shares
        self.name = SHARE
        self.options: Mapping[str, Any] = {"rule": SHARE}
        self.stores = variants(SHARE, config.crf)

    def __call__(self, image: np.ndarray, maps: ClassMaps, crf: CrfPool | None) -> Answer:
        """Cut the maps; see [`Method`]."""
        labelled = label_at(maps, self.shares[maps.image_id][maps.classes])
        return Answer(then_crf(image, labelled.label_map, maps, crf), labelled.thresholds)


def then_crf(
    image: np.ndarray, label_map: np.ndarray, maps: ClassMaps, crf: CrfPool | None
) -> list[Callable[[], np.ndarray | None]]:
    """A label map, and what the CRF makes of it if there is one; for an [`Answer`]."""
    refined = [] if crf is None else [crf.submit(image, label_map, maps.classes.tolist()).result]
    return [lambda: label_map, *refined]
