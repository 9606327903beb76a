import importlib.util
from pathlib import Path

import pytest
from huggingface_hub import HfApi, SpaceCard

import sbce_hf
from sbce_hf.cli import main
from sbce_hf.hub import spaces
from sbce_hf.hub.ownership import MANIFEST

PACKAGE = Path(sbce_hf.__file__).parent


def push(*arguments):
    return main(["push", "space", "user/page", "--checkpoint", *arguments])


def test_space(hub, capsys):
    HfApi().create_repo("user/model")
    HfApi().create_tag("user/model", tag="v1")
    assert push("user/model@v1", "--tags", "ants") == 0
    files = hub.repository("user/page", "space").files()
    assert files["checkpoint.txt"] == b"user/model@v1\n"
    package = {path.relative_to(PACKAGE.parent).as_posix(): path for path in PACKAGE.rglob("*") if path.is_file()}
    package = {name: path.read_bytes() for name, path in package.items() if "__pycache__" not in name}
    assert {name: files[name] for name in files if name.startswith("sbce_hf/")} == package
    others = {"README.md", "app.py", "requirements.txt", "LICENSE", "checkpoint.txt", ".gitattributes", MANIFEST}
    assert set(files) == {*package, *others}
    card = SpaceCard.load("user/page")
    assert (card.data.sdk, card.data.app_file, card.data.models) == ("gradio", "app.py", ["user/model"])
    assert "ants" in card.data.tags and "image-segmentation" in card.data.tags
    assert f"{hub.url}/spaces/user/page" in capsys.readouterr().out
    assert hub.count("/commit/") == 1


def test_file_of_an_older_package_goes(hub, capsys):
    HfApi().create_repo("user/model")
    assert push("user/model") == 0
    for name in ("sbce_hf/old.py", "notes.txt"):
        HfApi().upload_file(path_or_fileobj=b"1", path_in_repo=name, repo_id="user/page", repo_type="space")
    # A push that has written it would have noted it.
    assert push("user/model") == 1 and "since: sbce_hf/old.py. " in capsys.readouterr().err
    assert push("user/model", "--overwrite") == 0
    files = hub.repository("user/page", "space").files()
    assert "sbce_hf/old.py" not in files and files["notes.txt"] == b"1"


@pytest.mark.parametrize(
    "checkpoint, message",
    [
        ("user/absent", "user/absent: not found"),
        ("user/model@nowhere", "user/model@nowhere: there is no such branch"),
        ("model", "expected user/name"),
    ],
)
def test_checkpoint_that_is_not_there(hub, capsys, checkpoint, message):
    HfApi().create_repo("user/model")
    assert push(checkpoint) == 1
    assert message in capsys.readouterr().err and ("space", "user/page") not in hub.repositories


def test_checkpoint_that_a_space_cannot_see(hub, capsys, tmp_path):
    assert push(str(tmp_path)) == 1
    assert "sbce push model" in capsys.readouterr().err and not hub.requests


def test_without_a_source_checkout(hub, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(spaces, "SPACE", tmp_path / "space")
    assert push("user/model") == 1
    assert "source checkout" in capsys.readouterr().err and not hub.requests


def test_app_reads_the_file(monkeypatch, tmp_path):
    pytest.importorskip("gradio")
    (tmp_path / "app.py").write_text((spaces.SPACE / "app.py").read_text())
    monkeypatch.setenv("SBCE_CHECKPOINT", str(tmp_path / "absent"))
    spec = importlib.util.spec_from_file_location("pushed_app", tmp_path / "app.py")
    app = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(app)
    (tmp_path / "checkpoint.txt").write_text("user/model@v1\n")
    assert app.named_checkpoint() == str(tmp_path / "absent")
    monkeypatch.delenv("SBCE_CHECKPOINT")
    assert app.named_checkpoint() == "user/model@v1"
    (tmp_path / "checkpoint.txt").unlink()
    assert app.named_checkpoint() is None
