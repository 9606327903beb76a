import subprocess
import sys
from pathlib import Path

import pytest
import torch
from foreign_files import GOOD, HOSTILE_PARAMS, HOSTILE_TORCH, STATE, TOUCHED, saved
from safetensors.torch import save_file

from sbce_hf.importers.checkpoints import read_state_dict

PLAIN = {"conv1.weight": STATE["module.conv1.weight"], "bn1.num_batches_tracked": torch.tensor(4)}


@pytest.fixture
def write(tmp_path):
    def write(data):
        path = tmp_path / "weights.pth"
        path.write_bytes(data)
        return path

    return write


@pytest.mark.parametrize(
    "data",
    [
        GOOD,
        saved(PLAIN),
        saved(STATE, _use_new_zipfile_serialization=False),
        saved({"epoch": 3, "state_dict": STATE}),
        saved({"model": PLAIN, "epoch": 3}),
        saved({f"_orig_mod.{name}": value for name, value in PLAIN.items()}),
    ],
    ids=["DataParallel", "plain", "legacy", "wrapped DataParallel", "wrapped", "compiled"],
)
def test_state_dicts_are_read_whatever_is_around_them(write, data):
    state = read_state_dict(write(data))
    assert state.keys() == PLAIN.keys()
    assert all(torch.equal(state[name], value) for name, value in PLAIN.items())


def test_safetensors_are_read_whatever_their_name(tmp_path):
    save_file(STATE, tmp_path / "weights.bin")
    state = read_state_dict(tmp_path / "weights.bin")
    assert all(torch.equal(state[name], value) for name, value in PLAIN.items())


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.pth"):
        read_state_dict(tmp_path / "nothing.pth")


@pytest.mark.parametrize(("data", "message"), HOSTILE_TORCH.values(), ids=HOSTILE_TORCH)
def test_a_bad_file_is_an_error_that_names_it(write, monkeypatch, data, message):
    path = write(data)
    monkeypatch.chdir(path.parent)
    with pytest.raises(ValueError, match=rf"(?s)weights\.pth: .*({message})") as error:
        read_state_dict(path)
    assert "weights_only" not in str(error.value), "torch's advice to run the file's code"
    assert not Path(TOUCHED).exists()


# Reads good files first, so that what is measured is the bad files' own.
MEASURE = """
import resource, sys, time
from pathlib import Path
from sbce_hf.importers.checkpoints import read_state_dict
from sbce_hf.importers.mxnet_params import read_params
def memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
files = sorted(Path(sys.argv[1]).iterdir())
for path in [path for path in files if path.name.startswith("good")] * 2 + files:
    before, start = memory(), time.process_time()
    try:
        (read_params if path.suffix == ".params" else read_state_dict)(path)
        error = "none"
    except ValueError:
        error = "ValueError"
    print(path.name, error, time.process_time() - start, memory() - before, sep="\\t")
"""


def test_bad_files_take_neither_time_nor_memory(tmp_path):
    files = {"good.pth": GOOD, "good-legacy.pth": saved(STATE, _use_new_zipfile_serialization=False)}
    files |= {f"{index}.params": data for index, data in enumerate(HOSTILE_PARAMS.values())}
    files |= {f"{index}.pth": data for index, (data, _) in enumerate(HOSTILE_TORCH.values())}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    printed = subprocess.check_output([sys.executable, "-c", MEASURE, tmp_path], text=True, cwd=tmp_path)
    rows = [line.split("\t") for line in printed.splitlines()][4:]
    assert len(rows) == len(files)
    for name, error, seconds, megabytes in rows:
        assert error == ("none" if name.startswith("good") else "ValueError"), name
        assert float(seconds) < 1 and float(megabytes) < 200, (name, seconds, megabytes)
    assert not (tmp_path / TOUCHED).exists()
