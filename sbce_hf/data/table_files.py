"""Which of the files in a folder is the table with the tags."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from ..errors import UserError
from ..text import visible
from .rows import Table
from .xml_text import read_xml

# In the order of preference: a file of an earlier group wins over later ones; within a group the user chooses.
TABLES = (
    ("tags.csv", "tags.tsv", "metadata.jsonl", "metadata.csv", "metadata.parquet"),
    ("_classes.csv", "_annotations.coco.json", "labels.csv", "labels.tsv", "annotations.xml"),
)
SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet", ".json", ".xml")
SPREADSHEETS = frozenset({".xlsx", ".xls", ".xlsm", ".ods", ".numbers"})
# What other programs leave beside the tags.
_NOT_TABLES = frozenset({"dataset_info.json", "state.json", "package.json"})

# So many files are named in a note.
_SHOWN = 5


def choose_table(folder: Path) -> Path | None:
    """The one file of a folder that is its table.

    Raises:
        UserError: more than one may be meant; names them.
    """
    for group in TABLES:
        found = [folder / name for name in group if (folder / name).is_file()]
        if len(found) > 1:
            raise UserError(
                f"{folder}: has both {' and '.join(path.name for path in found)}; choose one with data.tags_file"
            )
        if found:
            return found[0]
    others = sorted(
        path for path in files_in(folder) if path.suffix.lower() in SUFFIXES and path.name not in _NOT_TABLES
    )
    if len([path for path in others if path.suffix.lower() == ".xml"]) > 1 or voc_files(folder):
        others = [path for path in others if path.suffix.lower() != ".xml"]
    if len(others) > 1:
        raise UserError(
            f"{folder}: which file has the tags? It may be {', '.join(path.name for path in others[:5])}; name one "
            "with data.tags_file"
        )
    return others[0] if others else None


def files_in(folder: Path) -> list[Path]:
    """What is in a folder, hidden files excepted."""
    return [path for path in folder.iterdir() if not path.name.startswith(".")] if folder.is_dir() else []


def voc_files(folder: Path) -> list[Path]:
    """VOC's annotations in a folder."""
    files = sorted(path for path in files_in(folder) if path.suffix == ".xml")
    return files if files and read_xml(files[0]).tag == "annotation" else []


def refuse_spreadsheet(path: Path) -> None:
    """Raise for a file that has to be saved as a table first.

    Raises:
        UserError: names the file and the remedy.
    """
    # Before the name of one that is open, its program puts a sign.
    if path.suffix.lower() in SPREADSHEETS and not path.name.startswith("~"):
        raise UserError(
            f"{path}: spreadsheets are not read; save it as CSV UTF-8 with columns file and tags (cat;dog)"
        )


def set_aside(table: Table, places: Iterable[Path], names: Sequence[str]) -> list[str]:
    """What else says something of the photos, and is not read because a table was chosen.

    Args:
        table: that was chosen.
        places: folders in which it was looked for.
        names: of the photos, relative to their folder, if folders there could be classes; empty otherwise.

    Returns:
        a note; none if there is nothing.
    """
    others = [
        path.name
        for place in dict.fromkeys(places)
        for path in sorted(files_in(place))
        if path != table.path and path.suffix.lower() in SUFFIXES and path.name not in _NOT_TABLES
    ]
    folders = {name.partition("/")[0] for name in names} if all("/" in name for name in names) else set()
    tags = {tag for row in table.rows for tag in row.tags}
    if tags & folders and any(row.tags != (row.file.replace("\\", "/").partition("/")[0],) for row in table.rows):
        others.append(f"the folders {', '.join(sorted(tags & folders))}")
    if not others:
        return []
    more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
    told = visible(", ".join(others[:_SHOWN]))[:300] + more
    return [f"{table.path.name} was read, and set aside: {told}; data.tags_file names another table"]
