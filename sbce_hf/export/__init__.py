"""Label maps in the formats of other programs: one file per format, each with `write(source, folder)`."""

import importlib
import shutil
from pathlib import Path
from typing import get_args

from ..errors import UserError
from .source import ExportSource, Format

__all__ = ["FORMATS", "ExportSource", "Format", "export_label_maps"]

FORMATS: tuple[Format, ...] = get_args(Format)


def export_label_maps(source: ExportSource, format: Format, folder: Path) -> list[str]:
    """Write all label maps in one format.

    Args:
        source: the label maps and the photos' names.
        format: one of [`FORMATS`].
        folder: a new or an empty one.

    Returns:
        what to know of the result, in sentences: what the format cannot hold, and what is still to do.

    Raises:
        UserError: the folder holds something, or a name that the format cannot hold.
        OSError: something cannot be written; the folder is as before.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: is not empty; expected a new folder, in which nothing of another export is left")
    writer, is_new = importlib.import_module(f".{format}", __name__), not folder.exists()
    try:
        return [*writer.write(source, folder), *source.notes()]
    # Half an export is of no use, and would be in the way of the same command. There was nothing in the folder before.
    except BaseException:
        for path in folder.iterdir() if folder.is_dir() else ():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if is_new and folder.is_dir():
            folder.rmdir()
        raise
