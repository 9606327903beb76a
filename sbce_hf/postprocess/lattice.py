"""Gaussian filtering on the permutohedral lattice (Adams et al., 2010) and mean field on it, compiled by numba.

The numbers are pydensecrf's, which the CRF of weak supervision has always meant: the same lattice, float32, symmetric
normalisation, Potts compatibility. What makes it faster: vertices are found by sorting packed keys instead of by a
hash table, so that neighbours are found by merging and memory is read in order; the lattice carries one label fewer
than there are, as probabilities sum to 1; the normalisation is part of the weights by which pixels are spread and
gathered; and gathering, softmax and spreading are one pass over the pixels. No lock is held: threads work side by
side, each on its own photo, and the result does not depend on how many there are.
"""

import math
import threading
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from .lattice_kernels import blurred, embed, find_neighbours, gather, iterate, number, splat

# pydensecrf adds it before the square root.
EPSILON = 1e-20
# It works on so many pixels at once, and fills the last block up with a feature of zeros: its vertices are then there.
BLOCK = 4
# How far rounding, the simplex and a step to a neighbour can lead out of the features' box, in cells.
_MARGIN = 4
_KEY_BITS = 32
_COMPILING = threading.Lock()


@dataclass(frozen=True)
class Lattice:
    """The lattice of `N` feature vectors of `d` numbers, with `M` vertices; vertex 0 is nobody's, its values stay 0.

    Args:
        vertices: `(d + 1, N)` uint32, the vertices of each one's simplex.
        weights: `(d + 1, N)` float32, barycentric coordinates, times `1 / sqrt(K 1)` of the kernel `K`.
        neighbours: `(d + 1, 2, M + 1)` uint32, of each vertex both ways along each axis, 0 where there is none.
        mass: `(N,)` float32, the normalised kernel's answer to ones.
    """

    vertices: NDArray[np.uint32]
    weights: NDArray[np.float32]
    neighbours: NDArray[np.uint32]
    mass: NDArray[np.float32]

    @property
    def scale(self) -> float:
        """What makes the blurred lattice's answer to ones near 1."""
        return 1 / (1 + 2.0 ** (1 - len(self.vertices)))


def build_lattice(features: NDArray[np.float32]) -> Lattice:
    """The lattice of feature vectors that are in units of the kernel's standard deviation.

    Args:
        features: `(d, N)` float32, `d` at least 2.

    Raises:
        ValueError: features that spread over too many cells: a standard deviation is far too small.
    """
    _compile_once()
    return _build(features)


def _build(features: NDArray[np.float32]) -> Lattice:
    dims, count = features.shape
    padded = np.pad(features, ((0, 0), (0, 1))) if count % BLOCK else features
    strides, offset, cells = packing(padded)
    weights = np.empty((dims + 1, padded.shape[1]), np.float32)
    keys = np.empty(weights.shape, np.int64)
    embed(padded, strides, offset, cells, weights, keys)
    known, vertices = _numbered(keys, cells)
    neighbours = np.zeros((dims + 1, 2, len(known)), np.uint32)
    find_neighbours(known, strides, cells, neighbours)
    vertices, weights = (np.ascontiguousarray(values[:, :count]) for values in (vertices, weights))
    lattice = Lattice(vertices, weights, neighbours, np.ones(count, np.float32))
    weights *= 1 / np.sqrt(_filtered(lattice, lattice.mass) + np.float32(EPSILON))
    return Lattice(vertices, weights, neighbours, _filtered(lattice, lattice.mass))


def packing(features: NDArray[np.float32]) -> tuple[NDArray[np.int64], int, int]:
    """How the coordinates of a vertex become its number in a box of cells that holds all vertices and neighbours.

    A vertex's coordinates have the same remainder by `d + 1`, from 0 to `d`; its cell is the quotients. The key is
    `remainder * cells + offset + sum_i strides[i] * quotient[i]`. Instead of the first three quotients, which each
    depend on position and colour, their differences count, which depend on the position alone: a far smaller box.

    Returns:
        `strides`, `(d + 1,)`; `offset`; `cells`, how many there are.
    """
    dims = len(features)
    axis = np.arange(1, dims + 1)
    ends = np.array([[values.min(), values.max()] for values in features], np.float64).T
    ends *= math.sqrt(2 / 3) * (dims + 1) / np.sqrt(axis * (axis + 1))
    # Coordinate i is the sum of the scaled features from i on, less i times the one before.
    elevation = np.triu(np.ones((dims + 1, dims)))
    elevation[axis, axis - 1] = -axis
    chosen = np.concatenate([elevation[1:2] - elevation[2:3], elevation[:1] - elevation[1:2], elevation[3:]])
    corners = np.sort(chosen * ends[:, None], axis=0).sum(axis=-1) / (dims + 1)
    low = np.floor(corners[0]).astype(np.int64) - _MARGIN
    sides = np.ceil(corners[1]).astype(np.int64) + _MARGIN + 1 - low
    cells = math.prod(sides.tolist())
    if (dims + 1) * cells >= 2**62:
        raise ValueError(f"CRF: features span {sides.tolist()} cells; make the kernels' standard deviations larger")
    steps = np.append(np.cumprod(sides[:0:-1])[::-1], 1)
    strides = np.concatenate([[steps[1], steps[0] - steps[1], -steps[0]], steps[2:]])
    return strides, -int(steps @ low), cells


def _numbered(keys: NDArray[np.int64], cells: int) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
    """The keys that occur, in order, after one that is nobody's; and for each key its place among them."""
    if cells > 2**_KEY_BITS:
        known, places = np.unique(keys, return_inverse=True)
        return np.insert(known, 0, -1), (places + 1).astype(np.uint32).reshape(keys.shape)
    vertices, known = np.empty(keys.shape, np.uint32), np.empty(keys.size + 1, np.int64)
    entries, spare = np.empty((2, keys.shape[1]), np.uint64)
    bits = -(-(cells - 1).bit_length() // 3)
    return known[: number(keys, cells, bits, entries, spare, vertices, known)].copy(), vertices


def _filtered(lattice: Lattice, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The kernel's answer to `(N,)` values."""
    found, (current, other) = np.zeros_like(values), np.zeros((2, 1, lattice.neighbours.shape[2]), np.float32)
    corners = (0,) * len(lattice.vertices)
    splat(lattice.vertices, lattice.weights, 0, values, len(values), current[0], corners, (0,))
    current, _ = blurred(lattice.neighbours, current, other, (0,))
    scale = np.float32(lattice.scale)
    gather(lattice.vertices, lattice.weights, 0, current[0], scale, found, len(values), corners, (0,))
    return found


def spatial_features(height: int, width: int, deviation: float) -> NDArray[np.float32]:
    """Positions over a deviation in pixels, `(2, H * W)` float32: column and row."""
    rows, columns = np.mgrid[:height, :width].astype(np.float32).reshape(2, -1)
    return np.stack([columns, rows]) / np.float32(deviation)


@lru_cache(maxsize=16)
def spatial_lattice(height: int, width: int, deviation: float) -> Lattice:
    """The lattice of positions alone, which photos of one size share."""
    return build_lattice(spatial_features(height, width, deviation))


def bilateral_lattice(image: NDArray[np.uint8], position: float, colour: float) -> Lattice:
    """The lattice of positions and colours.

    Args:
        image: `(H, W, 3)` uint8.
        position: deviation in pixels.
        colour: deviation in grey values.
    """
    height, width = image.shape[:2]
    colours = image.reshape(-1, 3).T.astype(np.float32) / np.float32(colour)
    return build_lattice(np.concatenate([spatial_features(height, width, position), colours]))


def mean_field(
    energies: NDArray[np.float32],
    multiplicity: NDArray[np.float32],
    kernels: tuple[tuple[Lattice, float], tuple[Lattice, float]],
    iterations: int,
) -> NDArray[np.float32]:
    """Marginals `Q <- softmax(-U + sum_m w_m K_m Q)`, from `softmax(-U)` on.

    Args:
        energies: `(L, N)` float32, `U` of each label, at least 2.
        multiplicity: `(L,)`, how many labels with the same energies each row stands for; the first for one.
        kernels: two, each with its Potts weight `w`.
        iterations: how often.

    Returns:
        `(L, N)` float32, of one label of each row.
    """
    _compile_once()
    return _solve(energies, multiplicity, kernels, iterations)


def _solve(
    energies: NDArray[np.float32],
    multiplicity: NDArray[np.float32],
    kernels: tuple[tuple[Lattice, float], tuple[Lattice, float]],
    iterations: int,
) -> NDArray[np.float32]:
    labels, count = energies.shape
    width = min(labels - 1, 4) if labels != 4 else 4
    blocks = -(-(labels - 1) // width)
    # Rows that fill the last block up never get anything.
    relative = np.full((blocks * width, count), -np.inf, np.float32)
    relative[: labels - 1] = energies[:1] - energies[1:]
    marginals = iterate(
        np.ascontiguousarray(relative.reshape(blocks, width, count).swapaxes(1, 2)).reshape(blocks, -1),
        sum((np.float32(weight) * lattice.mass for lattice, weight in kernels), np.zeros(1, np.float32)),
        np.pad(multiplicity[1:].astype(np.float32), (0, len(relative) - labels + 1)).reshape(blocks, width),
        *(
            (
                lattice.vertices,
                lattice.weights,
                lattice.neighbours,
                np.float32(weight * lattice.scale),
                np.zeros((2, blocks, lattice.neighbours.shape[2] * width), np.float32),
                (0,) * len(lattice.vertices),
            )
            for lattice, weight in kernels
        ),
        iterations,
        (0,) * width,
    )
    return marginals[:labels]


@lru_cache(maxsize=1)
def _compile() -> None:
    """Compile everything, or load it from the cache.

    numba's switch for vectorising along straight lines of code is for the whole process, and off by default; here it
    is worth a third.
    """
    switches: Any = numba.config
    previous, switches.SLP_VECTORIZE = switches.SLP_VECTORIZE, 1
    try:
        first, second = (_build(np.zeros((dims, 4), np.float32)) for dims in (2, 5))
        for labels in (2, 3, 5):
            _solve(np.zeros((labels, 4), np.float32), np.ones(labels, np.float32), ((first, 1.0), (second, 1.0)), 1)
    finally:
        switches.SLP_VECTORIZE = previous


def _compile_once() -> None:
    with _COMPILING:
        _compile()
