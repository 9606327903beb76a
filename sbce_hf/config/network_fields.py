"""The fields of the networks' own configurations, and the names of trunks: read off files, importing takes seconds."""

import ast
import importlib.util
import re
import typing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace

_MODELS = Path(__file__).parent.parent / "models"
# Sections of a recipe that hold a network's fields: its file and class.
NETWORKS = {
    "model": ("configuration_spatial_bce.py", "SpatialBceConfig"),
    "irn.model": ("configuration_irn.py", "IrnConfig"),
    "segmenter.model": ("configuration_deeplab.py", "DeepLabConfig"),
}


@dataclass(frozen=True)
class NetworkField:
    """One field of a network.

    Args:
        kind: its type, as Python writes it.
        default: as Python writes it.
        documentation: one paragraph of the class's docstring.
    """

    kind: str
    default: str
    documentation: str


@cache
def network_fields(section: str) -> dict[str, NetworkField]:
    """The fields that a section of a recipe may have, but for those that every model of transformers has.

    Args:
        section: of [`NETWORKS`].
    """
    file, name = NETWORKS[section]
    found = _class(_parse(_MODELS / file), name)
    text = ast.get_docstring(found) or ""
    return {
        ast.unparse(node.target): NetworkField(
            ast.unparse(node.annotation),
            "" if node.value is None else ast.unparse(node.value),
            _documented(text, ast.unparse(node.target)),
        )
        for node in found.body
        if isinstance(node, ast.AnnAssign)
    }


@cache
def undeclared_keys() -> frozenset[str]:
    """Keys that a network may have without a field of its own for them: those of every model of transformers."""
    assignments = _parse(_MODELS / "configuration_checks.py").body
    (listed,) = (
        node.value
        for node in assignments
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_UNDECLARED_KEYS"
    )
    base = _class(_parse(_installed("transformers") / "configuration_utils.py"), "PreTrainedConfig")
    declared = (ast.unparse(node.target) for node in base.body if isinstance(node, ast.AnnAssign))
    return frozenset({*ast.literal_eval(listed), *declared})


def is_of_kind(field: NetworkField, value: typing.Any) -> bool:
    """Whether a value has a field's type, as far as that is one of Python's."""
    from huggingface_hub.dataclasses import type_validator

    try:
        kind = typing.get_type_hints(SimpleNamespace(__annotations__={"value": field.kind}), vars(typing))["value"]
    except NameError:
        # A name of the field's own file.
        return True
    try:
        type_validator("value", value, kind)
    except TypeError:
        return False
    return True


@cache
def trunk_names() -> tuple[frozenset[str], frozenset[str]]:
    """The models that timm and this package have, and earlier names of some of them."""
    names, earlier = set[str](), set[str]()
    for file in (_installed("timm") / "models").glob("*.py"):
        text = file.read_text(encoding="utf-8")
        names.update(re.findall(r"^@register_model\s+def (\w+)\(", text, re.MULTILINE))
        # Keys of whatever table: too many rather than too few.
        earlier.update(re.findall(r"""^\s*['"](\w+)['"]\s*:""", text, re.MULTILINE))
    for file in _MODELS.glob("*.py"):
        names.update(re.findall(r"^    register_model\((\w+)\)", file.read_text(encoding="utf-8"), re.MULTILINE))
    return frozenset(names), frozenset(earlier)


def _installed(package: str) -> Path:
    """The folder of a package, which is not imported."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise ModuleNotFoundError(f"{package} is not installed; install sbce-hf with what it depends on")
    return Path(found.origin).parent


def _parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def _class(tree: ast.Module, name: str) -> ast.ClassDef:
    (found,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    return found


def _documented(text: str, name: str) -> str:
    found = re.search(rf"^    {name} \(.*\):\n((?: {{8}}.*\n?)+)", text, re.MULTILINE)
    return "" if found is None else " ".join(line.strip() for line in found[1].splitlines())
