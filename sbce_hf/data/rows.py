"""What a source lists of each photo, before any image is opened: one row, whatever file it was read from."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from ..errors import UserError

# What Label Studio puts before the names of uploaded files.
_UPLOAD = re.compile(r"^[0-9a-f]{8}-")


@dataclass(frozen=True)
class Row:
    """A photo and its tags.

    Args:
        file: as the table names it, or relative to the folder of the photos.
        tags: cleaned, see [`tags.clean_tag`].
        split: `None` where the table says nothing of splits, empty where it does, but not for this photo.
        where: file and line, for messages.
    """

    file: str
    tags: tuple[str, ...]
    split: str | None
    where: str

    @property
    def image_id(self) -> str:
        """The file without its suffix."""
        return Path(self.file).with_suffix("").as_posix()


@dataclass
class Table:
    """What one file, or one folder of annotations, lists.

    Args:
        reader: what it was read as, in words.
        path: of it.
        rows: in its order.
        notes: what was decided for the user, in sentences.
        left_out: photos that it names and says nothing of, with the reason.
    """

    reader: str
    path: Path
    rows: list[Row]
    notes: list[str] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)


def file_of(reference: str) -> str:
    """The file's name in what Label Studio calls an image: an upload, a local file, an address."""
    parts = urlsplit(reference.replace("\\", "/"))
    local = parse_qs(parts.query).get("d")
    path = local[0] if local else unquote(parts.path) if parts.scheme else unquote(reference)
    if "/upload/" in path:
        return _UPLOAD.sub("", path.rpartition("/")[2])
    return path


def first_uses(rows: Sequence[Row]) -> dict[str, str]:
    """Each tag and where it is first."""
    found: dict[str, str] = {}
    for row in rows:
        for tag in row.tags:
            found.setdefault(tag, row.where)
    return found


def joined(rows: Sequence[Row], notes: list[str]) -> list[Row]:
    """One row for each file: a photo may have a row for each of its tags.

    Args:
        rows: with the files as they lie on disk.
        notes: gets a sentence if any were joined.

    Raises:
        UserError: rows of one file in two splits, or two files that would have one name without their suffixes.
    """
    found: dict[str, Row] = {}
    repeated, more = 0, 0
    for row in rows:
        known = found.setdefault(row.file, row)
        if known is row:
            continue
        if known.split != row.split:
            raise UserError(
                f"{row.where}: {row.file!r} is in split {row.split!r} here and in {known.split!r} in {known.where}; "
                "a photo has one split"
            )
        tags = (*known.tags, *(tag for tag in row.tags if tag not in known.tags))
        repeated, more = repeated + (tags == known.tags), more + (tags != known.tags)
        found[row.file] = replace(known, tags=tags)
    if repeated:
        notes.append(f"{repeated} rows repeat what another row says; each was read once")
    if more:
        notes.append(f"{more} rows add tags to a photo that has a row already; their tags were joined")
    ids: dict[str, Row] = {}
    for row in found.values():
        other = ids.setdefault(row.image_id, row)
        if other is not row:
            raise UserError(
                f"{row.where}: image id {row.image_id!r} of {row.file!r} is taken by {other.file!r} ({other.where}); "
                "give files different stems"
            )
    return list(found.values())
