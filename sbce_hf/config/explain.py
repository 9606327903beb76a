"""What a recipe's key means: its documentation, type, default and range, read off the dataclasses and the networks."""

import ast
import dataclasses
import difflib
import inspect
import re
import types
import typing
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, cast

from ..errors import UserError
from .network_fields import NETWORKS, network_fields
from .parsing import field_types, to_mapping
from .ranges import Checked, Range
from .recipes import RECIPES, SHORTHANDS
from .run import RunConfig


@dataclass(frozen=True)
class Explained:
    """A key of a recipe.

    Args:
        key: dotted, as `--set` takes it.
        documentation: one paragraph.
        kind: its type, as Python writes it.
        default: where a recipe does not say it; `None` as well where a section has none.
        range: what a number may be, in words; `""` for no bounds.
        value: of the config that was asked about.
    """

    key: str
    documentation: str
    kind: str
    default: Any
    range: str
    value: Any


def explain_key(config: RunConfig, key: str) -> Explained:
    """Look a key up.

    Args:
        config: whose value is told.
        key: dotted, such as `"spatial.lr"`; a section such as `"spatial"` is a key as well.

    Raises:
        UserError: no such key; names those with this word in their names, or the nearest one.
    """
    if key in SHORTHANDS:
        return Explained(key, SHORTHANDS[key], "in place of others", None, "", None)
    for prefix in NETWORKS:
        if key.startswith(f"{prefix}."):
            return _explain_network(config, prefix, key.removeprefix(f"{prefix}."))
    section: type = RunConfig
    value: Any = config
    *parents, name = key.split(".")
    for number, part in enumerate([*parents, name]):
        hints = field_types(section)
        if part not in hints:
            where = ".".join(key.split(".")[:number])
            if not where and (found := [one for one in every_key() if part in one.rpartition(".")[2]]):
                raise UserError(f"--explain {key}: no key by itself; keys with this word: {', '.join(found)}")
            raise _unknown(key, where or "a recipe", part, hints)
        value = None if value is None else getattr(value, part)
        if number < len(parents):
            inner = _section_of(hints[part])
            if inner is None:
                raise UserError(f"--explain {key}: {part} has no keys of its own")
            section = inner
    field = next(f for f in dataclasses.fields(section) if f.name == name)
    declared = section.declared(name) if issubclass(section, Checked) else {}
    bounds = declared.get("range", Range()).in_words()
    kind = re.sub(r"[\w.]+\.(?=\w)|<class '|'>", "", str(hints[name]))
    return Explained(key, _documented(section, name), kind, _default(field), bounds, _plain(value))


def every_key(section: type = RunConfig, prefix: str = "") -> Iterator[str]:
    """All keys of a recipe, dotted; those of the networks behind their section.

    Args:
        section: of them, as it is called by itself.
        prefix: alike.
    """
    hints = field_types(section)
    for field in dataclasses.fields(section):
        key = f"{prefix}{field.name}"
        yield key
        if (inner := _section_of(hints[field.name])) is not None:
            yield from every_key(inner, f"{key}.")
        elif key in NETWORKS:
            yield from (f"{key}.{name}" for name in network_fields(key))


def _explain_network(config: RunConfig, section: str, name: str) -> Explained:
    """A field of a network, or of one that is written with it: `model.trunk_kwargs.pad_type` is `trunk_kwargs`'."""
    name, key = name.partition(".")[0], f"{section}.{name.partition('.')[0]}"
    fields, value = network_fields(section), cast(Any, config)
    for part in section.split("."):
        value = None if value is None else getattr(value, part)
    architecture = getattr(config.segmenter, "architecture", "deeplab")
    if section == "segmenter.model" and architecture != "deeplab":
        raise UserError(f"--explain {key}: the fields of architecture {architecture!r} are those of transformers")
    if name not in fields:
        raise _unknown(key, section, name, fields)
    found = fields[name]
    default = ast.literal_eval(found.default)
    return Explained(key, found.documentation, found.kind, default, "", (value or {}).get(name, default))


def _unknown(key: str, where: str, name: str, known: Collection[str]) -> UserError:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(sorted(known))}"
    return UserError(f"--explain {key}: {where} has no key {name!r}; {hint}")


def summaries() -> dict[str, str]:
    """The built-in recipes, each with the line that its file begins with."""
    first = {path.stem: path.read_text(encoding="utf-8").partition("\n")[0] for path in sorted(RECIPES.glob("*.yaml"))}
    return {name: line.removeprefix("#").strip() for name, line in first.items()}


def _section_of(hint: Any) -> type | None:
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    return next((option for option in options if dataclasses.is_dataclass(option)), None)  # type: ignore[return-value]


def _documented(section: type, name: str) -> str:
    """The paragraph on a field in the docstring of its class, or of a class that it inherits from."""
    for base in section.__mro__:
        text = inspect.cleandoc(base.__dict__.get("__doc__") or "")
        found = re.search(rf"^    {name}: (.*(?:\n {{8}}.*)*)", text, re.MULTILINE)
        if found:
            return " ".join(line.strip() for line in found[1].splitlines())
    return ""


def _default(field: dataclasses.Field) -> Any:
    if field.default is not dataclasses.MISSING:
        return _plain(field.default)
    return None if field.default_factory is dataclasses.MISSING else _plain(field.default_factory())


def _plain(value: Any) -> Any:
    return to_mapping(value) if dataclasses.is_dataclass(value) else list(value) if type(value) is tuple else value
