"""Where a run keeps things, told without loading anything that trains."""

import os
from pathlib import Path
from typing import Literal

from ..files import read_json

# In a run directory.
CONFIG, NOTES, REPORT, PAGE, QUALITY_PAGE = "config.yaml", "run.json", "report.md", "report.html", "quality.md"
# The final label maps over their photos.
OVERLAYS = "overlays"
# The training images of the start, for a start after which some of them cannot be read.
IMAGES = "images.json"
# In the notes of a run that has ended: where its results lie, relative to its directory.
RESULTS = "results"

Result = Literal["classifier", "segmenter", "label_maps"]


def is_run(folder: Path) -> bool:
    """Whether a folder is a run directory."""
    return (folder / CONFIG).is_file() and (folder / NOTES).is_file()


def result_of(name: str | os.PathLike[str], what: Result) -> str:
    """Whatever a command takes for a checkpoint or a label store: a run directory becomes the result in it.

    Args:
        name: a run directory, a stage's folder with a `model/`, or anything else, which is returned as it is.
        what: of a run's results.

    Raises:
        FileNotFoundError: the run has not ended, or has no such result.
    """
    folder = Path(name)
    if is_run(folder):
        results = read_json(folder / NOTES, {}).get(RESULTS, {})
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
