"""The losses of Adaptive Spatial-BCE as pure functions of tensors.

Shapes used throughout: ``B`` images, ``C`` foreground classes, feature map ``h x w``, ``N = h * w`` pixels.
``pixel_logits`` are the *scaled* class maps ``exp(tau_c) * z_c``; ``p = sigmoid(pixel_logits)``.
Everything is computed in float32 (float64 stays float64) whatever autocast is active: ``(p / t) ** 2`` overflows in
float16. Gradients can be had once, not of gradients.

Each pooled mean accepts ``sum_over_processes``: under data parallelism it returns the sum of a count over all
processes, and the local loss is then scaled so that the gradient average taken by DDP is the gradient of the
one-process loss.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.distributed
from torch import Tensor

from .losses_pair_means import PairMeans, Rows, pair_means, present_rows
from .losses_present_classes import PresentLossName, present_pays, threshold_ratio

Normalization = Literal["balanced", "official"]
KlForm = Literal["bernoulli", "odds"]
SumOverProcesses = Callable[[Tensor], Tensor]

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


def spatial_bce_loss(
    pixel_logits: Tensor,
    labels: Tensor,
    proportions: Tensor | None,
    normalization: Normalization = "balanced",
    present_loss: PresentLossName = "ratio",
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
            ``"cross_entropy"`` is that with a map's own side of the threshold, weighted by the distance of ranks.
        label_maps (`torch.LongTensor` of shape `(B, H, W)`, *optional*): 0 background, `c + 1` class `c`, 255 unknown;
            read at the centres of the class maps' pixels. Present classes pay the cross-entropy with their pixels
            instead, and nothing where a label map says nothing: they say not only how much of an image is a class's
            but where.
        reduce: see the module's docstring.

    Returns:
        Scalar `torch.Tensor`.

    Examples:
        >>> import torch
        >>> from sbce_hf import spatial_bce_loss
        >>> labels = torch.tensor([[1.0, 0.0]])  # the first class is on the image, the second is not
        >>> proportions = torch.tensor([[0.25, 0.0]])
        >>> vague, sure = torch.zeros(1, 2, 4, 4), torch.full((1, 2, 4, 4), -6.0)
        >>> sure[0, 0, 0] = 6.0  # a quarter of the pixels belongs to the first class, and nothing else to any
        >>> [round(spatial_bce_loss(maps, labels, proportions).item(), 2) for maps in (vague, sure)]
        [1.69, 0.75]
    """
    logits, rows = _float(pixel_logits), present_rows(labels)
    if proportions is not None:
        proportions = _of_present(proportions, labels)
    pays = present_pays(logits, rows, proportions, present_loss, label_maps)
    return _spatial_mean(pair_means(logits, rows, pays), labels, rows, normalization, reduce)


def _spatial_mean(
    pairs: PairMeans, labels: Tensor, rows: Rows, normalization: Normalization, reduce: SumOverProcesses | None
) -> Tensor:
    weight = labels.flatten().to(pairs.absent.dtype)
    present, absent = (weight[rows] * pairs.present).sum(), ((1 - weight) * pairs.absent).sum()
    if normalization == "official":
        return (present + absent) / weight.numel()
    return _pooled_mean(present, weight.sum(), reduce) + _pooled_mean(absent, (1 - weight).sum(), reduce)


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

    Examples:
        >>> import torch
        >>> from sbce_hf import threshold_loss
        >>> maps, labels = torch.randn(1, 2, 8, 8), torch.tensor([[1.0, 0.0]])
        >>> thresholds = torch.tensor([[0.4, 0.4]], requires_grad=True)
        >>> threshold_loss(maps, thresholds, labels).backward()
        >>> (thresholds.grad != 0).tolist()  # only that of the present class moves
        [[True, False]]
    """
    rows = present_rows(labels)
    logits = _float(pixel_logits.detach().flatten(0, 1)[rows])
    ratio, above = threshold_ratio(logits.sigmoid(), _float(thresholds.flatten()[rows]))
    weight = labels.flatten()[rows].to(logits.dtype)[:, None, None].expand_as(ratio)
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

    Examples:
        >>> import torch
        >>> from sbce_hf import proportion_kl
        >>> maps, labels = torch.zeros(1, 2, 8, 8), torch.tensor([[1.0, 0.0]])  # a mean probability of 0.5
        >>> [round(proportion_kl(maps, labels, torch.full((1, 2), q)).item(), 3) for q in (0.4, 0.25, 0.1)]
        [0.02, 0.144, 0.511]
    """
    logits, rows = _float(pixel_logits), present_rows(labels)
    proportions = _of_present(proportions, labels)
    return _divergence(pair_means(logits, rows), labels, proportions, rows, form, slope_leak, reduce)


def _divergence(
    pairs: PairMeans,
    labels: Tensor,
    proportions: Tensor,
    rows: Rows,
    form: KlForm,
    slope_leak: float,
    reduce: SumOverProcesses | None,
) -> Tensor:
    # float64: a proportion within 1e-8 of 1 is 1 in float32.
    m = pairs.probability.double().clamp(KL_EPSILON, 1 - KL_EPSILON)
    # After the clamp, which would stop this gradient, too.
    m = m + slope_leak * (pairs.logit - pairs.logit.detach())
    proportions = proportions.flatten()[rows].double()
    weight = labels.flatten()[rows].double()
    q, background = proportions + KL_EPSILON, 1 - proportions + KL_EPSILON
    if form == "odds":
        odds, target = m / (1 - m), q / background
        divergence = odds * torch.log(odds / target)
    else:
        divergence = m * torch.log(m / q) + (1 - m) * torch.log((1 - m) / background)
    return _pooled_mean((weight * divergence).sum(), weight.sum(), reduce).to(pairs.absent.dtype)


def weights_loss(
    pixel_logits: Tensor,
    labels: Tensor,
    proportions: Tensor,
    normalization: Normalization = "balanced",
    present_loss: PresentLossName = "ratio",
    kl_form: KlForm = "bernoulli",
    slope_leak: float = 0.0,
    reduce: SumOverProcesses | None = None,
) -> tuple[Tensor, Tensor]:
    """Both terms of the weights phase at once, which share what takes their time.

    Args:
        pixel_logits (`torch.Tensor` of shape `(B, C, h, w)`): scaled class maps.
        labels (`torch.Tensor` of shape `(B, C)`): see [`spatial_bce_loss`], like the other arguments.
        proportions (`torch.Tensor` of shape `(B, C)`): foreground proportions in [0, 1]; read for present classes.
        normalization (`str`): of [`spatial_bce_loss`].
        present_loss (`str`): of [`spatial_bce_loss`].
        kl_form (`str`): of [`proportion_kl`].
        slope_leak (`float`): of [`proportion_kl`].
        reduce: see the module's docstring.

    Returns:
        What [`spatial_bce_loss`] and [`proportion_kl`] return.
    """
    logits, rows = _float(pixel_logits), present_rows(labels)
    proportions = _of_present(proportions, labels)
    pairs = pair_means(logits, rows, present_pays(logits, rows, proportions, present_loss))
    return (
        _spatial_mean(pairs, labels, rows, normalization, reduce),
        _divergence(pairs, labels, proportions, rows, kl_form, slope_leak, reduce),
    )
