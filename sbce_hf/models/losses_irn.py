"""Affinities of pixel pairs from class boundaries, and the loss that trains them (Ahn et al., CVPR 2019).

Two pixels belong together unless a boundary lies between them: `a = 1 - max of the boundary map over the line from one
to the other`. Pure functions of tensors; the loss is computed in float32 (float64 stays float64) whatever autocast is
active.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

# As released: keeps logarithms and means over no pair finite.
EPSILON = 1e-5


@cache
def directions(radius: int) -> tuple[tuple[int, int], ...]:
    """Offsets `(dy, dx)` to the neighbours closer than `radius`, one of each opposite pair.

    34 for radius 5, 152 for radius 10.
    """
    steps = range(1, radius)
    below = ((dy, dx) for dy in steps for dx in range(1 - radius, radius) if dy**2 + dx**2 < radius**2)
    return (*((0, dx) for dx in steps), *below)


@cache
def line(dy: int, dx: int) -> tuple[tuple[int, int], ...]:
    """Cells `(y, x)` less than one cell off the line from `(0, 0)` to `(dy, dx)`, within their box, ends included."""
    columns = range(min(0, dx), max(0, dx) + 1)
    return tuple((y, x) for y in range(dy + 1) for x in columns if (dy * x - dx * y) ** 2 < dy**2 + dx**2)


def line_maximum(boundaries: Tensor, dy: int, dx: int) -> Tensor:
    """Largest value on the line from each pixel to its neighbour.

    Args:
        boundaries (`torch.Tensor` of shape `(..., h, w)`): floating.
        dy (`int`): row offset of the neighbour, at least 0.
        dx (`int`): column offset.

    Returns:
        `torch.Tensor` of shape `(..., h - dy, w - |dx|)`: entry `(y, x)` is of the pixel in row `y` and column
        `x + max(0, -dx)`. Empty where no pixel has this neighbour.
    """
    height, width = boundaries.shape[-2] - dy, boundaries.shape[-1] - abs(dx)
    if height <= 0 or width <= 0:
        return boundaries.new_empty((*boundaries.shape[:-2], max(0, height), max(0, width)))
    left = max(0, -dx)
    (y, x), *others = line(dy, dx)
    largest = boundaries[..., y : y + height, left + x : left + x + width]
    for y, x in others:
        largest = torch.maximum(largest, boundaries[..., y : y + height, left + x : left + x + width])
    return largest


@dataclass(frozen=True)
class BoundaryLoss:
    """Value of [`boundary_loss`].

    Args:
        loss: scalar, the mean of the other two.
        same: scalar, of pairs with equal labels.
        different: scalar, of pairs with different labels.
    """

    loss: Tensor
    same: Tensor
    different: Tensor


def boundary_loss(
    boundary_logits: Tensor,
    labels: Tensor,
    radius: int = 10,
    ignore_index: int = 255,
    reduce: Callable[[Tensor], Tensor] | None = None,
) -> BoundaryLoss:
    """Push the affinity of neighbours with equal labels to 1 and with different labels to 0.

    `L_same = (mean over background pairs + mean over foreground pairs of -ln(a + e)) / 2`,
    `L_different = mean of -ln(1 + e - a)`, `L = (L_same + L_different) / 2`, with `e = 1e-5`. A pair counts if both
    labels do. First pixels of pairs are those that have all [`directions`], as in the released program.

    Args:
        boundary_logits (`torch.Tensor` of shape `(B, h, w)`): their sigmoid is the boundary map.
        labels (`torch.Tensor` of shape `(B, h, w)`): integers; 0 is background.
        radius (`int`): neighbours are closer than this; the map must be larger.
        ignore_index (`int`): label of pixels that do not count.
        reduce: as `sum_over_processes`, see `segmentation_loss`.

    Returns:
        [`BoundaryLoss`]; a kind without pairs adds 0.

    Raises:
        ValueError: a map that is too small for the radius, or sizes that differ.

    Examples:
        >>> import torch
        >>> from sbce_hf import boundary_loss
        >>> labels = torch.zeros(1, 12, 16, dtype=torch.long)
        >>> labels[..., 8:] = 1
        >>> nowhere = torch.full((1, 12, 16), -6.0)
        >>> there = nowhere.clone()
        >>> there[..., 8] = 6.0  # where the label changes
        >>> [round(boundary_loss(logits, labels, radius=4).loss.item(), 2) for logits in (nowhere, there)]
        [3.0, 0.35]
    """
    if boundary_logits.shape != labels.shape:
        raise ValueError(f"labels: got shape {tuple(labels.shape)}, expected {tuple(boundary_logits.shape)}")
    height, width = labels.shape[-2] - radius + 1, labels.shape[-1] - 2 * (radius - 1)
    if height < 1 or width < 1:
        raise ValueError(
            f"boundary map: got {labels.shape[-2]} x {labels.shape[-1]} pixels, expected at least {radius} x "
            f"{2 * radius - 1} for radius {radius}"
        )
    boundaries = boundary_logits if boundary_logits.dtype == torch.float64 else boundary_logits.float()
    highest = _highest_cells(boundaries.detach(), radius, height, width)
    # One gather instead of a graph over all cells of all lines: the gradient goes to the highest cell alone.
    largest = boundaries.flatten(1).gather(1, highest.flatten(1)).view(highest.shape).sigmoid()
    # Label maps are 8 bit; there are 152 neighbours for each pixel.
    labels = labels.to(torch.uint8)
    first = labels[:, :height, radius - 1 : radius - 1 + width].unsqueeze(1)
    second = torch.stack(
        [labels[:, dy : dy + height, radius - 1 + dx : radius - 1 + dx + width] for dy, dx in directions(radius)], 1
    )
    valid, equal = (first != ignore_index) & (second != ignore_index), first == second
    kinds = [valid & equal & (first == 0), valid & equal & (first > 0), valid & ~equal]
    # The last entry becomes the number of processes.
    counts = torch.stack([*(kind.sum() for kind in kinds), valid.new_ones((), dtype=torch.long)])
    if reduce is not None:
        counts = reduce(counts)
    losses = -torch.log(torch.where(equal, 1 - largest, largest) + EPSILON)
    background, foreground, different = (
        (losses * kind).sum() * counts[-1] / (count.to(losses.dtype) + EPSILON)
        for kind, count in zip(kinds, counts, strict=False)
    )
    same = (background + foreground) / 2
    return BoundaryLoss((same + different) / 2, same, different)


def _highest_cells(boundaries: Tensor, radius: int, height: int, width: int) -> Tensor:
    """Flat index, `(B, P, height, width)`, of the highest cell on each pair's line."""
    index = torch.arange(boundaries[0].numel(), device=boundaries.device).view(1, *boundaries.shape[1:])
    highest = []
    for dy, dx in directions(radius):
        # Every line holds the first pixel itself.
        largest = boundaries[:, :height, radius - 1 : radius - 1 + width]
        where = index[:, :height, radius - 1 : radius - 1 + width].expand_as(largest)
        for y, x in line(dy, dx):
            rows, columns = slice(y, y + height), slice(radius - 1 + x, radius - 1 + x + width)
            where = torch.where(boundaries[:, rows, columns] > largest, index[:, rows, columns], where)
            largest = torch.maximum(boundaries[:, rows, columns], largest)
        highest.append(where)
    return torch.stack(highest, dim=1)
