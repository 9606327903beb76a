"""Between plain values and config dataclasses."""

import contextlib
import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def at_least(section: str, value: float | None, name: str, low: float, strictly: bool = False) -> None:
    """Raise a `ValueError` that names the field if its value is below `low`, or just that low where it must not."""
    if value is not None and (value < low or (strictly and value == low)):
        raise ValueError(f"{section}.{name}: got {value}, expected {'more than' if strictly else 'at least'} {low}")


def from_mapping(cls: type[T], values: Mapping[str, Any], where: str = "config") -> T:
    """Build a config dataclass from nested mappings.

    Args:
        cls: one of this room's dataclasses.
        values: its fields, nested ones as mappings.
        where: dotted path and file for error messages.

    Raises:
        ValueError: an unknown key (with the nearest known one), a value of the wrong type or out of range.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{where}: got {values!r}, expected a mapping of {cls.__name__}'s fields")
    hints = typing.get_type_hints(cls)
    check_keys(values, hints, where)
    arguments = {name: _convert(hints[name], value, f"{where}.{name}") for name, value in values.items()}
    try:
        return cls(**arguments)
    except Exception as error:
        # strict wraps every error in its own type; the cause carries the message.
        raise ValueError(f"{where}: {error.__cause__ or error}") from error


def check_keys(values: Mapping[str, Any], known: Mapping[str, Any], where: str) -> None:
    """Raise a `ValueError` that names the first unknown key and its nearest known one."""
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(sorted(known))}"
            raise ValueError(f"{where}: unknown key {key!r}; {hint}")


def _convert(hint: Any, value: Any, where: str) -> Any:
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    for option in options:
        if dataclasses.is_dataclass(option) and isinstance(value, Mapping):
            return from_mapping(typing.cast(type, option), value, where)
        if typing.get_origin(option) is tuple and isinstance(value, (list, tuple)):
            return tuple(_convert(typing.get_args(option)[0], item, where) for item in value)
    if float in options and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value


def to_mapping(config: Any) -> dict[str, Any]:
    """The inverse of [`from_mapping`]: plain containers, ready for YAML or JSON."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def merge(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested mappings; a `null` or a non-mapping replaces what was there."""
    merged = dict(base)
    for key, value in override.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def parse_override(text: str) -> dict[str, Any]:
    """Turn `"spatial.lr=1e-3"` into nested mappings; the value is YAML.

    Raises:
        ValueError: no `=`.
    """
    import yaml

    path, equals, value = text.partition("=")
    if not equals or not path:
        raise ValueError(f"--set {text!r}: expected key=value, for example spatial.lr=0.001")
    parsed = yaml.safe_load(value)
    if isinstance(parsed, str):
        # YAML 1.1 reads 1e-3 as a string.
        with contextlib.suppress(ValueError):
            parsed = float(parsed)
    for key in reversed(path.split(".")):
        parsed = {key: parsed}
    return parsed
