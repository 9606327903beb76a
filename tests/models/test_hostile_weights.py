"""Weights that are pickles, lie elsewhere, are cut off or never end: refused, whoever reads them."""

import json
import os
import shutil

import pytest
import torch
from hostile_models import LOADERS, MODELS
from safetensors.torch import load_file, save_file
from tripwire import tripwire

from sbce_hf.demo.explain import load_checkpoint
from sbce_hf.models.modeling_irn import IrnModel


def pickled(folder):
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")


def pickled_index(folder, name="model.safetensors.index.json", file="pytorch_model-1.bin"):
    state = load_file(folder / "model.safetensors")
    pickled(folder)
    (folder / "pytorch_model.bin").rename(folder / "pytorch_model-1.bin")
    (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(state, file)}))


def index_of(value):
    def write(folder):
        state = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
        index = {"metadata": {}, "weight_map": value if isinstance(value, list) else dict.fromkeys(state, value)}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return write


def huge_header(folder):
    (folder / "model.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{" * 100)


def cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def other_shapes(folder):
    state = load_file(folder / "model.safetensors")
    save_file({name: value.flatten()[:1].clone() for name, value in state.items()}, folder / "model.safetensors")


def whole_numbers(folder):
    state = load_file(folder / "model.safetensors")
    save_file({name: value.long() for name, value in state.items()}, folder / "model.safetensors")


def pipe(folder):
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")


def pipe_of_an_index(folder):
    index_of("pipe.safetensors")(folder)
    os.mkfifo(folder / "pipe.safetensors")


WEIGHTS = {
    "pickle": pickled,
    "pickle through its index": lambda folder: pickled_index(folder, "pytorch_model.bin.index.json"),
    "pickle through ours": pickled_index,
    "up": index_of("../outside.safetensors"),
    "absolute": index_of("/outside.safetensors"),
    "hidden": index_of(".outside.safetensors"),
    "number": index_of(7),
    "list": index_of(["a"]),
    "no JSON": lambda folder: (
        (folder / "model.safetensors").unlink(),
        (folder / "model.safetensors.index.json").write_text("{" * 100_000),
    ),
    "huge header": huge_header,
    "cut off": cut,
    "empty": lambda folder: (folder / "model.safetensors").write_bytes(b""),
    "shards beside it": lambda folder: shutil.copy(
        folder / "model.safetensors", folder / "shard-00000-model-00000-of-00000.safetensors"
    ),
    "other shapes": other_shapes,
    "whole numbers": whole_numbers,
    "pipe": pipe,
    "pipe of an index": pipe_of_an_index,
}


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("kind", MODELS)
def test_hostile_weights_are_refused(kind, name, good, tmp_path):
    folder = tmp_path / "evil"
    shutil.copytree(good / kind, folder)
    WEIGHTS[name](folder)
    with tripwire(tmp_path / "outside.safetensors") as events:
        with pytest.raises(Exception):  # noqa: B017 (of safetensors, where no loader of ours is asked)
            type(MODELS[kind]()).from_pretrained(folder)
        if kind in LOADERS:
            for load in (LOADERS[kind], lambda path: load_checkpoint(str(path))):
                with pytest.raises((ValueError, FileNotFoundError)):
                    load(folder)
    assert not events


def test_pickles_are_refused_when_asked_for(good):
    with pytest.raises(ValueError, match="only safetensors files are read"):
        IrnModel.from_pretrained(good / "irn", use_safetensors=False)
