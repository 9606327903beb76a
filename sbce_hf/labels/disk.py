"""How a label store writes: flushed to the disk, whole lines and whole files."""

import os
from pathlib import Path
from typing import IO


def whole_lines(data: bytes) -> bytes:
    """All but a last line that a killed process left unfinished."""
    return data[: data.rfind(b"\n") + 1]


def flush(file: IO[bytes]) -> None:
    """Bring what was written to the disk itself."""
    file.flush()
    os.fsync(file.fileno())


def truncate(path: Path, size: int) -> None:
    """Cut a file to its first bytes, if there is more of it."""
    if path.exists() and path.stat().st_size != size:
        os.truncate(path, size)


def replace(path: Path, data: bytes, rank: int) -> None:
    """Write a file whole, flushed to the disk, or leave what was there."""
    # The rank keeps processes that write the same meta.json apart; a restarted process reuses the name of its
    # predecessor, so nothing is left over.
    temporary = path.with_name(f"{path.name}.tmp-{rank}")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            flush(file)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
