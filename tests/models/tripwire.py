"""Sees what a piece of code does to the machine: connections, files written, pickles, processes."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND
_ALWAYS = ("socket.connect", "socket.getaddrinfo", "socket.sendto", "subprocess.Popen", "os.system", "os.exec")
_armed: list[tuple[list[str], tuple[Path, ...]]] = []


def _hook(event: str, arguments: tuple) -> None:
    if not _armed:
        return
    events, baits = _armed[-1]
    if event in _ALWAYS or event == "pickle.find_class":
        events.append(f"{event}{arguments[:2]}")
    elif event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
        path = Path(os.fsdecode(arguments[0]))
        if isinstance(arguments[2], int) and arguments[2] & _WRITING and not str(path).startswith("/dev/"):
            events.append(f"writes {path}")
        if any(path == bait or bait in path.parents for bait in baits):
            events.append(f"reads {path}")


# An audit hook cannot be removed: this one sleeps while nothing is armed.
sys.addaudithook(_hook)


@contextlib.contextmanager
def tripwire(*baits: Path) -> Iterator[list[str]]:
    """What happens inside, as a list that fills itself; reading counts for the baits only."""
    events: list[str] = []
    _armed.append((events, baits))
    try:
        yield events
    finally:
        _armed.pop()
