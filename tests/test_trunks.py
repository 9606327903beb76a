"""The table of trunks: each family's smallest member goes through all of it."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "trunks.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("trunks", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def elsewhere(script):
    with script.Elsewhere() as process:
        yield process


@pytest.mark.parametrize("family", ["CNN", "NHWC", "ViT", "hybrid"])
def test_every_family_serves(script, elsewhere, family):
    features, *answers = script.try_trunk(script.TRUNKS[family][0], [64, 80], elsewhere, small=True)
    assert answers == ["yes"] * 5 and " at " in features


def test_what_does_not_serve_says_why(script, elsewhere, tmp_path):
    _, first, second, photo, again, published = script.try_trunk("levit_128s", [64, 224], elsewhere)
    assert first.startswith("no: ") and second == again == published == "yes" and photo.startswith("no: ")
    assert script.try_trunk("no_such_model", [64], elsewhere)[1:] == ["no"] * 4
    assert elsewhere.load(tmp_path).startswith("no: ")


def test_the_table_is_long_enough(script):
    assert sum(len(names) for names in script.TRUNKS.values()) >= 24
