"""One program at a time in a folder: a lock that the system releases when its process ends, however that ends."""

import errno
import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO, cast

from .errors import UserError

# In the folder, while somebody is at work there.
LOCK = ".lock"
_TAKEN = (errno.EACCES, errno.EAGAIN)
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)

logger = logging.getLogger(__name__)


def require_free(folder: Path) -> None:
    """See that no other process is at work in a folder; nothing is written.

    Raises:
        UserError: one is; says which.
    """
    with suppress(FileNotFoundError, NotADirectoryError), _open(folder / LOCK, "r+") as file:
        _lock(file, folder)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder, which is made if needed, and goes again if nothing was put into it.

    Where the file system has no locks, there is a warning instead.

    Raises:
        UserError: see [`require_free`].
        OSError: the folder cannot be made or written to.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _taken(folder):
            yield
    finally:
        # A folder that is not empty stays, and so do those around it.
        with suppress(OSError):
            for path in made:
                path.rmdir()


@contextmanager
def _taken(folder: Path) -> Iterator[None]:
    path = folder / LOCK
    while True:
        with _open(path, "a+") as file:
            _lock(file, folder)
            # Whoever had it before may have removed it since it was opened.
            if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                continue
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}")
            file.flush()
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _open(path: Path, mode: str) -> TextIO:
    """Open the lock itself: what a stranger's folder links it to would be emptied."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise UserError(f"{path}: is a link, or no file; take it away")
    return cast(TextIO, open(path, mode, opener=lambda name, flags: os.open(name, flags | _NO_LINK, 0o666)))


def _lock(file: TextIO, folder: Path) -> None:
    try:
        import fcntl

        # A record lock: of `flock`, the processes that load images would have a share, and keep it after a kill.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        logger.warning("%s: this system has no locks; see that no other command works there", folder)
    except OSError as error:
        if error.errno not in _TAKEN:
            logger.warning("%s: cannot be locked (%s); see that no other command works there", folder, error.strerror)
            return
        file.seek(0)
        raise UserError(
            f"{folder}: another process is at work there ({file.read(200).strip() or 'just started'}); wait until it "
            "has ended, or choose another --output-dir"
        ) from error
