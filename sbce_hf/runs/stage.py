"""One stage of a run: what makes it, what decides its result, and what its folder says about both."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..config import RunConfig
from ..errors import UserError
from ..files import digest, read_fields, write_json
from ..training.folder import FAILURE
from .layout import REMEDY

# What tells a mistake before torch is loaded reads the records, too.
if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..data import TaggedImages
    from .bench import Bench

# In a stage's folder; a folder without one is somebody's own.
RECORD = "stage.json"
# In a stage's folder, if the guard has kept any class from the stage before; see `guard.py`.
KEPT = "labels/kept"
# In a refinement's settings: the hash of what it reads from outside the run.
OUTSIDE = "outside"

Kind = Literal["classifier", "refinement", "segmenter", "yardstick"]


@dataclass(frozen=True, eq=False)
class Stage:
    """A part of a run.

    Args:
        name: of its folder in the run directory.
        kind: what it leaves: a classifier with its label maps, refined label maps, a segmentation network with its
            predictions, or label maps to compare with.
        make: fills the folder; called again after a kill, it continues.
        settings: the part of the recipe that decides its result, with the recipe's keys.
        needs: the stages whose folders it reads.
        stores: its label stores, relative to the folder; later stages read `final_store`.
        uses_masks: it opens ground truth, and so is a yardstick, never a result.
        scored_on: split whose masks its label stores are scored on, afterwards.
        leak: it, or a stage that it is made from, was trained with proportions of masks: a yardstick as well.
        note: what was done to its label maps besides, for tables.
        is_outdated: whether a finished result no longer holds, for another reason than its settings.
    """

    name: str
    kind: Kind
    make: Callable[["Bench", "Stage"], None]
    settings: Mapping[str, Any]
    needs: tuple["Stage", ...] = ()
    stores: tuple[str, ...] = ()
    uses_masks: bool = False
    scored_on: str | None = None
    leak: bool = False
    note: str = ""
    is_outdated: Callable[["Bench", "Stage"], bool] = lambda bench, stage: False

    def final_store(self, run_dir: Path) -> Path:
        """The label store that later stages read: the last one, or the one that the guard has made of it."""
        folder = run_dir / self.name
        return folder / (KEPT if (folder / KEPT).is_dir() else self.stores[-1])


@dataclass(frozen=True)
class Refinement:
    """A way to refine label maps: an entry of `stages.REFINEMENTS`, named like its section of the recipe.

    Args:
        make: fills its stage.
        note: what it is, for tables.
        network: builds the network that it trains, from the config and the section, which then has `model`,
            `trunk_weights` and `training`; `None` if it trains none. Called before a run starts, too, to
            find what does not fit.
        outside: checks what it reads from outside the run besides the images, before a run starts, and hashes it,
            given the config, the section and the training images; `None` if there is nothing.
        check: raises for a section that does not fit the classifier, given the config, the section and it, before a
            run starts; `None` if every section does.
    """

    make: Callable[["Bench", Stage], None]
    note: str
    network: Callable[[RunConfig, Any], "PreTrainedModel"] | None = None
    outside: Callable[[RunConfig, Any, "TaggedImages"], str] | None = None
    check: Callable[[RunConfig, Any, "PreTrainedModel"], None] | None = None


def keys_of(stages: Sequence[Stage], images: str) -> dict[str, str]:
    """A stage's key covers its settings, the images and the keys of what it reads.

    Args:
        stages: each after those that it needs.
        images: hash of the training images.
    """
    keys: dict[str, str] = {}
    for stage in stages:
        needs = {need.name: keys[need.name] for need in stage.needs}
        keys[stage.name] = digest({"settings": stage.settings, "needs": needs, "images": images})
    return keys


def read_record(folder: Path) -> dict[str, Any]:
    """What a stage's folder says of itself, see [`write_record`]; nothing where it has no record.

    Raises:
        UserError: the record is damaged.
    """
    optional = {"uses_masks": bool | None, "images": str | None, "settings": dict | None, "needs": dict | None}
    found = read_fields(folder / RECORD, {"key": str, "finished": bool, **optional}, REMEDY) or {}
    return {name: value for name, value in found.items() if value is not None}


def is_finished(run_dir: Path, stage: Stage, key: str) -> bool:
    """Whether the folder holds the whole result of these settings."""
    record = read_record(run_dir / stage.name)
    return bool(record.get("finished")) and record.get("key") == key


def write_record(run_dir: Path, stage: Stage, keys: Mapping[str, str], images: str, finished: bool) -> None:
    """Say in the stage's folder what it is made from, and whether it is all there."""
    values = {
        "key": keys[stage.name],
        "finished": finished,
        "uses_masks": stage.uses_masks or stage.leak,
        "images": images,
        "settings": stage.settings,
        "needs": {need.name: keys[need.name] for need in stage.needs},
    }
    write_json(run_dir / stage.name / RECORD, values)


def require_same(run_dir: Path, stages: Sequence[Stage], images: str) -> None:
    """Compare what a run directory holds with what is about to be made.

    Raises:
        ValueError: a stage was made, or begun, with other settings; names the keys, and what would be made again.
    """
    keys = keys_of(stages, images)
    records = {stage.name: read_record(run_dir / stage.name) for stage in stages}
    others = [
        stage
        for stage in stages
        if (found := records[stage.name])
        and found.get("key") != keys[stage.name]
        # A training that has failed is no result: other settings start it anew.
        and not (run_dir / stage.name / FAILURE).is_file()
    ]
    if not others:
        return
    first = others[0]
    lines = _differences(first, records[first.name], keys, images)
    # A stage that is not there yet is no loss.
    again = [stage.name for stage in others]
    named = again[0] if len(again) == 1 else f"{', '.join(again[:-1])} and {again[-1]}"
    raise another_config(run_dir, first.name, lines, named)


def another_config(run_dir: Path, stage: str, lines: Sequence[str], again: str) -> UserError:
    """What is told of a directory that holds another run than the one that is asked for.

    Args:
        run_dir: the directory.
        stage: the first stage with other settings.
        lines: what differs.
        again: what would be made again.
    """
    return UserError(
        f"{run_dir}: holds a run with another config: {stage}: {', '.join(lines[:5])}. Give the same settings to "
        f"continue it, or another --output-dir to start a new one; or remove {again} from it: that is made again"
    )


def _differences(stage: Stage, record: Mapping[str, Any], keys: Mapping[str, str], images: str) -> list[str]:
    lines = differences(record.get("settings", {}), stage.settings)
    if record.get("images") != images:
        lines.append(f"the images were {record.get('images')}, are {images} (manifest hash)")
    needed, needs = record.get("needs", {}), {need.name: keys[need.name] for need in stage.needs}
    if needed.keys() != needs.keys():
        lines.append(f"made from {' and '.join(needed) or 'nothing'}, now from {' and '.join(needs) or 'nothing'}")
    return lines or [f"was made from another {name}" for name, key in needs.items() if needed.get(name) != key]


def differences(before: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    """What differs between the settings that a stage was made with, and those that it would be made with."""
    was, now = flat(before), flat(settings)
    return [f"{key} was {was.get(key)!r}, is {now.get(key)!r}" for key in was | now if was.get(key) != now.get(key)]


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found
