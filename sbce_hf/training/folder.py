"""The folder of one training stage: checkpoints, logged values and the finished model.

Nothing in it is ever half written: folders and files get a temporary name and are renamed. What a killed process left
behind under a temporary name is removed when the stage is continued.
"""

import errno
import json
import math
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ..errors import UserError
from ..files import (
    MAX_NOTES,
    check_fields,
    explained,
    parse_json,
    read_fields,
    read_small,
    rename,
    require_own,
    write_json,
)

TEMPORARY = ".tmp-"
# In the folder of a training that has ended.
SUMMARY = "summary.json"
# In the folder of a training that has failed.
FAILURE = "failure.json"
# In a checkpoint's folder: how far it is.
PROGRESS = "progress.json"
_PROGRESS = {"iteration": int, "seconds": float | int, "processes": int, "task": dict, "settings": dict}


@dataclass(frozen=True)
class FitSummary:
    """A finished training stage.

    Args:
        name: of the stage.
        model_dir: folder of the trained model, for `from_pretrained`.
        iterations: optimiser steps of the whole stage.
        images: size of the training set.
        seconds: spent in training, over all restarts.
        values: last logged values.
    """

    name: str
    model_dir: Path
    iterations: int
    images: int
    seconds: float
    values: dict[str, float]


@dataclass(frozen=True)
class Progress:
    """How far a checkpoint is.

    Args:
        iteration: optimiser steps done.
        seconds: spent on them.
        processes: that train together; their number is part of the accelerator's state.
        task: what the task remembers of earlier windows.
    """

    iteration: int = 0
    seconds: float = 0.0
    processes: int = 1
    task: Mapping[str, Any] = field(default_factory=dict)


class StageFolder:
    """One training stage on disk: `checkpoints/`, `metrics.jsonl`, `tensorboard/`, then `model/` and `summary.json`.

    Or `failure.json`.

    Args:
        path: the folder.
        settings: what must not change between a stage and its continuation; nested mappings of plain values.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.settings = json.loads(json.dumps(settings))
        self.model = self.path / "model"
        self.metrics = self.path / "metrics.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self._summary = self.path / SUMMARY
        self._failure = self.path / FAILURE

    def summary(self) -> FitSummary | None:
        """The summary of a finished stage, else `None`.

        Raises:
            ValueError: the stage was trained with other settings, or the summary is damaged.
        """
        content = read_summary(self.path)
        if content is None:
            return None
        self._compare(content.pop("settings"), self._summary)
        return FitSummary(model_dir=self.model, **content)

    def failure(self) -> str | None:
        """Why a training with these settings has failed before, else `None`.

        Raises:
            UserError: what says so is damaged.
        """
        remedy = "remove it and give the same command again, which trains on"
        content = read_fields(self._failure, {"verdict": str, "settings": dict}, remedy)
        return content["verdict"] if content and content["settings"] == self.settings else None

    def fail(self, verdict: str) -> None:
        """Keep why this training has failed."""
        write_json(self._failure, {"verdict": verdict, "settings": self.settings})

    def drop_checkpoints(self) -> None:
        """Of a training that is finished; a kill right after its end leaves them."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)

    def latest_checkpoint(self) -> tuple[Path, Progress] | None:
        """The newest checkpoint, or `None` if there is none.

        Raises:
            ValueError: it was made with other settings, or is damaged.
        """
        found = self._sorted_checkpoints()
        # Those of a training that has failed are of no use to one with other settings.
        if not found or self._failure.is_file():
            return None
        content = read_fields(found[-1] / PROGRESS, _PROGRESS, checkpoint_remedy(found[-1]))
        if content is None:
            raise FileNotFoundError(f"{found[-1] / PROGRESS}: no such file; {checkpoint_remedy(found[-1])}")
        self._compare(content["settings"], found[-1])
        progress = Progress(**{one.name: content[one.name] for one in fields(Progress)})
        if progress.iteration < 1 or not 0 <= progress.seconds < math.inf:
            raise UserError(
                f"{found[-1] / PROGRESS}: got iteration {progress.iteration} after {progress.seconds} seconds; "
                f"{checkpoint_remedy(found[-1])}"
            )
        return found[-1], progress

    def start_from(self, iteration: int) -> None:
        """Remove leftovers of a killed process and logged values beyond the iteration that training continues from."""
        self.path.mkdir(parents=True, exist_ok=True)
        if self._failure.is_file():
            shutil.rmtree(self.checkpoints, ignore_errors=True)
            self._failure.unlink()
        for leftover in [*self.path.glob(TEMPORARY + "*"), *self.checkpoints.glob(TEMPORARY + "*")]:
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        kept = [line for line in read_metrics(self.metrics) if line["iteration"] <= iteration]
        write_text(self.metrics, "".join(json.dumps(line) + "\n" for line in kept))

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """Add one line to `metrics.jsonl`."""
        with writing(self.metrics), self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def checkpoint_target(self, iteration: int) -> Path:
        """Temporary folder for a checkpoint's files, to be finished by [`finish_checkpoint`]."""
        return self.checkpoints / f"{TEMPORARY}{iteration:08d}"

    def finish_checkpoint(self, progress: Progress, keep: int) -> None:
        """Give a written checkpoint its name and remove all but the newest `keep`."""
        temporary, target = self.checkpoint_target(progress.iteration), self.checkpoints / f"{progress.iteration:08d}"
        with writing(target, temporary):
            write_text(temporary / PROGRESS, json.dumps({**asdict(progress), "settings": self.settings}))
            rename(temporary, target)
        for old in self._sorted_checkpoints()[:-keep]:
            shutil.rmtree(old)

    def complete(self, save: Callable[[Path], None], summary: FitSummary) -> None:
        """Write the model, mark the stage as finished and drop its checkpoints.

        Args:
            save: writes the model into the folder it is given.
            summary: of the stage.
        """
        temporary = self.path / f"{TEMPORARY}model"
        with writing(self.model, temporary):
            save(temporary)
            if self.model.exists():
                shutil.rmtree(self.model)
            rename(temporary, self.model)
        content = {key: value for key, value in asdict(summary).items() if key != "model_dir"}
        write_text(self._summary, json.dumps({**content, "settings": self.settings}, indent=2) + "\n")
        self.drop_checkpoints()

    def _sorted_checkpoints(self) -> list[Path]:
        return sorted((path for path in self.checkpoints.glob("*") if path.name.isdigit()), key=lambda p: int(p.name))

    def _compare(self, found: Mapping[str, Any], where: Path) -> None:
        differences = _differences(found, self.settings)
        if differences:
            raise ValueError(
                f"{where}: belongs to a training with other settings: {'; '.join(differences)}. Use another output "
                f"folder, or remove {self.path} to train anew"
            )


def checkpoint_remedy(folder: Path) -> str:
    """What to do about a damaged checkpoint."""
    return (
        f"remove {folder} and give the same command again, which goes on from the checkpoint before, if there is one"
    )


def read_summary(folder: Path) -> dict[str, Any] | None:
    """What the folder of a finished training says of it: [`FitSummary`] and `settings`; `None` where there is nothing.

    Raises:
        UserError: it is damaged.
    """
    number = float | int | None
    known = {"name": str, "iterations": int, "images": int, "seconds": number, "values": dict, "settings": dict}
    return read_fields(folder / SUMMARY, known, "remove it and give the same command again, which trains anew")


@contextmanager
def writing(what: Path, temporary: Path | None = None) -> Iterator[None]:
    """Tell what could not be written, and make the room that it took free again.

    Args:
        what: is written.
        temporary: a folder that is of no use then.

    Raises:
        OSError: the disk is full, or something else keeps it from being written; what was there before is still there.
    """
    try:
        yield
    # PyTorch and safetensors have their own errors for what the operating system says.
    except (OSError, RuntimeError, SafetensorError) as error:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        if not isinstance(error, OSError):
            number = re.search(r"os error (\d+)", str(error))
            error = OSError(int(number[1]) if number else errno.EIO, str(error))
        raise explained(error, str(what)) from error


def _differences(found: Mapping[str, Any], expected: Mapping[str, Any], prefix: str = "") -> list[str]:
    lines: list[str] = []
    for key in dict.fromkeys([*found, *expected]):
        a, b = found.get(key), expected.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += _differences(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key} was {a!r} and is now {b!r}")
    return lines


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a `metrics.jsonl`; a torn last line, left by a killed process, is ignored.

    Raises:
        UserError: it is damaged; names the line.
    """
    remedy = "remove it: only the curves of the report are made of it"
    if not path.exists():
        return []
    require_own(path, remedy)
    found = []
    for number, line in enumerate(read_small(path, MAX_NOTES, remedy).split("\n")[:-1], start=1):
        where = f"{path}, line {number}"
        try:
            values = parse_json(line, where)
        except UserError as error:
            raise UserError(f"{error}; {remedy}") from error
        check_fields(values, {"iteration": int}, where, remedy)
        if odd := [name for name, value in values.items() if not isinstance(value, int | float)]:
            raise UserError(f"{where}: {odd[0][:80]}: got {str(values[odd[0]])[:80]!r}, expected a number; {remedy}")
        found.append(values)
    return found


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    temporary.write_text(text, encoding="utf-8")
    rename(temporary, path)
