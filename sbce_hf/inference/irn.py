"""IRN's walk after a classifier's class maps (Ahn et al., CVPR 2019), as a [`methods.Method`].

Where the released program starts from normalised class maps, this starts from what lies above the adaptive thresholds.
The seeds that the boundary network is trained on are in `irn_seeds.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..config import CrfConfig, IrnRefinementConfig, LabellingConfig, to_mapping
from ..data.preprocessing import IMAGENET, Preprocessing
from ..labels.variants import variants
from ..models.modeling_irn import STRIDE, IrnModel
from ..models.modeling_spatial_bce import SpatialBceForImageClassification
from ..postprocess.crf_pool import CrfPool
from ..postprocess.methods import Answer, then_crf
from ..postprocess.otsu import otsu_threshold
from ..postprocess.random_walk import random_walk
from ..postprocess.rules import ClassMaps, give_back, relative_to_peak, sigmoid
from .views import feature_norms, to_pixels

# Deepest stride of the usual trunks: what images are padded to, so that feature levels of all strides align.
_MULTIPLE = 32
# A class that passes its threshold nowhere stays background.
_TINY = 1e-5
# Levels that are looked at for a class, as factors of the constant. An outline of fewer cells says nothing.
_LEVELS = torch.logspace(-1, 1, 25, base=3.0)
_MIN_OUTLINE = 6


class ObjectMap:
    """How much of an object each pixel of a photo seems, of whatever class.

    Features are longer on things than on their ground; see [`rules.label_objects`]. Stage 0's tell best: rounds learn
    from label maps, ground that is always there with a class included.

    Args:
        model: a classifier, on its device. Left in evaluation mode.
        config: views of the photo.
    """

    def __init__(self, model: SpatialBceForImageClassification, config: LabellingConfig) -> None:
        self.model, self.config, self.preprocessing = model, config, Preprocessing.of(model.config)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Length of the features in Otsu's thresholds of the photo.

        Args:
            image: `(H, W, 3)` uint8, RGB.

        Returns:
            `(H, W)` float32, at least 0, and above 1 on objects.
        """
        (norm,) = feature_norms(self.model, [Image.fromarray(image)], self.config, self.preprocessing)
        return norm / max(otsu_threshold(norm), _TINY)


class WalkMethod:
    """Lets each class walk up to the boundaries, and compares what arrives with a constant, as published.

    A class starts with `relu(s_c * z_c - logit t_c)`, divided by its maximum: nothing where the adaptive rule finds
    background. In logits, because a saturated sigmoid has no order left. Three things are not published: with
    `map_weight` the class maps have a say after the walk, too, with `object_weight` what stands out as an object of
    whatever class, and with `boundary_weight` each class of each photo has a threshold of its own.

    Args:
        model: a trained boundary network, on its device. Left in evaluation mode.
        config: of the walk.
        crf: that follows; `None` without one.
        preprocessing: of the photos.
        objects: for `object_weight`: an [`ObjectMap`], or what answers like one.

    Raises:
        ValueError: `object_weight` without `objects`.
    """

    name = "irn"

    def __init__(
        self,
        model: IrnModel,
        config: IrnRefinementConfig,
        crf: CrfConfig | None,
        preprocessing: Preprocessing = IMAGENET,
        objects: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> None:
        if config.object_weight and objects is None:
            raise ValueError(f"irn.object_weight: got {config.object_weight}, but nothing that looks for objects")
        self.model, self.config = model.eval(), config
        self.objects = objects if config.object_weight else None
        self.options: Mapping[str, Any] = {"irn": to_mapping(config)}
        self.preprocessing = preprocessing
        self.stores = variants(self.name, crf)

    def __call__(self, image: np.ndarray, maps: ClassMaps, crf: CrfPool | None) -> Answer:
        """Refine the class maps of one image; see [`methods.Method`]."""
        label_map = np.zeros(image.shape[:2], np.uint8)
        if len(maps.classes):
            winners = winners_of(*self.arrive(image, maps), self.config)
            label_map = np.array([0, *maps.classes + 1], np.uint8)[winners]
        thresholds = sigmoid(maps.threshold_logits.astype(np.float64))
        return Answer(then_crf(image, label_map, maps, crf), thresholds)

    @torch.inference_mode()
    def arrive(self, image: np.ndarray, maps: ClassMaps) -> tuple[Tensor, Tensor]:
        """What arrives at each pixel, for [`winners_of`].

        Args:
            image: `(H, W, 3)` uint8, RGB.
            maps: of the image, with at least one class.

        Returns:
            what is compared with the constant, `(K, H, W)`, at least 0, and boundaries, `(h, w)` in [0, 1] on a
            grid of a quarter of the size that the boundary network sees.
        """
        config, (height, width) = self.config, _scaled(image.shape[:2], self.config)
        boundaries = self._boundaries(image, height, width)
        scores = torch.from_numpy(maps.logits - maps.threshold_logits[:, None, None]).to(boundaries.device)
        above = _on_grid(scores, (height, width), boundaries)
        start = _by_class(above.relu()) * (1 - boundaries)
        arrived = random_walk(start, boundaries, config.walk_radius, config.walk_exponent, config.walk_steps)
        if config.map_weight:
            arrived = _weighted(arrived, above, maps.threshold_logits, config.map_weight)
        arrived = _resize(arrived, [STRIDE * side for side in boundaries.shape])[:, :height, :width]
        arrived = _resize(arrived, image.shape[:2])
        if not config.map_weight:
            arrived = arrived / arrived.amax().clamp(min=_TINY)
        if self.objects is not None:
            arrived = _on_objects(arrived, self.objects(image), config.object_weight)
        return arrived, boundaries

    def _boundaries(self, image: np.ndarray, height: int, width: int) -> Tensor:
        """Boundary map over an image and its mirror image, at a quarter of the size, `(h, w)` in [0, 1]."""
        pixels = to_pixels(Image.fromarray(image), (height, width), self.preprocessing.resample).to(self.model.device)
        pixels = F.pad(self.preprocessing(pixels), (0, -width % _MULTIPLE, 0, -height % _MULTIPLE))
        view, mirrored = self.model(torch.stack([pixels, pixels.flip(-1)])).boundary_logits
        logits = (view + mirrored.flip(-1)) / 2
        return logits.sigmoid()[: -(-height // STRIDE), : -(-width // STRIDE)]


@torch.inference_mode()
def winners_of(arrived: Tensor, boundaries: Tensor, config: IrnRefinementConfig) -> np.ndarray:
    """Which of background and the known classes each pixel goes to.

    Args:
        arrived: `(K, H, W)`, see [`WalkMethod.arrive`].
        boundaries: `(h, w)`, as there.
        config: constant and `boundary_weight`.

    Returns:
        `(H, W)` int64, 0 for background.
    """
    constant = config.background_threshold
    winners = _winners(arrived, constant)
    if config.boundary_weight:
        grid = _on_grid(arrived, _scaled(tuple(arrived.shape[1:]), config), boundaries)
        factors = [_factor(values, boundaries, constant, config.boundary_weight) for values in grid]
        moved = _winners(arrived / arrived.new_tensor(factors)[:, None, None], constant)
        # What loses all to another class, whose threshold fell, keeps what the constant gives it.
        give_back(moved, winners, range(1, len(factors) + 1))
        winners = moved
    return winners


def _on_grid(values: Tensor, size: tuple[int, int], boundaries: Tensor) -> Tensor:
    """Maps on the boundaries' grid, `(K, h, w)`: cells of 4 x 4 pixels, the last of which may lie half outside."""
    height, width = size
    padding = (0, -width % STRIDE, 0, -height % STRIDE)
    return _resize(F.pad(_resize(values, size), padding, mode="replicate"), boundaries.shape)


def _scaled(size: tuple[int, ...], config: IrnRefinementConfig) -> tuple[int, int]:
    """Height and width at which boundaries are looked for: as in training, before its random scale."""
    height, width = size
    factor = (config.training.image_size or max(height, width)) / max(height, width)
    return max(1, round(factor * height)), max(1, round(factor * width))


def boundary_size(size: tuple[int, int], config: IrnRefinementConfig) -> tuple[int, int]:
    """Height and width of what the boundary network sees of an image of a height and width: scaled and padded."""
    height, width = _scaled(size, config)
    return height + -height % _MULTIPLE, width + -width % _MULTIPLE


def _by_class(maps: Tensor) -> Tensor:
    """Each map divided by its maximum, `(K, h, w)`."""
    return maps / maps.amax(dim=(1, 2), keepdim=True).clamp(min=_TINY)


def _weighted(arrived: Tensor, above: Tensor, threshold_logits: np.ndarray, weight: float) -> Tensor:
    """Geometric mean of what the walk brought and of the maps that it started from, `(K, h, w)` in [0, 1]."""
    relative = relative_to_peak(above.cpu().numpy() + threshold_logits[:, None, None])
    kept = torch.from_numpy(relative).to(arrived).clamp(max=1)
    return _by_class(arrived) ** (1 - weight) * kept**weight


def _on_objects(arrived: Tensor, objects: np.ndarray, weight: float) -> Tensor:
    """What arrived, `(K, H, W)`, and more of it on objects.

    Elsewhere it stays: less of it there cost well trained classes what it gave weak ones.
    """
    return arrived * torch.from_numpy(objects).to(arrived).clamp(min=1) ** weight


def _winners(arrived: Tensor, constant: float) -> np.ndarray:
    """Of background, which has the constant everywhere, and of `K` classes the highest, `(H, W)` int64."""
    return torch.cat([torch.full_like(arrived[:1], constant), arrived]).argmax(dim=0).cpu().numpy()


def _factor(values: Tensor, boundaries: Tensor, constant: float, weight: float) -> float:
    """Of the constant: the threshold that a class's own outline in a photo speaks for.

    The better a level's outline lies on boundaries, the more it counts: the factor is the geometric mean of
    [`_LEVELS`], each weighted with the exponential of `weight` times the mean boundary along its outline.

    Args:
        values: `(h, w)`, what is compared with the threshold.
        boundaries: `(h, w)` in [0, 1].
        constant: that the levels lie around.
        weight: how much the best outlines are preferred.

    Returns:
        The factor; 1 if no level has an outline.
    """
    levels = _LEVELS.to(values)
    passed = values > constant * levels[:, None, None]
    outline = torch.zeros_like(passed)
    for dim in (1, 2):
        size = passed.shape[dim] - 1
        changed = passed.narrow(dim, 0, size) != passed.narrow(dim, 1, size)
        # Both cells that a change is between, because a boundary is wider than a line.
        outline.narrow(dim, 0, size).logical_or_(changed)
        outline.narrow(dim, 1, size).logical_or_(changed)
    lengths = outline.sum(dim=(1, 2))
    known = lengths >= _MIN_OUTLINE
    if not known.any():
        return 1.0
    means = (outline * boundaries).sum(dim=(1, 2))[known] / lengths[known]
    return float(((weight * means).softmax(dim=0) * levels[known].log()).sum().exp())


def _resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, `(K, h, w)`."""
    if maps.shape[1:] == tuple(size):
        return maps
    return F.interpolate(maps[None], tuple(size), mode="bilinear", align_corners=False)[0]
