"""Random walks of several runs that differ in their seed, in the mean: what is luck in one of them averages out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..config import CrfConfig, LabellingConfig
from ..data.preprocessing import Preprocessing
from ..labels.variants import variants
from ..models.modeling_spatial_bce import SpatialBceForImageClassification
from ..postprocess.confidence import Usual
from ..postprocess.crf_pool import CrfPool
from ..postprocess.methods import Answer, then_crf
from ..postprocess.rules import ClassMaps, give_back, sigmoid
from .classifier import to_refine
from .irn import WalkMethod, winners_of
from .views import class_maps

# Below this share of the constant a run has nothing to say for a class; one that says 0 would decide for all.
_FLOOR = 0.1
_TINY = 1e-6


@dataclass(frozen=True)
class Member:
    """The networks of one run.

    Args:
        model: the last round's classifier, on its device.
        walk: of the run.
        usual: what the classifier's class maps are usually like; see [`look_for_usual`].
    """

    model: SpatialBceForImageClassification
    walk: WalkMethod
    usual: Usual | None


class TogetherMethod:
    """Compares the geometric mean of what arrives in all walks with the threshold that the mean of boundaries gives.

    A class that gets nothing so is asked for in the arithmetic mean.

    Args:
        members: of the same classes and settings; the class maps that each call gets are the first one's.
        config: of the class maps.
        crf: that follows; `None` without one.
    """

    name = "together"

    def __init__(self, members: Sequence[Member], config: LabellingConfig, crf: CrfConfig | None) -> None:
        self.members = members
        # Which classes are known has been found out when this is called.
        self.config = replace(config, known_classes="tags")
        self.options: Mapping[str, Any] = {**members[0].walk.options, "in_words": f"walks of {len(members)} runs"}
        self.stores = variants(self.name, crf)

    def __call__(self, image: np.ndarray, maps: ClassMaps, crf: CrfPool | None) -> Answer:
        """Label one image; see [`methods.Method`]."""
        first, *others = self.members
        label_map = np.zeros(image.shape[:2], np.uint8)
        if len(maps.classes):
            each = [maps, *(self._maps(member, image, maps) for member in others)]
            walks = [member.walk.arrive(image, own) for member, own in zip(self.members, each, strict=True)]
            found, boundaries = (torch.stack(values) for values in zip(*walks, strict=True))
            boundaries = boundaries.mean(dim=0)
            floor = _FLOOR * first.walk.config.background_threshold
            geometric = found.clamp(min=floor).log().mean(dim=0).exp()
            winners = winners_of(geometric, boundaries, first.walk.config)
            # Where they do not agree on a place for a class, each of them may be right: the mean, as high as they are.
            mean = found.mean(dim=0)
            rise = found.amax(dim=(2, 3)).mean(dim=0) / mean.amax(dim=(1, 2)).clamp(min=_TINY)
            anywhere = winners_of(mean * rise[:, None, None], boundaries, first.walk.config)
            give_back(winners, anywhere, range(1, len(maps.classes) + 1))
            label_map = np.array([0, *maps.classes + 1], np.uint8)[winners]
        thresholds = sigmoid(maps.threshold_logits.astype(np.float64))
        return Answer(then_crf(image, label_map, maps, crf), thresholds)

    def _maps(self, member: Member, image: np.ndarray, known: ClassMaps) -> ClassMaps:
        labels = np.zeros((1, len(member.model.logit_scale)), np.int64)
        labels[0, known.classes] = 1
        photo, names = Image.fromarray(image), [known.image_id]
        preprocessing = Preprocessing.of(member.model.config)
        (maps,) = class_maps(member.model, [photo], labels, self.config, image_ids=names, preprocessing=preprocessing)
        return to_refine(maps, self.config, member.usual)
