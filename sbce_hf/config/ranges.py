"""Ranges, declared where a field is, and the one check of them all."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..errors import UserError

# How many characters of a value an error message shows, and how many of a message that others wrote.
_SHOWN, _SHOWN_MESSAGE = 100, 500


@dataclass(frozen=True, kw_only=True)
class Range:
    """What a number may be.

    Args:
        at_least: lowest value.
        above: the value has to be higher than this.
        at_most: highest value.
        below: the value has to be lower than this.
        limit: highest value that anybody can have meant. What is beyond is a slip, which would otherwise show only as
            exhausted memory, or as a run without an end.
    """

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    limit: float | None = None

    def problem(self, value: float) -> str | None:
        """What was expected instead of `value`; `None` if it is in the range."""
        if self.limit is not None and value > self.limit:
            return f"at most {self.limit}"
        holds = (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )
        return None if holds else self.in_words()

    def in_words(self) -> str:
        """The bounds, such as `"0 to 1"`; `""` without any."""
        if self.above is not None and self.below is not None:
            return f"between {self.above} and {self.below}"
        if self.at_least is not None and self.at_most is not None:
            return f"{self.at_least} to {self.at_most}"
        bounds = {"at least": self.at_least, "more than": self.above, "at most": self.at_most, "below": self.below}
        return " and ".join(f"{word} {bound}" for word, bound in bounds.items() if bound is not None)


def number(default: float | None, *, decides: bool = True, **bounds: float) -> Any:
    """A field that holds a number; `bounds` are those of [`Range`], and `None` is in every range.

    Args:
        default: of the field.
        decides: a result depends on it; see [`deciding`].
        bounds: see above.
    """
    return field(default=default, metadata={"range": Range(**bounds), "decides": decides})


def free_switch(default: bool) -> Any:
    """A field that is true or false, and on which no result depends; see [`deciding`]."""
    return field(default=default, metadata={"decides": False})


def free_text(default: str | None = None) -> Any:
    """A field that says where something lies; what lies there is hashed instead."""
    return field(default=default, metadata={"decides": False})


def added(*, before: Any, default: Any = None, **bounds: float) -> Any:
    """A field that older versions lack.

    Args:
        before: the value that says what they did. With it a config decides what it decided before there was the field,
            so that what they made is taken up; see [`deciding`].
        default: of the field.
        bounds: of a number, those of [`Range`].
    """
    return field(default=default, metadata={"before": before} | ({"range": Range(**bounds)} if bounds else {}))


# The longest side of an image, view or window that anybody can have meant, in pixels.
MAX_SIDE = 65_536

# The most views of an image, and the largest of them relative to the image, that anybody can have meant.
_MAX_VIEWS, _MAX_SCALE = 64, 64.0


def view_scales(default: tuple[float, ...] | None) -> Any:
    """A field that holds the sizes of one or more views."""
    return field(default=default, metadata={"scales": True})


class Checked:
    """A config whose numbers are finite and in the ranges that its fields declare.

    A range goes with a field's name: a subclass that only changes the default keeps it.
    """

    # How messages call the part of the config, as in `training.lr`.
    SECTION: ClassVar[str]

    # Class validators run in the order of their names. Those that compare fields are called after this one, and can
    # rely on it.
    def validate_fields(self) -> None:
        """Every number is finite and in its range.

        Raises:
            UserError: names the first field that is not, what was got and what is expected.
        """
        for name in (f.name for f in dataclasses.fields(self)):  # type: ignore[arg-type]
            value, where = getattr(self, name), f"{self.SECTION}.{name}"
            for path, leaf in _numbers(value, where):
                if not math.isfinite(leaf):
                    raise UserError(f"{path}: got {leaf}, expected a finite number")
            declared = self.declared(name)
            if value is None:
                continue
            if "range" in declared and (expected := declared["range"].problem(value)):
                raise UserError(f"{where}: got {shown(value)}, expected {expected}")
            if "scales" in declared:
                _check_scales(value, where)

    @classmethod
    def declared(cls, name: str) -> Mapping[str, Any]:
        """What a field says of itself besides its type and default."""
        fields = (base.__dict__.get("__dataclass_fields__", {}).get(name) for base in cls.__mro__)
        return next((f.metadata for f in fields if f is not None and f.metadata), {})


def _check_scales(values: tuple[float, ...], where: str) -> None:
    if not values or min(values) <= 0:
        raise UserError(f"{where}: got {shown(list(values))}, expected one or more numbers above 0")
    if len(values) > _MAX_VIEWS or max(values) > _MAX_SCALE:
        raise UserError(
            f"{where}: got {shown(list(values))}, expected at most {_MAX_VIEWS} numbers of at most {_MAX_SCALE}"
        )


def _numbers(value: Any, where: str) -> Iterator[tuple[str, float]]:
    """Every floating-point number in a value, however deep, and where it is."""
    if isinstance(value, float):
        yield where, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _numbers(item, f"{where}.{key}")
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _numbers(item, where)


def shown(value: Any) -> str:
    """A value for an error message, cut where it is long; an integer of thousands of digits has no decimal form."""
    try:
        text = repr(value)
    except ValueError:
        return "an integer of thousands of digits"
    return shortened(text, _SHOWN)


def shortened(text: str, length: int = _SHOWN_MESSAGE) -> str:
    """A text for an error message, cut where it is longer than anybody reads."""
    return text if len(text) <= length else f"{text[:length]}..."
