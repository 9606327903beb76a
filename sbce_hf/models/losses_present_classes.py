"""What a class that is present pays for each pixel: functions of tensors, with their slopes written down.

Shapes: ``R`` maps of ``N = h * w`` pixels, each of an image and a class that is present there.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .losses_pair_means import PresentLoss, RowLoss, Rows, descending_order, sorted_rows

PresentLossName = Literal["ratio", "cross_entropy"]

# Value of a label map's pixels that say nothing.
UNKNOWN = 255
# The released program clamps the threshold here; below it R's slope towards 0 would exceed any useful step.
THRESHOLD_MARGIN = 1e-4


def quantile_rank(proportions: Tensor, num_pixels: int) -> Tensor:
    """0-based rank, in descending order, of the pixel whose probability is the threshold.

    Args:
        proportions (`torch.Tensor`): foreground proportions in [0, 1].
        num_pixels (`int`): ``N``.

    Returns:
        `torch.LongTensor` of the same shape in ``[1, N - 1]``: so many pixels lie above the threshold (paper, sec.
        3.2; the released program fails for a proportion of 1 and leaves rank 0 for tiny ones).
    """
    return (proportions.double() * num_pixels).long().clamp(min=1).clamp(max=num_pixels - 1)


def quantile_threshold(probabilities: Tensor, proportions: Tensor) -> Tensor:
    """Each map's own threshold: the probability at the rank its foreground proportion gives.

    Args:
        probabilities (`torch.Tensor` of shape `(R, N)`): of maps.
        proportions (`torch.Tensor` of shape `(R,)`): foreground proportions in [0, 1].

    Returns:
        `torch.Tensor` of shape `(R,)`: thresholds in (0, 1), detached.

    Examples:
        >>> import torch
        >>> from sbce_hf import quantile_threshold
        >>> probabilities = torch.tensor([[0.9, 0.1, 0.8, 0.3]])
        >>> quantile_threshold(probabilities, torch.tensor([0.5]))  # two of four pixels are above
        tensor([0.3000])
    """
    pixels = probabilities.shape[-1]
    place = pixels - 1 - quantile_rank(proportions, pixels)
    return sorted_rows(probabilities).gather(-1, place.unsqueeze(-1)).squeeze(-1)


def threshold_ratio(probabilities: Tensor, thresholds: Tensor) -> tuple[Tensor, Tensor]:
    """The per-pixel loss ``R`` of staying near the threshold (paper, eq. 3 and 4): 1 at ``t``, 0 at ``p`` = 0 and 1.

    Args:
        probabilities (`torch.Tensor` of shape `(..., h, w)`): in [0, 1].
        thresholds (`torch.Tensor` of shape `(...)`): in (0, 1).

    Returns:
        ``R`` of shape `(..., h, w)` and the boolean mask of target candidates ``p > t`` (constant: no gradient).
    """
    t = thresholds[..., None, None].clamp(THRESHOLD_MARGIN, 1 - THRESHOLD_MARGIN)
    above = probabilities.detach() > t.detach()
    distance = (probabilities - t) / torch.where(above, 1 - t, t)
    return 1 - distance.square(), above


def _quantile_ratio(logits: Tensor, p: Tensor, softplus: Tensor, *, proportions: Tensor) -> RowLoss:
    """[`threshold_ratio`] around the quantile threshold, as [`PresentLoss`]."""
    t = quantile_threshold(p, proportions).clamp(THRESHOLD_MARGIN, 1 - THRESHOLD_MARGIN).unsqueeze(-1)
    side = torch.where(p > t, 1 - t, t)
    distance = (p - t) / side
    return RowLoss(1 - distance.square(), -2 * distance / side * p * (1 - p))


def _quantile_cross_entropy(logits: Tensor, p: Tensor, softplus: Tensor, *, proportions: Tensor) -> RowLoss:
    """The cross-entropy to a map's own side of its quantile threshold, as [`PresentLoss`].

    Where `R` only pushes a pixel away from the threshold, wherever that lies, this says where to: the pixels above the
    rank that the proportion gives to 1, the others to 0. Its slope is bounded by 1 in the logits, and a pixel that is
    wrong and saturated still has one; so right proportions, which ask a rough map to shrink to a fraction, do not
    drive it to 0. A pixel weighs by the distance of its rank from the threshold's, 0 there and 1 at either end: of
    those near the threshold the map knows least.
    """
    pixels = logits.shape[-1]
    above = quantile_rank(proportions, pixels).unsqueeze(-1)
    # Stable, so that it depends on no kernel which of equal pixels come first.
    order = descending_order(logits)
    place = torch.empty_like(order).scatter_(-1, order, torch.arange(pixels, device=order.device).expand_as(order))
    foreground = place < above
    inside, outside = (above - place) / above, (place + 1 - above) / (pixels - above)
    return _cross_entropy(logits, p, softplus, foreground, torch.where(foreground, inside, outside))


def _label_map_cross_entropy(logits: Tensor, p: Tensor, softplus: Tensor, *, maps: Tensor, classes: Tensor) -> RowLoss:
    """The cross-entropy with the pixels that label maps give to a class, as [`PresentLoss`]."""
    return _cross_entropy(logits, p, softplus, maps == classes.unsqueeze(-1), maps != UNKNOWN)


def _cross_entropy(logits: Tensor, p: Tensor, softplus: Tensor, target: Tensor, weight: Tensor) -> RowLoss:
    target, weight = target.to(logits.dtype), weight.to(logits.dtype)
    return RowLoss(weight * (softplus - target * logits), weight * (p - target))


_LOSSES: dict[PresentLossName, Callable[..., RowLoss]] = {
    "ratio": _quantile_ratio,
    "cross_entropy": _quantile_cross_entropy,
}


def present_pays(
    pixel_logits: Tensor,
    rows: Rows,
    proportions: Tensor | None,
    kind: PresentLossName = "ratio",
    label_maps: Tensor | None = None,
) -> PresentLoss:
    """What rows pay; see [`spatial_bce_loss`] for the arguments.

    Args:
        pixel_logits (`torch.Tensor` of shape `(B, C, h, w)`): scaled class maps; read for shape and device.
        rows: of the present pairs, see [`present_rows`].
        proportions (`torch.Tensor` of shape `(B, C)`): foreground proportions in [0, 1], of absent pairs, too.
        kind (`str`): `"ratio"` or `"cross_entropy"`.
        label_maps (`torch.LongTensor` of shape `(B, H, W)`, *optional*): take the place of proportions.

    Raises:
        ValueError: neither proportions nor label maps.
    """
    batch, classes, height, width = pixel_logits.shape
    if label_maps is not None:
        # Of float64, in which every label is exact.
        small = F.interpolate(label_maps[:, None].double(), size=(height, width), mode="nearest-exact")
        pairs = torch.arange(batch * classes, device=pixel_logits.device)[rows]
        maps = small.flatten(1)[pairs // classes]
        return partial(_label_map_cross_entropy, maps=maps, classes=pairs % classes + 1)
    if proportions is None:
        raise ValueError("spatial_bce_loss: got neither proportions nor label_maps, expected one of them")
    return partial(_LOSSES[kind], proportions=proportions.flatten()[rows])
