"""Tables of files and tags as spreadsheets and programs write them: CSV and its relatives, JSON lines, parquet."""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import parse_json, read_bytes, require_regular
from ..text import csv_cell, visible
from .columns import (
    ANNOTATION,
    FILE_COLUMNS,
    ID_COLUMNS,
    JOIN,
    SPLIT_COLUMN,
    TAG_COLUMNS,
    find_columns,
    find_split,
    is_numbered,
    look_at_unused,
    plain,
    shown_header,
)
from .rows import Row, Table, file_of
from .tags import MAX_CLASSES, SEPARATOR, clean_all, clean_tag, split_cell

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
# A parquet file of some kilobytes may hold any number of equal rows, each of any length; so many take seconds.
MAX_ROWS, MAX_TEXT = 1_000_000, 2**28
_YES, _NO = frozenset({"1", "1.0", "true", "yes", "y", "x"}), frozenset({"0", "0.0", "false", "no", "n", ""})


def read_text(path: Path) -> tuple[str, list[str]]:
    """The text of a file as programs write it: UTF-8, UTF-16 with its mark, else Latin-1.

    Returns:
        the text, and a note if the encoding was guessed.

    Raises:
        UserError: bytes that are no text.
        OSError: it cannot be read.
    """
    data = read_bytes(path)
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        try:
            return data.decode("utf-16"), []
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: starts as UTF-16 and is none: {error}; save it as UTF-8") from error
    try:
        text, notes = data.decode("utf-8-sig"), []
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        # What spreadsheets of Western systems mean by it; bytes that it lacks are those of Latin-1.
        text = data.decode("cp1252", errors="surrogateescape")
        text = re.sub("[\udc80-\udcff]", lambda found: chr(ord(found[0]) - 0xDC00), text)
        near = text.splitlines()[line - 1][:60] if text.splitlines() else ""
        notes = [
            f"{path.name}: line {line} is not UTF-8, so the file was read as Latin-1: {near!r}. If that is wrong, "
            "save it as UTF-8"
        ]
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UserError(f"{path}, line {line}: has a NUL byte, expected text; save it as UTF-8")
    return text, notes


def read_delimited(path: Path, separator: str | None, is_photo: Any) -> Table:
    """Read a CSV file: commas, semicolons or tabs, with a tags column or a column of 0 and 1 for each class.

    Args:
        path: the file.
        separator: of tags within a cell; see `data.separator`.
        is_photo: whether a text is the name of a photo; tells a missing header.

    Raises:
        UserError: no such header, or a row that cannot be read; names the line.
    """
    text, notes = read_text(path)
    delimiter, first = None, 1
    if mark := re.match(r"sep=(.)\r?\n", text, re.IGNORECASE):
        delimiter, first, text = mark[1], 2, text[mark.end() :]
    if delimiter is None:
        delimiter = _delimiter(text)
    lines = _records(path, text, delimiter, first)
    where, header = next(lines, (f"{path}, line 1", []))
    names = [plain(name) for name in header]
    file, tags, split = find_columns(where, header, names, is_photo, delimiter)
    records = list(lines)
    if split is None and (split := find_split(names, [cells for _, cells in records])) is not None:
        notes.append(f"{path.name}: column {header[split]!r} was taken for the split")
    if delimiter != ",":
        notes.append(f"{path.name}: cells are separated by {DELIMITERS.get(delimiter, repr(delimiter))}")
    if tags is None:
        classes = {
            index: clean_tag(header[index], where)
            for index, name in enumerate(names)
            if name and index not in (file, split)
        }
        rows = [_wide_row(cells, classes, file, split, place) for place, cells in records]
        shown = {tag for row in rows for tag in row.tags}
        if absent := [name for name in classes.values() if name not in shown]:
            notes.append(f"{path.name}: columns in which no photo has a 1 are no classes: {', '.join(absent)}")
        return Table("a table with a column of 0 and 1 for each class", path, rows, notes)
    rows = [
        Row(
            _one_line(cells[file].strip(), place),
            tuple(split_cell(cells[tags], separator, place)),
            None if split is None else _one_line(cells[split].strip(), place),
            place,
        )
        for place, cells in records
    ]
    unused = {
        name.strip() or f"number {index + 1}, without a name": [cells[index] for _, cells in records]
        for index, name in enumerate(header)
        if index not in (file, tags, split) and (name.strip() or any(cells[index].strip() for _, cells in records))
    }
    notes += look_at_unused(path.name, where, unused, [row.tags for row in rows], separator)
    if ANNOTATION in names:
        rows = [replace(row, file=file_of(row.file)) for row in rows]
        return Table("a table of Label Studio", path, rows, notes)
    return Table("a table of files and tags", path, rows, notes)


def _delimiter(text: str) -> str:
    """What makes the columns of a header out of the first line."""
    line = text.lstrip("\r\n").split("\n", 1)[0].strip("\r")

    def columns(delimiter: str) -> tuple[bool, int]:
        cells = [plain(cell.strip().strip('"')) for cell in line.split(delimiter)]
        return any(cell in FILE_COLUMNS + ID_COLUMNS for cell in cells), len(cells)

    return max(DELIMITERS, key=columns)


def _records(path: Path, text: str, delimiter: str, first: int) -> Iterator[tuple[str, list[str]]]:
    """Where each row starts, and its cells; the header first, then rows of as many cells."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True)
    width, header, start = None, [""], first
    while True:
        place = f"{path}, line {start}"
        try:
            cells = [csv_cell(cell) for cell in next(reader)]
        except StopIteration:
            return
        except csv.Error as error:
            reason = str(error)
            if "unexpected end" in reason or "field larger" in reason:
                reason = "a quote opens in this row and is not closed; remove it, or close it behind the cell's text"
            raise UserError(f"{place}: {reason}") from error
        start = first + reader.line_num
        if not any(cell.strip() for cell in cells):
            continue
        if width is None:
            width, header = len(cells), cells
        elif len(cells) < width or any(cell.strip() for cell in cells[width:]):
            other = next((sign for sign in (";", "|") if sign != delimiter), ";")
            raise UserError(
                f"{place}: expected {width} fields ({shown_header(header, delimiter)}), got {len(cells)}; "
                f"separate tags by {other}{' and set data.separator to it' if other != ';' else ''}, or put the cell "
                "into quotes"
            )
        yield place, cells[:width]


def _wide_row(cells: Sequence[str], classes: Mapping[int, str], file: int, split: int | None, where: str) -> Row:
    tags = []
    for index, name in classes.items():
        value = cells[index].strip().casefold()
        if value not in _YES | _NO:
            remedy = "Name the column with the tags tags, or remove columns that are no classes"
            if is_numbered(name):
                remedy = JOIN[0].upper() + JOIN[1:]
            raise UserError(
                f"{where}: column {name!r}: got {visible(value)[:60]!r}, expected 0 or 1, as there is no column tags. "
                f"{remedy}"
            )
        tags += [name] * (value in _YES)
    return Row(
        _one_line(cells[file].strip(), where), tuple(tags), None if split is None else cells[split].strip(), where
    )


def _one_line(cell: str, where: str) -> str:
    if "\n" in cell or "\r" in cell:
        raise UserError(f"{where}: a quote opens in this row and takes the following lines in; remove it")
    return cell


def read_jsonl(path: Path, separator: str | None) -> Table:
    """Read lines of `{"file_name": ..., "tags": [...]}`.

    Raises:
        UserError: a line that is none; names it.
    """
    text, notes = read_text(path)
    rows, records = list[Row](), list[Mapping[str, Any]]()
    for line, entry in enumerate(text.split("\n"), start=1):
        if not entry.strip():
            continue
        where = f"{path}, line {line}"
        records.append(parse_json(entry, where))
        rows.append(_row_of(records[-1], entry.strip(), separator, where))
    names = dict.fromkeys(name for record in records for name in record)
    notes += _unused(path, names, records, rows, separator)
    return Table("lines of JSON", path, rows, notes)


def _unused(
    path: Path, names: Iterable[str], records: Sequence[Mapping[str, Any]], rows: Sequence[Row], separator: str | None
) -> list[str]:
    """See [`look_at_unused`]; of lists, each entry is a tag."""

    def cell(value: Any) -> str:
        parts = value if isinstance(value, list) else [] if value is None else [value]
        return (separator or SEPARATOR).join(map(str, parts))

    unused = {
        name: [cell(record.get(name)) for record in records]
        for name in names
        if plain(name) not in (*FILE_COLUMNS, *TAG_COLUMNS, SPLIT_COLUMN)
    }
    return look_at_unused(path.name, str(path), unused, [row.tags for row in rows], separator)


def read_parquet(path: Path, separator: str | None, num_photos: int) -> Table:
    """Read a parquet file with a column of file names and one of tags.

    Args:
        path: the file.
        separator: see [`read_delimited`].
        num_photos: that are there: for each, a row for each of the classes that there can be, and [`MAX_ROWS`] anyway,
            all in [`MAX_TEXT`] characters.

    Raises:
        UserError: no such columns, a row that cannot be read, or more rows than that.
    """
    import pyarrow
    import pyarrow.parquet

    require_regular(path)
    try:
        file = pyarrow.parquet.ParquetFile(path)
        names = file.schema_arrow.names
        used = (*FILE_COLUMNS, *TAG_COLUMNS, SPLIT_COLUMN)
        wanted = [name for name in names if plain(name) in used or is_numbered(name)]
        records, most, size = list[dict[str, Any]](), max(MAX_ROWS, MAX_CLASSES * num_photos), 0
        # What the file's own description says of its rows need not be so.
        for batch in file.iter_batches(batch_size=1024, columns=wanted):
            records += batch.to_pylist()
            size += sum(len(str(record)) for record in records[-len(batch) :])
            if len(records) > most or size > MAX_TEXT:
                raise UserError(
                    f"{path}: got more than {most} rows or {MAX_TEXT} characters of files and tags for {num_photos} "
                    "photos; keep the rows of these photos"
                )
    # Names and texts are decoded when they are taken out.
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        # The machine's errors have a number; pyarrow's own, about damage, have none.
        if getattr(error, "errno", None) is not None:
            raise
        raise UserError(f"{path}: cannot be read as parquet: {' '.join(str(error).split())}") from error
    if any(isinstance(record.get("image"), Mapping) for record in records[:1]):
        raise UserError(
            f"{path}: holds the images themselves; read it with data.source=hub, data.dataset={path.parent}"
        )
    rows = [_row_of(record, str(record), separator, f"{path}, row {n}") for n, record in enumerate(records)]
    notes = _unused(path, names, records, rows, separator)
    return Table("a parquet table of files and tags", path, rows, notes)


def _row_of(record: Any, text: str, separator: str | None, where: str) -> Row:
    """A row of a mapping with a file and tags: a list, or a text as in a cell."""
    values = {plain(str(key)): value for key, value in record.items()} if isinstance(record, Mapping) else {}
    file = next((values[name] for name in FILE_COLUMNS if values.get(name) is not None), None)
    found = [name for name in TAG_COLUMNS if name in values]
    tags, split = values.get(found[0]) if found else None, values.get(SPLIT_COLUMN)
    if len(found) > 1:
        raise UserError(f"{where}: more than one of its fields may be the tags: {', '.join(found)}; keep one")
    if found and tags is None:
        tags = []
    if isinstance(tags, list):
        tags = [str(tag) if type(tag) is int else tag for tag in tags]
    elif type(tags) is int:
        tags = str(tags)
    if not isinstance(file, str) or not isinstance(tags, list | str) or not all(isinstance(tag, str) for tag in tags):
        raise UserError(f'{where}: expected {{"file_name": "a.jpg", "tags": ["cat"]}}, got {text[:200]}')
    if split is not None and not isinstance(split, str):
        raise UserError(f"{where}: split: got {str(split)[:80]}, expected a name")
    names = split_cell(tags, separator, where) if isinstance(tags, str) else clean_all(tags, where)
    return Row(file, tuple(names), split if SPLIT_COLUMN not in values else (split or "").strip(), where)
