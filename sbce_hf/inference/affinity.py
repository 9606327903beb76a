"""What a trunk finds alike on a photo, and label maps from class maps that were spread over it.

Attention is taken where it is computed: each call of `scaled_dot_product_attention` is met with the queries and keys
that the block has made of its own projections, norms, rotary positions and scale, whichever library's block it is. The
fused kernel stays on; the probabilities, which it never writes down, are computed once more from the same numbers.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..config import AffinityConfig, LabellingConfig, to_mapping
from ..data.preprocessing import IMAGENET, Preprocessing
from ..errors import UserError
from ..labels.variants import variants
from ..postprocess.affinity import cosine_affinity, spread, transition
from ..postprocess.crf_pool import CrfPool
from ..postprocess.methods import Answer, RuleMethod
from ..postprocess.rules import ClassMaps
from .views import MIN_SIDE, to_pixels

AFFINITY = "affinity"
# Side of the image that a trunk is tried with, where images are not resized.
_SIDE = 224


class AttentionRecorder(TorchFunctionMode):
    """Keeps what the attention of a forward pass is made from, while it is active.

    `calls` has a tuple for each call of `scaled_dot_product_attention`: queries and keys `(B, heads, N, d)`, the mask
    or `None`, and the scale.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Tensor, Tensor, Tensor | None, float]] = []

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Note the call, and let it happen."""
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
            given = dict(zip(names, args, strict=False)) | dict(kwargs)
            query, scale = given["query"], given.get("scale")
            scale = query.shape[-1] ** -0.5 if scale is None else scale
            self.calls.append((query, given["key"], given.get("attn_mask"), scale))
        return func(*args, **kwargs)


def probabilities(query: Tensor, key: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """What the patches of one image attend to, the mean over heads.

    Args:
        query: `(1, heads, N, d)`.
        key: `(1, heads, N, d)`.
        mask: added to the scores, or where it is boolean, what may be seen; `None` without one.
        scale: of the scores.

    Returns:
        `(N, N)` float32, whose rows sum to 1.
    """
    heads, count = query.shape[1], query.shape[2]
    total = torch.zeros(count, count, device=query.device)
    # One head after the other: their matrices are large.
    for head in range(heads):
        scores = query[0, head].float() @ key[0, head].float().T * scale
        if mask is not None:
            own = mask.expand(1, heads, count, count)[0, head]
            scores = scores.masked_fill(~own, -math.inf) if own.dtype == torch.bool else scores + own
        total += scores.softmax(dim=-1)
    return total / heads


def patch_attention(model: Any, pixels: Tensor, layers: int) -> tuple[Tensor, tuple[int, int]]:
    """What each patch of a photo attends to, the mean over heads and layers.

    Class and register tokens are left out of rows and columns.

    Args:
        model: a model that is a trunk, in evaluation mode.
        pixels: `(1, 3, H, W)`, normalised.
        layers: how many of the last ones that see all patches.

    Returns:
        `(N, N)` float32, and height and width of the patches.

    Raises:
        UserError: no layer of it lets every patch see every other.
    """
    with AttentionRecorder() as recorder:
        features = model(pixels).last_hidden_state
    height, width = features.shape[-2:]
    cells = height * width
    lengths = {cells + count for count in _prefixes(model.trunk)}
    found = [
        call
        for call in recorder.calls
        if call[0].shape[0] == 1 and call[0].shape[:3] == call[1].shape[:3] and call[0].shape[2] in lengths
    ][-layers:]
    if not found:
        raise UserError(
            f"affinity.source: got attention, but no layer of trunk {model.config.trunk!r} lets every patch see every "
            "other, or timm's fused attention is switched off; expected a plain transformer (ViT, DINOv2, EVA). "
            "Say affinity.source=features, which any trunk has"
        )
    total = torch.zeros(cells, cells, device=features.device)
    for call in found:
        total += probabilities(*call)[-cells:, -cells:]
    return total / len(found), (height, width)


def _prefixes(trunk: Any) -> set[int]:
    """How many tokens may stand before the patches': those of timm, or of a backbone of transformers; or none."""
    within = getattr(trunk, "model", trunk)
    registers = getattr(getattr(within, "config", None), "num_register_tokens", None) or 0
    return {0, 1 + registers, getattr(within, "num_prefix_tokens", 0)}


class AffinityMethod:
    """The threshold rule on class maps that were spread over what the trunk finds alike; the dense CRF after it.

    Args:
        model: a classifier, on its device. Left in evaluation mode.
        config: of the affinities.
        labelling: its rule, and the size of the look.
        preprocessing: of the photos.
    """

    def __init__(
        self, model: Any, config: AffinityConfig, labelling: LabellingConfig, preprocessing: Preprocessing = IMAGENET
    ) -> None:
        self.model, self.config, self.labelling = model.base_model.eval(), config, labelling
        self.preprocessing, self.rule = preprocessing, RuleMethod(labelling)
        self.name = AFFINITY
        self.options: Mapping[str, Any] = {
            AFFINITY: to_mapping(config),
            "in_words": f"{labelling.rule} (affinity of {config.source})",
        }
        self.stores = variants(self.name, labelling.crf)
        self._stride = self.model.trunk.feature_info.reduction()[-1]

    def __call__(self, image: np.ndarray, maps: ClassMaps, crf: CrfPool | None) -> Answer:
        """Spread the maps, then apply the rule; see [`methods.Method`]."""
        if len(maps.classes):
            weights, grid = self.weights(image)
            maps = spread(maps, weights, grid, self.config.steps)
        return self.rule(image, maps, crf)

    @torch.inference_mode()
    def weights(self, image: np.ndarray) -> tuple[Tensor, tuple[int, int]]:
        """With which weight each cell of an image takes the values of the others.

        Args:
            image: `(H, W, 3)` uint8, RGB.

        Returns:
            `(N, N)`, whose rows sum to 1, and height and width of the cells.
        """
        photo = Image.fromarray(image)
        pixels = to_pixels(photo, self._size(photo.height, photo.width), self.preprocessing.resample)
        batch = self.preprocessing(pixels.to(self.model.device))[None].to(self.model.dtype)
        if self.config.source == "attention":
            affinity, grid = patch_attention(self.model, batch, self.config.layers)
        else:
            features = self.model(batch).last_hidden_state[0].float()
            affinity, grid = cosine_affinity(features.flatten(1).T, self.config.threshold), features.shape[1:]
        return transition(affinity, self.config), (grid[0], grid[1])

    def check(self) -> None:
        """See, without numbers, that the trunk has what the source asks for.

        Raises:
            UserError: see [`patch_attention`].
        """
        if self.config.source == "attention":
            with torch.random.fork_rng(devices=[]), torch.device("meta"), torch.inference_mode():
                empty = type(self.model)(self.model.config).eval()
                patch_attention(empty, torch.empty(1, 3, *self._size(_SIDE, _SIDE)), self.config.layers)

    def _size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the look: at most `max_cells` cells."""
        side = self.config.image_size or self.labelling.image_size
        height, width = (height, width) if side is None else (side, side)
        factor = min(1.0, self._stride * math.sqrt(self.config.max_cells / (height * width)))
        return max(MIN_SIDE, int(height * factor)), max(MIN_SIDE, int(width * factor))
