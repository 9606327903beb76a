"""Typical mistakes are answered before torch is loaded, which alone takes longer than anybody waits."""

import resource
import subprocess
import sys

import pytest
from PIL import Image

# Of CPU time, which other work on the machine does not change; loading torch and transformers takes four and more.
LIMIT = 2.0


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("place")
    (root / "data" / "images").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(root / "data" / "images" / "a.jpg")
    (root / "data" / "tags.csv").write_text("file,tags\na.jpg,cat\n")
    (root / "bad" / "images").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(root / "bad" / "images" / "a.jpg")
    (root / "bad" / "tags.csv").write_text("a.jpg,cat\n")
    (root / "gone" / "images").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(root / "gone" / "images" / "a.jpg")
    (root / "gone" / "tags.csv").write_text("file,tags\nb.jpg,cat\n")
    (root / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    (root / "model").mkdir()
    (root / "model" / "config.json").write_text('{"model_type": "spatial_bce"}')
    (root / "model" / "model.safetensors").write_bytes(b"\xff" * 20)
    (root / "run").mkdir()
    for name in ("config.yaml", "run.json"):
        (root / "run" / name).write_text("{}")
    return root


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("run --recipe nothing", "built-in recipes"),
        ("run --recipe own-data --data-dir data --set bce.epoch=3", "did you mean 'epochs'"),
        ("run --recipe own-data --data-dir data --set model.trnk=resnet18", "did you mean 'trunk'"),
        ("run --recipe own-data --data-dir nowhere", "nowhere: no such folder"),
        ("run --recipe own-data --data-dir bad", "line 1: no header"),
        ("run --recipe own-data --data-dir gone", "1 images listed in tags.csv missing"),
        ("run --recipe own-data --data-dir data --trunk-weights none.safetensors", "no file none.safetensors"),
        ("run --recipe own-data --data-dir data --trunk-weights cut.safetensors", "no whole safetensors file"),
        ("run --recipe own-data --data-dir data --output-dir data/tags.csv/x", "not a folder that can be written to"),
        ("run --recipe own-data --data-dir data --seeds 0", "--seeds: got 0"),
        ("label --recipe own-data --data-dir data --checkpoint a/b/c --output-dir out", "neither a folder nor the id"),
        ("label --recipe own-data --data-dir data --checkpoint model --output-dir out", "no whole safetensors file"),
        ("label --recipe own-data --data-dir data --checkpoint data --output-dir out", "expected the model/ folder"),
        ("predict data/images --checkpoint run --output-dir out", "the run is not finished"),
        ("predict nowhere.jpg --checkpoint model --output-dir out", "nowhere.jpg: no such file or folder"),
        ("evaluate --recipe own-data --data-dir data --split train --labels out", "no label store in out"),
        ("train-classifier --recipe own-data --data-dir data --kind spatial --output-dir out", "--labels: missing"),
        ("demo --checkpoint data", "expected the model/ folder"),
        ("check nowhere", "nowhere: no such folder"),
    ],
)
def test_mistakes_are_answered_at_once(place, command, message):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "sbce_hf.cli", *command.split()], cwd=place, capture_output=True, text=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("sbce: error:") and message in line
    assert (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime) < LIMIT
    assert not (place / "out").exists() and not (place / "runs").exists()
