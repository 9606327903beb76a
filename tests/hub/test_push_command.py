import errno
import os
import re
import shutil
from pathlib import Path

import pytest
from huggingface_hub import HfApi, close_session
from stand_in import READ_TOKEN
from tiny_run import write_run

from sbce_hf.cli import main


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("push") / "run")


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def push(run_dir, *options, name="user/model"):
    return main(["push", "model", str(run_dir), name, *options])


def test_says_where_and_how_to_load(hub, run_dir, capsys, tmp_path):
    assert push(run_dir) == 0
    out = capsys.readouterr().out
    main_commit = hub.repository("user/model").refs["main"]
    tag = re.search(r"^tag: +(v\w+)$", out, re.MULTILINE)[1]
    assert hub.repository("user/model").resolve(tag) is main_commit
    assert f"url:    {hub.url}/user/model\n" in out and f"commit: {main_commit.sha}\n" in out
    lines = out.strip().splitlines()[-3:]
    assert lines[0] == "import sbce_hf" and all(f'"user/model", revision="{tag}"' in line for line in lines[1:])
    assert "Publish a classifier with sbce_hf (" in main_commit.title
    assert not list(tmp_path.iterdir()), "the rendered folder should be gone"


def test_dry_run_sends_nothing(hub, run_dir, capsys):
    for kind in (["model", str(run_dir), "user/model"], ["space", "user/page", "--checkpoint", "user/model@v1"]):
        for where, said in (
            (["--create-pr"], "a pull request"),
            (["--revision", "try"], "branch try"),
            ([], "branch main"),
        ):
            assert main(["push", *kind, "--dry-run", *where]) == 0
            out = capsys.readouterr().out
            assert f"would push to {kind[0]} " in out and said in out and "README.md" in out
            folder = Path(re.search(r"^files: (.*)$", out, re.MULTILINE)[1])
            assert (folder / "README.md").is_file()
            shutil.rmtree(folder)
    assert not hub.requests and not hub.repositories


def test_dry_run_works_without_token_and_network(run_dir, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert push(run_dir, "--dry-run") == 0


def test_branch_private_and_pull_request(hub, run_dir, capsys):
    assert push(run_dir, "--private", "--revision", "try") == 0
    repository = hub.repository("user/model")
    assert repository.private and "README.md" not in repository.files() and "README.md" in repository.files("try")
    capsys.readouterr()
    assert push(run_dir, "--create-pr") == 0
    out = capsys.readouterr().out
    assert "discussions/1" in out and "tag:" not in out and "revision=" not in out
    card = repository.files("refs/pr/1")["README.md"].decode()
    assert "git tag" not in card and "with a commit of this repository" in card
    with pytest.raises(SystemExit):
        push(run_dir, "--create-pr", "--revision", "try")


def test_segmenter_replaces_a_classifier(hub, run_dir):
    assert push(run_dir, "--contact-sheet") == 0
    first = set(hub.repository("user/model").files())
    assert push(run_dir, "--part", "segmenter") == 0
    second = set(hub.repository("user/model").files())
    assert {"modeling_spatial_bce.py", "figures/sheet.png"} <= first - second
    assert {"modeling_deeplab.py", "image_processing_deeplab.py"} <= second - first


def test_failures_are_told_without_traceback(hub, run_dir, capsys, monkeypatch):
    def told(status=1):
        assert push(run_dir) == status
        return capsys.readouterr().err

    hub.login(None)
    assert re.match(r"sbce: error: user/model: there is no token.*HF_TOKEN", told())
    hub.login(READ_TOKEN)
    assert "may not write" in told()
    hub.login("hf_write")
    HfApi().create_repo("user/model", repo_type="space", space_sdk="gradio")
    assert "is a space on the Hub" in told()
    hub.repositories.clear()
    hub.fail("/commit/", status=412)
    assert "someone else changed the branch" in told()
    hub.repositories.clear()
    hub.fail("^/lfs/", status=503, times=None)
    assert "the Hub has trouble (status 503)" in told()
    hub.heal()
    hub.cut_after(5000)
    assert "failed or was lost" in told()
    hub.heal()
    close_session()
    # The weights are 2 MB; the card is what makes a repository look finished.
    assert set(hub.repository("user/model").files()) == {".gitattributes"}
    copy = shutil.copyfile

    def full(source, target):
        if str(target).endswith("model.safetensors"):
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        return copy(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("shutil.copyfile", full)
        assert "this disk is full" in told() and set(hub.repository("user/model").files()) == {".gitattributes"}
    assert push(run_dir) == 0


QUALITY = '{"stage": {"stage": "round_1", "num_images": 1, "classes": [%s]}, "agreement": null}'
DAMAGED = {
    "config.yaml": ["{", "[1]", "!!python/object:os.x {}", "#" * 2_000_000, "seed: {a: 1}"],
    "run.json": ["{", "[1]", "[" * 100_000, '{"versions": 5}', '{"command": [1]}'],
    "round_1/scores.json": ["{", "[1]", "{}", '{"rows": 5}', '{"rows": [{}]}', '{"rows": [{"stage": 5}]}'],
    "segmenter/mask/scores.json": ["[1]", '{"rows": [{"labels": "mask"}]}'],
    "round_1/quality.json": ["{", "[1]", "{}", QUALITY % "{}", QUALITY % '{"name": 5}', QUALITY % 5],
    "round_1/summary.json": ["{", "[1]", "{}", '{"images": "many"}'],
    "round_1/model/config.json": ["{", "[1]", "[" * 100_000, '{"architectures": [{"a": 1}]}', '{"id2label": 5}'],
    "round_1/model/preprocessor_config.json": ["{", "[1]"],
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_told_in_one_line(run_dir, capsys, name):
    path = run_dir / name
    whole = path.read_bytes()
    try:
        for content in DAMAGED[name]:
            path.write_text(content)
            assert push(run_dir, "--dry-run") == 1, content
            (line,) = capsys.readouterr().err.splitlines()
            assert str(path) in line and len(line) < 1000
            # A checkpoint's files may be another's, of which only what is wrong is known.
            assert "/model/" in name or "command again" in line
        path.unlink()
        os.mkfifo(path)
        assert push(run_dir, "--dry-run") == 1
        assert "sbce: error:" in capsys.readouterr().err
    finally:
        path.unlink()
        path.write_bytes(whole)
    assert push(run_dir, "--dry-run") == 0


@pytest.mark.parametrize(
    "name",
    ["quality.md", "config.yaml", "figures", "figures/thresholds.png", "figures/sheet.png", "round_1/model"],
)
def test_nothing_outside_of_the_run_is_published(hub, run_dir, tmp_path, capsys, name):
    run = shutil.copytree(run_dir, tmp_path / "run")
    (run / name).rename(tmp_path / "elsewhere")
    (run / name).symlink_to(tmp_path / "elsewhere")
    for path in (run, run / "round_1"):
        assert push(path, "--contact-sheet") == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{run / name}: is a link to {tmp_path / 'elsewhere'}, expected " in line and "copy of it there" in line
    assert not hub.requests
    # A link within the run shows nothing else.
    (run / name).unlink()
    (tmp_path / "elsewhere").rename(run / "moved")
    (run / name).symlink_to(run / "moved")
    assert push(run, "--contact-sheet", "--dry-run") == 0


def test_nothing_outside_of_a_stage_is_published(hub, run_dir, tmp_path, capsys):
    stage = shutil.copytree(run_dir / "round_1", tmp_path / "stage")
    (stage / "model").rename(tmp_path / "elsewhere")
    (stage / "model").symlink_to(tmp_path / "elsewhere")
    assert push(stage) == 1
    assert f"{stage / 'model'}: is a link to {tmp_path / 'elsewhere'}" in capsys.readouterr().err
    assert not hub.requests


def test_no_word_is_sent_without_a_command(hub, run_dir, capsys):
    with pytest.raises(SystemExit):
        main(["push"])
    assert push(run_dir / "absent") == 1 and push(run_dir, name="model") == 1
    assert not hub.requests


def test_token_is_no_option(capsys):
    for kind in ("model", "space"):
        with pytest.raises(SystemExit):
            main(["push", kind, "--help"])
        assert "token" not in capsys.readouterr().out
