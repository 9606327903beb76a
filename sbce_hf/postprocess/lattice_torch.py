"""The mean field of `lattice.py` in torch, over many photos at once: for a GPU.

Photos of any sizes lie one after another, so that there is one lattice build and one filter for all of them. Pixels
are spread to vertices in sorted order, so nothing depends on the order in which threads happen to add.
"""

import importlib.util
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

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
        starts: `(M + 2,)` int32, where the entries of each vertex begin.
        pixels: `(P * (d + 1),)` int32, the pixels of the entries.
        order: `(P * (d + 1),)` int64, the entries' places in `weights`.
    """

    vertices: Tensor
    weights: Tensor
    neighbours: Tensor
    starts: Tensor
    pixels: Tensor
    order: Tensor

    @cached_property
    def sorted_weights(self) -> Tensor:
        """Those of the entries."""
        return self.weights.flatten()[self.order]

    @cached_property
    def entries(self) -> Tensor:
        """The same as a sparse CSR matrix `(M + 1, P)`."""
        size = torch.Size((len(self.starts) - 1, len(self.vertices)))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state")
            return torch.sparse_csr_tensor(self.starts, self.pixels, self.sorted_weights, size, check_invariants=False)

    @property
    def scale(self) -> float:
        """What makes the blurred lattice's answer to ones near 1."""
        return 1 / (1 + 2.0 ** (1 - self.vertices.shape[1]))

    def spread(self, values: Tensor) -> Tensor:
        """Values of pixels, `(P, C)`, on the blurred lattice, `(M + 1, C)`."""
        kernels = _kernels(values.device)
        if kernels:
            lattice = kernels.splat(self.starts, self.pixels, self.sorted_weights, values)
            return kernels.blur(lattice, self.neighbours)
        lattice = self.entries @ values
        for before, after in self.neighbours:
            lattice = lattice + 0.5 * (lattice[before] + lattice[after])
        return lattice

    def gather(self, lattice: Tensor) -> Tensor:
        """What the pixels get, `(P, C)`."""
        found = lattice[self.vertices[:, 0]] * self.weights[:, :1]
        for k in range(1, self.vertices.shape[1]):
            found += lattice[self.vertices[:, k]] * self.weights[:, k, None]
        return found

    def mass(self) -> Tensor:
        """The kernel's answer to ones, `(P,)`."""
        ones = torch.ones(len(self.vertices), 1, device=self.weights.device)
        return self.gather(self.spread(ones))[:, 0] * self.scale


@lru_cache(maxsize=8)
def _kernels(device: torch.device) -> Any:
    """`lattice_triton`, where it can run; elsewhere the same is done by torch's own operations."""
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return None
    return importlib.import_module(f"{__package__}.lattice_triton")


def _build(features: Tensor, photo: Tensor, real: Tensor, ends: np.ndarray) -> TorchLattice:
    """One lattice for each photo, side by side.

    Args:
        features: `(d, P)` float32.
        photo: `(P,)` int64, which photo each is of.
        real: `(P,)` float32, 0 for what only adds vertices, 1 for pixels.
        ends: `(d, 2)`, the least and largest that there may be of each feature.
    """
    steps, offset, cells = packing(ends)
    strides, scales = (torch.as_tensor(values, device=features.device) for values in (steps, _scales(len(features))))
    embed = getattr(_kernels(features.device), "embed", _embedded)
    weights, keys = embed(features, scales, strides, photo, real, offset, cells)
    size, count = keys.shape
    ordered, order = keys.flatten().sort()
    first = torch.ones_like(ordered, dtype=torch.bool)
    torch.ne(ordered[1:], ordered[:-1], out=first[1:])
    numbers = first.cumsum(0, dtype=torch.int32)
    starts = first.nonzero().flatten()
    known = ordered[starts]
    vertices = torch.empty_like(numbers)
    vertices[order] = numbers
    pixels = order % count
    lattice = TorchLattice(
        vertices=vertices.view(size, count).T.contiguous(),
        weights=weights,
        neighbours=_neighbours(known, strides, cells, size * cells),
        starts=torch.cat([starts.new_zeros(1), starts, starts.new_full((1,), len(order))]).int(),
        pixels=pixels.int(),
        order=pixels * size + order // count,
    )
    return replace(lattice, weights=weights / (lattice.mass()[:, None] + EPSILON).sqrt())


def _scales(dims: int) -> np.ndarray:
    """What features are multiplied with, from the second place on."""
    deviation = float(np.float32(math.sqrt(2.0 / 3.0) * (dims + 1)))
    return np.array([0, *(1.0 / math.sqrt(float(j + 1) * j) * deviation for j in range(1, dims + 1))], np.float32)


def _embedded(
    features: Tensor, scales: Tensor, strides: Tensor, photo: Tensor, real: Tensor, offset: int, cells: int
) -> tuple[Tensor, Tensor]:
    """As `lattice_kernels.embed`: weights, `(P, d + 1)`, and keys, `(d + 1, P)`; each photo has a range of its own."""
    dims = len(features)
    size = dims + 1
    total, elevated = torch.zeros_like(features[0]), []
    for j in range(dims, 0, -1):
        value = features[j - 1] * scales[j]
        elevated.append(total - j * value)
        total = total + value
    coordinates = torch.stack([total, *reversed(elevated)])
    inverse = float(np.float32(1.0 / size))
    cell = (coordinates * inverse).round()
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
    rest = (coordinates - cell * size) * inverse
    by_rank = torch.empty_like(rest).scatter_(0, rank, rest)
    steps = torch.empty_like(rank).scatter_(0, rank, strides[:, None].expand_as(rank))
    weights = torch.empty_like(rest)
    weights[0] = by_rank[dims] + (1 - by_rank[0])
    weights[1:] = by_rank[:dims].flip(0) - by_rank[1:].flip(0)
    keys = torch.empty_like(rank)
    keys[0] = offset + (strides[:, None] * cell.long()).sum(0) + photo * (size * cells)
    keys[1:] = cells - steps[1:].flip(0)
    return (weights * real).T.contiguous(), keys.cumsum(0)


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
        [pad(torch.ones(count - n, device=device), (0, n)) for count, n in zip(counts, missing, strict=True)]
    )
    channels = max(len(values) for values in energies) - 1
    if _kernels(device):
        channels = 1 << (channels - 1).bit_length()
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
    # The factor that makes a lattice's answer to ones near 1 is part of its mass already.
    mass = sum((scale / own.scale * own.mass() for own, scale in lattices), torch.zeros((), device=device))
    marginals = _softmax(relative)
    for _ in range(iterations):
        marginals = _updated(lattices, [lattice.spread(marginals) for lattice, _ in lattices], mass, relative)
    marginals = torch.cat([1 - marginals.sum(1, keepdim=True), marginals], 1)
    return [
        values[: image[..., 0].numel(), : len(own)].T.reshape(len(own), *image.shape[:2])
        for values, image, own in zip(marginals.split(counts), images, energies, strict=True)
    ]


def _updated(
    lattices: Sequence[tuple[TorchLattice, float]], spread: Sequence[Tensor], mass: Tensor, relative: Tensor
) -> Tensor:
    kernels = _kernels(mass.device)
    if kernels:
        marginals = torch.empty_like(relative)
        given = [
            (found, own.vertices, own.weights, scale) for found, (own, scale) in zip(spread, lattices, strict=True)
        ]
        kernels.update(*given, mass, relative, marginals)
        return marginals
    parts = [scale * own.gather(found) for found, (own, scale) in zip(spread, lattices, strict=True)]
    found = parts[0] + parts[1]
    # What the first label gets is what the others leave.
    return _softmax(found + found.sum(1, keepdim=True) - mass[:, None] + relative)


def _softmax(relative: Tensor) -> Tensor:
    """Of logits less the first label's: probabilities of the other labels, `(P, L - 1)`."""
    return pad(relative, (1, 0)).softmax(1)[:, 1:].contiguous()
