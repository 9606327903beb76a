"""Saliency maps and class maps become label maps: the rules of two published pipelines, and a [`methods.Method`].

What is salient comes from a network that was trained on masks, though of other photos; what it is, from tags and class
maps. No saliency network is loaded here.
"""

from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any

import numpy as np

from ..config import CrfConfig, SaliencyConfig, to_mapping
from ..data.saliency_maps import SaliencyMaps
from ..data.schema import IGNORE_INDEX
from ..labels.label_maps import LabelMaps
from ..labels.variants import variants
from .crf_pool import CrfPool
from .methods import Answer, then_crf
from .rules import ClassMaps, sigmoid

# What results say for which such maps were used.
NOTE = "uses a saliency network"


def label_edam(
    maps: ClassMaps, saliency: np.ndarray, config: SaliencyConfig, labels: np.ndarray | None = None
) -> np.ndarray:
    """The rule of EDAM (Wu et al., CVPR 2021): salient pixels get the best known class, and no pixel is ignored.

    A pixel is background where `saliency <= background_saliency`, unless the probability of a known class is above
    `certain_probability`. The best class is that of the highest logit, which is that of the highest probability but
    still has an order where the sigmoid has none; of equal ones the first.

    Args:
        maps: of one image; without known classes all is background.
        saliency: `(H, W)` uint8, 0 to 255.
        config: its two constants.
        labels: `(H, W)` uint8 of an earlier label map. Where it has a known class, foreground gets this one instead of
            the best.

    Returns:
        `(H, W)` uint8 label map.
    """
    if not len(maps.classes):
        return np.zeros(saliency.shape, np.uint8)
    values = (maps.classes + 1).astype(np.uint8)
    best = values[maps.logits.argmax(axis=0)]
    if labels is not None:
        best = np.where(np.isin(labels, values), labels, best)
    certain = (maps.probabilities > config.certain_probability).any(axis=0)
    return np.where((saliency > config.background_saliency) | certain, best, 0).astype(np.uint8)


def label_oaa(maps: ClassMaps, saliency: np.ndarray, config: SaliencyConfig) -> np.ndarray:
    """The rule of OAA (Jiang et al., ICCV 2019) and NSROM (Yao et al., CVPR 2021), before pixels are ignored.

    Background, which scores `1 - saliency / 255`, competes with the classes' [`activations`]; of equal scores the
    first wins, background before all.

    Args:
        maps: of one image.
        saliency: `(H, W)` uint8, 0 to 255.
        config: its `least_activation`.

    Returns:
        `(H, W)` uint8 label map; see [`ignore_oaa`] for the rest of the rule.
    """
    values = np.array([0, *(maps.classes + 1)], np.uint8)
    return values[_channels(maps, saliency, config).argmax(axis=0)]


def ignore_oaa(label_map: np.ndarray, maps: ClassMaps, saliency: np.ndarray, config: SaliencyConfig) -> np.ndarray:
    """The second part of the rule of [`label_oaa`]: what contradicts itself is ignored.

    Ignored is a pixel where two or more of background and classes score above `conflict`; one that is background
    although it is salient, from `salient` on, where an activation above `strong_activation` counts as 255; and the
    whole image if less than a share of `least_foreground` of its pixels is foreground then.

    Args:
        label_map: `(H, W)` uint8, the answer of [`label_oaa`], or the CRF's to it.
        maps: of the image.
        saliency: `(H, W)` uint8, 0 to 255.
        config: its four constants.

    Returns:
        `(H, W)` uint8 label map with 255 where it says nothing.
    """
    channels = _channels(maps, saliency, config)
    evidence = np.where((channels[1:] > config.strong_activation).any(axis=0), 255, saliency)
    ignored = (channels > config.conflict).sum(axis=0) >= 2
    ignored |= (label_map == 0) & (evidence >= config.salient)
    marked = np.where(ignored, IGNORE_INDEX, label_map).astype(np.uint8)
    foreground = (marked > 0) & (marked != IGNORE_INDEX)
    return marked if foreground.mean() >= config.least_foreground else np.full_like(marked, IGNORE_INDEX)


def activations(maps: ClassMaps, least: float) -> np.ndarray:
    """The probability maps, each stretched to 0 to 1 over the image, and 0 where that is below `least`.

    Returns:
        `(K, H, W)` float32; a map that is the same everywhere says nothing, and becomes 0.
    """
    probabilities = maps.probabilities
    low, high = (function(probabilities, axis=(1, 2), keepdims=True) for function in (np.min, np.max))
    stretched = (probabilities - low) / np.where(high > low, high - low, 1)
    return np.where(stretched < least, 0, stretched).astype(np.float32)


def _channels(maps: ClassMaps, saliency: np.ndarray, config: SaliencyConfig) -> np.ndarray:
    background = 1 - saliency.astype(np.float32) / 255
    return np.concatenate([background[None], activations(maps, config.least_activation)])


class SaliencyMethod:
    """Labels images by their saliency maps, which are found by the image's id.

    Args:
        config: rule and constants.
        saliency: of all images.
        crf: of the labelling config. What `oaa` ignores is found after it: the CRF decides between labels, of which
            "ignore" is none.
        labels: earlier label maps, from which the rule `edam` takes the classes of what is salient, where it is told
            to.
    """

    name = "saliency"

    def __init__(
        self, config: SaliencyConfig, saliency: SaliencyMaps, crf: CrfConfig | None, labels: LabelMaps | None = None
    ) -> None:
        self.config, self.saliency = config, saliency
        follows = config.rule == "edam" and config.classes_from == "labels"
        self.labels = labels if follows else None
        section = to_mapping(config) | {"maps": None if config.maps is None else PurePath(config.maps).name}
        words = f"{config.rule}, classes of the stage before" if self.labels is not None else config.rule
        self.options: Mapping[str, Any] = {"saliency": section, "in_words": f"saliency ({words})", "note": NOTE}
        self.stores = variants(self.name, crf)

    def __call__(self, image: np.ndarray, maps: ClassMaps, crf: CrfPool | None) -> Answer:
        """Label one image; see [`methods.Method`]."""
        saliency = self.saliency.read(maps.image_id, image.shape[:2])
        # They decide nothing here, but go with the class maps.
        thresholds = sigmoid(maps.threshold_logits.astype(np.float64))
        if self.config.rule == "edam":
            earlier = self.labels is not None and maps.image_id in self.labels
            labels = self.labels.read(maps.image_id) if earlier and self.labels is not None else None
            return Answer(then_crf(image, label_edam(maps, saliency, self.config, labels), maps, crf), thresholds)
        label_maps = then_crf(image, label_oaa(maps, saliency, self.config), maps, crf)
        return Answer([self._ignoring(label_map, maps, saliency) for label_map in label_maps], thresholds)

    def _ignoring(
        self, label_map: Callable[[], np.ndarray | None], maps: ClassMaps, saliency: np.ndarray
    ) -> Callable[[], np.ndarray | None]:
        def ignoring() -> np.ndarray | None:
            found = label_map()
            marked = None if found is None else ignore_oaa(found, maps, saliency, self.config)
            return None if marked is None or (marked == IGNORE_INDEX).all() else marked

        return ignoring
