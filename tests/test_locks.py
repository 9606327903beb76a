import fcntl
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from sbce_hf import processes
from sbce_hf.config import load_recipe
from sbce_hf.errors import UserError
from sbce_hf.locks import LOCK, locked, require_free
from sbce_hf.runs.early import check_run
from sbce_hf.runs.run import run

HOLDER = """
import sys
from pathlib import Path
from sbce_hf.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def held(tmp_path):
    """A folder in which another process is at work."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield tmp_path / "run", process
        process.kill()


def test_a_second_process_is_refused_and_told_of_the_first(held):
    folder, process = held
    for attempt in (lambda: require_free(folder), lambda: locked(folder).__enter__()):
        with pytest.raises(UserError, match=f"run: another process is at work there .process {process.pid} on "):
            attempt()


def test_the_same_run_stops_before_it_touches_anything(held, tiny_recipe):
    folder, _ = held
    config = load_recipe(str(tiny_recipe))
    for attempt in (lambda: check_run(config, folder), lambda: run(config, folder)):
        with pytest.raises(UserError, match="another process is at work there"):
            attempt()
    assert [path.name for path in folder.iterdir()] == [LOCK]


def test_processes_that_work_together_do_not_refuse_each_other(held, tiny_recipe, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    check_run(load_recipe(str(tiny_recipe)), held[0])


def test_a_refusal_is_told_to_every_process(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "broadcast_object_list", lambda answers: answers.__setitem__(0, "somebody is"))
    second = SimpleNamespace(is_main_process=False, num_processes=2)
    with pytest.raises(UserError, match="somebody is"), processes.alone_in(tmp_path / "run", second):
        pass
    assert not (tmp_path / "run").exists()


def test_a_killed_process_holds_nothing(held):
    folder, process = held
    process.kill()
    process.wait()
    require_free(folder)
    with locked(folder):
        (folder / "result").touch()
    assert [path.name for path in folder.iterdir()] == ["result"]


def test_a_folder_that_nothing_was_put_into_goes(tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(KeyError), locked(tmp_path / "there" / "a" / "b"):
        raise KeyError
    assert (tmp_path / "there").is_dir() and not any((tmp_path / "there").iterdir())


def test_a_lock_that_its_holder_removes_meanwhile_is_taken_anew(tmp_path, monkeypatch):
    lockf, calls = fcntl.lockf, []

    def removed_first(file, how):
        if not calls:
            (tmp_path / LOCK).unlink()
        calls.append(how)
        lockf(file, how)

    monkeypatch.setattr("fcntl.lockf", removed_first)
    with locked(tmp_path):
        assert len(calls) == 2 and (tmp_path / LOCK).read_text().startswith("process ")


def test_where_there_are_no_locks_there_is_a_warning(tmp_path, monkeypatch, caplog):
    def none(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.lockf", none)
    with locked(tmp_path):
        pass
    assert "cannot be locked (Operation not supported)" in caplog.text


def test_a_lock_of_a_stranger_empties_nothing(tmp_path):
    (tmp_path / "token").write_text("secret")
    for make in (lambda path: path.symlink_to(tmp_path / "token"), os.mkfifo):
        make(tmp_path / LOCK)
        with pytest.raises(UserError, match="is a link, or no file; take it away"):
            require_free(tmp_path)
        with pytest.raises(UserError, match="is a link, or no file; take it away"), locked(tmp_path):
            pass
        (tmp_path / LOCK).unlink()
    assert (tmp_path / "token").read_text() == "secret"
