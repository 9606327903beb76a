"""Class maps spread to the boundaries around them: the random walk of IRN (Ahn et al., CVPR 2019)."""

import torch
from torch import Tensor

from ..models.losses_irn import directions, line_maximum


@torch.inference_mode()
def random_walk(maps: Tensor, boundaries: Tensor, radius: int = 5, exponent: float = 10.0, steps: int = 256) -> Tensor:
    """Let values walk from pixel to pixel; they rarely cross a boundary.

    `T = A ** exponent` with every column divided by its sum, where `A` holds the affinities of neighbours and 1 on its
    diagonal; the result is `maps @ T ** steps`. The released program squares the dense matrix; a step over the 69
    neighbours of each pixel costs so much less that 256 of them are faster than the first square.

    Args:
        maps: `(K, h, w)` floating, a value per class and pixel.
        boundaries: `(h, w)` in [0, 1], on the maps' device.
        radius: a step goes to neighbours closer than this.
        exponent: of the affinities.
        steps: length of the walk.

    Returns:
        `(K, h, w)`, of the maps' type.

    Raises:
        ValueError: sizes that differ.

    Examples:
        >>> import torch
        >>> from sbce_hf import random_walk
        >>> maps, boundaries = torch.zeros(1, 4, 9), torch.zeros(4, 9)
        >>> maps[0, 1, 1] = 1.0  # a class that is seen at one pixel
        >>> boundaries[:, 4] = 1.0  # a wall from top to bottom
        >>> reached = random_walk(maps, boundaries, radius=3) > 0
        >>> reached[0].all(dim=0).int().tolist()
        [1, 1, 1, 1, 0, 0, 0, 0, 0]
    """
    if maps.shape[1:] != boundaries.shape:
        raise ValueError(f"boundaries: got shape {tuple(boundaries.shape)}, expected {tuple(maps.shape[1:])}")
    offsets, weights = _transitions(boundaries.to(maps), radius, exponent)
    height, width = boundaries.shape
    # With a border of zeros every neighbour is a shifted view.
    border = radius - 1
    values = maps.new_zeros((len(maps), height + 2 * border, width + 2 * border))
    inner = values[:, border : border + height, border : border + width]
    inner.copy_(maps)
    neighbours = [
        values[:, border + dy : border + dy + height, border + dx : border + dx + width] for dy, dx in offsets
    ]
    for _ in range(steps):
        stepped = torch.zeros_like(maps)
        for neighbour, weight in zip(neighbours, weights, strict=True):
            stepped.addcmul_(neighbour, weight)
        inner.copy_(stepped)
    return inner.clone()


def _transitions(boundaries: Tensor, radius: int, exponent: float) -> tuple[list[tuple[int, int]], Tensor]:
    """Offsets of every neighbour, the pixel itself first, and how much of it arrives, `(2 P + 1, h, w)`."""
    height, width = boundaries.shape
    offsets, weights = [(0, 0)], [torch.ones_like(boundaries)]
    for dy, dx in directions(radius):
        affinity = (1 - line_maximum(boundaries, dy, dx)) ** exponent
        # The first pixels of the pairs, and the second: each is the other's neighbour.
        for y, x, sign in ((0, max(0, -dx), 1), (dy, max(0, dx), -1)):
            weight = torch.zeros_like(boundaries)
            weight[y : y + affinity.shape[0], x : x + affinity.shape[1]] = affinity
            offsets.append((sign * dy, sign * dx))
            weights.append(weight)
    stacked = torch.stack(weights)
    return offsets, stacked / stacked.sum(dim=0)
