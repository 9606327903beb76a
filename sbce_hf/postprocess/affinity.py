"""Class maps spread over patches that are alike: from affinities to weights, from class maps to class maps."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import AffinityConfig
from .rules import ClassMaps

# A sum below this is that of nothing.
_TINY = 1e-12
# Of a map's own peak: no pixel falls lower, so that logits stay finite.
_FLOOR = 1e-6


def cosine_affinity(features: Tensor, threshold: float) -> Tensor:
    """How alike the features of cells are.

    Args:
        features: `(N, D)` floating, one row for each cell.
        threshold: a lower cosine counts as 0; at least 0.

    Returns:
        `(N, N)`, 0 or `threshold` to 1, symmetric, with 1 on its diagonal.
    """
    unit = F.normalize(features, dim=1)
    cosine = unit @ unit.T
    cosine = torch.where(cosine < threshold, 0, cosine.clamp(max=1))
    return cosine.fill_diagonal_(1)


def transition(affinity: Tensor, config: AffinityConfig) -> Tensor:
    """Make affinities symmetric, then the weights of means.

    Args:
        affinity: `(N, N)`, at least 0.
        config: `symmetrise`, `sinkhorn_steps` and `power`.

    Returns:
        `(N, N)`, whose rows sum to 1. After enough Sinkhorn steps, and with a power of 1, so do its columns.
    """
    if config.symmetrise == "sinkhorn":
        for _ in range(config.sinkhorn_steps):
            affinity = affinity / affinity.sum(dim=0, keepdim=True).clamp(min=_TINY)
            affinity = affinity / affinity.sum(dim=1, keepdim=True).clamp(min=_TINY)
    affinity = (affinity + affinity.T) / 2
    # Divided by its peak first: a power of small numbers would be 0.
    affinity = (affinity / affinity.amax(dim=1, keepdim=True).clamp(min=_TINY)) ** (config.power or 1.0)
    return affinity / affinity.sum(dim=1, keepdim=True).clamp(min=_TINY)


def propagate(values: Tensor, weights: Tensor, steps: int) -> Tensor:
    """Let each cell take the weighted mean of all, a number of times.

    Args:
        values: `(K, N)`.
        weights: `(N, N)`, whose rows sum to 1.
        steps: how often.

    Returns:
        `(K, N)`, within the range that the values had.
    """
    for _ in range(steps):
        values = values @ weights.T
    return values


@torch.inference_mode()
def spread(maps: ClassMaps, weights: Tensor, grid: tuple[int, int], steps: int) -> ClassMaps:
    """Class maps after [`propagate`], at the image's size.

    Probabilities are passed on, each map's relative to its peak, because one may be too low to be told from 0. A mean
    lowers peaks; each map is stretched to the range that it had, so that its threshold still means something.

    Args:
        maps: of one image, with known classes.
        weights: see [`transition`].
        grid: height and width of the cells that the weights are for.
        steps: see [`propagate`].
    """
    log_probability = F.logsigmoid(torch.from_numpy(maps.logits).to(weights.device))
    peak = log_probability.amax(dim=(1, 2), keepdim=True)
    relative = F.interpolate((log_probability - peak).exp()[None], grid, mode="area")[0]
    passed = propagate(relative.flatten(1), weights, steps)
    was, now = ((values.amin(dim=1), values.amax(dim=1)) for values in (relative.flatten(1), passed))
    stretch = (was[1] - was[0]) / (now[1] - now[0]).clamp(min=_TINY)
    passed = was[0][:, None] + (passed - now[0][:, None]) * stretch[:, None]
    size = maps.logits.shape[1:]
    relative = F.interpolate(passed.view(-1, 1, *grid), size, mode="bilinear", align_corners=False)[:, 0]
    log_probability = (relative.clamp(min=_FLOOR).log() + peak).clamp(max=-_FLOOR)
    logits = log_probability - (-torch.expm1(log_probability)).log()
    return replace(maps, logits=logits.cpu().numpy())
