"""What a run has left for itself, changed by others: one line names the file and what to do; never a traceback."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from sbce_hf import images_from_lists
from sbce_hf.config import DataConfig, RunConfig
from sbce_hf.errors import UserError
from sbce_hf.files import write_json
from sbce_hf.labels.store import LabelStore
from sbce_hf.runs import report
from sbce_hf.runs.bench import load_training_images
from sbce_hf.runs.guard import kept_classes
from sbce_hf.runs.overlays import draw_overlays

NOT_JSON = ("{", "[1]", "5", "[" * 100_000, '{"a": 1, "a": 1}')


def guard(folder):
    kept_classes(folder)


def figures(folder):
    report._Pictures(folder).draw("figures/a.png", {}, lambda path: path.write_bytes(b"drawn"))


def overlays(folder):
    images = images_from_lists([Image.new("RGB", (8, 6))], [["cat"]])
    store = LabelStore.create(folder / "store", ("cat",), key="k", num_images=1)
    store.write("0", np.zeros((6, 8), np.uint8), {"classes": [0], "thresholds": [0.5], "proportions": [0.0]})
    draw_overlays(images, store, folder / "overlays")


def images(folder):
    data = DataConfig(source="shapes", shapes_images=12, shapes_size=32)
    load_training_images(RunConfig(data=data), folder)


@pytest.mark.parametrize(
    ("name", "read", "contents"),
    [
        (
            "guard.json",
            guard,
            ("{}", '{"before": 1, "classes": {}, "all": false}', '{"before": "", "classes": {"a": 5}}'),
        ),
        ("figures/drawn.json", figures, ('{"figures/a.png": 5}', '{"b": [Infinity]}')),
        ("overlays/drawn.json", overlays, ("{}", '{"key": {}}')),
        ("images.json", images, ("{}", '{"manifest_hash": "", "images": ["a"]}')),
    ],
)
def test_one_line(tmp_path, name, read, contents):
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    (tmp_path / "elsewhere").write_text("{}")

    def told(expected):
        with pytest.raises(UserError) as caught:
            read(tmp_path / "run")
        message = str(caught.value)
        assert message.startswith(str(path)) and expected in message
        assert "\n" not in message and len(message) < 700
        shutil.rmtree(tmp_path / "run" / "store", ignore_errors=True)

    for content in (*NOT_JSON, *contents):
        path.write_text(content)
        told("; remove it")
    path.unlink()
    os.mkfifo(path)
    told("is a named pipe")
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    told("is a link to")
    path.unlink()
    with open(path, "wb") as file:
        file.truncate(2**30)
    told("expected at most")
    path.unlink()
    read(tmp_path / "run")


def test_a_guards_note_is_read(tmp_path):
    write_json(tmp_path / "guard.json", {"before": "bce", "classes": {"cat": "flooded"}, "all": False})
    assert kept_classes(tmp_path) == [("cat", "bce", "flooded")]
