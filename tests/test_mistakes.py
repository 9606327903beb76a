"""What the command line tells in one line, and what it calls a defect."""

import errno
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from sbce_hf import cli
from sbce_hf.config import DataConfig, ProportionConfig
from sbce_hf.errors import UserError
from sbce_hf.labels.proportions import clamp_proportions
from sbce_hf.models.configuration_spatial_bce import SpatialBceConfig
from sbce_hf.training.health import TrainingHealthError
from sbce_hf.training.metrics import Window

DEFECT = "This is a defect of sbce_hf"


def own_check():
    """An explicit check of the package that raises a plain ValueError."""
    clamp_proportions(np.zeros((2, 2)), np.zeros((3, 3)), ProportionConfig(), 100)


def own_check_in_a_thread():
    with ThreadPoolExecutor(1) as pool:
        pool.submit(own_check).result()


def own_slip():
    """A ValueError of a built-in function that code of the package gave nonsense."""
    Window(1, 1.0, {"mean": np.zeros(2)}, {"mean": np.ones(2)}).flat(["one name for two"])


def raises(error):
    def command():
        raise error

    return command


def told(monkeypatch, capsys, command):
    monkeypatch.setattr(cli, "_parser", lambda: _Parser(command))
    status = cli.main([])
    captured = capsys.readouterr().err
    assert status == 1 and captured.startswith("sbce: error: ") and "Traceback" not in captured
    return captured.removeprefix("sbce: error: ").strip()


class _Parser:
    def __init__(self, command):
        self.command = command

    def parse_args(self, arguments):
        return type("Options", (), {"command": lambda _, options: self.command(), "verbose": False, "debug": False})()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (raises(UserError("data: none")), "data: none"),
        (raises(OSError(errno.ENOSPC, "disk full")), "disk full"),
        (raises(TrainingHealthError("collapsed")), "collapsed"),
        (raises(MemoryError()), "MemoryError"),
        (own_check, "expected the same"),
        (own_check_in_a_thread, "expected the same"),
        # The dataclass's own errors are no ValueErrors.
        (lambda: DataConfig(data_dir="x", max_images=0), "data.max_images: got 0, expected at least 1"),
        (lambda: SpatialBceConfig(trunk=3), "Field 'trunk' expected str, got int (value: 3)"),
    ],
)
def test_what_a_user_can_mend_is_one_line(monkeypatch, capsys, command, message):
    line = told(monkeypatch, capsys, command)
    assert message in line and "\n" not in line


@pytest.mark.parametrize("number", [errno.EFBIG, errno.ENOSPC])
@pytest.mark.parametrize(("name", "named"), [(None, "a file"), ("x.parquet", "x.parquet")])
def test_what_the_system_does_not_write_says_what_to_do(monkeypatch, capsys, number, name, named):
    def command():
        raise OSError(number, os.strerror(number), name)

    monkeypatch.setattr(cli, "_parser", lambda: _Parser(command))
    assert cli.main([]) == 1
    said = capsys.readouterr().err
    assert f"cannot write {named}: {os.strerror(number)}. " in said and "run the same command again" in said
    assert ("ulimit -f" in said) == (number == errno.EFBIG)


def test_notes_are_told(monkeypatch, capsys):
    error = OSError(errno.EIO, "Input/output error")
    error.add_note("while reading image 'a'")
    assert told(monkeypatch, capsys, raises(error)).endswith("Input/output error (while reading image 'a')")


@pytest.mark.parametrize(
    "command",
    [
        lambda: np.zeros(3).reshape(2, 2),
        lambda: torch.utils.data.DataLoader([], batch_size=-1),
        own_slip,
        raises(KeyError("x")),
        raises(ValueError("of somebody else")),
    ],
    ids=["numpy", "torch", "ours, by a built-in", "key", "foreign"],
)
def test_a_defect_has_its_traceback_and_says_so(monkeypatch, command):
    monkeypatch.setattr(cli, "_parser", lambda: _Parser(command))
    with pytest.raises((ValueError, KeyError)) as caught:
        cli.main([])
    assert any(DEFECT in note for note in caught.value.__notes__)


def test_a_defect_in_the_shell():
    code = """
import sys
from sbce_hf import cli
from sbce_hf.config import recipes
recipes.read_yaml_file = lambda path: int("nonsense")
sys.exit(cli.main(["run", "--recipe", "quickstart"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    lines = done.stderr.strip().splitlines()
    assert lines[0].startswith("Traceback") and DEFECT in lines[-1] and "nonsense" in lines[-2]
