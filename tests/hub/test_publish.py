import errno
import hashlib
import json
import random
import re

import pytest
from huggingface_hub import HfApi, close_session
from stand_in import READ_TOKEN, STRANGER_TOKEN

from sbce_hf.hub.errors import HubError
from sbce_hf.hub.publish import folder_digest, publish_folder


@pytest.fixture
def folder(tmp_path):
    """Regular files, one of them in a folder, and two large ones that go another way."""
    root = tmp_path / "folder"
    (root / "sub").mkdir(parents=True)
    (root / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    (root / "sub" / "config.json").write_text("{}")
    source = random.Random(0)
    (root / "model.safetensors").write_bytes(source.randbytes(90_000))
    (root / "more.safetensors").write_bytes(source.randbytes(40_000))
    return root


def contents(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def stored(hub, revision="main", name="user/model"):
    files = hub.repository(name).files(revision)
    files.pop(".gitattributes")
    return files


def publish(folder, **how):
    return publish_folder(folder, "user/model", "model", message="Publish", **how)


def test_one_commit_and_its_tag(hub, folder):
    done = publish(folder, tag="v1")
    assert stored(hub) == stored(hub, "v1") == contents(folder)
    assert hub.count("/commit/") == 1 and hub.repository("user/model").refs["main"].sha == done.commit
    assert (done.url, done.tag, done.pull_request) == (f"{hub.url}/user/model", "v1", None)
    assert hub.repository("user/model").refs["main"].title == f"Publish ({folder_digest(folder)})"


def test_again_is_nothing_and_a_change_is_one_commit(hub, folder):
    first = publish(folder, tag="v1")
    assert publish(folder, tag="v1").commit == first.commit and hub.count("/commit/") == 1
    (folder / "more.safetensors").unlink()
    (folder / "sub" / "config.json").write_text("[]")
    HfApi().upload_file(path_or_fileobj=b"theirs", path_in_repo="notes.txt", repo_id="user/model")
    publish(folder, delete_patterns=["*.safetensors"], tag="v2")
    assert stored(hub) == {**contents(folder), "notes.txt": b"theirs"}
    assert hub.count("^/lfs/", "PUT") == 2 and set(stored(hub, "v1")) == {*contents(folder), "more.safetensors"}


def test_what_may_commit_in_parts_is_not_used(hub, folder, monkeypatch):
    def in_parts(*_, **__):
        raise AssertionError("where Xet is installed, upload_folder makes several commits of one folder")

    monkeypatch.setattr(HfApi, "upload_folder", in_parts)
    for number in range(120):
        (folder / f"{number}.txt").write_text(str(number))
    publish(folder)
    assert stored(hub) == contents(folder) and hub.count("/commit/") == 1


def test_private(hub, folder):
    publish(folder, private=True)
    assert hub.repository("user/model").private
    publish(folder, private=True)
    publish_folder(folder, "user/open", "model", message="Publish")
    with pytest.raises(ValueError, match="is public, and --private does not change"):
        publish_folder(folder, "user/open", "model", message="Publish", private=True)
    assert hub.count("user/open/commit/") == 1


def test_branch(hub, folder):
    done = publish(folder, revision="try/this", tag="v1")
    assert stored(hub, "try/this") == stored(hub, "v1") == contents(folder) and stored(hub) == {}
    assert done.url == f"{hub.url}/user/model/tree/try/this"
    (folder / "sub" / "config.json").write_text("[]")
    publish(folder, revision="try/this")
    assert stored(hub, "try/this") == contents(folder)


def test_pull_request_once(hub, folder):
    HfApi().create_repo("user/model")
    hub.cut_at_request(1, "/commit/", answered=True)
    with pytest.raises(HubError, match="connection"):
        publish(folder, create_pr=True)
    hub.heal()
    close_session()
    done = publish(folder, create_pr=True, tag="v1")
    assert publish(folder, create_pr=True) == done
    assert (done.pull_request, done.tag) == (1, None) and len(hub.repository("user/model").pulls) == 1
    assert done.url.endswith("user/model/discussions/1")
    assert stored(hub, "refs/pr/1") == contents(folder) and stored(hub) == {}
    HfApi().merge_pull_request("user/model", 1)
    assert publish(folder, create_pr=True).pull_request is None and stored(hub) == contents(folder)


def test_conflict(hub, folder):
    publish(folder)
    start = hub.repository("user/model").refs["main"].sha
    HfApi().upload_file(path_or_fileobj=b"theirs", path_in_repo="notes.txt", repo_id="user/model")
    (folder / "sub" / "config.json").write_text("[]")
    with pytest.raises(HubError, match="someone else changed the branch.*again"):
        publish(folder, parent_commit=start)
    assert stored(hub)["sub/config.json"] == b"{}"
    publish(folder)
    assert stored(hub) == {**contents(folder), "notes.txt": b"theirs"}


def test_somebody_commits_during_a_push(hub, folder, monkeypatch):
    publish(folder)
    (folder / "more.safetensors").write_bytes(b"other")
    api_info = HfApi.repo_info

    def then_they_commit(self, *args, **how):
        found = api_info(self, *args, **how)
        monkeypatch.setattr(HfApi, "repo_info", api_info)
        HfApi().upload_file(path_or_fileobj=b"theirs", path_in_repo="notes.txt", repo_id="user/model")
        return found

    # The first look only asks whether the repository is there, the second where its branch is.
    monkeypatch.setattr(
        HfApi,
        "repo_info",
        lambda self, *a, **k: monkeypatch.setattr(HfApi, "repo_info", then_they_commit) or api_info(self, *a, **k),
    )
    with pytest.raises(HubError, match="someone else"):
        publish(folder)
    assert "notes.txt" in stored(hub) and stored(hub)["more.safetensors"] != b"other"


@pytest.mark.parametrize(
    "token, message",
    [
        (None, "there is no token.*hf auth login.*HF_TOKEN"),
        (READ_TOKEN, "may not write.*role 'write'"),
        (STRANGER_TOKEN, "may not write.*--create-pr"),
        ("hf_revoked", "wrong, expired or revoked.*hf auth login"),
    ],
    ids=["none", "read", "stranger", "revoked"],
)
@pytest.mark.parametrize("exists", [False, True])
def test_who_may_not(hub, folder, token, message, exists):
    if exists:
        HfApi().create_repo("user/model")
    hub.login(token)
    with pytest.raises(HubError) as caught:
        publish(folder)
    assert re.search(message, str(caught.value), re.DOTALL), caught.value
    assert hub.count("/commit/") == 0 and set(hub.repositories) == ({("model", "user/model")} if exists else set())


def test_private_repository_of_somebody_else(hub, folder):
    HfApi().create_repo("lab/model", private=True)
    hub.login(STRANGER_TOKEN)
    with pytest.raises(HubError, match="may not write|not found"):
        publish_folder(folder, "lab/model", "model", message="Publish")
    assert hub.count("/commit/") == 0


@pytest.mark.parametrize("name", ["user/model/x", "model", "user/mo del", "-user/x", ""])
def test_name_that_is_none(hub, folder, name):
    with pytest.raises(ValueError, match="expected"):
        publish_folder(folder, name, "model", message="Publish")
    assert not hub.requests


def test_name_of_another_type(hub, folder):
    HfApi().create_repo("user/model", repo_type="dataset")
    with pytest.raises(ValueError, match="is a dataset on the Hub, expected a model"):
        publish(folder)
    assert set(hub.repositories) == {("dataset", "user/model")}


def test_offline(hub, folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="unset HF_HUB_OFFLINE"):
        publish(folder)
    assert not hub.requests


@pytest.mark.parametrize("path", ["/commit/", "/preupload/", "^/lfs/", "validate-yaml", "repos/create", "/tag/"])
@pytest.mark.parametrize("status", [429, 500, 503])
def test_hub_in_trouble(hub, folder, path, status):
    hub.fail(path, status=status, times=None)
    with pytest.raises(HubError, match=f"status {status}.*injected failure.*Run the same command again"):
        publish(folder, tag="v1")
    if path == "/tag/":
        assert stored(hub) == contents(folder)
    else:
        assert not hub.repositories or stored(hub) == {}
    hub.heal()
    publish(folder, tag="v1")
    assert stored(hub) == stored(hub, "v1") == contents(folder) and hub.count("/commit/main") <= 2


def test_missing_tag_is_named_and_set_later(hub, folder):
    hub.fail("/tag/", status=500)
    with pytest.raises(HubError, match="is there and complete, but its tag v1.*run the same command again"):
        publish(folder, tag="v1")
    assert publish(folder, tag="v1").tag == "v1"
    assert hub.repository("user/model").refs["refs/tags/v1"] is hub.repository("user/model").refs["main"]
    assert hub.count("/commit/") == 1


def test_answer_that_is_no_hubs(hub, folder, monkeypatch):
    def page(*args, **how):
        raise json.JSONDecodeError("Expecting value", "<html>", 0)

    monkeypatch.setattr(HfApi, "_validate_yaml", page)
    with pytest.raises(HubError, match="did not answer as a Hub does"):
        publish(folder)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_disk_full(hub, folder, monkeypatch, number):
    def full(*args, **how):
        raise OSError(number, "No space left on device", "/some/where")

    monkeypatch.setattr(HfApi, "preupload_lfs_files", full)
    with pytest.raises(HubError, match="disk is full .*/some/where.*TMPDIR"):
        publish(folder)
    assert stored(hub) == {}


def test_other_errors_pass(hub, folder):
    (folder / "README.md").write_text("---\ntags: [\n---\n")
    with pytest.raises(ValueError, match="Invalid metadata in README.md"):
        publish(folder)
    with pytest.raises(ValueError, match="not a directory"):
        publish_folder(folder / "absent", "user/model", "model", message="Publish")


def test_cut_anywhere_then_again(hub, folder, tmp_path):
    """Ten seeded points: bytes of what is sent, and requests with and without their effect."""
    publish(folder, tag="old")
    before = stored(hub)
    for name in ("model.safetensors", "more.safetensors", "sub/config.json"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(hashlib.sha256(content).digest() * (len(content) // 32 + 1))
    repository = hub.repository("user/model")
    start = repository.refs["refs/tags/old"]

    def as_before():
        repository.refs = {"main": start, "refs/tags/old": start}
        repository.objects = {oid: one for oid, one in repository.objects.items() if one in before.values()}

    # Twice: what is read of the branch is kept on this machine.
    for _ in range(2):
        as_before()
        received, requests = hub.received, len(hub.requests)
        publish(folder, tag="new")
    received, requests = hub.received - received, len(hub.requests) - requests
    assert received > 130_000
    source = random.Random(7)
    cuts = [("bytes", source.randrange(received)) for _ in range(5)]
    cuts += [("request", source.randint(1, requests), source.random() < 0.5) for _ in range(5)]
    for cut in cuts:
        as_before()
        made = len(repository.commits)
        if cut[0] == "bytes":
            hub.cut_after(cut[1])
        else:
            hub.cut_at_request(cut[1], answered=cut[2])
        with pytest.raises(HubError, match="connection to .* failed or was lost.*again"):
            publish(folder, tag="new")
        seen = stored(hub)
        assert seen == before or seen == contents(folder), cut
        hub.heal()
        # Again is another process; this one may still hold a connection that was about to be dropped.
        close_session()
        done = publish(folder, tag="new")
        assert stored(hub) == stored(hub, "new") == contents(folder), cut
        assert repository.refs["main"].sha == done.commit and len(repository.commits) == made + 1, cut
