"""Grey of more than 8 bits as a screen shows it: neither black nor white.

Large pictures are worked on in strips, so that they take no multiple of their memory meanwhile: besides the values
there is only the result, of one byte a pixel.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

# Values that mean "no data" where a file does not say which, and beyond which none is meant.
_FILLERS, _LARGEST = (-9999.0, -32_768.0, -99_999.0), 1e30
# Pixels that are worked on at a time.
_STRIP = 2**18
# Bits of a value that one pass over a picture decides.
_DIGIT = 16


def strips(height: int, width: int) -> Iterator[slice]:
    """Rows of a picture that are worked on at a time."""
    step = max(_STRIP // max(width, 1), 1)
    return (slice(start, min(start + step, height)) for start in range(0, height, step))


def scaled_to_8_bits(values: NDArray, fillers: Sequence[float] = ()) -> tuple[NDArray[np.uint8], bool]:
    """Scale grey of more than 8 bits.

    16-bit grey that uses at least a quarter of its range is scaled by 1/257, so that photos of one camera keep their
    exposures. Everything else, 10 to 14 bits in 16, 32 bits, floating point, is scaled from its own range, a
    thousandth of the pixels at either end left out, so that one hot pixel changes nothing. What is not finite, or
    stands for "no data", is black.

    Args:
        values: `(H, W)` of any number type.
        fillers: values that stand for no data; the usual ones are known.

    Returns:
        `(H, W)` uint8, and whether its own range was used.
    """
    return scaled_in_strips(lambda rows: values[rows], (values.shape[0], values.shape[1]), fillers)


def scaled_in_strips(
    read: Callable[[slice], NDArray], shape: tuple[int, int], fillers: Sequence[float] = ()
) -> tuple[NDArray[np.uint8], bool]:
    """See [`scaled_to_8_bits`]; of a picture that need not be an array.

    Args:
        read: gives some rows, `(h, W)`, and is asked for them up to four times.
        shape: height and width.
        fillers: see there.
    """

    def known() -> Iterator[NDArray]:
        for part in map(read, strips(*shape)):
            seen = _is_known(part, fillers)
            yield part.ravel() if seen.all() else part[seen]

    count, low, high, kind = 0, math.inf, -math.inf, np.dtype(np.uint8)
    for part in known():
        kind = part.dtype
        if part.size:
            count, low, high = count + part.size, min(low, float(part.min())), max(high, float(part.max()))
    grey = np.zeros(shape, np.uint8)
    if not count:
        return grey, True
    whole = kind.kind == "u" or kind == np.int32
    own_range = not (whole and low >= 0 and high <= 65_535 and (high - low >= 2**14 or low == high))
    if own_range:
        cut_low, cut_high = _quantiles(known, count, (0.001, 0.999))
        low, high = (cut_low, cut_high) if cut_high > cut_low else (low, high)
    for rows in strips(*shape):
        part = read(rows)
        seen = _is_known(part, fillers)
        wide = np.where(seen, part, low).astype(np.float64)
        if not own_range:
            wide /= 257
        elif high == low:
            wide[:] = 128
        else:
            wide = (np.clip(wide, low, high) - low) * (255 / (high - low))
        grey[rows] = np.where(seen, np.rint(wide), 0)
    return grey, own_range


def _is_known(part: NDArray, fillers: Sequence[float]) -> NDArray[np.bool_]:
    wide = part.astype(np.float64) if part.dtype.kind == "f" else part
    known = np.isfinite(wide) & (np.abs(wide) < _LARGEST) if wide is not part else np.ones(part.shape, bool)
    for filler in (*fillers, *(() if part.dtype.kind == "u" else _FILLERS)):
        known &= wide != filler
    return known


def _quantiles(parts: Callable[[], Iterator[NDArray]], count: int, shares: Sequence[float]) -> list[float]:
    """Quantiles as `numpy.quantile` gives them, of values that are never all in memory: radix selection.

    Args:
        parts: gives the values, `(n,)` each and without NaN, from the start.
        count: of all values.
        shares: from 0 to 1.
    """
    places = [share * (count - 1) for share in shares]
    # Of each rank that is looked for, the leading digits found so far, and its rank among the values that have them.
    found = {index: (0, index) for place in places for index in (int(place), math.ceil(place))}
    kind = _wide_enough(next(parts())).dtype
    for shift in range(kind.itemsize * 8 - _DIGIT, -1, -_DIGIT):
        counts = {prefix: np.zeros(2**_DIGIT, np.int64) for prefix, _ in found.values()}
        for part in parts():
            keys = _sortable(_wide_enough(part)) >> shift
            for prefix, sums in counts.items():
                # At first there is but one prefix, none.
                own = keys if shift + _DIGIT == 8 * kind.itemsize else keys[keys >> _DIGIT == prefix]
                sums += np.bincount(own.astype(np.uint16), minlength=2**_DIGIT)
        for index, (prefix, rank) in found.items():
            below = np.cumsum(counts[prefix])
            digit = int(np.searchsorted(below, rank, side="right"))
            found[index] = prefix << _DIGIT | digit, rank - (int(below[digit - 1]) if digit else 0)
    value = {index: _value(key, kind) for index, (key, _) in found.items()}
    return [value[int(place)] + (value[math.ceil(place)] - value[int(place)]) * (place % 1) for place in places]


def _wide_enough(part: NDArray) -> NDArray:
    """In this machine's order of bytes, and of one digit at least."""
    kind = np.dtype(np.int16) if part.dtype.itemsize == 1 else part.dtype.newbyteorder("=")
    return part.astype(kind, copy=False)


def _sortable(part: NDArray) -> NDArray[np.unsignedinteger]:
    """Whole numbers in the order of the values, of as many bits."""
    unsigned = np.dtype(f"u{part.dtype.itemsize}")
    bits, sign = part.view(unsigned), unsigned.type(1 << (8 * unsigned.itemsize - 1))
    if part.dtype.kind == "i":
        return bits ^ sign
    return np.where(bits & sign, ~bits, bits | sign) if part.dtype.kind == "f" else bits


def _value(key: int, kind: np.dtype) -> float:
    """The value that [`_sortable`] has made a whole number of."""
    bits = 8 * kind.itemsize
    sign = 1 << (bits - 1)
    if kind.kind == "i":
        key ^= sign
    elif kind.kind == "f":
        key = key ^ sign if key & sign else ~key & (2**bits - 1)
    return float(np.array([key], f"u{kind.itemsize}").view(kind)[0])
