"""Typical mistakes are answered before torch is loaded, which alone takes longer than anybody waits."""

import json
import os
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from sbce_hf import SpatialBceConfig
from sbce_hf.config import load_recipe
from sbce_hf.errors import UserError
from sbce_hf.models import modeling_checkpoint
from sbce_hf.runs.early import CLASSIFIER, MAX_CONFIG, check_checkpoint
from sbce_hf.runs.stage import keys_of, write_record
from sbce_hf.runs.stages import stages_of

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
    for name, kind in (("bare", "spatial_bce"), ("other", "bert"), ("nothing", None)):
        (root / name).mkdir()
        (root / name / "config.json").write_text(json.dumps({"model_type": kind}))
        if name != "bare":
            save_file({"x": np.zeros(1)}, root / name / "model.safetensors")
    (root / "w.pth").write_bytes(b"?")
    (root / "empty").mkdir()
    (root / "store").mkdir()
    (root / "store" / "meta.json").write_text("{}")
    shutil.copytree(root / "data", root / "masked")
    (root / "masked" / "masks").mkdir()
    Image.new("L", (4, 8), 1).save(root / "masked" / "masks" / "a.png")
    stages = stages_of(load_recipe("own-data", {"data": {"data_dir": "data"}}))
    for stage in stages[:2]:
        (root / "begun" / stage.name).mkdir(parents=True)
        write_record(root / "begun", stage, keys_of(stages, "images"), "images", finished=True)
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
        ("run --recipe own-data --data-dir data --set model.xyzzy=1", "unknown key 'xyzzy'; known keys: trunk"),
        ("run --recipe own-data --data-dir data --set model.output_stride=eight", "got 'eight', expected int | None"),
        ("run --recipe own-data --data-dir data --set model.trunk=resnet5", "no model of timm; did you mean resnet50"),
        ("run --recipe own-data --data-dir data --trunk-weights w.pth", "expected a .safetensors file; `sbce import"),
        ("run --recipe own-data --data-dir data --set data.score_split=val", "no rows of split 'val'"),
        ("run --recipe own-data --data-dir data --set data.classes=[cat,dog]", "no image of split 'train' (1 im"),
        ("run --recipe own-data --data-dir masked --set data.score_split=train", "got 4 x 8 pixels, expected 8 x 8"),
        ("run --recipe own-data --data-dir data --seed 3 --output-dir begun", "bce: seed was 0, is 3. Give the same"),
        ("run --recipe own-data --data-dir data --set spatial.lr=9 --output-dir begun", "round_1: spatial.lr was"),
        ("run --recipe own-data --data-dir data --set data.score_split=train", "the split has no masks to score on"),
        ("run --recipe own-data --data-dir data --set proportions.file=no.npz", "proportions.file: no file no.npz"),
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
        ("label --recipe own-data --data-dir data --checkpoint bare --output-dir out", "bare: no model.safetensors"),
        ("label --recipe own-data --data-dir data --checkpoint other --output-dir out", "is a bert, expected"),
        ("label --recipe own-data --data-dir data --checkpoint nothing --output-dir out", "model_type: got None"),
        ("predict data/images --checkpoint other --output-dir out", "preprocessor_config.json: missing"),
        ("predict data/images --checkpoint bare --output-dir out", "bare: no model.safetensors"),
        ("predict empty --checkpoint other --output-dir out", "empty: no photos"),
        ("predict data/images --checkpoint run --output-dir out", "the run is not finished"),
        ("predict nowhere.jpg --checkpoint model --output-dir out", "nowhere.jpg: no such file or folder"),
        ("evaluate --recipe own-data --data-dir data --split train --labels out", "no label store in out"),
        ("train-classifier --recipe own-data --data-dir data --kind spatial --output-dir out", "--labels: missing"),
        ("demo --checkpoint data", "expected the model/ folder"),
        ("evaluate --recipe own-data --data-dir masked --labels store", "data.score_split: null; name a split"),
        ("evaluate --recipe own-data --data-dir data --split train --labels store", "the split has no masks"),
        ("export store --format coco --output-dir w.pth/x", "w.pth is not a folder that can be written to"),
        ("predict data/images --checkpoint other --output-dir w.pth/x", "w.pth is not a folder that can be written"),
        ("push model nowhere user/name", "nowhere: no such folder; expected a run directory"),
        ("check data --set model.trnk=resnet18", "did you mean 'trunk'"),
        ("push labels nowhere user/name", "no label store in nowhere"),
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


def sparse(folder):
    with (folder / "config.json").open("wb") as file:
        file.truncate(1_500_000_000)


def pipe(name):
    def spoil(folder):
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return spoil


def link_out(name):
    def spoil(folder):
        (folder.parent / "private").write_text('{"token": 1}')
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(folder.parent / "private")

    return spoil


SPOILT = {
    "a configuration of 1.5 GB": (sparse, "config.json: has 1,500,000,000 bytes"),
    "a deep one": (lambda folder: (folder / "config.json").write_text("[" * 200_000), "config.json: not valid JSON"),
    "one that is no text": (lambda folder: (folder / "config.json").write_bytes(b"\xff"), "config.json: .*no UTF-8"),
    "a pipe for a configuration": (pipe("config.json"), "config.json: is a named pipe, expected a file"),
    "a pipe for weights": (pipe("model.safetensors"), "model.safetensors: is a named pipe, expected a file"),
    "a pipe beside them": (pipe("x.safetensors"), "x.safetensors: is a named pipe, expected a file"),
    "a configuration elsewhere": (link_out("config.json"), "config.json: is a link out of the checkpoint's folder"),
    "weights elsewhere": (link_out("model.safetensors"), "model.safetensors: is a link out of"),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_a_hostile_checkpoint_is_told_before_anything_is_read(kind, tmp_path):
    spoil, message = SPOILT[kind]
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    spoil(tmp_path / "model")
    with pytest.raises(UserError, match=message):
        check_checkpoint(str(tmp_path / "model"))


def test_a_snapshot_in_the_cache_is_no_hostile_checkpoint(tmp_path):
    repository = tmp_path / "models--user--name"
    snapshot = repository / "snapshots" / "abc"
    for folder in (repository / "blobs", snapshot):
        folder.mkdir(parents=True)
    (repository / "blobs" / "1").write_text('{"model_type": "spatial_bce"}')
    (snapshot / "config.json").symlink_to("../../blobs/1")
    save_file({"x": np.zeros(1)}, repository / "blobs" / "2")
    (snapshot / "model.safetensors").symlink_to("../../blobs/2")
    assert check_checkpoint(str(snapshot)) == str(snapshot)


def test_the_limit_is_that_of_the_reader():
    assert MAX_CONFIG == modeling_checkpoint.MAX_CONFIG and SpatialBceConfig.model_type == CLASSIFIER
