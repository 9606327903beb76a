"""The losses of Adaptive Spatial-BCE as pure functions of tensors.

Shapes used throughout: ``B`` images, ``C`` foreground classes, feature map ``h x w``, ``N = h * w`` pixels.
``pixel_logits`` are the *scaled* class maps ``exp(tau_c) * z_c``; ``p = sigmoid(pixel_logits)``.
Everything is computed in float32 (float64 stays float64) whatever autocast is active: ``(p / t) ** 2`` overflows in
float16.

Each pooled mean accepts ``sum_over_processes``: under data parallelism it returns the sum of a count over all
processes, and the local loss is then scaled so that the gradient average taken by DDP is the gradient of the
one-process loss.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor

Normalization = Literal["balanced", "official"]
KlForm = Literal["bernoulli", "odds"]
PresentLoss = Literal["ratio", "cross_entropy"]
SumOverProcesses = Callable[[Tensor], Tensor]

# Value of a label map's pixels that say nothing.
UNKNOWN = 255
# The released program clamps the threshold here; below it R's slope towards 0 would exceed any useful step.
THRESHOLD_MARGIN = 1e-4
# Added to the target proportion inside the KL's logarithms, as the released program does.
KL_EPSILON = 1e-10


def sum_over_processes(count: Tensor) -> Tensor:
    """Sum a scalar over the processes of the default group; the identity outside distributed training."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        count = count.clone()
        torch.distributed.all_reduce(count)
    return count


def _world_size() -> int:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size()
    return 1


def _pooled_mean(total: Tensor, count: Tensor, reduce: SumOverProcesses | None) -> Tensor:
    """``total / count``, 0 where the count is 0 (with finite gradients); ``count`` summed over processes."""
    if reduce is not None:
        count, total = reduce(count), total * _world_size()
    return torch.where(count > 0, total / count.clamp(min=torch.finfo(count.dtype).tiny), total * 0)


def _float(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _of_present(proportions: Tensor, labels: Tensor) -> Tensor:
    """Proportions with those of absent classes replaced: nothing times NaN, which a table may have there, is NaN."""
    return torch.where(labels > 0, proportions, torch.full_like(proportions, 0.5))


def quantile_rank(proportions: Tensor, num_pixels: int) -> Tensor:
    """0-based rank, in descending order, of the pixel whose probability is the threshold.

    Args:
        proportions (`torch.Tensor` of shape `(B, C)`): foreground proportions in [0, 1].
        num_pixels (`int`): ``N``.

    Returns:
        `torch.LongTensor` of shape `(B, C)` in ``[1, N - 1]``: so many pixels lie above the threshold (paper, sec.
        3.2; the released program fails for a proportion of 1 and leaves rank 0 for tiny ones).
    """
    return (proportions.double() * num_pixels).long().clamp(min=1).clamp(max=num_pixels - 1)


def quantile_threshold(pixel_logits: Tensor, proportions: Tensor) -> Tensor:
    """Each image's and class's own threshold: the probability at the rank its foreground proportion gives.

    Args:
        pixel_logits (`torch.Tensor` of shape `(B, C, h, w)`): scaled class maps.
        proportions (`torch.Tensor` of shape `(B, C)`): foreground proportions in [0, 1].

    Returns:
        `torch.Tensor` of shape `(B, C)`: thresholds in (0, 1), detached.
    """
    probabilities = _float(pixel_logits.detach()).sigmoid().flatten(2)
    rank = quantile_rank(proportions, probabilities.shape[-1])
    return probabilities.sort(dim=-1, descending=True).values.gather(-1, rank.unsqueeze(-1)).squeeze(-1)


def threshold_ratio(probabilities: Tensor, thresholds: Tensor) -> tuple[Tensor, Tensor]:
    """The per-pixel loss ``R`` of staying near the threshold (paper, eq. 3 and 4): 1 at ``t``, 0 at ``p`` = 0 and 1.

    Args:
        probabilities (`torch.Tensor` of shape `(B, C, h, w)`): in [0, 1].
        thresholds (`torch.Tensor` of shape `(B, C)`): in (0, 1).

    Returns:
        ``R`` of shape `(B, C, h, w)` and the boolean mask of target candidates ``p > t`` (constant: no gradient).
    """
    t = thresholds[..., None, None].clamp(THRESHOLD_MARGIN, 1 - THRESHOLD_MARGIN)
    above = probabilities.detach() > t.detach()
    distance = (probabilities - t) / torch.where(above, 1 - t, t)
    return 1 - distance.square(), above


def quantile_cross_entropy(pixel_logits: Tensor, proportions: Tensor) -> Tensor:
    """The per-pixel cross-entropy to a map's own side of its quantile threshold.

    Where `R` only pushes a pixel away from the threshold, wherever that lies, this says where to: the pixels above the
    rank that the proportion gives to 1, the others to 0. Its slope is bounded by 1 in the logits, and a pixel that is
    wrong and saturated still has one; so right proportions, which ask a rough map to shrink to a fraction, do not
    drive it to 0. A pixel weighs by the distance of its rank from the threshold's, 0 there and 1 at either end: of
    those near the threshold the map knows least.

    Args:
        pixel_logits (`torch.Tensor` of shape `(B, C, h, w)`): scaled class maps.
        proportions (`torch.Tensor` of shape `(B, C)`): foreground proportions in [0, 1].

    Returns:
        `torch.Tensor` of shape `(B, C, h, w)`.
    """
    logits = _float(pixel_logits).flatten(2)
    pixels = logits.shape[-1]
    above = quantile_rank(proportions, pixels).unsqueeze(-1)
    # 0 for the highest pixel. Stable, so that it depends on no kernel which of equal pixels come first.
    order = logits.detach().argsort(dim=-1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(-1, order, torch.arange(pixels, device=order.device).expand_as(order))
    foreground = rank < above
    inside, outside = (above - rank) / above, (rank + 1 - above) / (pixels - above)
    weight = torch.where(foreground, inside, outside).to(logits.dtype)
    entropy = F.binary_cross_entropy_with_logits(logits, foreground.to(logits.dtype), weight, reduction="none")
    return entropy.view(pixel_logits.shape)


def label_map_cross_entropy(pixel_logits: Tensor, label_maps: Tensor) -> Tensor:
    """The per-pixel cross-entropy of each class map with the pixels that label maps give to its class.

    Args:
        pixel_logits (`torch.Tensor` of shape `(B, C, h, w)`): scaled class maps.
        label_maps (`torch.LongTensor` of shape `(B, H, W)`): 0 background, `c + 1` class `c`, 255 unknown; read at the
            centres of the class maps' pixels.

    Returns:
        `torch.Tensor` of shape `(B, C, h, w)`; 0 where the label map says nothing.
    """
    logits = _float(pixel_logits)
    # Of float64, in which every label is exact.
    small = F.interpolate(label_maps[:, None].double(), size=logits.shape[-2:], mode="nearest-exact")
    classes = torch.arange(1, logits.shape[1] + 1, device=logits.device)[:, None, None]
    entropy = F.binary_cross_entropy_with_logits(logits, (small == classes).to(logits.dtype), reduction="none")
    return entropy * (small != UNKNOWN)


def spatial_bce_loss(
    pixel_logits: Tensor,
    labels: Tensor,
    proportions: Tensor | None,
    normalization: Normalization = "balanced",
    present_loss: PresentLoss = "ratio",
    label_maps: Tensor | None = None,
    reduce: SumOverProcesses | None = None,
) -> Tensor:
    """Spatial-BCE in the weights phase (paper, eq. 3-5).

    Present classes are pushed to either side of their own quantile threshold; absent classes pay
    ``-log(1 - p) = softplus(pixel_logits)``, which, unlike a clamped log, still has a gradient at a saturated false
    positive.

    Args:
        pixel_logits (`torch.Tensor` of shape `(B, C, h, w)`): scaled class maps.
        labels (`torch.Tensor` of shape `(B, C)`): 1 for a present class, 0 for an absent one (soft values allowed).
        proportions (`torch.Tensor` of shape `(B, C)`): foreground proportions in [0, 1]; read for present classes,
            unless there are label maps.
        normalization (`str`): ``"official"`` is the mean over ``B * C * N``. There the absent classes outnumber the
            present ones (C - 1 to 1 with one class per image) and on small data sets drive every map to 0.
            ``"balanced"`` averages present and absent pairs apart and adds the two means.
        present_loss (`str`): what present classes pay: ``"ratio"`` is the paper's `R`, see [`threshold_ratio`];
            ``"cross_entropy"``, see [`quantile_cross_entropy`].
        label_maps (`torch.LongTensor` of shape `(B, H, W)`, *optional*): present classes pay
            [`label_map_cross_entropy`] instead, which knows not only how much of an image is theirs but where.
        reduce: see the module's docstring.

    Returns:
        Scalar `torch.Tensor`.
    """
    logits = _float(pixel_logits)
    weight = labels.to(logits.dtype)
    if label_maps is not None:
        pixel_loss = label_map_cross_entropy(logits, label_maps)
    elif proportions is None:
        raise ValueError("spatial_bce_loss: got neither proportions nor label_maps, expected one of them")
    elif present_loss == "cross_entropy":
        pixel_loss = quantile_cross_entropy(logits, _of_present(proportions, labels))
    else:
        thresholds = quantile_threshold(logits, _of_present(proportions, labels))
        pixel_loss, _ = threshold_ratio(logits.sigmoid(), thresholds)
    present = weight * pixel_loss.mean(dim=(-2, -1))
    absent = (1 - weight) * F.softplus(logits).mean(dim=(-2, -1))
    if normalization == "official":
        return (present + absent).mean()
    return _pooled_mean(present.sum(), weight.sum(), reduce) + _pooled_mean(absent.sum(), (1 - weight).sum(), reduce)


def threshold_loss(
    pixel_logits: Tensor, thresholds: Tensor, labels: Tensor, reduce: SumOverProcesses | None = None
) -> Tensor:
    """Spatial-BCE in the threshold phase: moves only the learned thresholds (paper, sec. 3.3).

    Both sides are normalised by their own pixel count over the batch. That gives the flow of ``t`` one stable interior
    point; a per-pixel mean lets ``t`` run to 0 or 1.

    Args:
        pixel_logits (`torch.Tensor` of shape `(B, C, h, w)`): scaled class maps; detached here.
        thresholds (`torch.Tensor` of shape `(B, C)`): in (0, 1), with gradient.
        labels (`torch.Tensor` of shape `(B, C)`): 1 for a present class; only pairs above 0 count.
        reduce: see the module's docstring.

    Returns:
        Scalar `torch.Tensor`; a side without pixels contributes 0.
    """
    logits = _float(pixel_logits.detach())
    ratio, above = threshold_ratio(logits.sigmoid(), _float(thresholds))
    weight = labels.to(logits.dtype)[..., None, None].expand_as(ratio)
    terms = []
    for side in (above, ~above):
        side_weight = weight * side
        terms.append(_pooled_mean((side_weight * ratio).sum(), side_weight.sum(), reduce))
    return terms[0] + terms[1]


def proportion_kl(
    pixel_logits: Tensor,
    labels: Tensor,
    proportions: Tensor,
    form: KlForm = "bernoulli",
    slope_leak: float = 0.0,
    reduce: SumOverProcesses | None = None,
) -> Tensor:
    """Divergence of each present class's mean probability from its foreground proportion (paper, eq. 8).

    Args:
        pixel_logits (`torch.Tensor` of shape `(B, C, h, w)`): scaled class maps.
        labels (`torch.Tensor` of shape `(B, C)`): 1 for a present class.
        proportions (`torch.Tensor` of shape `(B, C)`): foreground proportions in [0, 1]; read for present classes.
        form (`str`): ``"bernoulli"`` is a proper divergence (the released program's); ``"odds"`` is the paper's
            literal ``P ln(P / Q)`` of foreground-to-background odds, which can be negative.
        slope_leak (`float`): added to the sigmoid's slope `p (1 - p)` in this term's gradient; its value is unchanged.
            A map that has left the sigmoid's slope has no gradient left without it, in whichever direction it is
            wrong.
        reduce: see the module's docstring.

    Returns:
        Scalar `torch.Tensor`: mean over the batch's present pairs, 0 if there are none.
    """
    logits = _float(pixel_logits)
    weight = labels.to(logits.dtype)
    # float64: a proportion within 1e-8 of 1 is 1 in float32.
    m = logits.sigmoid().mean(dim=(-2, -1)).double().clamp(KL_EPSILON, 1 - KL_EPSILON)
    # After the clamp, which would stop this gradient, too.
    m = m + slope_leak * (logits - logits.detach()).mean(dim=(-2, -1))
    proportions = _of_present(proportions, labels).double()
    q, background = proportions + KL_EPSILON, 1 - proportions + KL_EPSILON
    if form == "odds":
        odds, target = m / (1 - m), q / background
        divergence = odds * torch.log(odds / target)
    else:
        divergence = m * torch.log(m / q) + (1 - m) * torch.log((1 - m) / background)
    return _pooled_mean((weight * divergence).sum(), weight.double().sum(), reduce).to(logits.dtype)
