"""What a power cut, a kill or a full disk may leave."""

import os
import subprocess
import sys

import pytest

from sbce_hf.cli import main
from sbce_hf.files import Folder, is_inside, is_running, read_json, remove_leftovers, rename, write_atomic
from sbce_hf.labels.store import LabelStore


@pytest.fixture
def events(monkeypatch):
    """What is brought to the disk itself and what gets its name, in order."""
    found, opened = [], {}
    real = {name: getattr(os, name) for name in ("open", "fsync", "replace")}

    def open_(path, *arguments, **options):
        number = real["open"](path, *arguments, **options)
        opened[number] = os.path.basename(path)
        return number

    def replace(source, target):
        found.append(("name", os.path.basename(target)))
        real["replace"](source, target)

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(
        os, "fsync", lambda number: found.append(("disk", opened.get(number, "?"))) or real["fsync"](number)
    )
    monkeypatch.setattr(os, "replace", replace)
    return found


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, events):
    folder = tmp_path / "folder"
    write_atomic(folder / "a.json", "{}")
    assert [kind for kind, _ in events] == ["disk", "name", "disk"]
    assert events[0][1].startswith(".a.json.") and events[2][1] == "folder"


def test_so_is_everything_in_a_folder(tmp_path, events):
    temporary = tmp_path / ".tmp-model"
    (temporary / "sub").mkdir(parents=True)
    for name in ("config.json", "sub/model.safetensors"):
        (temporary / name).write_text("1")
    rename(temporary, tmp_path / "model")
    named = events.index(("name", "model"))
    assert {name for _, name in events[:named]} == {".tmp-model", "sub", "config.json", "model.safetensors"}
    assert (
        events[named + 1 :] == [("disk", tmp_path.name)]
        and (tmp_path / "model" / "sub" / "model.safetensors").is_file()
    )


@pytest.mark.parametrize("group", [1, 3])
def test_label_maps_are_on_the_disk_before_their_records(tmp_path, events, group):
    import numpy as np

    store = LabelStore.create(tmp_path / "store", ("cat",), key="k", num_images=group, group=group)
    events.clear()
    names = [f"{number}.png" for number in range(group)]
    for name in names:
        assert all(kind == "name" for kind, _ in events)
        store.write(name[:-4], np.zeros((2, 2), np.uint8), {"classes": [], "proportions": [], "thresholds": []})
    assert events[:group] == [("name", name) for name in names]
    on_disk = [name for kind, name in events[group:] if kind == "disk"]
    # Then the names in their folder; last the records, whose file is opened in a way that is not seen here.
    assert sorted(on_disk[:group]) == names and on_disk[group] == "label_maps" and len(on_disk) == group + 2


def test_temporary_files_of_dead_processes_go(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    assert not is_running(dead.pid) and is_running(os.getpid())
    (tmp_path / "sub").mkdir()
    names = [
        f".a.json.{dead.pid}.tmp",
        f"sub/.b.{dead.pid}.tmp",
        f".c.{os.getpid()}.tmp",
        ".d.tmp",
        f"e.{dead.pid}.tmp",
    ]
    for name in names:
        (tmp_path / name).write_text("")
    remove_leftovers(tmp_path)
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()) == sorted(names[2:])


def test_a_run_clears_up_after_kills_and_remembers_every_version(tiny_recipe, tmp_path, monkeypatch):
    run_dir = tmp_path / "run"
    command = ["run", "--recipe", str(tiny_recipe), "--set", "rounds=1", "--output-dir", str(run_dir)]
    assert main(command) == 0
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = run_dir / "bce" / f".scores.json.{dead.pid}.tmp"
    left.write_text("{")
    # Killed between the end of a training and the removal of its checkpoints.
    (run_dir / "bce" / "checkpoints" / "00000002").mkdir(parents=True)
    monkeypatch.setattr("sbce_hf.runs.run.versions", lambda: {"torch": "0.1"})
    assert main([*command, "--set", "rounds=2"]) == 0
    assert not left.exists()
    starts = read_json(run_dir / "run.json")["starts"]
    assert len(starts) == 2 and starts[1]["versions"] == {"torch": "0.1"} != starts[0]["versions"]
    assert main([*command, "--set", "rounds=2"]) == 0
    assert len(read_json(run_dir / "run.json")["starts"]) == 2


def test_a_folder_has_what_is_inside_it(tmp_path):
    folder, other = tmp_path / "folder", tmp_path / "other"
    for path in (folder / "a" / "b", other):
        path.mkdir(parents=True)
    for path in (folder / "x.jpg", folder / "a" / "b" / "y.jpg", other / "z.jpg"):
        path.write_text("")
    (folder / "a" / "in.jpg").symlink_to(folder / "x.jpg")
    (folder / "a" / "out.jpg").symlink_to(other / "z.jpg")
    (folder / "away").symlink_to(other, target_is_directory=True)
    (other / "back").symlink_to(folder, target_is_directory=True)
    names = ["x.jpg", "a/b/y.jpg", "a/in.jpg", "a/out.jpg", "away/z.jpg", "../other/z.jpg", "../other/back/x.jpg"]
    names += ["a/..", ".", "..", "missing.jpg", "away/missing.jpg", "a/../../other/z.jpg", "a\0b", "x\0.jpg"]
    own = Folder(folder)
    paths = [f"{folder}/{name}" for name in names]
    # Twice: what is remembered must not change an answer.
    for path in paths + paths[::-1]:
        assert own.has(path) == is_inside(path, folder), path
    assert own.has(folder / "x.jpg") and not own.has(folder / "a" / "out.jpg")
