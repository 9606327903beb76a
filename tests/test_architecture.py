"""The rules of the README's picture of the package, held by a test."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "sbce_hf"
# A file imports only from its own room and from rooms before it.
ORDER = [
    "models",
    "config",
    "references",
    "data",
    "training",
    "labelling",
    "importers",
    "evaluation",
    "provenance",
    "steps",
    "refinement",
    "run_report",
    "segmenters",
    "pipeline",
    "plan",
    "hub",
    "demo",
    "cli",
]
MAX_LINES = 300
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def own_imports(path: Path) -> set[str]:
    """Rooms that a file imports from when it runs; imports for type checkers do not count."""
    rooms = set()
    tree = ast.parse(path.read_text())
    typing_only = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    depth = len(path.relative_to(PACKAGE).parts)
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.ImportFrom) and node.level:
            if node.level == depth:
                rooms |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
            else:
                rooms.add(room_of(path))
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("sbce_hf."):
            rooms.add(node.module.split(".")[1])
    return rooms


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_only_from_rooms_before(path):
    room = room_of(path)
    if room == "__init__":
        return
    assert room in ORDER, f"{path.name}: a new room needs its place in the order"
    later = ORDER[ORDER.index(room) + 1 :]
    assert not own_imports(path) & set(later)


@pytest.mark.parametrize("path", sorted((PACKAGE / "models").glob("*.py")), ids=lambda path: path.name)
def test_models_import_siblings_only(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1 and node.module and "." not in node.module, "the Hub copies only `from .x import y`"
        elif isinstance(node, ast.ImportFrom):
            assert not (node.module or "").startswith("sbce_hf")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_are_short_or_say_why(path):
    text = path.read_text()
    if len(text.splitlines()) > MAX_LINES:
        assert "Longer than 300 lines" in ast.get_docstring(ast.parse(text))


def test_command_line_loads_nothing_heavy():
    code = "import sys, sbce_hf.cli; print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
