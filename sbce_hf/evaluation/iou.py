"""Counts of pairs of labels, and intersection over union from them."""

import numpy as np


def runs(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Stretches of pixels, row after row, in which neither of two label maps changes.

    Label maps are made of areas, so there are far fewer of them than pixels: what is counted once for each of them
    takes almost no time.

    Args:
        first: `(H, W)` of any integers.
        second: the same.

    Returns:
        of each run the first map's label, the second one's, and how many pixels it has (int64): each of shape `(R,)`.
    """
    first, second = first.ravel(), second.ravel()
    changes = np.flatnonzero((first[1:] != first[:-1]) | (second[1:] != second[:-1])) + 1
    starts = np.concatenate((np.zeros(min(first.size, 1), np.int64), changes))
    return first[starts], second[starts], np.diff(starts, append=first.size)


def count(labels: np.ndarray, lengths: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Add up runs by label.

    Args:
        labels: `(R,)` indices into the flat counts.
        lengths: `(R,)` pixels of each run.
        shape: of the counts.

    Returns:
        int64 of that shape.
    """
    # Sums of whole numbers below 2 ** 53, so float64 is exact.
    return np.bincount(labels, lengths, minlength=int(np.prod(shape))).astype(np.int64).reshape(shape)


def class_iou(confusion: np.ndarray) -> np.ndarray:
    """Intersection over union of each label.

    Args:
        confusion: `(L, L)` counts, truth in rows, prediction in columns; or `(L, L + 1)` with a last column for pixels
            without any label.

    Returns:
        `(L,)` float64; NaN for a label that neither truth nor prediction has.
    """
    labels = len(confusion)
    intersection = np.diagonal(confusion).astype(np.float64)
    union = confusion.sum(axis=1) + confusion[:, :labels].sum(axis=0) - intersection
    return np.divide(intersection, union, out=np.full(labels, np.nan), where=union > 0)
