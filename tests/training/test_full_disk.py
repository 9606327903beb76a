"""A disk that is full: one line that names path and remedy, what was complete stays, the same command continues."""

import errno
import os
import subprocess

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tiny_stage import run

from sbce_hf.cli.mistakes import told_in_one_line
from sbce_hf.files import write_atomic
from sbce_hf.labels.store import LabelStore
from sbce_hf.training.folder import StageFolder, writing

REMEDY = "Free space or choose another output folder, then run the same command again"


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 400 KB; room is made by `small_disk.remove`."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this user may not mount a disk of 400 KB")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(disk, left):
    """A file that leaves so many bytes."""
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    (disk / "ballast").write_bytes(b"\0" * max(free - left, 0))


# TensorBoard's own thread.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_training_goes_on_when_there_is_room(small_disk, tmp_path):
    whole = run(tmp_path / "whole")
    refusals = 0
    for left in (0, 4096, 20_480, 40_960):
        fill(small_disk, left)
        try:
            run(small_disk / "stage")
        except OSError as error:
            refusals += 1
            line = told_in_one_line(error)
            assert REMEDY in line and str(small_disk / "stage") in line and "\n" not in line
        (small_disk / "ballast").unlink()
        # Nothing of no use is left, and every checkpoint that has its name is whole.
        left_over = list((small_disk / "stage").glob("checkpoints/.tmp-*/*")) if refusals else []
        assert not [path for path in left_over if path.suffix == ".safetensors"]
        for path in (small_disk / "stage").glob("checkpoints/[0-9]*/model.safetensors"):
            load_file(path)
    assert refusals >= 2
    run(small_disk / "stage")
    ours, theirs = (
        load_file(path / "model" / "model.safetensors") for path in (small_disk / "stage", whole.model_dir.parent)
    )
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_label_maps_go_on_when_there_is_room(small_disk):
    label_map = np.random.default_rng(0).integers(0, 2, (100, 100), np.uint8)
    record = {"classes": [0], "thresholds": [0.5], "proportions": [0.5]}

    def label():
        store = LabelStore.create(small_disk / "store", ("cat",), key="k", num_images=20)
        for name in map(str, range(20)):
            if name not in store:
                store.write(name, label_map, record)
        store.mark_complete()
        return store

    fill(small_disk, 40_000)
    with pytest.raises(OSError, match=REMEDY) as caught:
        label()
    assert caught.value.errno == errno.ENOSPC
    done = LabelStore(small_disk / "store").done_ids()
    assert 0 < len(done) < 20
    for name in done:
        assert (LabelStore(small_disk / "store").read(name) == label_map).all()
    (small_disk / "ballast").unlink()
    assert label().complete


def test_a_file_is_named_and_the_old_one_stays(small_disk):
    write_atomic(small_disk / "report.md", "old")
    fill(small_disk, 0)
    with pytest.raises(OSError, match=f"cannot write .*report.md: No space left.*{REMEDY}"):
        write_atomic(small_disk / "report.md", "new" * 10_000)
    assert (small_disk / "report.md").read_text() == "old"


def refuse(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_model_that_cannot_be_saved_leaves_the_one_before(tmp_path):
    stage = StageFolder(tmp_path, {})
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").write_text("old")
    for save in (refuse, lambda path: (path.mkdir(), refuse())):
        with pytest.raises(OSError, match=f"cannot write {tmp_path}/model: No space left.*{REMEDY}") as caught:
            stage.complete(save, None)
        assert caught.value.errno == errno.ENOSPC
    assert [path.name for path in tmp_path.iterdir()] == ["model"] and (tmp_path / "model" / "old").is_file()


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), errno.ENOSPC),
        (RuntimeError("[enforce fail at inline_container.cc] . PytorchStreamWriter failed writing file"), errno.EIO),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), errno.EDQUOT),
    ],
)
def test_errors_of_other_libraries_are_the_operating_systems(tmp_path, error, number):
    with pytest.raises(OSError, match=f"cannot write {tmp_path}.*{REMEDY}") as caught, writing(tmp_path):
        raise error
    assert caught.value.errno == number


def test_what_is_no_failure_of_writing_stays(tmp_path):
    with pytest.raises(KeyError), writing(tmp_path):
        raise KeyError("a")
