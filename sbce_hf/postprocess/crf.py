"""Dense CRF (Krähenbühl and Koltun, 2011) over a hard label map or over probabilities.

This file imports nothing heavy: worker processes start with it. They are processes and not threads because pydensecrf
holds the interpreter lock (measured: two threads take exactly twice the time of one).
"""

import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import cast

import numpy as np
from PIL import Image
from pydensecrf import densecrf

from ..config import CrfConfig

# Below this a probability says no more against a label (DeepLab's released CRF step).
MIN_PROBABILITY = 1e-5


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
    height, width = indices.shape
    unary = np.full((num_labels, height * width), -math.log((1 - config.gt_prob) / (num_labels - 1)), np.float32)
    unary[indices.ravel(), np.arange(height * width)] = -math.log(config.gt_prob)
    return _mean_field(image, unary, config)


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
    if probabilities.ndim != 3:
        raise ValueError(f"CRF probabilities: got shape {probabilities.shape}, expected (labels, H, W)")
    _check_sizes(image, probabilities.shape[1:], len(probabilities))
    unary = -np.log(np.clip(probabilities, MIN_PROBABILITY, 1, dtype=np.float32))
    return _mean_field(image, unary.reshape(len(probabilities), -1), config)


def _check_sizes(image: np.ndarray, shape: tuple[int, ...], num_labels: int) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"CRF image: got {image.dtype} of shape {image.shape}, expected uint8 of shape (H, W, 3)")
    if shape != image.shape[:2]:
        raise ValueError(f"CRF labels: got shape {shape}, expected the image's {image.shape[:2]}")
    if num_labels < 2:
        raise ValueError(f"CRF: got {num_labels} labels, expected at least 2 to decide between")


def _mean_field(image: np.ndarray, unary: np.ndarray, config: CrfConfig) -> np.ndarray:
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
    return np.array(crf.inference(config.iterations), np.float32).reshape(num_labels, height, width)


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
    values = np.array([0, *(int(c) + 1 for c in classes)], np.uint8)
    unknown = sorted(set(np.unique(label_map).tolist()) - set(values.tolist()))
    if unknown:
        raise ValueError(f"CRF label map: got values {unknown}, expected only {values.tolist()} (the known classes)")
    if len(values) == 1:
        return label_map.copy()
    index_of = np.zeros(256, np.int64)
    index_of[values] = np.arange(len(values))
    size = _crf_size(image, config)
    _check_sizes(image, label_map.shape, len(values))
    if size == image.shape[:2]:
        refined = values[crf_probabilities(image, index_of[label_map], len(values), config).argmax(axis=0)]
    else:
        # Which label most of a small pixel's area has; one label at a time.
        small = _argmax(((label_map == value).astype(np.float32) for value in values), size)
        marginals = crf_probabilities(_resized(image, size), small, len(values), config)
        refined = values[_argmax(marginals, image.shape[:2])]
    for value in values[1:]:
        had = label_map == value
        if np.count_nonzero(refined == value) < config.min_kept * np.count_nonzero(had):
            refined[had] = value
    return refined


def dense_crf_from_probabilities(image: np.ndarray, probabilities: np.ndarray, config: CrfConfig) -> np.ndarray:
    """The `(H, W)` uint8 label map of the largest marginals; see [`crf_from_probabilities`].

    A photo that is larger than `config.side` is scaled down for it, as in [`dense_crf`].
    """
    size = _crf_size(image, config)
    if size == image.shape[:2] or probabilities.shape[1:] != image.shape[:2]:
        return crf_from_probabilities(image, probabilities, config).argmax(axis=0).astype(np.uint8)
    small = np.stack([_resized(values, size) for values in probabilities])
    return _argmax(crf_from_probabilities(_resized(image, size), small, config), image.shape[:2])


def _crf_size(image: np.ndarray, config: CrfConfig) -> tuple[int, int]:
    """Height and width at which the CRF works."""
    height, width = image.shape[:2]
    factor = min(1.0, (config.side or max(height, width)) / max(height, width))
    return max(1, round(factor * height)), max(1, round(factor * width))


def _resized(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear, over the whole area of a pixel where it gets smaller; an RGB image or one map of floats."""
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


class CrfPool:
    """Worker processes that run [`dense_crf`] or [`dense_crf_from_probabilities`]; use it as a context manager.

    Processes are spawned on the first submission. They end with the parent, even when it is killed. When one of them
    dies, the context ends with a `RuntimeError` that says what to do.

    Args:
        config: of the CRF.
        workers: number of processes.
    """

    def __init__(self, config: CrfConfig, workers: int) -> None:
        self.config = config
        self._executor = ProcessPoolExecutor(
            workers, mp_context=multiprocessing.get_context("spawn"), initializer=_initialize_worker
        )
        # Probabilities are large: enough wait in memory to keep the workers busy.
        self._room = threading.BoundedSemaphore(2 * workers)

    def submit(self, image: np.ndarray, label_map: np.ndarray, classes: Sequence[int]) -> Future:
        """Queue one image; the future's result is the refined label map."""
        return self._executor.submit(dense_crf, image, label_map, classes, self.config)

    def submit_probabilities(self, image: np.ndarray, probabilities: np.ndarray) -> Future:
        """Queue one image, or wait for a place in the queue; the future's result is the refined label map."""
        self._room.acquire()
        future = self._executor.submit(dense_crf_from_probabilities, image, probabilities, self.config)
        future.add_done_callback(lambda _: self._room.release())
        return future

    def __enter__(self) -> "CrfPool":
        return self

    def __exit__(self, kind: object, error: BaseException | None, *_: object) -> None:
        self._executor.shutdown(cancel_futures=True)
        if isinstance(error, BrokenProcessPool):
            raise RuntimeError(
                "a CRF process died, most likely for lack of memory; lower crf_workers and run the same command "
                "again: it continues where it stopped"
            ) from error


def _initialize_worker() -> None:
    # Ctrl-C reaches the whole process group; the parent ends its workers in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    # A killed parent cannot shut the pool down, and the workers hold each other's queue open.
    cast(multiprocessing.process.BaseProcess, multiprocessing.parent_process()).join()
    os._exit(1)
