"""Label maps in the formats of other programs: one file per format, each with `write(source, folder)`."""

import importlib
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
        OSError: something cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: is not empty; expected a new folder, in which nothing of another export is left")
    writer = importlib.import_module(f".{format}", __name__)
    return [*writer.write(source, folder), *source.notes()]
