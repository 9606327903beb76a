"""What a user's folder is: where its photos lie and which file says what is on them.

    images/, tags.csv             a table beside the photos' folder, in any of the forms of `tables.py`
    a.jpg, b.jpg, _classes.csv    a table among the photos
    train/, valid/, ...           any of these layouts for each split
    cat/, dog/                    the folders are the classes
    an annotation program's file  see `annotations.py`

Each form is understood alone; where two could be meant, the user says which.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..config import DataConfig
from ..config.ranges import shown
from ..errors import UserError
from .annotations import read_json_table, read_voc_folder, read_xml_table
from .columns import SPLITS, TAG_COLUMNS
from .own_files import require_own_paths, require_own_table
from .photo_files import Finder, is_photo_name, walk
from .rows import Row, Table, joined
from .table_files import SUFFIXES, TABLES, choose_table, files_in, refuse_spreadsheet, set_aside, voc_files
from .tables import read_delimited, read_jsonl, read_parquet
from .tags import clean_tag

PHOTO_FOLDERS = ("images", "JPEGImages")
ANNOTATION_FOLDERS = ("Annotations", "annotations")
# Folders in which no photos to learn from lie.
_MASKS = ("masks", "SegmentationClass", "SegmentationObject", "SegmentationClassAug")


@dataclass(frozen=True)
class Understood:
    """A folder, as it was understood.

    Args:
        reader: what its tags were read from, in words.
        table: the file or folder that they were read from.
        photos: the folder that the rows' files are relative to.
        rows: one for each photo that is there and listed, its file as on disk.
        missing: rows of photos that are not there.
        left_out: files that are there and not used, with the reason.
        notes: what was decided for the user, in sentences.
    """

    reader: str
    table: Path
    photos: Path
    rows: list[Row]
    missing: list[Row]
    left_out: list[tuple[Path, str]]
    notes: list[str]


def understand(config: DataConfig) -> Understood:
    """Read the tags of a folder, and find its photos. No photo is opened.

    Args:
        config: `data_dir`, `tags_file` and `separator` are used.

    Raises:
        NotADirectoryError: a file instead of a folder.
        FileNotFoundError: no such folder, no photos, or nothing that says what is on them.
        UserError: a file that cannot be read, or more than one that may be meant; names the remedy.
    """
    root = Path(config.data_dir or "")
    require_photos_folder(root, "a folder with images/ and tags.csv")
    photos = next((root / name for name in PHOTO_FOLDERS if (root / name).is_dir()), root)
    files, left_out = walk(photos, [root / name for name in _MASKS])
    if not files and photos == root and not left_out:
        raise FileNotFoundError(f"{root / PHOTO_FOLDERS[0]}: no such folder, and no photos in {root}; put them there")
    if not files:
        unread = f"; {len(left_out)} files were left out: {left_out[0][0]}: {left_out[0][1]}" if left_out else ""
        raise UserError(
            f"{photos}: no images; expected files ending in .jpg, .png or another that Pillow reads{unread}"
        )
    names = [file.relative_to(photos).as_posix() for file in files]
    table = _read(root, photos, names, config)
    finder, found, missing = Finder(names), list[Row](), list[Row]()
    unreadable = Finder([file.relative_to(photos).as_posix() for file, _ in left_out])
    odd, meant, guessed = dict[str, list[str]](), dict[str, str](), set[str]()
    for row in table.rows:
        if not row.file or ".." in Path(row.file.replace("\\", "/")).parts or row.file in (".", "/"):
            raise UserError(f"{row.where}: file {row.file!r}: expected a path relative to {photos}")
        file, how = finder.find(row.file)
        if file is None:
            if len(several := finder.candidates(row.file)) > 1:
                raise UserError(
                    f"{row.where}: file {row.file!r} may be {' or '.join(several[:3])}; write the folder in the "
                    "table, or take the copies away"
                )
            # What is there and is no photo is left out with the reason, and does not stop the others.
            if unreadable.find(row.file)[0] is None:
                if os.path.isfile(photos / row.file):
                    left_out.append((photos / row.file, "its name does not end like a photo's; rename it, as to .jpg"))
                else:
                    missing.append(row)
            continue
        if how in ("folder", "ending"):
            guessed.add(file)
        if meant.setdefault(file, row.file) != row.file and file in guessed:
            raise UserError(
                f"{row.where}: {row.file!r} and {meant[file]!r} would both be {file}; write the paths in the table as "
                f"they are in {photos}"
            )
        if how:
            odd.setdefault(how, []).append(f"{shown(row.file)} is {file}")
        found.append(replace(row, file=file))
    how_found = {
        "letters": "with other capital letters than in",
        "folder": "in another folder than in",
        "ending": "by a name without ending in",
    }
    notes = [
        *table.notes,
        *(
            f"{len(pairs)} files were found {how_found[how]} {table.path.name}: {pairs[0]}"
            for how, pairs in odd.items()
        ),
    ]
    rows = joined(found, notes)
    listed, named = {row.file for row in rows}, {finder.find(name)[0]: reason for name, reason in table.left_out}
    for name in names:
        if name not in listed:
            left_out.append((photos / name, named.get(name, f"not listed in {table.path.name}")))
    return Understood(table.reader, table.path, photos, rows, missing, left_out, notes)


def require_photos_folder(root: Path, expected: str) -> None:
    """Raise for what is no folder.

    Args:
        root: to look at.
        expected: in words, for the message.

    Raises:
        FileNotFoundError: it is not there.
        NotADirectoryError: it is a file.
    """
    if root.is_file():
        raise NotADirectoryError(
            f"{root}: is a file; expected {expected}. Name its folder, {root.parent}; data.tags_file={root.name} "
            "says which file has the tags"
        )
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder; expected {expected}")


def _read(root: Path, photos: Path, names: Sequence[str], config: DataConfig) -> Table:
    """The table of a folder: one file's, one of annotations, or what its parts say."""
    if config.tags_file is not None:
        path = root / config.tags_file
        if not path.exists():
            raise FileNotFoundError(f"{path}: no tags table; data.tags_file names it, relative to {root}")
        if not config.outside_files:
            require_own_table(config.tags_file, root)
        return _relative(_read_file(path, config, len(names)), path.parent, photos)
    if (table := _table_in(root, photos, names, root, config)) is not None:
        return table
    # A class may be called train as well: then there are folders of other names.
    if names and all(name.partition("/")[0] in SPLITS and "/" in name for name in names):
        parts = [photos / split for split in SPLITS if (photos / split).is_dir()]
        _require_own(parts, root, config)
        return _parts(parts, photos, root, config)
    if photos == root and (table := _class_folders(root, names)) is not None:
        return table
    for path in sorted({*files_in(root), *files_in(photos)}):
        refuse_spreadsheet(path)
        if path.suffix.lower() == ".txt" and path.stem.casefold() in TAG_COLUMNS:
            raise UserError(
                f"{path}: is read only where it is named: --set data.tags_file={path.relative_to(root)}; its first "
                "line has to be file,tags, and tags are separated by ;"
            )
    remedy = f"`sbce init {root}` writes a table to fill in"
    if photos != root and (folders := _told_folders(names)):
        remedy += f". If the folders {folders} are the classes, move them up into {root} and remove {photos}"
    raise FileNotFoundError(
        f"{root / TABLES[0][0]}: no tags table; expected a CSV file with the header file,tags (tags separated by ;) "
        'or a .jsonl file with lines like {"file_name": "a.jpg", "tags": ["cat"]}. '
        f"{remedy}"
    )


def _table_in(folder: Path, photos: Path, names: Sequence[str], root: Path, config: DataConfig) -> Table | None:
    """The table in a folder of a data set, in that of its photos, or in one of annotations."""
    for place in dict.fromkeys((folder, photos, *(folder / name for name in ANNOTATION_FOLDERS))):
        # Before any is opened to see what it is.
        _require_own([path for path in files_in(place) if path.suffix.lower() in SUFFIXES], root, config)
        if (path := choose_table(place)) is not None:
            table = _read_file(path, config, len(names))
            table.notes += set_aside(table, (folder, photos), names if folder == photos else ())
            return _relative(table, place if place in (folder, photos) else photos, photos)
        if voc := voc_files(place):
            return read_voc_folder(place, voc)
    return None


def _require_own(paths: Sequence[Path], root: Path, config: DataConfig) -> None:
    """Raise for a link to a file outside: its text could be shown in a message or become a class."""
    if not config.outside_files:
        require_own_paths(paths, root)


def _read_file(path: Path, config: DataConfig, num_photos: int) -> Table:
    suffix = path.suffix.lower()
    refuse_spreadsheet(path)
    if suffix == ".jsonl":
        return read_jsonl(path, config.separator)
    if suffix == ".json":
        return read_json_table(path, config.separator)
    if suffix == ".xml":
        return read_xml_table(path)
    if suffix == ".parquet":
        return read_parquet(path, config.separator, num_photos)
    return read_delimited(path, config.separator, is_photo_name)


def _relative(table: Table, folder: Path, photos: Path) -> Table:
    """The table with files relative to the photos: those of a table among them count from its own folder."""
    if folder == photos or not folder.is_relative_to(photos):
        return table
    before = folder.relative_to(photos).as_posix()
    table.rows = [replace(row, file=f"{before}/{row.file}") for row in table.rows]
    table.left_out = [(f"{before}/{name}", reason) for name, reason in table.left_out]
    return table


def _parts(parts: Sequence[Path], photos: Path, root: Path, config: DataConfig) -> Table:
    """The tables of folders that are splits, as one."""
    tables = []
    for part in parts:
        inner = next((part / name for name in PHOTO_FOLDERS if (part / name).is_dir()), part)
        names = [file.relative_to(part).as_posix() for file in walk(part)[0]]
        table = _table_in(part, inner, names, root, config) or (_class_folders(part, names) if inner == part else None)
        if table is None:
            raise FileNotFoundError(
                f"{part}: no tags table, and no folders that are classes; expected {TABLES[0][0]} or one like it in "
                f"each of {', '.join(other.name for other in parts)}"
            )
        before = inner.relative_to(photos).as_posix()
        table.rows = [
            replace(row, file=f"{before}/{row.file}", split=part.name if row.split is None else row.split)
            for row in table.rows
        ]
        tables.append(table)
    readers = dict.fromkeys(table.reader for table in tables)
    return Table(
        f"{' and '.join(readers)}, in folders that are splits",
        photos,
        [row for table in tables for row in table.rows],
        list(dict.fromkeys(note for table in tables for note in table.notes)),
        [entry for table in tables for entry in table.left_out],
    )


def _told_folders(names: Sequence[str]) -> str:
    """Folders that may be classes, for a message; empty unless each photo is in one of two or more."""
    folders = sorted({name.partition("/")[0] if "/" in name else "" for name in names})
    return shown(", ".join(folders)) if len(folders) > 1 and "" not in folders else ""


def _class_folders(root: Path, names: Sequence[str]) -> Table | None:
    """A folder for each class, if all photos lie in such."""
    if not names or any("/" not in name for name in names):
        return None
    rows = list(_of_folders(root, names))
    if len({row.tags for row in rows}) < 2:
        return None
    return Table("folders that are named like the class of their photos", root, rows)


def _of_folders(root: Path, names: Sequence[str]) -> Iterator[Row]:
    for name in names:
        folder = name.partition("/")[0]
        yield Row(name, (clean_tag(folder, str(root / folder)),), None, str(root / folder))
