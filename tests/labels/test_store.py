import errno
import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from PIL import Image

from sbce_hf.data.schema import palette
from sbce_hf.errors import UserError
from sbce_hf.export.source import ExportSource
from sbce_hf.labels import disk
from sbce_hf.labels.store import LabelStore

NAMES = ("ant", "bee", "cat")


def make_map(seed=0, values=(0, 1, 3), size=(6, 8)):
    return np.random.default_rng(seed).choice(np.array(values, np.uint8), size)


def make_record(label_map, classes=(0, 2)):
    return {
        "classes": list(classes),
        "thresholds": [0.5] * len(classes),
        "proportions": [float((label_map == c + 1).mean()) for c in classes],
    }


def create(path, **changes):
    return LabelStore.create(path, NAMES, **{"key": "k", "num_images": 2, **changes})


@pytest.fixture
def filled(tmp_path):
    store = create(tmp_path / "store", num_images=3, details={"method": "paper"})
    for i, image_id in enumerate(["b", "a/x", "c"]):
        label_map = make_map(i)
        store.write(image_id, label_map, make_record(label_map))
    return store


def test_round_trip_is_exact_and_viewers_see_colours(filled):
    store = LabelStore(filled.directory, NAMES)
    assert store.done_ids() == {"b", "a/x", "c"} and "a/x" in store and "z" not in store
    for i, image_id in enumerate(["b", "a/x", "c"]):
        label_map = store.read(image_id)
        assert label_map.dtype == np.uint8 and (label_map == make_map(i)).all()
        assert store.record(image_id)["classes"] == [0, 2]
    with Image.open(filled.directory / "label_maps" / "a" / "x.png") as image:
        assert image.mode == "P"
        assert image.getpalette()[:12] == palette()[:12]
    assert store.meta["method"] == "paper" and store.meta["key"] == "k" and store.meta["num_images"] == 3


def test_every_8_bit_value_survives(tmp_path):
    store = create(tmp_path)
    label_map = np.arange(256, dtype=np.uint8).reshape(16, 16)
    store.write("all", label_map, make_record(label_map))
    assert (store.read("all") == label_map).all()


def test_proportions_are_a_table_of_all_classes(filled):
    ids, table = LabelStore(filled.directory).proportions()
    assert ids == ["a/x", "b", "c"]
    for image_id, row in zip(ids, table, strict=True):
        label_map = filled.read(image_id)
        assert np.allclose(row, [(label_map == 1).mean(), 0, (label_map == 3).mean()])
    assert table.dtype == np.float64


def test_is_a_dataset_with_exact_indices(filled):
    dataset = LabelStore(filled.directory).to_dataset()
    assert dataset["image_id"][:] == ["a/x", "b", "c"]
    assert dataset.features["labels"].feature.names == list(NAMES)
    for row in dataset:
        assert (np.asarray(row["label_map"]) == filled.read(row["image_id"])).all()
        assert row["labels"] == [0, 2] and len(row["proportions"]) == len(row["thresholds"]) == 2


def test_complete_only_when_every_image_is_there(tmp_path):
    store = create(tmp_path)
    store.write("a", make_map(), make_record(make_map()))
    assert not store.mark_complete() and not LabelStore(tmp_path).complete
    store.skip("b", "unreadable image")
    assert store.mark_complete()
    again = LabelStore(tmp_path)
    assert again.complete and again.skipped == {"b": "unreadable image"}
    assert again.meta["skipped"] == [{"file": "b", "reason": "unreadable image"}]
    with pytest.raises(KeyError, match="'b' was skipped"):
        again.read("b")
    with pytest.raises(KeyError, match="no image 'z'"):
        again.read("z")


def test_an_image_is_done_only_with_both_record_and_label_map(filled):
    (filled.directory / "label_maps" / "b.png").unlink()
    assert LabelStore(filled.directory).done_ids() == {"a/x", "c"}
    assert not filled.mark_complete()


def test_a_torn_last_line_does_not_count_and_is_removed(filled):
    path = filled.directory / "records-00000.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    assert LabelStore(filled.directory).done_ids() == {"b", "a/x"}
    store = create(filled.directory, num_images=3)
    store.write("c", make_map(2), make_record(make_map(2)))
    assert path.read_bytes() == whole


def test_a_file_that_was_being_written_is_no_label_map(filled):
    (filled.directory / "label_maps" / "d.png.tmp-0").write_bytes(b"half")
    store = create(filled.directory, num_images=3)
    assert "d" not in store
    store.write("d", make_map(), make_record(make_map()))
    assert not list(filled.directory.rglob("*.tmp-*"))


def test_processes_share_a_store(tmp_path):
    stores = [create(tmp_path, rank=rank, num_images=3) for rank in (0, 1)]
    stores[0].skip("b", "unreadable image")
    stores[0].write("a", make_map(0), make_record(make_map(0)))
    assert not stores[0].mark_complete()
    stores[1].write("c", make_map(1), make_record(make_map(1)))
    assert stores[1].mark_complete()
    assert LabelStore(tmp_path).done_ids() == {"a", "c"} and LabelStore(tmp_path).skipped == {"b": "unreadable image"}


def test_a_label_map_counts_more_than_an_earlier_skip_by_another_process(tmp_path):
    later = create(tmp_path, rank=1)
    later.skip("a", "unreadable image")
    create(tmp_path, rank=0).write("a", make_map(0), make_record(make_map(0)))
    assert "a" in LabelStore(tmp_path) and not LabelStore(tmp_path).skipped


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"key": "other"}, "key 'k'.*'other'"), ({"num_images": 4}, "num_images 3.*4")],
)
def test_other_label_maps_are_never_mixed_in(filled, changes, message):
    with pytest.raises(ValueError, match=f"{message}.*delete the folder"):
        create(filled.directory, **{"num_images": 3, **changes})


def test_other_classes_are_named(filled):
    with pytest.raises(ValueError, match="ant.*dog"):
        LabelStore.create(filled.directory, ("dog",), key="k", num_images=3)
    with pytest.raises(ValueError, match=r"ant.*dog"):
        LabelStore(filled.directory, ("dog",))
    with pytest.raises(ValueError, match="255 classes.*254"):
        LabelStore.create(filled.directory, tuple(map(str, range(255))), key="k", num_images=3)


def test_missing_and_damaged_stores_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no label store.*meta\.json"):
        LabelStore(tmp_path / "nothing")
    (tmp_path / "meta.json").write_text("{")
    with pytest.raises(ValueError, match=r"meta\.json.*delete the folder"):
        LabelStore(tmp_path)


@pytest.mark.parametrize("image_id", ["../x", "a/../../x", "/etc/x", "a//b", ".", "", "a\\..\\b", "a\0b"])
def test_names_cannot_leave_the_store(tmp_path, image_id):
    store = create(tmp_path / "store")
    with pytest.raises(ValueError, match="image id"):
        store.write(image_id, make_map(), make_record(make_map()))
    assert [p.name for p in tmp_path.rglob("*.png")] == []


def test_what_describes_a_store_is_a_file_of_its_own(tmp_path):
    foreign = tmp_path / "token"
    foreign.write_text("secret")
    store = create(tmp_path / "store")
    store.write("a", make_map(), make_record(make_map()))
    store.flush()
    for make in (lambda path: path.symlink_to(foreign), os.mkfifo, lambda path: path.symlink_to(tmp_path / "absent")):
        path = tmp_path / "store" / "records-00001.jsonl"
        make(path)
        with pytest.raises(ValueError, match=r"records-00001\.jsonl is a link out of it, or no file"):
            LabelStore(tmp_path / "store")
        path.unlink()
    meta = tmp_path / "store" / "meta.json"
    meta.rename(tmp_path / "meta.json")
    meta.symlink_to(tmp_path / "meta.json")
    with pytest.raises(ValueError, match=r"meta\.json is a link"):
        create(tmp_path / "store")
    assert foreign.read_text() == "secret"


def test_a_refused_store_stays_as_it_was(tmp_path):
    create(tmp_path)
    (tmp_path / "records-00000.jsonl").write_bytes(b"unfinished")
    with pytest.raises(ValueError, match="was made with key"):
        LabelStore.create(tmp_path, NAMES, key="other", num_images=3)
    assert (tmp_path / "records-00000.jsonl").read_bytes() == b"unfinished"


def test_label_maps_that_are_gone_are_known(filled):
    name = sorted(filled.done_ids())[0]
    assert filled.gone == []
    filled.path(name).unlink()
    assert LabelStore(filled.directory).gone == [name]
    with pytest.raises(UserError, match=f"1 are missing, the first is of image '{name}'"):
        ExportSource(LabelStore(filled.directory))


def test_records_that_are_gone_are_counted(filled):
    assert filled.mark_complete()
    records = filled.directory / "records-00000.jsonl"
    records.write_text("".join(records.read_text().splitlines(keepends=True)[:1]))
    with pytest.raises(UserError, match="is of 3 images, and 2 have no line in its records"):
        ExportSource(LabelStore(filled.directory))


def test_names_with_dots_stay_apart(tmp_path):
    store = create(tmp_path)
    for i, image_id in enumerate(["a.b", "a.c", "a.png"]):
        store.write(image_id, make_map(i), make_record(make_map(i)))
    assert all((store.read(image_id) == make_map(i)).all() for i, image_id in enumerate(["a.b", "a.c", "a.png"]))


def test_only_uint8_is_written(tmp_path):
    with pytest.raises(TypeError):
        create(tmp_path).write("a", np.zeros((2, 2), np.int64), make_record(make_map()))


def test_an_opened_store_is_for_reading(filled):
    with pytest.raises(ValueError, match=r"LabelStore\.create"):
        LabelStore(filled.directory).skip("z", "reason")


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file/store.*choose another output folder"):
        create(tmp_path / "file" / "store")


def _no_space(*_args, **_kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_full_disk_at_a_label_map(filled, monkeypatch):
    before = sorted(filled.directory.rglob("*"))
    monkeypatch.setattr(disk, "sync", _no_space)
    with pytest.raises(OSError, match="label maps.*No space left.*continues where it stopped") as info:
        filled.write("d", make_map(), make_record(make_map()))
    assert info.value.errno == errno.ENOSPC and str(filled.directory) in str(info.value)
    assert sorted(filled.directory.rglob("*")) == before
    assert "d" not in filled and "d" not in LabelStore(filled.directory)


def test_full_disk_at_a_record(filled, monkeypatch):
    path = filled.directory / "records-00000.jsonl"
    before = path.read_bytes()
    flush = disk.flush

    def full_for_records(file):
        flush(file)
        if file.name == str(path):
            _no_space()

    monkeypatch.setattr(disk, "flush", full_for_records)
    with pytest.raises(OSError, match="records.*No space left"):
        filled.write("d", make_map(), make_record(make_map()))
    assert path.read_bytes() == before
    assert "d" not in filled and "d" not in LabelStore(filled.directory)
    monkeypatch.undo()
    filled.write("d", make_map(), make_record(make_map()))
    assert "d" in LabelStore(filled.directory)


def test_a_group_is_done_together_and_the_last_one_when_the_store_is_complete(tmp_path):
    store = LabelStore.create(tmp_path, NAMES, key="k", num_images=5, group=3)
    for number, name in enumerate("abcd", start=1):
        store.write(name, make_map(), make_record(make_map()))
        done = "abc" if number >= 3 else ""
        assert store.done_ids() == LabelStore(tmp_path).done_ids() == set(done)
    store.skip("e", "unreadable")
    assert LabelStore(tmp_path).done_ids() == set("abc")
    assert store.mark_complete()
    found = LabelStore(tmp_path)
    assert found.done_ids() == set("abcd") and found.skipped == {"e": "unreadable"}
    lines = (tmp_path / "records-00000.jsonl").read_text().splitlines()
    assert [json.loads(line)["image_id"] for line in lines] == list("abcde")


def test_full_disk_at_a_group_leaves_the_groups_before(tmp_path, monkeypatch):
    store = LabelStore.create(tmp_path, NAMES, key="k", num_images=4, group=2)
    for name in "abc":
        store.write(name, make_map(), make_record(make_map()))
    monkeypatch.setattr(disk, "sync", _no_space)
    with pytest.raises(OSError, match="No space left"):
        store.write("d", make_map(), make_record(make_map()))
    monkeypatch.undo()
    assert LabelStore(tmp_path).done_ids() == set("ab")
    assert sorted(path.name for path in (tmp_path / "label_maps").iterdir()) == ["a.png", "b.png"]
    for name in "cd":
        store.write(name, make_map(), make_record(make_map()))
    assert store.mark_complete()


def test_full_disk_for_real(tmp_path):
    # The system's own limit on file size stands in for a full disk: errno EFBIG instead of ENOSPC.
    script = textwrap.dedent(
        """
        import resource, signal, sys
        import numpy as np
        from sbce_hf.labels.store import LabelStore
        store = LabelStore.create(sys.argv[1], ("ant",), key="k", num_images=1)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))
        noise = np.random.default_rng(0).integers(0, 2, (300, 300), dtype=np.uint8)
        try:
            store.write("a", noise, {})
        except OSError as error:
            sys.exit(0 if "cannot write label map of image 'a'" in str(error) else 1)
        sys.exit(2)
        """
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", script, str(tmp_path / "store")]
    assert subprocess.run(command, env=environment, check=False).returncode == 0
    assert [p.name for p in (tmp_path / "store").rglob("*") if p.is_file()] == ["meta.json"]
    assert not LabelStore(tmp_path / "store").done_ids()
