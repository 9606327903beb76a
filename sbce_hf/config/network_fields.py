"""The fields of the networks' own configurations, read off their files: importing these takes seconds."""

import ast
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

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
    tree = ast.parse((_MODELS / file).read_text(encoding="utf-8"))
    (found,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
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


def _documented(text: str, name: str) -> str:
    found = re.search(rf"^    {name} \(.*\):\n((?: {{8}}.*\n?)+)", text, re.MULTILINE)
    return "" if found is None else " ".join(line.strip() for line in found[1].splitlines())
