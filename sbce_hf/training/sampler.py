"""Which images an iteration sees: a function of seed and iteration number, whatever the number of processes."""

import logging
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from ..config import LoopConfig
from ..data.decoding import UnreadableError

logger = logging.getLogger(__name__)

# How many photos in a row may have become unreadable before that stops a training.
_SUBSTITUTES = 10


class EpochDataset(Protocol):
    """A training set whose augmentation depends on nothing but its seed, the epoch and the index."""

    def __len__(self) -> int: ...

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the samples read next."""

    def __getitem__(self, index: int) -> dict[str, Any]: ...


class BatchOrder:
    """Order of the images of a whole stage, and one process's share of it.

    Every epoch is its own permutation. The last partial batch of an epoch is left out, unless the set is smaller than
    a batch: then it is the batch.

    Args:
        images: size of the training set.
        batch_size: images per iteration over all processes and accumulation steps.
        epochs: passes over the set.
        min_iterations: raises the epochs until there are as many.
        seed: of the permutations.
        processes: that train together.
        process: this one's number.
        accumulation: micro-batches per iteration.

    Raises:
        ValueError: the set is empty, or processes and micro-batches cannot share a batch equally.
    """

    def __init__(
        self,
        images: int,
        batch_size: int,
        *,
        epochs: int,
        seed: int,
        min_iterations: int = 0,
        processes: int = 1,
        process: int = 0,
        accumulation: int = 1,
    ) -> None:
        if images < 1:
            raise ValueError("the training set has no images")
        self.images, self.seed = images, seed
        self.processes, self.process, self.accumulation = processes, process, accumulation
        self.batch_size = min(batch_size, images)
        if self.batch_size % (processes * accumulation):
            smaller = f" (the set has only {images} images)" if images < batch_size else ""
            raise ValueError(
                f"training.batch_size: got {self.batch_size}{smaller}, expected a multiple of processes x "
                f"gradient_accumulation_steps = {processes} x {accumulation}"
            )
        self.iterations_per_epoch = images // self.batch_size
        self.epochs = max(epochs, -(-min_iterations // self.iterations_per_epoch))
        self.iterations = self.epochs * self.iterations_per_epoch
        self._permutation: tuple[int, np.ndarray] | None = None

    def indices(self, iteration: int) -> np.ndarray:
        """Image indices of one iteration's batch over all processes, of shape `(batch_size,)`."""
        epoch, position = divmod(iteration, self.iterations_per_epoch)
        if self._permutation is None or self._permutation[0] != epoch:
            # Kept: of a million images it takes as long as a step of a small network.
            self._permutation = epoch, np.random.default_rng([self.seed, epoch]).permutation(self.images)
        return self._permutation[1][position * self.batch_size : (position + 1) * self.batch_size].copy()

    def batches(self, start: int) -> "ProcessBatches":
        """This process's micro-batches from iteration `start` to the end, as a batch sampler."""
        return ProcessBatches(self, start)


def count_iterations(images: int, config: LoopConfig) -> int:
    """Optimiser steps of a whole stage, however many processes share them."""
    order = BatchOrder(images, config.batch_size, epochs=config.epochs, min_iterations=config.min_iterations, seed=0)
    return order.iterations


class ProcessBatches:
    """Batch sampler over [`Draws`]: lists of `(epoch, index)`, `accumulation` lists per iteration."""

    def __init__(self, order: BatchOrder, start: int) -> None:
        self.order, self.start = order, start

    def __len__(self) -> int:
        return (self.order.iterations - self.start) * self.order.accumulation

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = self.order
        for iteration in range(self.start, order.iterations):
            epoch = iteration // order.iterations_per_epoch
            # A micro-batch holds the same images, too, whatever the number of processes.
            shares = order.indices(iteration).reshape(order.accumulation, order.processes, -1)[:, order.process]
            for share in shares:
                yield [(epoch, int(index)) for index in share]


class Draws:
    """A dataset addressed by `(epoch, index)`, so that one loader, with its prefetching, serves all epochs."""

    def __init__(self, dataset: EpochDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: tuple[int, int]) -> dict[str, Any]:
        epoch, index = draw
        self.dataset.set_epoch(epoch)
        # Its photo could be read when the run began.
        for following in range(_SUBSTITUTES):
            try:
                return self.dataset[(index + following) % len(self.dataset)]
            except UnreadableError as error:
                logger.warning("%s; the next one takes its place in training", error)
        return self.dataset[index]
