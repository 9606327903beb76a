"""Between plain values and config dataclasses."""

import dataclasses
import difflib
import json
import re
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from ..errors import UserError
from .ranges import Checked, shortened, shown
from .yaml_text import MAX_DEPTH, read_yaml

T = TypeVar("T")


# YAML 1.1, unlike YAML 1.2 and everybody's habit, takes these for text. Plain digits in quotes stay text.
_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


def from_mapping(cls: type[T], values: Mapping[str, Any], where: str = "config") -> T:
    """Build a config dataclass from nested mappings.

    Args:
        cls: one of this room's dataclasses.
        values: its fields, nested ones as mappings.
        where: dotted path and file for error messages.

    Raises:
        UserError: an unknown key (with the nearest known one), a value of the wrong type or out of range.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{where}: got {shown(values)}, expected a mapping of {cls.__name__}'s fields")
    hints = field_types(cls)
    check_keys(values, hints, where)
    arguments = {name: _convert(hints[name], value, f"{where}.{name}") for name, value in values.items()}
    try:
        return cls(**arguments)
    except Exception as error:
        # strict wraps every error in its own type; the cause carries the message.
        raise UserError(f"{where}: {shortened(str(error.__cause__ or error))}") from error


def field_types(cls: type) -> dict[str, Any]:
    """The types of a dataclass's fields by their names."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def check_keys(values: Mapping[str, Any], known: Mapping[str, Any], where: str) -> None:
    """Raise a `UserError` that names the first unknown key and its nearest known one."""
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(sorted(known))}"
            raise UserError(f"{where}: unknown key {key!r}; {hint}")


def _convert(hint: Any, value: Any, where: str) -> Any:
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    for option in options:
        if dataclasses.is_dataclass(option) and isinstance(value, Mapping):
            return from_mapping(typing.cast(type, option), value, where)
        if typing.get_origin(option) is tuple and isinstance(value, (list, tuple)):
            return tuple(_convert(typing.get_args(option)[0], item, where) for item in value)
        if typing.get_origin(option) is dict and typing.get_args(option)[1] is Any:
            return _with_numbers(value)
    if float in options:
        return _as_float(text_to_number(value), where)
    if int in options:
        number = text_to_number(value)
        # 1e3 is a whole number to everybody but YAML.
        return int(number) if isinstance(number, float) and number.is_integer() else number
    return value


def _as_float(value: Any, where: str) -> Any:
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    try:
        return float(value)
    except OverflowError as error:
        raise UserError(f"{where}: got {shown(value)}, expected a finite number") from error


def _with_numbers(value: Any) -> Any:
    """Numbers for text that is one, in values whose fields only their own config knows."""
    if isinstance(value, Mapping):
        return {key: _with_numbers(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_numbers(item) for item in value]
    return text_to_number(value)


def text_to_number(value: Any) -> Any:
    """The number that a text such as `"1e-3"` is; every other value as it is."""
    return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value


def to_mapping(config: Any) -> dict[str, Any]:
    """The inverse of [`from_mapping`]: plain containers, ready for YAML or JSON."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def deciding(config: Checked) -> dict[str, Any]:
    """The settings on which a result depends, as [`to_mapping`] gives them.

    The others, such as the number of worker processes, may change between a start and its continuation.
    """
    values = to_mapping(config)
    for name in [f.name for f in dataclasses.fields(config)]:  # type: ignore[arg-type]
        part, declared = getattr(config, name), config.declared(name)
        if not declared.get("decides", True) or ("before" in declared and part == declared["before"]):
            del values[name]
        elif isinstance(part, Checked):
            values[name] = deciding(part)
    return values


def merge(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested mappings; a `null` or a non-mapping replaces what was there."""
    merged = dict(base)
    for key, value in override.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def parse_override(text: str) -> dict[str, Any]:
    """Turn `"spatial.lr=1e-3"` into nested mappings; the value is YAML, or one sign.

    Raises:
        UserError: no `=`, or a value that is no YAML.
    """
    path, equals, value = text.partition("=")
    if not equals or not path:
        raise UserError(f"--set {shown(text)}: expected key=value, for example spatial.lr=0.001")
    keys = path.split(".")
    if len(keys) > MAX_DEPTH:
        raise UserError(f"--set {shown(text)}: more than {MAX_DEPTH} levels deep")
    # A sign by itself, as of data.separator, is itself, whatever it begins in YAML; but `~` is null.
    sign = len(value) == 1 and not value.isalnum() and value != "~"
    parsed: Any = value if sign else text_to_number(read_yaml(value, f"--set {shown(text)}"))
    for key in reversed(keys):
        parsed = {key: parsed}
    return parsed
