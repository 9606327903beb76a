"""Work that several processes share without losing step."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, reduce

from .errors import UserError
from .locks import locked

T = TypeVar("T")


@dataclass(frozen=True)
class Share:
    """The part of some work that is one process's: every `world`-th item from number `rank` on.

    Args:
        rank: of the process, from 0.
        world: number of processes.

    Raises:
        ValueError: a rank that there is not.
    """

    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world:
            raise ValueError(f"rank: got {self.rank}, expected 0 to {self.world - 1} (world {self.world})")

    def of(self, items: Sequence[T]) -> Sequence[T]:
        """The items of this share."""
        return items[self.rank :: self.world]


ALL = Share()


def share_of(process: PartialState) -> Share:
    """The share of a process, where all of them work."""
    return Share(process.process_index, process.num_processes)


# How many items a process works on before it waits for the others.
STEP = 16


def shared(count: int, process: PartialState, step: int | None = None) -> Iterator[int]:
    """This process's part of `range(count)`; all processes have to go through theirs to the end.

    Between any two steps the processes wait for each other, so that none waits longer than a few items take. A process
    that waited at the end of hours of work would be given up by the process group (NCCL waits for 10 minutes).

    Args:
        count: of items in all.
        process: of this machine's processes; with one alone this is `range(count)`.
        step: items between two waits; by default [`STEP`].
    """
    step, world = step or STEP, process.num_processes
    for start in range(0, count, step * world):
        yield from range(start + process.process_index, min(start + step * world, count), world)
        process.wait_for_everyone()


def decided(look: Callable[[], T], process: PartialState) -> T:
    """The main process's answer, for all: others may see a folder later, or already what it writes.

    Args:
        look: called by the main process alone; plain values.
        process: this one.
    """
    answers: list[Any] = [look() if process.is_main_process else None]
    if process.num_processes > 1:
        broadcast_object_list(answers)
    return answers[0]


@contextmanager
def alone_in(folder: Path, process: PartialState) -> Iterator[None]:
    """Keep other commands out of a folder that processes of this one fill together; see [`locked`].

    Args:
        folder: made if needed.
        process: this one; the main process holds the lock for all.

    Raises:
        UserError: another command is at work there.
    """
    with ExitStack() as held:

        def take() -> str | None:
            try:
                held.enter_context(locked(folder))
            except UserError as error:
                return str(error)
            return None

        if (refused := decided(take, process)) is not None:
            raise UserError(refused)
        yield


def summed(values: np.ndarray, process: PartialState) -> np.ndarray:
    """Integers of all processes, added up.

    Args:
        values (`np.ndarray`, int64): of this process; every process gives the same shape.
        process: this one.
    """
    if process.num_processes == 1:
        return values
    return reduce(torch.from_numpy(values).to(process.device), reduction="sum").cpu().numpy()
