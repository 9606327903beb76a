"""How far a long piece of work is, and how long it will take: a bar in a terminal, lines of a log elsewhere.

A run says once which stages it has and what they are expected to take ([`Itinerary`]); whatever works meanwhile only
counts what it has done ([`Bar`]), and needs to know nothing of the run.
"""

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from types import FrameType
from typing import TypeVar

from tqdm import tqdm

from .text import duration, visible

T = TypeVar("T")

logger = logging.getLogger(__name__)

# What stages are made of.
TRAINING, LABELLING, PREDICTION = "training", "labelling", "prediction"
# Where nobody watches, a line is written at every tenth of the work, but not more often than this, in seconds.
TENTHS, LEAST_SECONDS = 10, 10.0
# In a terminal that says it has none.
COLUMNS = 80
# In a terminal: what is done, how far, and what [`Bar`] has to say of it.
_FORMAT = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"

# Parts of a stage in their order, as above, with the seconds that each is expected to take.
Parts = Sequence[tuple[str, float]]


class Itinerary:
    """The stages of a run, in the order in which they are made, and how long they will take.

    Args:
        stages: their names.
        expected: the parts of each stage, named like the [`Bar`]s that count them; a stage may be left out.
        shown: on the main process only.
    """

    def __init__(self, stages: Sequence[str], expected: Mapping[str, Parts] | None = None, shown: bool = True) -> None:
        self.stages, self.expected, self.shown = list(stages), dict(expected or {}), shown
        self._name, self._parts = "", list[tuple[str, float]]()

    def passed(self, name: str) -> None:
        """Say that a stage had been finished before."""
        self.expected.pop(name, None)
        if self.shown:
            logger.info("%s: finished before", self._title(name))

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """While a stage is made; says at its end how long that took."""
        self._name, self._parts = name, list(self.expected.pop(name, ()))
        started, token = time.monotonic(), _CURRENT.set(self)
        try:
            yield
        finally:
            _CURRENT.reset(token)
        if self.shown:
            logger.info("%s: %s", self._title(name), duration(time.monotonic() - started))

    def _title(self, name: str) -> str:
        return f"stage {self.stages.index(name) + 1} of {len(self.stages)}, {name}"

    def begin(self, part: str) -> str:
        """A part of the present stage begins; returns its title. What precedes it is done."""
        names = [name for name, _ in self._parts]
        if part in names:
            self._parts = self._parts[names.index(part) + 1 :]
        return f"{self._title(self._name)}: {part}"

    def left(self, seconds: float) -> str:
        """What is left of stage and run, in words, with `seconds` left of the present part."""
        stage = seconds + sum(seconds for _, seconds in self._parts)
        later = sum(seconds for parts in self.expected.values() for _, seconds in parts)
        run = f", {about(stage + later)} for the run" if later else ""
        return f"{about(stage)} left{run}"


_INTERRUPTED = threading.Event()


def remember_interrupts() -> None:
    """Let no Ctrl-C be lost.

    Python prints and forgets the `KeyboardInterrupt` of one that comes while an object is finalised or a process is
    forked, as at each epoch. The next [`Bar`] that moves raises it again.
    """
    report = sys.__unraisablehook__

    def remember(number: int, frame: FrameType | None) -> None:
        _INTERRUPTED.set()
        signal.default_int_handler(number, frame)

    def unraisable(error: "sys.UnraisableHookArgs") -> None:
        if not issubclass(error.exc_type, KeyboardInterrupt):
            report(error)

    _INTERRUPTED.clear()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, remember)
        sys.unraisablehook = unraisable


def interrupted() -> bool:
    """Whether there was a Ctrl-C since [`remember_interrupts`]."""
    return _INTERRUPTED.is_set()


_CURRENT: ContextVar[Itinerary | None] = ContextVar("itinerary", default=None)


def finished_before(what: str) -> None:
    """Say that a piece of work, named as its [`Bar`] would be, is not needed: it had been finished before."""
    if (itinerary := _CURRENT.get()) is not None:
        itinerary.begin(what)


def announce(text: str) -> None:
    """Say what takes a while without an end in sight."""
    logger.info("%s", text)


class Bar:
    """Counts what is done of one piece of work.

    Args:
        what: is done, as in `"training"`.
        total: of the units.
        initial: of them, done before.
        unit: in the plural.
        shown: for what only one of several processes shows.
    """

    def __init__(self, what: str, total: int, initial: int = 0, unit: str = "images", shown: bool = True) -> None:
        itinerary = _CURRENT.get()
        self._itinerary = itinerary
        self._title = what if itinerary is None else itinerary.begin(what)
        self._total, self._initial, self._done, self._unit = total, initial, initial, unit
        self._started = self._said = time.monotonic()
        self._tenth, self._note = self._tenths(), ""
        # Its text may hold a class's name.
        self._bar = tqdm(
            total=total,
            initial=initial,
            desc=visible(self._title),
            bar_format=_FORMAT,
            leave=False,
            disable=None if shown else True,
            file=sys.stderr,
            ncols=_columns(),
        )
        self._lines = shown and self._bar.disable

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def update(self, count: int = 1) -> None:
        """So many more are done.

        Raises:
            KeyboardInterrupt: there was a Ctrl-C; see [`remember_interrupts`].
        """
        if _INTERRUPTED.is_set() and threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt
        self._done += count
        if not self._bar.disable:
            self._bar.set_postfix_str(self._state(), refresh=False)
            self._bar.update(count)
        elif self._lines and self._tenths() > self._tenth:
            now = time.monotonic()
            if now - self._said >= LEAST_SECONDS:
                self._tenth, self._said = self._tenths(), now
                logger.info("%s %d %%, %s", self._title, 100 * self._done // self._total, self._state())

    def note(self, text: str) -> None:
        """Something to show with the rest, such as the loss."""
        self._note = text

    def _tenths(self) -> int:
        return TENTHS * self._done // max(self._total, 1)

    def _state(self) -> str:
        new, seconds = self._done - self._initial, time.monotonic() - self._started
        parts = []
        if new > 0 and seconds > 0:
            left = (self._total - self._done) * seconds / new
            known = self._itinerary.left(left) if self._itinerary else f"{about(left)} left"
            parts = [f"{new / seconds:.3g} {self._unit}/s", known]
        return ", ".join([*parts, *([self._note] if self._note else [])])


def _columns() -> int | None:
    """Columns of a bar: `None` for those of the terminal, unless it says that it has none."""
    try:
        return None if os.get_terminal_size(sys.stderr.fileno()).columns > 0 else COLUMNS
    # No terminal.
    except (OSError, ValueError):
        return None


def tracked(items: Iterable[T], what: str, total: int, unit: str = "images", shown: bool = True) -> Iterator[T]:
    """The same items, counted by a [`Bar`]."""
    with Bar(what, total, unit=unit, shown=shown) as bar:
        for item in items:
            yield item
            bar.update()


def about(seconds: float) -> str:
    """A time that is not known exactly: `"40 s"`, `"12 min"`, `"2 h 10 min"`."""
    if seconds < 55:
        return f"{max(round(seconds / 5) * 5, 5)} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, rest = divmod(round(minutes / 10) * 10, 60)
    return f"{hours} h" if not rest else f"{hours} h {rest} min"
