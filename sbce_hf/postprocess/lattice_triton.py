"""The steps of `lattice_torch.py` that take its time as one Triton kernel each, for CUDA.

Values are `(rows, C)` float32 with `C` a power of two. Each program owns the rows that it writes, and adds in the
order of its entries: nothing depends on the order of threads.
"""

import torch
import triton
import triton.language as tl

_ROWS = 128
# Fewer, as a program goes on until the longest of its rows is done.
_SPLAT_ROWS = 32


@triton.jit
def _splat_kernel(starts, pixels, weights, values, lattice, rows, C: tl.constexpr, ROWS: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, C)
    inside = row < rows
    first = tl.load(starts + row, mask=inside, other=0)
    last = tl.load(starts + row + 1, mask=inside, other=0)
    total = tl.zeros((ROWS, C), tl.float32)
    longest = tl.max(last - first, axis=0)
    for step in range(0, longest):
        entry = first + step
        there = entry < last
        pixel = tl.load(pixels + entry, mask=there, other=0)
        weight = tl.load(weights + entry, mask=there, other=0.0)
        value = tl.load(values + pixel[:, None] * C + channel[None, :], mask=there[:, None], other=0.0)
        total += weight[:, None] * value
    tl.store(lattice + row[:, None] * C + channel[None, :], total, mask=inside[:, None])


@triton.jit
def _blur_kernel(before, after, lattice, blurred, rows, C: tl.constexpr, ROWS: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, C)[None, :]
    inside = row < rows
    one = tl.load(before + row, mask=inside, other=0)[:, None] * C + channel
    other = tl.load(after + row, mask=inside, other=0)[:, None] * C + channel
    own = row[:, None] * C + channel
    neighbours = tl.load(lattice + one) + tl.load(lattice + other)
    tl.store(blurred + own, tl.load(lattice + own, mask=inside[:, None]) + 0.5 * neighbours, mask=inside[:, None])


@triton.jit
def _gather(
    lattice, vertices, weights, pixel, inside, channel, size: tl.constexpr, C: tl.constexpr, ROWS: tl.constexpr
):
    total = tl.zeros((ROWS, C), tl.float32)
    for k in tl.static_range(size):
        vertex = tl.load(vertices + pixel * size + k, mask=inside, other=0)
        weight = tl.load(weights + pixel * size + k, mask=inside, other=0.0)
        total += weight[:, None] * tl.load(lattice + vertex[:, None] * C + channel)
    return total


@triton.jit
def _exp(x):
    """As in `lattice_kernels.py`, for the same rounding."""
    x = tl.maximum(x, -70.0)
    power = (x * 1.44269504 + 12582912.0) - 12582912.0
    x = (x - power * 0.693359375) + power * 2.12194440e-4
    y = x * 1.9875691500e-4 + 1.3981999507e-3
    y = y * x + 8.3334519073e-3
    y = y * x + 4.1665795894e-2
    y = y * x + 1.6666665459e-1
    y = y * x + 5.0000001201e-1
    return (y * x * x + x + 1.0) * tl.exp2(power)


@triton.jit
def _update_kernel(
    lattice1, vertices1, weights1, scale1, lattice2, vertices2, weights2, scale2, mass, relative, marginals, count,
    size1: tl.constexpr, size2: tl.constexpr, C: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    pixel = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, C)[None, :]
    inside = pixel < count
    found = scale1 * _gather(lattice1, vertices1, weights1, pixel, inside, channel, size1, C, ROWS)
    found += scale2 * _gather(lattice2, vertices2, weights2, pixel, inside, channel, size2, C, ROWS)
    # What the first label gets is what the others leave.
    first = tl.load(mass + pixel, mask=inside, other=0.0) - tl.sum(found, axis=1)
    own = pixel[:, None] * C + channel
    logits = found - first[:, None] + tl.load(relative + own, mask=inside[:, None], other=0.0)
    highest = tl.maximum(tl.max(logits, axis=1), 0.0)
    powers = _exp(logits - highest[:, None])
    total = tl.sum(powers, axis=1) + _exp(-highest)
    tl.store(marginals + own, powers / total[:, None], mask=inside[:, None])


@triton.jit
def _embed_kernel(
    features, scales, strides, photo, real, weights, keys, count, offset, cells, limit, inverse,
    dims: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """As `lattice_kernels.embed`; coordinates are columns, and what it does by rank are sums over `(row, k, i)`."""
    pixel = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = pixel < count
    size: tl.constexpr = dims + 1
    axis = tl.arange(0, 8)[None, :]
    total = tl.zeros((ROWS,), tl.float32)
    coordinates = tl.zeros((ROWS, 8), tl.float32)
    for last in tl.static_range(dims):
        value = tl.load(features + (dims - last - 1) * count + pixel, mask=inside, other=0.0)
        value *= tl.load(scales + dims - last)
        coordinates = tl.where(axis == dims - last, (total - (dims - last) * value)[:, None], coordinates)
        total += value
    coordinates = tl.where(axis == 0, total[:, None], coordinates)
    # To the nearest integer, half to even.
    cell = (coordinates * inverse + 12582912.0) - 12582912.0
    rest = coordinates - cell * size
    here, there = rest[:, :, None], rest[:, None, :]
    i, j = tl.arange(0, 8)[None, :, None], tl.arange(0, 8)[None, None, :]
    before = tl.where(j > i, there > here, (there >= here) & (j < i)) & (j < size)
    rank = tl.sum(before.to(tl.int32), axis=2) + tl.sum(cell, axis=1).to(tl.int32)[:, None]
    back = (rank < 0).to(tl.int32) - (rank >= size).to(tl.int32)
    rank = tl.where(axis < size, rank + size * back, -1)
    cell += back.to(tl.float32)
    rest = (coordinates - cell * size) * inverse
    step = tl.load(strides + axis, mask=axis < size, other=0)
    base = offset + tl.sum(step * cell.to(tl.int64), axis=1)
    # From here on i is the coordinate, in the last place, and k the vertex.
    k = i
    ranks, rests, steps = rank[:, None, :], rest[:, None, :], step[:, None, :]
    lower = tl.sum(tl.where(ranks == dims - k, rests, 0.0), axis=2)
    upper = tl.sum(tl.where(ranks == tl.where(k == 0, 0, size - k), rests, 0.0), axis=2)
    weight = tl.where(axis == 0, lower + (1.0 - upper), lower - upper)
    weight *= tl.load(real + pixel, mask=inside, other=0)[:, None]
    moved = tl.sum(tl.where(ranks >= size - k, steps, 0), axis=2)
    key = (base + tl.load(photo + pixel, mask=inside, other=0) * limit)[:, None] + axis * cells - moved
    stored = inside[:, None] & (axis < size)
    tl.store(weights + pixel[:, None] * size + axis, weight, mask=stored)
    tl.store(keys + axis.to(tl.int64) * count + pixel[:, None], key, mask=stored)


def _grid(rows: int) -> tuple[int]:
    return (triton.cdiv(rows, _ROWS),)


def splat(starts: torch.Tensor, pixels: torch.Tensor, weights: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Sum the weighted values of each vertex's pixels; `starts` is `(M + 2,)`, where a vertex's entries begin."""
    rows, channels = len(starts) - 1, values.shape[1]
    lattice = values.new_empty(rows, channels)
    grid = (triton.cdiv(rows, _SPLAT_ROWS),)
    _splat_kernel[grid](starts, pixels, weights, values, lattice, rows, channels, _SPLAT_ROWS, num_warps=1)
    return lattice


def blur(lattice: torch.Tensor, neighbours: torch.Tensor) -> torch.Tensor:
    """Half of each neighbour along each axis in turn; `neighbours` is `(d + 1, 2, M + 1)`. The lattice is used up."""
    other = torch.empty_like(lattice)
    for before, after in neighbours:
        _blur_kernel[_grid(len(lattice))](before, after, lattice, other, len(lattice), lattice.shape[1], _ROWS)
        lattice, other = other, lattice
    return lattice


def update(first, second, mass: torch.Tensor, relative: torch.Tensor, marginals: torch.Tensor) -> None:  # noqa: ANN001
    """What the pixels get from both lattices, each `(lattice, vertices, weights, scale)`, and its softmax."""
    sizes = (first[1].shape[1], second[1].shape[1])
    _update_kernel[_grid(len(mass))](
        *first, *second, mass, relative, marginals, len(mass), *sizes, relative.shape[1], _ROWS
    )


def embed(
    features: torch.Tensor,
    scales: torch.Tensor,
    strides: torch.Tensor,
    photo: torch.Tensor,
    real: torch.Tensor,
    offset: int,
    cells: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Barycentric weights `(P, d + 1)`, and keys `(d + 1, P)` with each photo's in a range of its own."""
    dims, count = features.shape
    weights = features.new_empty(count, dims + 1)
    keys = torch.empty(dims + 1, count, dtype=torch.int64, device=features.device)
    limit, inverse = (dims + 1) * cells, float(torch.tensor(1 / (dims + 1), dtype=torch.float32))
    # Without fused multiplication and addition, so that rounding is the CPU's.
    _embed_kernel[(triton.cdiv(count, 32),)](
        features, scales, strides, photo, real, weights, keys, count, offset, cells, limit, inverse, dims, 32,
        enable_fp_fusion=False,
    )  # fmt: skip
    return weights, keys
