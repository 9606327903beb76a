"""Label maps in the formats of other programs: one file per format, each with `write(source, folder)`."""

import importlib
import shutil
from pathlib import Path
from typing import get_args

from ..errors import UserError
from ..files import read_json, remove_leftovers, write_json
from ..locks import LOCK, locked
from .source import ExportSource, Format

__all__ = ["FORMATS", "ExportSource", "Format", "export_label_maps"]

FORMATS: tuple[Format, ...] = get_args(Format)
# Of what, in a folder whose export is not finished. All files of an export are written anew when it goes on.
_BEGUN = ".export.json"


def export_label_maps(source: ExportSource, format: Format, folder: Path) -> list[str]:
    """Write all label maps in one format; after a kill, the same call goes on.

    Args:
        source: the label maps and the photos' names.
        format: one of [`FORMATS`].
        folder: a new or an empty one, or one in which the same export was cut off.

    Returns:
        what to know of the result, in sentences: what the format cannot hold, and what is still to do.

    Raises:
        UserError: the folder holds something else, somebody is at work there, or a name that the format cannot hold.
        OSError: something cannot be written; a new folder is as before.
    """
    writer, wanted = importlib.import_module(f".{format}", __name__), {"format": format, "names": source.key}
    begun = read_json(folder / _BEGUN) if folder.is_dir() else None
    if begun is not None and begun != wanted:
        raise UserError(f"{folder}: another export was cut off there; delete it, or choose another folder")
    if begun is None and folder.exists() and (not folder.is_dir() or _entries(folder)):
        raise UserError(f"{folder}: is not empty; expected a new folder, in which nothing of another export is left")
    with locked(folder):
        remove_leftovers(folder)
        try:
            write_json(folder / _BEGUN, wanted)
            notes = [*writer.write(source, folder), *source.notes()]
        # Half an export is of no use, and would be in the way of another. There was nothing in the folder before.
        except BaseException:
            for path in [] if begun else [*_entries(folder), folder / _BEGUN]:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            raise
        (folder / _BEGUN).unlink()
    return notes


def _entries(folder: Path) -> list[Path]:
    """What is in a folder, beside what is there while an export is written."""
    own = (_BEGUN, f".{_BEGUN}.", LOCK)
    return [path for path in folder.iterdir() if not path.name.startswith(own)]
