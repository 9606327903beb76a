"""Intersection over union from counts."""

import numpy as np


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
