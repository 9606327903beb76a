"""Files that are whole or not there, and what they hash to."""

import errno
import hashlib
import json
import math
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

from .errors import UserError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Bytes of a file that a stage leaves for its readers; the largest lists every threshold of a stage.
MAX_NOTES = 256 * 2**20


def explained(error: OSError, what: str) -> OSError:
    """An error of writing, with what was written and what to do."""
    remedy = "Raise the limit of a file's size (ulimit -f)" if error.errno == errno.EFBIG else "Free space"
    return OSError(
        error.errno,
        f"cannot write {what}: {error.strerror or error}. {remedy} or choose another output folder, then run the same "
        "command again: it continues where it stopped",
    )


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path in the same folder, which is made if needed: a file there becomes `path` if all goes well.

    It is on the disk itself before it gets its name: after a power cut there is the old file or the new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        rename(temporary, path)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise explained(error, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def rename(temporary: Path, path: Path) -> None:
    """Give a file, or a folder with all that is in it, its name once it is on the disk itself."""
    for part in [temporary, *temporary.rglob("*")] if temporary.is_dir() else [temporary]:
        sync(part)
    os.replace(temporary, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk itself."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        # Some file systems have no such thing for folders.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(number)


def is_running(process: int) -> bool:
    """Whether there is a process with this number on this machine."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files that killed processes of this machine have left in a folder, however deep."""
    for path in folder.rglob(".*.tmp"):
        number = path.name.removesuffix(".tmp").rpartition(".")[2]
        if number.isdigit() and path.is_file() and not is_running(int(number)):
            path.unlink(missing_ok=True)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all; see [`replacing`]."""
    with replacing(Path(path)) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, values: Any) -> None:
    """Write plain values as JSON, NaN as `null`; see [`write_atomic`]."""
    write_atomic(path, json.dumps(_without_nan(values), indent=1, allow_nan=False) + "\n")


def _without_nan(values: Any) -> Any:
    if isinstance(values, Mapping):
        return {key: _without_nan(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_without_nan(value) for value in values]
    return None if isinstance(values, float) and math.isnan(values) else values


def require_regular(path: str | os.PathLike[str]) -> None:
    """Raise for what is no plain file, before it is opened: a pipe is waited for, and a device may never end.

    Raises:
        UserError: it is something else; says what.
        OSError: there is nothing, or it may not be looked at.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "a named pipe" if stat.S_ISFIFO(mode) else "a device or a socket"
        raise UserError(f"{os.fspath(path)}: is {what}, expected a file; take it away")


def read_bytes(path: Path) -> bytes:
    """The bytes of a file that anybody may have put there.

    Raises:
        UserError: see [`require_regular`].
        OSError: it cannot be read.
    """
    require_regular(path)
    return path.read_bytes()


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """Text from a file that anybody may have written.

    Args:
        path: of the file.
        encoding: UTF-8, with or without a byte order mark.

    Raises:
        UserError: it is no such text, or see [`require_regular`].
    """
    try:
        return read_bytes(path).decode(encoding).replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        what = f"{error.reason}, byte {error.start}"
        raise UserError(f"{path}: got bytes that are no UTF-8 ({what}); save it as UTF-8") from error


def parse_json(text: str, where: str, object_hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """Plain values from JSON that anybody may have written.

    Args:
        text: of one value.
        where: it comes from, for messages.
        object_hook: is given each object, innermost first, and returns what takes its place.

    Raises:
        UserError: no JSON, a key that is given twice, of which readers take one or the other, or a nesting or a number
            beyond all use.
    """

    def unique(pairs: list[tuple[str, Any]]) -> Any:
        found = dict(pairs)
        if len(found) < len(pairs):
            (doubled, _), *_ = Counter(name for name, _ in pairs).most_common(1)
            raise UserError(f"{where}: key {doubled[:80]!r} is given twice in one object; remove one")
        return found if object_hook is None else object_hook(found)

    try:
        return json.loads(text, object_pairs_hook=unique)
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid JSON: {error}") from error


def read_small(path: Path, limit: int, remedy: str) -> str:
    """Text of a file that is known to be small; no pipe or device is opened, and nothing large is read.

    Args:
        path: of the file.
        limit: of its bytes.
        remedy: what to do about one that is another, for messages.

    Raises:
        FileNotFoundError: there is none.
        UserError: no plain file, too large, or no UTF-8.
    """
    require_regular(path)
    size = path.stat().st_size
    if size > limit:
        raise UserError(f"{path}: has {size:,} bytes, expected at most {limit:,}; {remedy}")
    try:
        return read_text(path)
    except UserError as error:
        raise UserError(f"{error}; {remedy}") from error


def require_own(path: Path, remedy: str) -> None:
    """Raise a `UserError` for a file that is a link out of its folder, with what to do about it."""
    if not is_inside(path, path.parent):
        raise UserError(f"{path}: is a link to {os.path.realpath(path)}, expected a file; {remedy}")


def read_json(path: Path, remedy: str = "remove it and give the same command again") -> Any:
    """Plain values from a JSON file that this package wrote, and others may have changed since.

    Args:
        path: of the file.
        remedy: what to do about one that is damaged.

    Returns:
        its content; `None` where there is no file.

    Raises:
        UserError: it is damaged, or a link out of its folder; names the file and the remedy.
    """
    if not path.exists():
        return None
    require_own(path, remedy)
    text = read_small(path, MAX_NOTES, remedy)
    try:
        return parse_json(text, str(path))
    except UserError as error:
        raise UserError(f"{error}; {remedy}") from error


def read_fields(path: Path, fields: Mapping[str, Any], remedy: str) -> dict[str, Any] | None:
    """An object from a file of [`read_json`], and of its fields the types, as annotations; there may be others, too.

    Raises:
        UserError: see [`read_json`]; names the field as well.
    """
    values = read_json(path, remedy)
    return None if values is None and not path.exists() else check_fields(values, fields, str(path), remedy)


def check_fields(values: Any, fields: Mapping[str, Any], where: str, remedy: str) -> dict[str, Any]:
    """See that plain values are an object with certain fields; see [`read_fields`]."""
    from huggingface_hub.dataclasses import type_validator

    if not isinstance(values, dict):
        raise UserError(f"{where}: got a {type(values).__name__}, expected an object of names and values; {remedy}")
    for name, kind in fields.items():
        try:
            type_validator(name, values.get(name), kind)
        except (TypeError, ValueError) as error:
            expected = kind.__name__ if isinstance(kind, type) and not get_args(kind) else kind
            got = repr(values[name])[:80] if name in values else "nothing"
            raise UserError(f"{where}: {name}: got {got}, expected {expected}; {remedy}") from error
    return values


def is_inside(path: str | os.PathLike[str], folder: str | os.PathLike[str]) -> bool:
    """Whether a file lies in a folder, after all links are resolved."""
    if "\0" in os.fspath(path):
        return False
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


class Folder:
    """Tells which files lie in a folder, as [`is_inside`] does, for many of them.

    Args:
        path: of the folder; it and the folders in it stay as they are meanwhile.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = path
        self._inside: dict[str, bool] = {}

    def has(self, path: str | os.PathLike[str]) -> bool:
        """Whether a file lies in the folder, after all links are resolved."""
        parent, name = os.path.split(os.fspath(path))
        # Of what is no link itself, its folder tells.
        if name not in ("", ".", "..") and "\0" not in name and not os.path.islink(path):
            if parent not in self._inside:
                self._inside[parent] = is_inside(parent, self.path)
            if self._inside[parent]:
                return True
        return is_inside(path, self.path)


def digest(values: Mapping[str, Any]) -> str:
    """Hash of plain values, independent of the order of their keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """Hash of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def weights_digest(weights: str) -> str:
    """What weights a training starts from: the hash of their file, or `"random"` and `"pretrained"` as they are."""
    return file_digest(Path(weights)) if Path(weights).is_file() else weights
