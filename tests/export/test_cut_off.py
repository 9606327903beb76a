"""An export that is killed anywhere is finished by the same call, and by no other."""

import os
from pathlib import Path

import numpy as np
import pytest

from sbce_hf import files
from sbce_hf.errors import UserError
from sbce_hf.export import FORMATS, ExportSource, export_label_maps
from sbce_hf.labels.store import LabelStore


def make_store(folder, ids=("a", "deep/b", "c"), names=("cup", "plate")):
    store = LabelStore.create(folder, names, key="k", num_images=len(ids))
    for number, image_id in enumerate(ids):
        label_map = np.full((6, 7), number % 3, np.uint8)
        label_map[0, 0] = 1
        store.write(image_id, label_map, {"classes": [0, 1], "proportions": [0.5, 0.5]})
    return store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("store"))


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def is_killed(store, format, folder, count):
    """Export in a process that ends, as if killed, before a file gets its name; `False` if there are fewer files."""
    child = os.fork()
    if child == 0:
        rename, left = files.rename, [count]

        def deadly(temporary, path):
            left[0] -= 1
            if left[0] < 0:
                os._exit(9)
            rename(temporary, path)

        files.rename = deadly
        export_label_maps(ExportSource(store), format, folder)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@pytest.mark.parametrize("format", FORMATS)
def test_the_same_call_goes_on(format, store, tmp_path):
    notes = export_label_maps(ExportSource(store), format, tmp_path / "whole")
    count = 0
    while is_killed(store, format, folder := tmp_path / str(count), count):
        assert export_label_maps(ExportSource(store), format, folder) == notes
        assert contents(folder) == contents(tmp_path / "whole")
        count += 1
    # The first is what says that an export has begun.
    assert count >= 2 and contents(folder) == contents(tmp_path / "whole")


def test_another_export_does_not(store, tmp_path):
    assert is_killed(store, "masks", tmp_path / "out", 2)
    before = contents(tmp_path / "out")
    others = (ExportSource(make_store(tmp_path / "other", ids=("a", "x"))), "masks"), (ExportSource(store), "voc")
    for source, format in others:
        with pytest.raises(UserError, match="another export was cut off there"):
            export_label_maps(source, format, tmp_path / "out")
    assert contents(tmp_path / "out") == before
    export_label_maps(ExportSource(store), "masks", tmp_path / "out")
    # What is finished is somebody's.
    with pytest.raises(UserError, match="is not empty"):
        export_label_maps(ExportSource(store), "masks", tmp_path / "out")


def test_an_error_while_going_on_leaves_what_there_was(store, tmp_path, monkeypatch):
    folder = tmp_path / "out"
    assert is_killed(store, "masks", folder, 2)
    (folder / "mine.txt").write_text("x")

    def full(self, image_id):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(LabelStore, "read", full)
        export_label_maps(ExportSource(store), "masks", folder)
    assert (folder / "mine.txt").read_text() == "x" and len(contents(folder)) == 3
    export_label_maps(ExportSource(store), "masks", folder)
    assert "masks/c.png" in contents(folder) and Path(folder / "classes.csv").is_file()
