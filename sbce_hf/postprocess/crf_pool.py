"""The dense CRF of many photos while other work goes on: in threads, in processes, or in batches on a GPU.

This file imports nothing heavy: worker processes start with it.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, cast

import numpy as np

from ..config import CrfConfig
from .crf import CrfProblem, dense_crf, dense_crf_from_probabilities, label_problem, probability_problem

if TYPE_CHECKING:
    import torch


class CrfPool:
    """Runs [`dense_crf`] or [`dense_crf_from_probabilities`] on what is submitted; use it as a context manager.

    numba's code holds no lock, so threads do; pydensecrf holds the interpreter's (measured: two threads take exactly
    twice the time of one), so it gets processes. They are spawned on the first submission and end with the parent,
    even when it is killed. When one of them dies, the context ends with a `RuntimeError` that says what to do. With
    torch, photos wait until there are enough for a batch, or until one of their results is asked for.

    Args:
        config: of the CRF.
        workers: number of threads or processes.
        device: where the networks are.
    """

    def __init__(self, config: CrfConfig, workers: int, device: "torch.device | str" = "cpu") -> None:
        self.config, self.device = config, device
        self.backend = chosen_backend(config, device)
        self._executor: Executor
        if self.backend == "pydensecrf":
            self._executor = ProcessPoolExecutor(
                workers, mp_context=multiprocessing.get_context("spawn"), initializer=_initialize_worker
            )
        else:
            self._executor = ThreadPoolExecutor(workers if self.backend == "numba" else 1, "crf")
        # Results that may wait in memory: enough to keep the workers busy, or to fill a batch and compute another.
        self.room = 2 * (config.batch_photos if self.backend == "torch" else workers)
        # Probabilities are large.
        self._places = threading.BoundedSemaphore(self.room)
        self._waiting: list[tuple[CrfProblem, Future]] = []

    def submit(self, image: np.ndarray, label_map: np.ndarray, classes: Sequence[int]) -> Future:
        """Queue one image; the future's result is the refined label map."""
        if self.backend != "torch":
            return self._executor.submit(dense_crf, image, label_map, classes, self.config)
        return self._batched(label_problem(image, label_map, classes, self.config), label_map)

    def submit_probabilities(self, image: np.ndarray, probabilities: np.ndarray) -> Future:
        """Queue one image, or wait for a place in the queue; the future's result is the refined label map."""
        if self.backend == "torch":
            return self._batched(probability_problem(image, probabilities, self.config), None)
        self._places.acquire()
        future = self._executor.submit(dense_crf_from_probabilities, image, probabilities, self.config)
        future.add_done_callback(lambda _: self._places.release())
        return future

    def _batched(self, problem: CrfProblem | None, label_map: np.ndarray | None) -> Future:
        future: Future = _Demanded(self._flush)
        if problem is None:
            future.set_result(cast(np.ndarray, label_map).copy())
            return future
        self._waiting.append((problem, future))
        if len(self._waiting) >= self.config.batch_photos:
            self._flush()
        return future

    def _flush(self) -> None:
        """Send what waits to the device."""
        batch, self._waiting = self._waiting, []
        if batch:
            self._executor.submit(_solve, batch, self.config, self.device)

    def __enter__(self) -> "CrfPool":
        return self

    def __exit__(self, kind: object, error: BaseException | None, *_: object) -> None:
        self._executor.shutdown(cancel_futures=True)
        if isinstance(error, BrokenProcessPool):
            raise RuntimeError(
                "a CRF process died, most likely for lack of memory; lower crf_workers and run the same command "
                "again: it continues where it stopped"
            ) from error


def chosen_backend(config: CrfConfig, device: "torch.device | str") -> str:
    """Who computes the CRF: with `"auto"`, torch beside a network on a GPU, otherwise numba."""
    if config.backend != "auto":
        return config.backend
    return "torch" if str(device).startswith("cuda") else "numba"


class _Demanded(Future):
    """Its batch is sent off when somebody asks for it, full or not."""

    def __init__(self, flush: Callable[[], None]) -> None:
        super().__init__()
        self._flush = flush

    def result(self, timeout: float | None = None) -> np.ndarray:
        if not self.done():
            self._flush()
        return super().result(timeout)


def _solve(batch: Sequence[tuple[CrfProblem, Future]], config: CrfConfig, device: "torch.device | str") -> None:
    import torch

    from .lattice_torch import solve

    try:
        try:
            # This thread's own device would be the first, where another process has its networks.
            with torch.cuda.device(device) if str(device).startswith("cuda") else contextlib.nullcontext():
                solved = solve([problem for problem, _ in batch], config, device)
        except torch.OutOfMemoryError as error:
            raise RuntimeError(
                f"the dense CRF of {len(batch)} photos at once needs more memory than {device} has; lower "
                f"crf.batch_photos (got {config.batch_photos}) and run the same command again: it continues where it "
                "stopped"
            ) from error
        for (_, future), label_map in zip(batch, solved, strict=True):
            future.set_result(label_map)
    except BaseException as error:
        for _, future in batch:
            if not future.done():
                future.set_exception(error)


def _initialize_worker() -> None:
    # Ctrl-C reaches the whole process group; the parent ends its workers in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    # A killed parent cannot shut the pool down, and the workers hold each other's queue open.
    cast(multiprocessing.process.BaseProcess, multiprocessing.parent_process()).join()
    os._exit(1)
