"""The sliding window: where it stands on an image, and how overlapping answers become one."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Tile:
    """One position of the sliding window, in pixels of the image.

    Args:
        top: first row.
        left: first column.
        height: of the window.
        width: of the window.
        core: rows and columns of the image that are nearer to this window's middle than to another's; the cores of all
            windows cover the image once.
    """

    top: int
    left: int
    height: int
    width: int
    core: tuple[slice, slice]

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom."""
        return self.left, self.top, self.left + self.width, self.top + self.height

    @property
    def own_core(self) -> tuple[slice, slice]:
        """The core, counted from the window's corner."""
        (rows, columns), top, left = self.core, self.top, self.left
        return slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left)


def cover(height: int, width: int, side: int, overlap: float) -> list[Tile]:
    """Windows of one size that cover an image, row by row from the top.

    The last window of a row or column is shifted inwards to end at the border.

    Args:
        height: of the image.
        width: of the image.
        side: of the windows; they are smaller where the image is.
        overlap: share of a window, at least 0 and below 1, that the next one covers again.
    """
    rows, columns = (_spans(length, min(side, length), overlap) for length in (height, width))
    return [
        Tile(top, left, min(side, height), min(side, width), (core_rows, core_columns))
        for top, core_rows in rows
        for left, core_columns in columns
    ]


def _spans(length: int, size: int, overlap: float) -> list[tuple[int, slice]]:
    """First pixel and core of the windows along one side."""
    step = max(1, round(size * (1 - overlap)))
    starts = [*range(0, length - size, step), length - size]
    borders = [0, *((first + second + size) // 2 for first, second in pairwise(starts)), length]
    return list(zip(starts, (slice(*ends) for ends in pairwise(borders)), strict=True))


def average_bands(predictions: Iterator[tuple[Tile, Tensor]], width: int) -> Iterator[Tensor]:
    """Mean probabilities of overlapping windows, as soon as no later window can change them.

    What is held at any time does not depend on the height of the image: sums over one row of windows.

    Args:
        predictions: every window of [`cover`], in its order, with probabilities `(K, h, w)`.
        width: of the image.

    Yields:
        `(K, rows, width)`, from top to bottom; together they make the image.
    """
    total = count = None
    top = 0
    for window, probabilities in predictions:
        if total is None or count is None:
            total = probabilities.new_zeros(len(probabilities), window.height, width)
            count = probabilities.new_zeros(window.height, width)
        done = window.top - top
        if done:
            yield total[:, :done] / count[:done]
            total, count = (F.pad(sums[..., done:, :], (0, 0, 0, done)) for sums in (total, count))
            top = window.top
        columns = slice(window.left, window.left + window.width)
        total[:, :, columns] += probabilities
        count[:, columns] += 1
    if total is not None and count is not None:
        yield total.div_(count)
