"""Where a run keeps things, told without loading anything that trains."""

import os
from pathlib import Path
from typing import Any, Literal

from ..errors import UserError
from ..files import is_inside, read_fields

# In a run directory.
CONFIG, NOTES, REPORT, PAGE, QUALITY_PAGE = "config.yaml", "run.json", "report.md", "report.html", "quality.md"
# The final label maps over their photos.
OVERLAYS = "overlays"
# The training images of the start, for a start after which some of them cannot be read.
IMAGES = "images.json"
# In the notes of a run that has ended: where its results lie, relative to its directory.
RESULTS = "results"

# What is read of the notes.
_NOTES: dict[str, Any] = {
    **dict.fromkeys(("command", "hardware", "manifest_hash"), str | None),
    **{RESULTS: dict | None, "versions": dict | None, "durations": dict[str, float | int] | None},
    "starts": list | None,
}
# What to do about a damaged file that a run has left.
REMEDY = "remove it and give the `sbce run` command again, which writes it anew"

Result = Literal["classifier", "segmenter", "label_maps"]


def is_run(folder: Path) -> bool:
    """Whether a folder is a run directory."""
    return (folder / CONFIG).is_file() and (folder / NOTES).is_file()


def read_notes(folder: Path) -> dict[str, Any]:
    """What a run's `run.json` says; empty where there is none.

    Raises:
        UserError: it is damaged, or names results outside of the run.
    """
    path = folder / NOTES
    notes = {name: value for name, value in (read_fields(path, _NOTES, REMEDY) or {}).items() if value is not None}
    results = notes.get(RESULTS) or {}
    if not all(isinstance(part, str) and is_inside(folder / part, folder) for part in results.values()):
        raise UserError(f"{path}: {RESULTS}: expected the run's own folders by name; {REMEDY}")
    return notes


def require_own_files(folder: Path, remedy: str = "move that here, or choose another --output-dir") -> None:
    """See that nothing of a run is a link out of it.

    What a stage writes there would change somebody's files, and what is published from there may be nobody's to see.

    Args:
        folder: of the run, or of a stage.
        remedy: what to do about a link, for messages.

    Raises:
        UserError: one is.
    """
    for parent, names, files in os.walk(folder):
        for name in (*names, *files):
            path = os.path.join(parent, name)
            if os.path.islink(path) and not is_inside(path, folder):
                raise UserError(f"{path}: is a link to {os.path.realpath(path)}, expected the run's own; {remedy}")
        # Whole files are put there by their names, however many there are.
        names[:] = [name for name in names if name != "label_maps"]


def result_of(name: str | os.PathLike[str], what: Result) -> str:
    """Whatever a command takes for a checkpoint or a label store: a run directory becomes the result in it.

    Args:
        name: a run directory, a stage's folder with a `model/`, or anything else, which is returned as it is.
        what: of a run's results.

    Raises:
        FileNotFoundError: the run has not ended, or has no such result.
        UserError: see [`read_notes`].
    """
    folder = Path(name)
    if is_run(folder):
        results = read_notes(folder).get(RESULTS) or {}
        if what in results:
            return str(folder / results[what])
        if results:
            raise FileNotFoundError(f"{folder}: the run has no {what}; its recipe has no such section")
        raise FileNotFoundError(
            f"{folder}: the run is not finished; give its `sbce run` command again, or name the folder of one stage"
        )
    if what != "label_maps" and not (folder / "config.json").exists() and (folder / "model" / "config.json").is_file():
        return str(folder / "model")
    return os.fspath(name)
