"""How a label store writes: flushed to the disk, whole lines and whole files."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from ..files import is_inside, sync

# Files that wait for the disk at the same time.
_AT_ONCE = 16


def whole_lines(data: bytes) -> bytes:
    """All but a last line that a killed process left unfinished."""
    return data[: data.rfind(b"\n") + 1]


def require_own(path: Path, folder: Path) -> None:
    """See that what a store is described by is a file of its own, if it is there: neither a link nor a pipe.

    Raises:
        ValueError: it is something else.
    """
    if os.path.lexists(path) and not (path.is_file() and is_inside(path, folder)):
        raise ValueError(
            f"label store {folder}: {path.name} is a link out of it, or no file; expected a file in the store: put a "
            "copy of it there"
        )


def flush(file: IO[bytes]) -> None:
    """Bring what was written to the disk itself."""
    file.flush()
    os.fsync(file.fileno())


def truncate(path: Path, size: int) -> None:
    """Cut a file to its first bytes, if there is more of it."""
    if path.exists() and path.stat().st_size != size:
        os.truncate(path, size)


class Journal:
    """Records of files, a line of JSON for each, of which every line is about a file that is on the disk itself.

    Args:
        path: of the records; a last line that a killed process left unfinished is cut off.
        group: files that are brought to the disk together: it is waited for once.

    Raises:
        OSError: it cannot be cut.
    """

    def __init__(self, path: Path, group: int) -> None:
        self.path, self.group = path, group
        self._pending: list[tuple[dict[str, Any], Path | None]] = []
        if path.exists():
            truncate(path, len(whole_lines(path.read_bytes())))

    def add(self, record: dict[str, Any], file: Path | None) -> bool:
        """Take a record, and the file that it is about; returns whether the group is full."""
        self._pending.append((record, file))
        return len(self._pending) >= self.group

    def flush(self) -> list[dict[str, Any]]:
        """Bring the files, then the records to the disk itself.

        Returns:
            the records that were written.

        Raises:
            OSError: the disk is full; none of them was written, and their files are gone.
        """
        pending, self._pending = self._pending, []
        files = [file for _, file in pending if file is not None]
        folders = list(dict.fromkeys(file.parent for file in files))
        size = self.path.stat().st_size if self.path.exists() else 0
        try:
            # At once, so that the disk can do it in one go.
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                list(pool.map(sync, files))
                list(pool.map(sync, folders))
            with open(self.path, "ab") as stream:
                for record, _ in pending:
                    stream.write(json.dumps(record, allow_nan=False).encode() + b"\n")
                flush(stream)
        except OSError:
            truncate(self.path, size)
            for file in files:
                file.unlink(missing_ok=True)
            raise
        return [record for record, _ in pending]


def replace(path: Path, data: bytes, rank: int, flushed: bool = True) -> None:
    """Write a file whole, flushed to the disk unless somebody does that later, or leave what was there."""
    # The rank keeps processes that write the same meta.json apart; a restarted process reuses the name of its
    # predecessor, so nothing is left over.
    temporary = path.with_name(f"{path.name}.tmp-{rank}")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            if flushed:
                flush(file)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
