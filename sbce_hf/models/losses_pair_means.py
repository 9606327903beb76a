"""What every pair of an image and a class pays on average over its pixels, with gradients written down by hand.

Shapes: ``P`` pairs of ``N`` pixels; ``R`` rows of them, those whose class is present. A loss has each pixel's sigmoid
and softplus once; autograd would compute them again for each term, keep every intermediate result and walk all ``P``
pairs for what only ``R`` pay. On the CPU present pairs are picked out, and NumPy sorts and takes logarithms: it has
vector instructions for both. Elsewhere, and in compiled graphs, which know no sizes that depend on values, all pairs
are rows, and nothing waits for the device.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

Rows = Tensor | slice


class PairMeans(NamedTuple):
    """Means over each pair's pixels.

    Args:
        absent (`torch.Tensor` of shape `(P,)`): of ``softplus(x) = -log(1 - p)``.
        present (`torch.Tensor` of shape `(R,)`): of what a present class pays; 0 without targets.
        probability (`torch.Tensor` of shape `(R,)`): of ``p``.
        logit (`torch.Tensor` of shape `(R,)`): of ``x``.
    """

    absent: Tensor
    present: Tensor
    probability: Tensor
    logit: Tensor


class RowLoss(NamedTuple):
    """What present classes pay for each pixel, and its slope in the logit: both of shape `(R, N)`."""

    value: Tensor
    slope: Tensor


# From a row's logits, probabilities and softplus, each of shape `(R, N)`.
PresentLoss = Callable[[Tensor, Tensor, Tensor], RowLoss]


def _by_numpy(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def present_rows(labels: Tensor) -> Rows:
    """Which pairs are rows.

    Args:
        labels (`torch.Tensor` of shape `(B, C)`): above 0 for a present class.

    Returns:
        `torch.LongTensor` of shape `(R,)`, indices into the ``P = B * C`` pairs; or a slice, of all of them.
    """
    return (labels.flatten() > 0).nonzero().squeeze(1) if _by_numpy(labels) else slice(None)


def sorted_rows(values: Tensor) -> Tensor:
    """Each row's values in ascending order, detached; of shape `(R, N)`."""
    values = values.detach()
    return torch.from_numpy(np.sort(values.numpy(), axis=-1)) if _by_numpy(values) else values.sort(dim=-1).values


def descending_order(values: Tensor) -> Tensor:
    """Indices that sort each row in descending order, of equal values the first one first.

    Args:
        values (`torch.FloatTensor` of shape `(R, N)`): no NaN.

    Returns:
        `torch.LongTensor` of shape `(R, N)`.
    """
    if values.dtype != torch.float32 or not _by_numpy(values):
        return values.detach().argsort(dim=-1, descending=True, stable=True)
    # Five times as fast as a stable sort: a number for each pixel, all different, above its bits in an order that
    # integers share with the values (0.0 takes -0.0 in), below its place.
    bits = (values.detach().numpy() + np.float32(0)).view(np.int32)
    ascending = np.where(bits < 0, ~bits, bits | np.int32(-(2**31))).view(np.uint32)
    keys = (~ascending).astype(np.uint64) << np.uint64(32) | np.arange(bits.shape[-1], dtype=np.uint64)
    keys.sort(axis=-1)
    return torch.from_numpy((keys & np.uint64(2**32 - 1)).astype(np.int64))


def softplus(x: Tensor) -> Tensor:
    """``log(1 + exp(x))`` of logits of any shape, detached."""
    if not _by_numpy(x):
        return F.softplus(x)
    logits = x.numpy()
    result = np.abs(logits)
    np.log1p(np.exp(np.negative(result, out=result), out=result), out=result)
    return torch.from_numpy(np.add(result, np.maximum(logits, 0), out=result))


class _PairMeans(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Rows, present_loss: PresentLoss | None) -> tuple[Tensor, ...]:
        probabilities, absent = x.sigmoid(), softplus(x)
        p, logits = probabilities[rows], x[rows]
        if present_loss is None:
            value, slope = torch.zeros_like(p[:, 0]), torch.zeros_like(p[:, :1])
        else:
            loss = present_loss(logits, p, absent[rows])
            value, slope = loss.value.mean(dim=-1), loss.slope
        ctx.rows = rows
        ctx.save_for_backward(probabilities, p, slope)
        return absent.mean(dim=-1), value, p.mean(dim=-1), logits.mean(dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        probabilities, p, slope = ctx.saved_tensors
        absent, present, probability, logit = (g.unsqueeze(-1) / p.shape[-1] for g in gradients)
        gradient = probabilities * absent
        gradient[ctx.rows] += present * slope + probability * p * (1 - p) + logit
        return gradient, None, None


def pair_means(pixel_logits: Tensor, rows: Rows, present_loss: PresentLoss | None = None) -> PairMeans:
    """Compute all means that the losses are made of, at once.

    Args:
        pixel_logits (`torch.Tensor` of shape `(B, C, h, w)`): scaled class maps, of float32 or float64.
        rows: see [`present_rows`].
        present_loss: what present classes pay, if that is needed. It is called without autograd.

    Returns:
        [`PairMeans`], differentiable once with respect to `pixel_logits`.
    """
    return PairMeans(*_PairMeans.apply(pixel_logits.flatten(0, 1).flatten(1), rows, present_loss))
