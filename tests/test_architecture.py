"""The rules of the picture of the package in CONTRIBUTING.md, held by a test."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "sbce_hf"
# A file imports only from its own room and from rooms before it.
ORDER = [
    "models",
    "errors",
    "text",
    "progress",
    "config",
    "files",
    "locks",
    "processes",
    "references",
    "data",
    "labels",
    "export",
    "postprocess",
    "training",
    "inference",
    "importers",
    "evaluation",
    "runs",
    "hub",
    "demo",
    "cli",
]
MAX_LINES = 300
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_files(path: Path) -> set[Path]:
    """Files of ours that a file imports, anywhere in it; imports for type checkers count, too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom):
            continue
        if node.level:
            base = path.parents[node.level - 1]
        elif (node.module or "").split(".")[0] == PACKAGE.name:
            base = PACKAGE.parent
        else:
            continue
        place = base.joinpath(*(node.module or "").split("."))
        for name in node.names:
            for candidate in (place / f"{name.name}.py", place / name.name / "__init__.py"):
                found |= {candidate} if candidate.is_file() else set()
            if place.with_suffix(".py").is_file():
                found.add(place.with_suffix(".py"))
            elif not any((place / name.name).with_suffix(s).exists() for s in (".py", "")):
                found.add(place / "__init__.py")
    return found - {path}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_only_from_rooms_before(path):
    room = room_of(path)
    if room == "__init__":
        return
    assert room in ORDER, f"{path.name}: a new room needs its place in the order"
    later = ORDER[ORDER.index(room) + 1 :]
    assert not {room_of(other) for other in imported_files(path)} & set(later)


def test_no_file_imports_itself_in_a_circle():
    needs = {path: imported_files(path) for path in FILES}
    while free := [path for path, others in needs.items() if not others & needs.keys()]:
        for path in free:
            del needs[path]
    assert not needs, f"in or behind a circle: {sorted(str(path.relative_to(PACKAGE)) for path in needs)}"


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


def test_importing_the_package_changes_nothing():
    code = "import sys; before = list(sys.meta_path); import sbce_hf; print(sys.meta_path == before)"
    code += "; print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split("\n")[:2] == ["True", "[]"]
