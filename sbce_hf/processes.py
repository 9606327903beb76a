"""Work that several processes share without losing step."""

from collections.abc import Iterator

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import reduce

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


def summed(values: np.ndarray, process: PartialState) -> np.ndarray:
    """Integers of all processes, added up.

    Args:
        values (`np.ndarray`, int64): of this process; every process gives the same shape.
        process: this one.
    """
    if process.num_processes == 1:
        return values
    return reduce(torch.from_numpy(values).to(process.device), reduction="sum").cpu().numpy()
