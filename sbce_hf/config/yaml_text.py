"""YAML as recipes and options use it: small, plain, and every key once."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ..errors import UserError
from .ranges import shown

# A recipe is four levels deep and has some hundred entries; the longest list in it is that of the classes.
MAX_DEPTH = 32
MAX_ENTRIES = 20_000
# Of a file in all: most of a recipe is comments.
MAX_BYTES = 2**20
_TEXT = 100


# PyYAML's own, of YAML 1.1, take `no` for false, `014` for 12 and `1:30` for 90.
_PLAIN = {
    "tag:yaml.org,2002:bool": re.compile("(true|True|TRUE|false|False|FALSE)$"),
    "tag:yaml.org,2002:int": re.compile(r"([-+]?(0|[1-9]\d*)|0x[0-9a-fA-F]+)$"),
    "tag:yaml.org,2002:float": re.compile(
        r"([-+]?(\d+\.\d*|\.\d+)([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
    ),
}


class _RefusedError(yaml.YAMLError):
    """Valid YAML that no recipe is."""


class _Loader(yaml.SafeLoader):
    """Refuses what only a mistake or malice writes, before anything is built from it.

    Truth values and numbers are those of YAML 1.2: `mixed_precision: no` is a word, and so are classes `on` and `01`.
    Entries are counted as if every alias were written out, because that is what merging and checking would walk over.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.yaml_implicit_resolvers = {
            first: [(tag, _PLAIN.get(tag, pattern)) for tag, pattern in resolvers]
            for first, resolvers in self.yaml_implicit_resolvers.items()
        }
        self._depth, self._entries = 0, 0
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose one node and what it contains; called by the parser for each."""
        alias, line, before = self.check_event(yaml.AliasEvent), self.peek_event().start_mark.line + 1, self._entries
        if self._depth == MAX_DEPTH:
            raise _RefusedError(f"line {line}: more than {MAX_DEPTH} levels deep")
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        if alias:
            if id(node) not in self._sizes:
                raise _RefusedError(f"line {line}: an alias inside what it stands for")
            self._entries += self._sizes[id(node)]
        else:
            # Long text is many entries: a message that shows a value must not take all memory either.
            self._entries += 1 + (len(node.value) // _TEXT if isinstance(node, yaml.ScalarNode) else 0)
            self._sizes[id(node)] = self._entries - before
        if self._entries > MAX_ENTRIES:
            raise _RefusedError(f"line {line}: more than {MAX_ENTRIES} entries, aliases written out")
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        """Compose a mapping whose keys are all different."""
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            line = key.start_mark.line + 1
            if (key.tag, key.value) in lines:
                first = lines[key.tag, key.value]
                raise _RefusedError(f"key {key.value!r} is given twice, in lines {first} and {line}; remove one")
            lines[key.tag, key.value] = line
        return node


def read_yaml(text: str, where: str) -> Any:
    """Read one YAML document.

    Args:
        text: of the document.
        where: it comes from, for error messages.

    Raises:
        UserError: not valid YAML, a key that is given twice, or more than any recipe has.
    """
    try:
        loader = _Loader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except _RefusedError as error:
        raise UserError(f"{where}: {error}") from error
    except (yaml.YAMLError, ValueError) as error:
        # PyYAML reports an impossible date or an endless integer through plain ValueErrors.
        raise UserError(f"{where}: not valid YAML: {error}") from error


def read_yaml_file(path: Path, remedy: str = "expected a recipe") -> dict[str, Any]:
    """Read a YAML file that holds a mapping, or nothing.

    Args:
        path: of the file.
        remedy: what to do about one that is another, for messages.

    Raises:
        FileNotFoundError: no such file.
        UserError: see [`read_yaml`]; or more than [`MAX_BYTES`], no UTF-8, or something else than a mapping.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: is no regular file; {remedy}")
    if (size := path.stat().st_size) > MAX_BYTES:
        raise UserError(f"{path}: has {size:,} bytes, expected at most {MAX_BYTES:,}; {remedy}")
    try:
        values = read_yaml(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not valid YAML: {error}; {remedy}") from error
    except UserError as error:
        raise UserError(f"{error}; {remedy}") from error
    if not isinstance(values, Mapping | None):
        raise UserError(f"{path}: got {shown(values)}, expected a mapping such as data: {{source: shapes}}; {remedy}")
    return dict(values or {})
