"""The mean field of `lattice.py` in torch, over many photos at once: for a GPU.

Photos of any sizes lie one after another, so that there is one lattice build and one filter for all of them. Pixels
are spread to vertices by a sparse matrix in sorted order, so nothing depends on the order in which threads happen to
add.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from ..config import CrfConfig
from .crf import MIN_PROBABILITY, CrfProblem, label_energies
from .lattice import BLOCK, EPSILON, packing


def solve(problems: Sequence[CrfProblem], config: CrfConfig, device: torch.device | str) -> list[np.ndarray]:
    """The label maps of photos of any sizes and numbers of labels, `(H, W)` uint8 each."""
    images = [torch.from_numpy(np.array(problem.image)).to(device) for problem in problems]
    kernels = (
        (config.gaussian_sxy, None, config.gaussian_compat),
        (config.bilateral_sxy, config.bilateral_srgb, config.bilateral_compat),
    )
    energies = [_energies(problem, config, device) for problem in problems]
    label_maps = []
    for problem, marginals in zip(problems, mean_field(images, energies, kernels, config.iterations), strict=True):
        if marginals.shape[1:] == problem.size:
            label_maps.append(problem.finish(marginals.argmax(0).byte().cpu().numpy()))
        else:
            label_maps.append(problem.label_map(marginals.cpu().numpy()))
    return label_maps


def _energies(problem: CrfProblem, config: CrfConfig, device: torch.device | str) -> Tensor:
    if problem.probabilities is not None:
        return -torch.from_numpy(np.array(problem.probabilities, np.float32)).to(device).clip(MIN_PROBABILITY, 1).log()
    own, other = label_energies(config, problem.num_labels)
    indices = torch.from_numpy(np.array(problem.indices)).to(device)[None].long()
    return torch.full((problem.num_labels, *indices.shape[1:]), other, device=device).scatter_(0, indices, own)


@dataclass(frozen=True)
class TorchLattice:
    """The lattice of `P` feature vectors with `M` vertices, and vertex 0, which is nobody's and stays 0.

    Args:
        vertices: `(P, d + 1)` int32, of each one's simplex.
        weights: `(P, d + 1)` float32, barycentric coordinates, times `1 / sqrt(K 1)` of the kernel `K`.
        neighbours: `(d + 1, 2, M + 1)` int32, of each vertex both ways along each axis, 0 where there is none.
        entries: sparse CSR `(M + 1, P)`, the weights again, by vertex.
    """

    vertices: Tensor
    weights: Tensor
    neighbours: Tensor
    entries: Tensor

    def __call__(self, values: Tensor) -> Tensor:
        """The kernel's answer to values, `(P, C)`, up to the factor that makes its answer to ones near 1."""
        lattice = self.entries @ values
        for before, after in self.neighbours:
            lattice = _blurred(lattice, before, after)
        return _gathered(lattice, self.vertices, self.weights)

    @property
    def scale(self) -> float:
        """That factor."""
        return 1 / (1 + 2.0 ** (1 - self.vertices.shape[1]))


def _blurred(lattice: Tensor, before: Tensor, after: Tensor) -> Tensor:
    return lattice + 0.5 * (lattice[before] + lattice[after])


def _gathered(lattice: Tensor, vertices: Tensor, weights: Tensor) -> Tensor:
    return sum(
        (lattice[vertices[:, k]] * weights[:, k, None] for k in range(vertices.shape[1])), lattice.new_zeros(())
    )


def _build(features: Tensor, photo: Tensor, real: Tensor, ends: np.ndarray) -> TorchLattice:
    """One lattice for each photo, side by side.

    Args:
        features: `(d, P)` float32.
        photo: `(P,)` int64, which photo each is of.
        real: `(P,)`, 0 for what only adds vertices, 1 for pixels.
        ends: `(d, 2)`, the least and largest that there may be of each feature.
    """
    strides, offset, cells = packing(ends)
    weights, keys = _embedded(features, torch.as_tensor(strides, device=features.device), offset, cells)
    weights = weights * real
    size, count = weights.shape
    limit = size * cells
    ordered, order = (keys + photo * limit).flatten().sort()
    first = torch.ones_like(ordered, dtype=torch.bool)
    torch.ne(ordered[1:], ordered[:-1], out=first[1:])
    numbers = first.cumsum(0, dtype=torch.int32)
    starts = first.nonzero().flatten()
    known = ordered[starts]
    vertices = torch.empty_like(numbers)
    vertices[order] = numbers
    vertices = vertices.view(size, count).T.contiguous()
    neighbours = _neighbours(known, torch.as_tensor(strides, device=known.device), cells, limit)
    pixels = (order % count).int()
    ends_of_rows = torch.cat([starts.new_zeros(1), starts, starts.new_full((1,), len(order))]).int()

    def entries(weights: Tensor) -> Tensor:
        rows = torch.Size((len(known) + 1, count))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state")
            return torch.sparse_csr_tensor(
                ends_of_rows, pixels, weights.flatten()[order], rows, check_invariants=False
            )

    plain = TorchLattice(vertices, weights.T.contiguous(), neighbours, entries(weights))
    mass = plain(torch.ones(count, 1, device=weights.device))[:, 0] * plain.scale
    weights = weights / (mass + EPSILON).sqrt()
    return TorchLattice(vertices, weights.T.contiguous(), neighbours, entries(weights))


def _embedded(features: Tensor, strides: Tensor, offset: int, cells: int) -> tuple[Tensor, Tensor]:
    """Barycentric weights and keys of the vertices of each feature's simplex, `(d + 1, P)`; as `lattice._embed`."""
    dims = len(features)
    size = dims + 1
    deviation = float(np.float32(math.sqrt(2.0 / 3.0) * size))
    total, elevated = torch.zeros_like(features[0]), []
    for j in range(dims, 0, -1):
        value = features[j - 1] * float(np.float32(1.0 / math.sqrt(float(j + 1) * j) * deviation))
        elevated.append(total - j * value)
        total = total + value
    coordinates = torch.stack([total, *reversed(elevated)])
    cell = (coordinates * float(np.float32(1.0 / size))).round()
    rest = coordinates - cell * size
    rank = torch.zeros_like(cell, dtype=torch.int64)
    for i in range(dims):
        for j in range(i + 1, size):
            less = rest[i] < rest[j]
            rank[i] += less
            rank[j] += ~less
    rank += cell.sum(0).long()
    back = (rank < 0).long() - (rank >= size).long()
    rank += size * back
    cell += back
    rest = (coordinates - cell * size) * float(np.float32(1.0 / size))
    by_rank = torch.empty_like(rest).scatter_(0, rank, rest)
    steps = torch.empty_like(rank).scatter_(0, rank, strides[:, None].expand_as(rank))
    weights = torch.empty_like(rest)
    weights[0] = by_rank[dims] + (1 - by_rank[0])
    weights[1:] = by_rank[:dims].flip(0) - by_rank[1:].flip(0)
    keys = torch.empty_like(rank)
    keys[0] = offset + (strides[:, None] * cell.long()).sum(0)
    keys[1:] = cells - steps[1:].flip(0)
    return weights, keys.cumsum(0)


def _neighbours(known: Tensor, strides: Tensor, cells: int, limit: int) -> Tensor:
    """Of each vertex both ways along each axis; see `lattice._find_neighbours`."""
    size = len(strides)
    found = torch.zeros((size, 2, len(known) + 1), dtype=torch.int32, device=known.device)
    own = torch.arange(1, len(known) + 1, dtype=torch.int32, device=known.device)
    wraps = known % limit < cells
    for axis in range(size):
        step = torch.where(wraps, (size - 1) * cells + strides[axis] - strides.sum(), strides[axis] - cells)
        place = torch.searchsorted(known, known + step, out_int32=True).clamp_(max=len(known) - 1)
        hit = known[place] == known + step
        there = torch.where(hit, place + 1, 0)
        found[axis, 0, 1:] = there
        found[axis, 1, there] = torch.where(hit, own, 0)
    found[:, 1, 0] = 0
    return found


@lru_cache(maxsize=8)
def _positions(height: int, width: int, device: torch.device) -> Tensor:
    """Column and row of each pixel, and once more 0 where pydensecrf would fill its last block up."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    positions = torch.stack([columns.flatten(), rows.flatten()]).float()
    return pad(positions, (0, int(height * width % BLOCK > 0))).to(device)


def mean_field(
    images: Sequence[Tensor],
    energies: Sequence[Tensor],
    kernels: tuple[tuple[float, None, float], tuple[float, float, float]],
    iterations: int,
) -> list[Tensor]:
    """Marginals `Q <- softmax(-U + sum_m w_m K_m Q)` of each photo, from `softmax(-U)` on.

    Args:
        images: `(H, W, 3)` uint8 each, on one device.
        energies: `(L, H, W)` float32 each, at least 2 labels, on the same device.
        kernels: deviations in pixels and grey values, and the Potts weight, of a kernel of positions and of one of
            positions and colours.
        iterations: how often.

    Returns:
        `(L, H, W)` float32 each.
    """
    device = images[0].device
    places = [_positions(*image.shape[:2], device) for image in images]
    counts = [values.shape[1] for values in places]
    missing = [count - image[..., 0].numel() for image, count in zip(images, counts, strict=True)]
    positions = torch.cat(places, 1)
    photo = torch.repeat_interleave(torch.arange(len(images), device=device), torch.tensor(counts, device=device))
    colours = torch.cat([pad(image.reshape(-1, 3).T, (0, n)) for image, n in zip(images, missing, strict=True)], 1)
    real = torch.cat(
        [pad(torch.ones_like(image[..., 0]).flatten(), (0, n)) for image, n in zip(images, missing, strict=True)]
    )
    channels = max(len(values) for values in energies) - 1
    # Labels that a photo does not have, and pixels that it does not, never get anything.
    relative = torch.cat(
        [
            pad((own[:1] - own[1:]).flatten(1).T, (0, channels + 1 - len(own), 0, n), value=-math.inf)
            for own, n in zip(energies, missing, strict=True)
        ]
    )
    side = float(max(max(image.shape[:2]) for image in images) - 1)
    lattices = []
    for position, colour, weight in kernels:
        features, ends = positions / position, [[0, side / position]] * 2
        if colour is not None:
            features = torch.cat([features, colours.float() / colour])
            ends = ends + [[0, 255 / colour]] * 3
        lattice = _build(features, photo, real, np.array(ends))
        lattices.append((lattice, weight * lattice.scale))
    ones = torch.ones(len(photo), 1, device=device)
    mass = sum((scale * lattice(ones) for lattice, scale in lattices), torch.zeros((), device=device))
    marginals = _softmax(relative)
    for _ in range(iterations):
        (first, scale), (second, other) = lattices
        marginals = _update(scale * first(marginals[:, 1:]) + other * second(marginals[:, 1:]), mass, relative)
    return [
        values[: image[..., 0].numel(), : len(own)].T.reshape(len(own), *image.shape[:2])
        for values, image, own in zip(marginals.split(counts), images, energies, strict=True)
    ]


def _update(found: Tensor, mass: Tensor, relative: Tensor) -> Tensor:
    # What the first label gets is what the others leave.
    return _softmax(found + found.sum(1, keepdim=True) - mass + relative)


def _softmax(relative: Tensor) -> Tensor:
    """Of logits less the first label's: probabilities with the first label's, `(P, L)`."""
    return pad(relative, (1, 0)).softmax(1)
