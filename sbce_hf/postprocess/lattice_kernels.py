"""What numba compiles of `lattice.py`; without annotations, as numba finds the types itself.

The values of labels are in blocks: `(blocks, pixels * W)` or `(blocks, vertices * W)`, those of one pixel or vertex
side by side. `width` and `corners` are tuples of length `W`, 1, 2 or 4, and `d + 1`: the length is part of their type,
so the compiler knows it. Values are written out one by one, for it could not know that reading the next does not
depend on having written the last.

Longer than 300 lines: one computation in steps that share the layout of their arrays.
"""

import math
from typing import Any

import numba
import numpy as np

# Pixels of which the intermediate values fit into the first level of the cache.
_CHUNK = 512


def compiled(function: Any) -> Any:
    """Have numba compile a function at its first call, and keep the result where there is a place for it."""
    options = {"nogil": True, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:
        # Neither the package's folder nor the user's can be written to.
        return numba.njit(**options)(function)


@compiled
def iterate(relative, mass, multiplicity, first, second, iterations, width):
    """Mean field; `relative` is the first label's energy less each other's; see [`mean_field`].

    What the first label gets from the kernels is what the others leave of `mass`, `(N,)`, their answer to ones.
    """
    channels, blocks, count = len(width), len(relative), len(mass)
    vertices1, weights1, neighbours1, scale1, spare1, corners1 = first
    current1, other1 = spare1[0], spare1[1]
    vertices2, weights2, neighbours2, scale2, spare2, corners2 = second
    current2, other2 = spare2[0], spare2[1]
    values = np.empty((blocks, _CHUNK * channels), np.float32)
    marginals = np.empty((1 + blocks * channels, count), np.float32)
    for iteration in range(iterations + 1):
        if iteration:
            current1, other1 = blurred(neighbours1, current1, other1, width)
            current2, other2 = blurred(neighbours2, current2, other2, width)
            other1[:] = 0
            other2[:] = 0
        for start in range(0, count, _CHUNK):
            held = min(_CHUNK, count - start)
            values[:] = 0
            if iteration:
                for b in range(blocks):
                    gather(vertices1, weights1, start, current1[b], scale1, values[b], held, corners1, width)
                    gather(vertices2, weights2, start, current2[b], scale2, values[b], held, corners2, width)
                _less_the_first(values, mass, multiplicity, start, held, width)
            rest = _softmax(values, relative, multiplicity, start, held, width)
            for b in range(blocks):
                if iteration < iterations:
                    splat(vertices1, weights1, start, values[b], held, other1[b], corners1, width)
                    splat(vertices2, weights2, start, values[b], held, other2[b], corners2, width)
                    continue
                for n in range(held):
                    for c in range(channels):
                        marginals[1 + b * channels + c, start + n] = values[b, n * channels + c]
            if iteration == iterations:
                marginals[0, start : start + held] = rest[:held]
        current1, other1 = other1, current1
        current2, other2 = other2, current2
    return marginals


@compiled
def splat(vertices, weights, start, values, held, lattice, corners, width):
    """Add the values of `held` pixels to their vertices."""
    size = len(width)
    for n in range(held):
        v0 = values[size * n]
        v1 = values[size * n + 1] if size > 1 else v0
        v2, v3 = (values[size * n + 2], values[size * n + 3]) if size > 2 else (v0, v1)
        for k in range(len(corners)):
            i, weight = size * np.int64(vertices[k, start + n]), weights[k, start + n]
            if size == 1:
                lattice[i] += weight * v0
            elif size == 2:
                x0, x1 = lattice[i] + weight * v0, lattice[i + 1] + weight * v1
                lattice[i], lattice[i + 1] = x0, x1
            else:
                x0, x1 = lattice[i] + weight * v0, lattice[i + 1] + weight * v1
                x2, x3 = lattice[i + 2] + weight * v2, lattice[i + 3] + weight * v3
                lattice[i], lattice[i + 1], lattice[i + 2], lattice[i + 3] = x0, x1, x2, x3


@compiled
def gather(vertices, weights, start, lattice, scale, values, held, corners, width):
    """Add `scale` times what their vertices hold to the values of `held` pixels."""
    size = len(width)
    for n in range(held):
        x0 = x1 = x2 = x3 = np.float32(0)
        for k in range(len(corners)):
            i, weight = size * np.int64(vertices[k, start + n]), weights[k, start + n]
            x0 += weight * lattice[i]
            if size > 1:
                x1 += weight * lattice[i + 1]
            if size > 2:
                x2 += weight * lattice[i + 2]
                x3 += weight * lattice[i + 3]
        i = size * n
        values[i] += scale * x0
        if size > 1:
            values[i + 1] += scale * x1
        if size > 2:
            values[i + 2] += scale * x2
            values[i + 3] += scale * x3


@compiled
def blurred(neighbours, lattice, other, width):
    """Half of each neighbour along each axis in turn; which of the two arrays has the result, and the spare one."""
    size, half = len(width), np.float32(0.5)
    for axis in range(neighbours.shape[0]):
        befores, afters = neighbours[axis, 0], neighbours[axis, 1]
        for b in range(len(lattice)):
            old, new = lattice[b], other[b]
            for v in range(neighbours.shape[2]):
                i, j, k = size * v, size * np.int64(befores[v]), size * np.int64(afters[v])
                x0 = old[i] + half * (old[j] + old[k])
                x1 = old[i + 1] + half * (old[j + 1] + old[k + 1]) if size > 1 else x0
                x2 = old[i + 2] + half * (old[j + 2] + old[k + 2]) if size > 2 else x0
                x3 = old[i + 3] + half * (old[j + 3] + old[k + 3]) if size > 2 else x0
                new[i] = x0
                if size > 1:
                    new[i + 1] = x1
                if size > 2:
                    new[i + 2] = x2
                    new[i + 3] = x3
        lattice, other = other, lattice
    return lattice, other


@compiled
def _less_the_first(values, mass, multiplicity, start, held, width):
    channels = len(width)
    first = mass[start : start + held].copy()
    for b in range(len(values)):
        for n in range(held):
            for c in range(channels):
                first[n] -= multiplicity[b, c] * values[b, n * channels + c]
    for b in range(len(values)):
        for n in range(held):
            for c in range(channels):
                values[b, n * channels + c] -= first[n]


@compiled
def _softmax(values, relative, multiplicity, start, held, width):
    """Turn what labels get, less what the first gets, into their probabilities; the first's is returned."""
    channels = len(width)
    highest = np.zeros(_CHUNK, np.float32)
    for b in range(len(values)):
        for n in range(held):
            for c in range(channels):
                values[b, n * channels + c] += relative[b, (start + n) * channels + c]
                highest[n] = max(highest[n], values[b, n * channels + c])
    for b in range(len(values)):
        for n in range(held):
            for c in range(channels):
                values[b, n * channels + c] -= highest[n]
        _exp(values[b], held * channels)
    rest = -highest
    _exp(rest, held)
    factor = rest.copy()
    for b in range(len(values)):
        for n in range(held):
            for c in range(channels):
                factor[n] += multiplicity[b, c] * values[b, n * channels + c]
    for n in range(held):
        factor[n] = np.float32(1) / factor[n]
        rest[n] *= factor[n]
    for b in range(len(values)):
        for n in range(held):
            for c in range(channels):
                values[b, n * channels + c] *= factor[n]
    return rest


@compiled
def _rounded(value):
    """To the nearest integer, half to even, below 2 ** 22; unlike `np.rint`, it is vectorised."""
    return (value + np.float32(12582912)) - np.float32(12582912)


@compiled
def _exp(values, count):
    """`e ** x` of `count` values that are at most 0, in place; within 2e-7 of it, and vectorised."""
    powers = np.empty(count, np.int32)
    for n in range(count):
        # Less is nothing: such small numbers would be slow, and smaller ones very much so.
        something = np.float32(values[n] > np.float32(-70))
        x = max(values[n], np.float32(-70))
        power = _rounded(x * np.float32(1.44269504))
        x = (x - power * np.float32(0.693359375)) + power * np.float32(2.12194440e-4)
        y = np.float32(1.9875691500e-4)
        y = y * x + np.float32(1.3981999507e-3)
        y = y * x + np.float32(8.3334519073e-3)
        y = y * x + np.float32(4.1665795894e-2)
        y = y * x + np.float32(1.6666665459e-1)
        y = y * x + np.float32(5.0000001201e-1)
        values[n] = something * (y * x * x + x + np.float32(1))
        powers[n] = (np.int32(power) + np.int32(127)) << np.int32(23)
    factors = powers.view(np.float32)
    for n in range(count):
        values[n] *= factors[n]


@compiled
def embed(features, strides, offset, cells, weights, keys):
    """Barycentric weights and keys of the vertices of each feature's simplex; see [`packing`].

    The operations are pydensecrf's in its order, as which vertices there are depends on rounding where features are
    tied; all loops but the last two run over the pixels of a chunk, so that they are vectorised.
    """
    dims, count = features.shape
    size = dims + 1
    deviation = float(np.float32(math.sqrt(2.0 / 3.0) * size))
    inverse = np.float32(1.0 / size)
    elevated, rest = np.empty((size, _CHUNK), np.float32), np.empty((size, _CHUNK), np.float32)
    cell, rank = np.empty((size, _CHUNK), np.int32), np.empty((size, _CHUNK), np.int32)
    total, off_plane, base = np.empty(_CHUNK, np.float32), np.empty(_CHUNK, np.int32), np.empty(_CHUNK, np.int64)
    # By rank.
    remainders, steps = np.empty((_CHUNK, size), np.float32), np.empty((_CHUNK, size), np.int64)
    for start in range(0, count, _CHUNK):
        held = min(_CHUNK, count - start)
        total[:] = 0
        off_plane[:] = 0
        base[:] = offset
        # The feature on the plane of the lattice, d + 1 coordinates that sum to 0.
        for j in range(dims, 0, -1):
            scale = np.float32(1.0 / math.sqrt(float(j + 1) * j) * deviation)
            for n in range(held):
                value = features[j - 1, start + n] * scale
                elevated[j, n] = total[n] - np.float32(j) * value
                total[n] += value
        elevated[0] = total
        # The nearest vertex of remainder 0, and the order of what is left of the coordinates.
        for i in range(size):
            for n in range(held):
                cell[i, n] = np.int32(_rounded(elevated[i, n] * inverse))
                off_plane[n] += cell[i, n]
                rest[i, n] = elevated[i, n] - np.float32(cell[i, n] * np.int32(size))
                rank[i, n] = 0
        for i in range(dims):
            for j in range(i + 1, size):
                for n in range(held):
                    less = np.int32(rest[i, n] < rest[j, n])
                    rank[i, n] += less
                    rank[j, n] += np.int32(1) - less
        # Rounding may leave the plane: back along the coordinates with the largest or smallest remainders.
        for i in range(size):
            for n in range(held):
                moved = rank[i, n] + off_plane[n]
                back = np.int32(moved < 0) - np.int32(moved >= size)
                rank[i, n] = moved + np.int32(size) * back
                cell[i, n] += back
                rest[i, n] = (elevated[i, n] - np.float32(cell[i, n] * np.int32(size))) * inverse
                base[n] += strides[i] * np.int64(cell[i, n])
        for i in range(size):
            for n in range(held):
                remainders[n, rank[i, n]] = rest[i, n]
                steps[n, rank[i, n]] = strides[i]
        for n in range(held):
            weights[0, start + n] = remainders[n, dims] + (np.float32(1) - remainders[n, 0])
            keys[0, start + n] = base[n]
            for k in range(1, size):
                weights[k, start + n] = remainders[n, dims - k] - remainders[n, size - k]
                base[n] += cells - steps[n, size - k]
                keys[k, start + n] = base[n]


@compiled
def number(keys, cells, bits, entries, spare, vertices, known):
    """Give equal keys one number, from 1 on in their order; how many there are, with nobody's.

    Keys of one remainder are sorted at a time, from row to row: entries `(key - remainder * cells) * 2 ** 32 + place`,
    by three passes of a radix sort of `bits` bits each.
    """
    known[0], count = -1, 0
    mask = (1 << bits) - 1
    counts = np.empty((3, mask + 1), np.int64)
    for remainder in range(keys.shape[0]):
        counts[:] = 0
        for n in range(keys.shape[1]):
            key = keys[remainder, n] - remainder * cells
            counts[0, key & mask] += 1
            counts[1, (key >> bits) & mask] += 1
            counts[2, key >> 2 * bits] += 1
        for digit in range(3):
            total = 0
            for value in range(mask + 1):
                total, counts[digit, value] = total + counts[digit, value], total
        for n in range(keys.shape[1]):
            key = keys[remainder, n] - remainder * cells
            entries[counts[0, key & mask]] = np.uint64(key) << np.uint64(32) | np.uint64(n)
            counts[0, key & mask] += 1
        source, target = entries, spare
        for digit in range(1, 3):
            shift, low = np.uint64(32 + digit * bits), np.uint64(mask)
            for n in range(keys.shape[1]):
                value = np.int64(source[n] >> shift & low)
                target[counts[digit, value]] = source[n]
                counts[digit, value] += 1
            source, target = target, source
        for n in range(keys.shape[1]):
            key = np.int64(source[n] >> np.uint64(32)) + remainder * cells
            if key != known[count]:
                count += 1
                known[count] = key
            vertices[remainder, source[n] & np.uint64(0xFFFFFFFF)] = count
    return count + 1


@compiled
def find_neighbours(known, strides, cells, neighbours):
    """Merge the vertices of each remainder, moved a step along each axis, with those that may be there.

    One step is 1 less in every coordinate and `d` more along the axis itself.
    """
    size = strides.shape[0]
    ends = np.searchsorted(known, np.arange(size + 1) * cells)
    for axis in range(size):
        for remainder in range(size):
            if remainder:
                goal, step = remainder - 1, strides[axis] - cells
            else:
                goal, step = size - 1, (size - 1) * cells + strides[axis] - strides.sum()
            here, there = max(ends[remainder], 1), max(ends[goal], 1)
            while here < ends[remainder + 1] and there < ends[goal + 1]:
                wanted, seen = known[here] + step, known[there]
                met = wanted == seen
                # Without branches, which could not be foreseen; what is written for no reason is nobody's.
                neighbours[axis, 0, here * met] = there * met
                neighbours[axis, 1, there * met] = here * met
                here += wanted <= seen
                there += wanted >= seen
