"""Which column of a table is what, and what the others may hold: nothing is dropped without a word."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from ..errors import UserError
from ..text import visible
from .tags import SEPARATOR, is_number

# Names of columns, as programs write them; compared without case, blanks and hyphens.
FILE_COLUMNS = (
    "file", "file_name", "filename", "filepath", "file_path", "image", "image_name", "image_path", "image_file", "img",
    "path", "photo",
)  # fmt: skip
TAG_COLUMNS = (
    "tags", "tag", "labels", "label", "classes", "class", "categories", "category", "choice", "choices"
)  # fmt: skip
# Name the photos where no column above does: without their endings, as competitions do.
ID_COLUMNS = ("id", "image_id", "img_id", "photo_id")
# What Label Studio writes beside an annotation.
ANNOTATION = "annotation_id"
SPLIT_COLUMN = "split"
# Are the split as well if they hold nothing but its words, and no column has its name.
SPLIT_LIKE = ("subset", "set", "partition", "usage")
SPLITS = ("train", "training", "val", "valid", "validation", "dev", "test", "testing")
_IS_SPLIT = frozenset(f"is_{split}" for split in SPLITS)
_CONFIDENCE = frozenset({"confidence", "conf", "score", "probability", "prob"})
# Below it, a program rather says that the tag is not there.
_CONFIDENT = 0.5
EXPECTED = (
    "expected file,tags (and maybe split), or file and one column of 0 and 1 for each class; rename the columns with "
    "the photos' names and the tags"
)
JOIN = "put all tags of a photo into one cell of a column tags (cat;dog), or write one row for each tag"


def plain(name: str) -> str:
    """A column's name in the form in which names are compared."""
    return re.sub(r"[\s\-]+", "_", name.strip()).casefold()


def is_numbered(name: str) -> bool:
    """Whether a column is one of several for the tags, as `tag2` or `Label_1`."""
    return re.sub(r"_?\d+$", "", plain(name)) in TAG_COLUMNS and plain(name) not in TAG_COLUMNS


def find_columns(
    where: str, header: Sequence[str], names: Sequence[str], is_photo: Callable[[str], bool], delimiter: str
) -> tuple[int, int | None, int | None]:
    """Positions of the file, of the tags (`None`: of 0 and 1 for each class) and of the split.

    Args:
        where: file and line, for messages.
        header: the columns' names as they are written.
        names: the same as [`plain`] gives them.
        is_photo: whether a text is the name of a photo; tells a missing header.
        delimiter: between columns, for messages.

    Raises:
        UserError: no header, or one that says too little or two things.
    """
    shown = shown_header(header, delimiter)[:200]
    if any(is_photo(cell) for cell in header):
        line = _header_for(header, is_photo, delimiter)
        raise UserError(f"{where}: no header: the first line is {shown!r}; put a line {line} above it")
    doubled = next((name for index, name in enumerate(names) if name and name in names[:index]), None)
    if doubled is not None:
        raise UserError(f"{where}: two columns are named {doubled!r}; rename or join them")
    files = [index for index, name in enumerate(names) if name in FILE_COLUMNS]
    files = files or [index for index, name in enumerate(names) if name in ID_COLUMNS]
    tags = [index for index, name in enumerate(names) if name in TAG_COLUMNS]
    split = names.index(SPLIT_COLUMN) if SPLIT_COLUMN in names else None
    for found, exact in ((files, "file"), (tags, "tags")):
        if len(found) > 1:
            told = ", ".join(header[index] for index in found)
            raise UserError(f"{where}: more than one column may be the {exact}: {told}; rename all but one")
    others = [name for index, name in enumerate(names) if name and index not in (*files, split)]
    if not files or not others:
        raise UserError(f"{where}: got the header {shown!r}, {EXPECTED}")
    _refuse_half_a_split(header, where)
    return files[0], tags[0] if tags else None, split


def shown_header(header: Sequence[str], delimiter: str) -> str:
    """A table's line for a message; a tab shows as a blank."""
    return visible((" " if delimiter == "\t" else delimiter).join(header))


def _header_for(cells: Sequence[str], is_photo: Callable[[str], bool], delimiter: str) -> str:
    """The header that a first line lacks, as far as it shows which column is what."""
    names = []
    for cell in cells:
        kind = "file" if is_photo(cell) else SPLIT_COLUMN if cell.strip().casefold() in SPLITS else "tags"
        names.append(kind if cell.strip() else "")
    others = [cell.strip() for cell, name in zip(cells, names, strict=True) if name == "tags"]
    if others and set(others) <= {"0", "1"}:
        return "with file and the name of each class"
    if names.count("file") > 1 or names.count(SPLIT_COLUMN) > 1 or len(others) != 1:
        names = ["file", "tags"]
    line = shown_header([name for name in names if name], delimiter)
    if delimiter == "\t":
        line += " (a tab between them)"
    return f"{line} (all tags of a photo in one cell)" if len(others) > 1 else line


def find_split(names: Sequence[str], rows: Sequence[Sequence[str]]) -> int | None:
    """Position of a column that is the split by another name: one of [`SPLIT_LIKE`] with nothing but [`SPLITS`].

    Args:
        names: of the columns, see [`plain`].
        rows: the cells of each row.
    """
    for name in SPLIT_LIKE:
        if name in names:
            index = names.index(name)
            values = {row[index].strip().casefold() for row in rows} - {""}
            if values and values <= set(SPLITS):
                return index
    return None


def look_at_unused(
    file: str,
    where: str,
    unused: Mapping[str, Sequence[str]],
    tags: Sequence[Sequence[str]],
    separator: str | None,
) -> list[str]:
    """Stop where a column that is not used has to do with the tags, and name the others.

    Args:
        file: the table's name, for the note.
        where: file and line, for messages.
        unused: the text of each row, by the column's name; blank where there is none.
        tags: of each row.
        separator: of tags within a cell; see `data.separator`.

    Returns:
        a note; none if all columns are used.

    Raises:
        UserError: a column that holds tags as well, says how certain tags are that are not, or for which photos are
            kept back.
    """
    _refuse_half_a_split(unused, where)
    known = {tag for own in tags for tag in own}
    for name, cells in unused.items():
        if plain(name) in _CONFIDENCE and (numbers := _shares([cell for cell in cells if cell.strip()])):
            if any(number < _CONFIDENT for number in numbers):
                raise UserError(
                    f"{where}: column {name!r}: rows with a {name} below {_CONFIDENT} count as tags; remove them and "
                    "the column"
                )
            continue
        parts = [[part.strip() for part in cell.split(separator or SEPARATOR) if part.strip()] for cell in cells]
        values = {part for own in parts for part in own}
        # A column that repeats what the tags say takes nothing away; numbers may count anything.
        more = values <= known and any(set(own) - set(tagged) for own, tagged in zip(parts, tags, strict=True))
        if values and (is_numbered(name) or (more and not all(map(is_number, values)))):
            raise UserError(
                f"{where}: column {name[:60]!r} holds tags too; {JOIN}. If these are no tags, remove the column"
            )
    return [f"{file}: columns that are not used: {visible(', '.join(unused))[:300]}"] if unused else []


def _shares(cells: Sequence[str]) -> list[float]:
    """The numbers, if all are from 0 to 1."""
    try:
        numbers = [float(cell) for cell in cells]
    except ValueError:
        return []
    return numbers if all(0 <= number <= 1 for number in numbers) else []


def _refuse_half_a_split(header: Iterable[str], where: str) -> None:
    if found := next((name for name in header if plain(name) in _IS_SPLIT), None):
        raise UserError(
            f"{where}: column {found!r}: which photos are trained on is said by a column {SPLIT_COLUMN}, with train, "
            "valid or test for each photo; make one of it, or remove the column"
        )
