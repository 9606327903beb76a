"""Dense CRF (Krähenbühl and Koltun, 2011) over a hard label map or over probabilities, of one photo on the CPU.

`CrfConfig.backend` says who computes it: `lattice.py` (numba) or pydensecrf, whose numbers are the same. `crf_pool.py`
works on many photos, and has the one for a GPU.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..config import CrfConfig
from ..errors import UserError

# Below this a probability says no more against a label (DeepLab's released CRF step).
MIN_PROBABILITY = 1e-5


@dataclass(frozen=True)
class CrfProblem:
    """What the CRF is to decide, at the size at which it works.

    Args:
        image: `(h, w, 3)` uint8 RGB.
        num_labels: `L`, at least 2.
        indices: `(h, w)` uint8 in `[0, L)`, the given labels; or `None`, if there are
        probabilities: `(L, h, w)` float32.
        finish: from the label of each of the photo's pixels, `(H, W)` uint8, to the photo's label map.
        size: the photo's height and width.
    """

    image: np.ndarray
    num_labels: int
    indices: np.ndarray | None
    probabilities: np.ndarray | None
    finish: Callable[[np.ndarray], np.ndarray]
    size: tuple[int, int]

    def label_map(self, marginals: np.ndarray) -> np.ndarray:
        """The label map of `(L, h, w)` marginals, which are scaled to the photo's size before a label is chosen."""
        if marginals.shape[1:] == self.size:
            return self.finish(marginals.argmax(axis=0).astype(np.uint8))
        return self.finish(_argmax(marginals, self.size))


def label_energies(config: CrfConfig, num_labels: int) -> tuple[float, float]:
    """Unary energies of the given label, `-ln g`, and of each other, `-ln((1 - g) / (L - 1))`."""
    return -math.log(config.gt_prob), -math.log((1 - config.gt_prob) / (num_labels - 1))


def crf_probabilities(image: np.ndarray, indices: np.ndarray, num_labels: int, config: CrfConfig) -> np.ndarray:
    """Mean-field marginals of a dense CRF whose unary term trusts `indices` with confidence `gt_prob`.

    The unary energy is `-ln g` for the given label and `-ln((1 - g) / (L - 1))` for the others; label 0 is not treated
    as unsure, as pydensecrf's own helper does by default.

    Args:
        image: `(H, W, 3)` uint8 RGB.
        indices: `(H, W)` integers in `[0, num_labels)`.
        num_labels: number of labels `L`, at least 2.
        config: kernel widths and weights.

    Returns:
        `(L, H, W)` float32; sums to 1 over the labels.

    Raises:
        ValueError: an image that is not uint8 RGB, sizes that differ, an index out of range, or fewer than two labels.
    """
    _check_sizes(image, indices.shape, num_labels)
    if int(indices.min()) < 0 or int(indices.max()) >= num_labels:
        raise ValueError(f"CRF labels: got values {indices.min()} to {indices.max()}, expected 0 to {num_labels - 1}")
    own, other = label_energies(config, num_labels)
    unary = np.full((num_labels, indices.size), other, np.float32)
    unary[indices.ravel(), np.arange(indices.size)] = own
    # Labels that no pixel is given have the same energies everywhere: one is computed for all.
    absent = np.flatnonzero(np.bincount(indices.ravel(), minlength=num_labels) == 0)
    return _mean_field(image, unary, config, absent)


def crf_from_probabilities(image: np.ndarray, probabilities: np.ndarray, config: CrfConfig) -> np.ndarray:
    """Mean-field marginals of a dense CRF whose unary term is `-ln clip(P, 1e-5)`, which keeps the confidence.

    Args:
        image: `(H, W, 3)` uint8 RGB.
        probabilities: `(L, H, W)` floating, of each label, at least 2.
        config: kernel widths and weights; `gt_prob` is not used.

    Returns:
        `(L, H, W)` float32; sums to 1 over the labels.

    Raises:
        ValueError: an image that is not uint8 RGB, sizes that differ, or fewer than two labels.
    """
    _check_probabilities(image, probabilities)
    unary = -np.log(np.clip(probabilities, MIN_PROBABILITY, 1, dtype=np.float32))
    return _mean_field(image, unary.reshape(len(probabilities), -1), config, np.zeros(0, np.int64))


def _check_probabilities(image: np.ndarray, probabilities: np.ndarray) -> None:
    if probabilities.ndim != 3:
        raise ValueError(f"CRF probabilities: got shape {probabilities.shape}, expected (labels, H, W)")
    _check_sizes(image, probabilities.shape[1:], len(probabilities))


def _check_sizes(image: np.ndarray, shape: tuple[int, ...], num_labels: int) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"CRF image: got {image.dtype} of shape {image.shape}, expected uint8 of shape (H, W, 3)")
    if shape != image.shape[:2]:
        raise ValueError(f"CRF labels: got shape {shape}, expected the image's {image.shape[:2]}")
    if num_labels < 2:
        raise ValueError(f"CRF: got {num_labels} labels, expected at least 2 to decide between")


def _mean_field(image: np.ndarray, unary: np.ndarray, config: CrfConfig, same: np.ndarray) -> np.ndarray:
    """Marginals `(L, H, W)` of energies `(L, H * W)`; the labels `same` have the same energies."""
    compute = _pydensecrf if config.backend == "pydensecrf" else _numba
    return compute(image, unary, config, same).reshape(len(unary), *image.shape[:2])


def _numba(image: np.ndarray, unary: np.ndarray, config: CrfConfig, same: np.ndarray) -> np.ndarray:
    # Here, because numba takes half a second to import.
    from .lattice import bilateral_lattice, mean_field, spatial_lattice

    kernels = (
        (spatial_lattice(*image.shape[:2], config.gaussian_sxy), config.gaussian_compat),
        (bilateral_lattice(image, config.bilateral_sxy, config.bilateral_srgb), config.bilateral_compat),
    )
    rows = np.concatenate([np.setdiff1d(np.arange(len(unary)), same), same[:1]])
    multiplicity = np.ones(len(rows), np.float32)
    multiplicity[-1] = max(1, len(same))
    found = mean_field(unary[rows], multiplicity, kernels, config.iterations)
    if len(same) < 2:
        return found if len(same) == 0 else found[np.argsort(rows)]
    marginals = np.empty(unary.shape, np.float32)
    marginals[rows[:-1]], marginals[same] = found[:-1], found[-1]
    return marginals


def _pydensecrf(image: np.ndarray, unary: np.ndarray, config: CrfConfig, _: np.ndarray) -> np.ndarray:
    try:
        from pydensecrf import densecrf
    except ImportError as error:
        raise UserError(
            f"crf.backend: got 'pydensecrf', which cannot be imported ({error}); expected auto, numba or torch, or "
            "install pydensecrf2, which needs a C++ compiler"
        ) from error
    (height, width), num_labels = image.shape[:2], len(unary)
    crf = densecrf.DenseCRF2D(width, height, num_labels)
    crf.setUnaryEnergy(unary)
    crf.addPairwiseGaussian(sxy=config.gaussian_sxy, compat=config.gaussian_compat)
    crf.addPairwiseBilateral(
        sxy=config.bilateral_sxy,
        srgb=config.bilateral_srgb,
        # pydensecrf takes no read-only view, which is what numpy makes of a PIL image.
        rgbim=np.require(image, requirements=["C", "W"]),
        compat=config.bilateral_compat,
    )
    return np.array(crf.inference(config.iterations), np.float32)


def dense_crf(image: np.ndarray, label_map: np.ndarray, classes: Sequence[int], config: CrfConfig) -> np.ndarray:
    """Refine a label map; the CRF chooses among background and the image's known classes.

    A known class that the map has lost keeps its label, so that the CRF may bring it back; with no known class the map
    is returned as it is. One that the CRF would all but remove keeps its pixels, see `min_kept`. A photo larger than
    `config.side` is scaled down to it for the CRF, and the marginals back, before the label is chosen.

    Args:
        image: `(H, W, 3)` uint8 RGB.
        label_map: `(H, W)` uint8, 0 for background and `c + 1` for class `c`.
        classes: indices `c` of the known classes, each once.
        config: kernel widths and weights.

    Returns:
        `(H, W)` uint8 label map.

    Raises:
        ValueError: see [`crf_probabilities`]; also a value of the map that belongs to no known class.
    """
    problem = label_problem(image, label_map, classes, config)
    if problem is None:
        return label_map.copy()
    assert problem.indices is not None
    return problem.label_map(crf_probabilities(problem.image, problem.indices, problem.num_labels, config))


def label_problem(
    image: np.ndarray, label_map: np.ndarray, classes: Sequence[int], config: CrfConfig
) -> CrfProblem | None:
    """What [`dense_crf`] has the CRF decide; `None` if there is no known class."""
    values = np.array([0, *(int(c) + 1 for c in classes)], np.uint8)
    unknown = sorted(set(np.unique(label_map).tolist()) - set(values.tolist()))
    if unknown:
        raise ValueError(f"CRF label map: got values {unknown}, expected only {values.tolist()} (the known classes)")
    if len(values) == 1:
        return None
    index_of = np.zeros(256, np.uint8)
    index_of[values] = np.arange(len(values))
    size = _crf_size(image, config)
    _check_sizes(image, label_map.shape, len(values))
    indices = index_of[label_map]
    if size != image.shape[:2]:
        # Which label most of a small pixel's area has; one label at a time.
        indices = _argmax(((label_map == value).astype(np.float32) for value in values), size)

    def finish(winner: np.ndarray) -> np.ndarray:
        refined = values[winner]
        for value in values[1:]:
            had = label_map == value
            if np.count_nonzero(refined == value) < config.min_kept * np.count_nonzero(had):
                refined[had] = value
        return refined

    return CrfProblem(_resized(image, size), len(values), indices, None, finish, image.shape[:2])


def dense_crf_from_probabilities(image: np.ndarray, probabilities: np.ndarray, config: CrfConfig) -> np.ndarray:
    """The `(H, W)` uint8 label map of the largest marginals; see [`crf_from_probabilities`].

    A photo that is larger than `config.side` is scaled down for it, as in [`dense_crf`].
    """
    problem = probability_problem(image, probabilities, config)
    assert problem.probabilities is not None
    return problem.label_map(crf_from_probabilities(problem.image, problem.probabilities, config))


def probability_problem(image: np.ndarray, probabilities: np.ndarray, config: CrfConfig) -> CrfProblem:
    """What [`dense_crf_from_probabilities`] has the CRF decide."""
    _check_probabilities(image, probabilities)
    size = _crf_size(image, config)
    if size != image.shape[:2]:
        probabilities = np.stack([_resized(values, size) for values in probabilities])
    return CrfProblem(
        _resized(image, size), len(probabilities), None, probabilities, lambda winner: winner, image.shape[:2]
    )


def _crf_size(image: np.ndarray, config: CrfConfig) -> tuple[int, int]:
    """Height and width at which the CRF works."""
    height, width = image.shape[:2]
    factor = min(1.0, (config.side or max(height, width)) / max(height, width))
    return max(1, round(factor * height)), max(1, round(factor * width))


def _resized(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear, over the whole area of a pixel where it gets smaller; an RGB image or one map of floats."""
    if values.shape[:2] == size:
        return values
    return np.asarray(Image.fromarray(values).resize(size[::-1], Image.Resampling.BILINEAR))


def _argmax(maps: Iterable[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """Which of the maps is highest at another size, `(h, w)` uint8; the first of equal ones."""
    winner = np.zeros(size, np.uint8)
    highest = np.full(size, -np.inf, np.float32)
    for index, values in enumerate(maps):
        values = _resized(values, size)
        higher = values > highest
        winner[higher], highest[higher] = index, values[higher]
    return winner
