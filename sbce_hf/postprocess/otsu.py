"""Otsu's threshold, which parts what stands out from what does not."""

import numpy as np


def otsu_threshold(values: np.ndarray, bins: int = 256) -> float:
    """The threshold that parts values into two groups of the least variance within them (Otsu, 1979).

    Args:
        values: of any shape, finite.
        bins: of the histogram that is looked at.
    """
    counts, edges = np.histogram(values, bins)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts, dtype=np.float64)
    total = np.cumsum(counts * centres)
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        between = np.where(above > 0, (total[-1] * below - total * below[-1]) ** 2 / (below * above), 0.0)
    return float(edges[1 + int(np.nan_to_num(between).argmax())])
