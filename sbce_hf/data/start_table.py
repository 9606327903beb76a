"""A tags table to fill in, for photos that nothing says anything of yet."""

from collections.abc import Sequence
from pathlib import Path

from ..config import DataConfig
from ..errors import UserError
from ..files import write_atomic
from ..text import csv_text
from .layout import PHOTO_FOLDERS, require_photos_folder, understand
from .photo_files import walk
from .table_files import TABLES
from .tags import check_class_list

TABLE = TABLES[0][0]


def write_start_table(root: Path, classes: Sequence[str] = ()) -> tuple[Path, int, list[tuple[Path, str]]]:
    """Write `tags.csv` with a row for each photo: an empty cell for its tags, or a column for each class.

    A name that spreadsheets would take for a formula has an apostrophe before it, which readers take away; see
    [`csv_text`].

    Args:
        root: a folder with `images/`, or with photos.
        classes: columns to mark with 1; none for a column of tags.

    Returns:
        the table, the number of its photos, and the files that look like photos and are left out, with the reason.

    Raises:
        FileNotFoundError: no such folder.
        NotADirectoryError: a file.
        UserError: no photos, classes that cannot be, or tags that are there already.
    """
    require_photos_folder(root, "one with your photos")
    photos = next((root / name for name in PHOTO_FOLDERS if (root / name).is_dir()), root)
    files, left_out = walk(photos, [root / "masks"])
    if not files:
        reason = f"; {left_out[0][0]}: {left_out[0][1]}" if left_out else ""
        raise UserError(f"{photos}: no photos to list; put them there first{reason}")
    path = root / TABLE
    if path.exists():
        raise UserError(f"{path}: is there already, and is not replaced; fill it in, or move it away")
    _refuse_tags(root, photos)
    check_class_list(classes, "--classes")
    columns = classes or ["tags"]
    rows = ([file.relative_to(photos).as_posix(), *[""] * len(columns)] for file in files)
    # Spreadsheets take a file without the mark for one of another encoding.
    write_atomic(path, csv_text([["file", *columns], *rows]).encode("utf-8-sig"))
    return path, len(files), left_out


def _refuse_tags(root: Path, photos: Path) -> None:
    """Raise where the photos have tags already, before an empty table hides them."""
    for path in (place / name for place in (root, photos) for group in TABLES for name in group):
        if path.exists():
            raise UserError(f"{path}: is there already, and {TABLE} would hide it; fill it in, or move it away")
    try:
        found = understand(DataConfig(source="folder", data_dir=str(root)))
    # Nothing that says what is on the photos, or nothing that can be read: what the table is for.
    except (FileNotFoundError, UserError):
        return
    if any(row.tags for row in (*found.rows, *found.missing)):
        remedy = "move it away"
        if found.table == photos:
            remedy = f"put the photos into {root / PHOTO_FOLDERS[0]} if these are no tags"
        raise UserError(
            f"{found.table}: the photos have tags already, which {TABLE} would hide: {found.reader}. See them with "
            f"`sbce check {root}`, or {remedy}"
        )
