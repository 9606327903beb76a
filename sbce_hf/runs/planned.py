"""What a dry run has found, and what `sbce check` and `sbce run --dry-run` show of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..config import LoopConfig, RunConfig
from ..data import TaggedImages
from ..training.memory import MemoryEstimate


@dataclass(frozen=True)
class StagePlan:
    """One training.

    Args:
        name: of its folder.
        images: size of its training set; `None` where the data cannot be read.
        iterations: optimiser steps; `None` as well.
        epochs: passes over the training set, which `min_iterations` may have raised; `None` as well.
        training: its settings.
        size: side of the samples in pixels.
        trained: number of parameters that are trained; `None` if the model cannot be built.
        frozen: number of the others.
        memory: `None` where it cannot be estimated.
        seconds: that the stage takes, see `timing.py`; `None` where they cannot be measured.
    """

    name: str
    images: int | None
    iterations: int | None
    epochs: int | None
    training: LoopConfig
    size: int
    trained: int | None
    frozen: int | None
    memory: MemoryEstimate | None
    seconds: float | None


@dataclass(frozen=True)
class Plan:
    """What a run would do.

    Args:
        config: of the run.
        run_dir: where it would write.
        images: the training set; `None` where it cannot be read.
        splits: one line per split: its images and what they are for.
        needs: one line per thing that has to be there, with what was found.
        stages: the trainings, in order.
        others: seconds of the stages that train nothing, by name.
        state: of the run directory.
        processes: that would train together.
        problems: everything that keeps the run from starting.
    """

    config: RunConfig
    run_dir: Path
    images: TaggedImages | None
    splits: tuple[str, ...]
    needs: tuple[str, ...]
    stages: tuple[StagePlan, ...]
    others: Mapping[str, float]
    state: str
    processes: int
    problems: tuple[str, ...]

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Foreground classes; `None` where the data cannot be read."""
        return None if self.images is None else self.images.class_names
