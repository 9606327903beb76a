"""What the table of speeds compares gives the same results; how long it takes is no matter of a test."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "benchmark_training.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("benchmark_training", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_losses(script):
    for pair in script.losses(batch=2, classes=(3,), side=9):
        script.check(pair)


def test_counting(script):
    for pair in script.counting(classes=9, size=(30, 41)):
        script.check(pair)


def test_loading(script):
    # Not half of the photo, which would be decoded at half of its size.
    for pair in script.loading(photos=3, size=190):
        script.check(pair)


def test_starting(script):
    for pair in script.starting(photos=3, side=(40, 30)):
        script.check(pair)


def test_precision(script):
    for pair in script.precision([{"trunk": "test_resnet"}, {"trunk": "test_efficientnet"}], size=64, batch=2):
        script.check(pair)


def test_a_pair_that_differs_is_no_comparison(script):
    with pytest.raises(AssertionError):
        script.check(script.Pair("", lambda: 1.0, lambda: 1.1))
    assert all(seconds >= 0 for seconds in script.measure(script.Pair("", int, int), 1))
