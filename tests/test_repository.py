"""What the repository says about itself: what is packaged, hidden and slow."""

import ast
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest
from slow import SLOW

REPOSITORY = Path(__file__).parent.parent
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())


def test_the_package_says_that_it_is_typed():
    packaged = PROJECT["tool"]["setuptools"]["package-data"]["sbce_hf"]
    assert "py.typed" in packaged and (REPOSITORY / "sbce_hf" / "py.typed").is_file()


@pytest.mark.parametrize("name", SLOW)
def test_every_slow_test_exists(name):
    file, _, function = name.partition("::")
    tree = ast.parse((REPOSITORY / file).read_text())
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert not function or function in names


def test_no_kind_of_warning_is_hidden_as_a_whole():
    filters = PROJECT["tool"]["pytest"]["ini_options"]["filterwarnings"]
    assert all(message for _, message, *_ in (entry.split(":") for entry in filters))


def test_ci_installs_the_oldest_versions_that_are_promised():
    lines = (REPOSITORY / ".ci" / "oldest.txt").read_text().splitlines()
    installed = dict(line.split("==") for line in lines if not line.startswith("#"))
    promised = dict(line.split(">=") for line in PROJECT["project"]["dependencies"])
    # Trailing zeros are left out of the promise, as in 2.7 for 2.7.0.
    assert all(re.fullmatch(rf"{re.escape(low)}(\.0)*", installed[name]) for name, low in promised.items())


def test_the_source_archive_holds_what_an_installation_does_not(tmp_path):
    kept = ("sbce_hf", "space", "scripts", "tests", ".ci")
    skipped = shutil.ignore_patterns("__pycache__", "*.py[cod]", ".hypothesis")
    for name in kept:
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=skipped)
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "CONTRIBUTING.md", "SECURITY.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, tmp_path / name)
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    code = "from setuptools import build_meta; build_meta.build_sdist('dist')"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)
    (archive,) = (tmp_path / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        held = {name.partition("/")[2] for name in opened.getnames()}
    assert files <= held and {"scripts/fuzz.py", "tests/hostile/readers.py", "space/app.py"} <= held


DOCUMENTS = [*REPOSITORY.glob("*.md"), *(REPOSITORY / "sbce_hf").rglob("README.md"), *REPOSITORY.glob("s*/README.md")]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_links_lead_to_files_and_headings(path):
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)", path.read_text(encoding="utf-8")):
        found = path.parent / target if target else path
        assert found.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", found.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]


def test_the_readme_is_short_and_names_what_ci_runs():
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) < 180 and '"[test]" && pytest' in readme.replace('".[test]"', '"[test]"')
    assert 10_000 < (REPOSITORY / "space" / "example.png").stat().st_size < 150_000
