"""The stand-in Hub as the real client libraries see it; `stand_in.py` says what it is."""

import filecmp
import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import _http
from stand_in import READ_TOKEN, STRANGER_TOKEN, WRITE_TOKEN

LOST = _http._DEFAULT_RETRY_ON_EXCEPTIONS
REMOTE_CODE = """
import torch
from transformers import PreTrainedConfig, PreTrainedModel

class TinyConfig(PreTrainedConfig):
    model_type = "stand_in_tiny"
    size: int = 3

class TinyModel(PreTrainedModel):
    config_class = TinyConfig
    def __init__(self, config):
        super().__init__(config)
        self.layer = torch.nn.Linear(config.size, 64)
        self.post_init()
    def forward(self, x):
        return self.layer(x) * {factor}
"""


def settings():
    """Everything the fixture may have changed in this process."""
    environment = {name: value for name, value in os.environ.items() if "HF" in name or "PROXY" in name.upper()}
    kept = [dict(vars(module)) for module in (constants, datasets.config)]
    return environment, list(sys.path), kept


@pytest.fixture(scope="module", autouse=True)
def before():
    """Settings before the first test of this file."""
    return settings()


@pytest.fixture
def folder(tmp_path):
    """Regular files, one of them in a folder, and two LFS objects."""
    root = tmp_path / "folder"
    (root / "sub").mkdir(parents=True)
    (root / "README.md").write_text("---\nlicense: mit\ntags: [a]\nlibrary_name: sbce_hf\n---\n# A model ü\n")
    (root / "sub" / "config.json").write_text("{}")
    (root / "empty.txt").touch()
    random = np.random.default_rng(0)
    (root / "model.safetensors").write_bytes(random.bytes(150_000))
    (root / "sub" / "data.parquet").write_bytes(random.bytes(70_000))
    return root


def contents(root):
    files = (path for path in root.rglob("*") if path.is_file() and ".cache" not in path.parts)
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def stored(hub, name="user/model", kind="model", revision="main"):
    """Files of a repository without those it was created with."""
    files = hub.repository(name, kind).files(revision)
    files.pop(".gitattributes")
    return files


def add(path, content):
    return CommitOperationAdd(path, content if isinstance(content, bytes) else content.encode())


def test_folder_comes_back_identical(hub, folder, tmp_path):
    api = HfApi()
    url = api.create_repo("user/model")
    assert (url.repo_id, url.repo_type, url.endpoint) == ("user/model", "model", hub.url)
    commit = api.upload_folder(repo_id="user/model", folder_path=folder, commit_message="first")
    assert stored(hub) == contents(folder)
    snapshot = Path(snapshot_download("user/model"))
    assert snapshot.name == commit.oid
    local = Path(snapshot_download("user/model", revision=commit.oid[:7], local_dir=tmp_path / "local"))
    for name in contents(folder):
        assert filecmp.cmp(folder / name, snapshot / name, shallow=False)
        assert filecmp.cmp(folder / name, local / name, shallow=False)

    info = api.model_info("user/model", files_metadata=True)
    sizes = {file.rfilename: file.size for file in info.siblings if file.rfilename != ".gitattributes"}
    assert sizes == {name: len(content) for name, content in contents(folder).items()}
    assert (info.sha, info.private, info.library_name) == (commit.oid, False, "sbce_hf")
    assert (info.card_data.license, info.tags) == ("mit", ["a"])
    assert [one.title for one in api.list_repo_commits("user/model")] == ["first", "initial commit"]
    tree = {entry.path: entry for entry in api.list_repo_tree("user/model", recursive=True, expand=True)}
    assert set(tree) == {*contents(folder), ".gitattributes", "sub"}
    assert {path for path, entry in tree.items() if getattr(entry, "lfs", None)} == {
        "model.safetensors",
        "sub/data.parquet",
    }
    assert tree["sub/config.json"].last_commit.oid == commit.oid != tree[".gitattributes"].last_commit.oid
    assert [entry.path for entry in api.get_paths_info("user/model", ["sub", "no"])] == ["sub"]


def test_second_upload_sends_changes_only(hub, folder):
    api = HfApi()
    api.create_repo("user/model")
    first = api.upload_folder(repo_id="user/model", folder_path=folder)
    same = api.upload_folder(repo_id="user/model", folder_path=folder)
    assert same.oid == first.oid and hub.count("/commit/") == 1 and hub.count("^/lfs/", "PUT") == 2
    (folder / "empty.txt").unlink()
    (folder / "sub" / "config.json").write_text('{"a": 1}')
    api.upload_folder(repo_id="user/model", folder_path=folder, delete_patterns="*", parent_commit=first.oid)
    assert stored(hub) == contents(folder)
    assert hub.count("^/lfs/", "PUT") == 2
    assert set(hub.repository("user/model").files(first.oid)) - set(contents(folder)) == {
        ".gitattributes",
        "empty.txt",
    }


def test_branches_tags_and_commits_are_revisions(hub):
    api = HfApi()
    api.create_repo("user/model")
    old = api.create_commit("user/model", [add("a/x.txt", "old")], commit_message="old")
    api.create_tag("user/model", tag="v1")
    api.create_branch("user/model", branch="feature/new")
    api.create_commit("user/model", [add("a/x.txt", "new")], commit_message="new", revision="feature/new")
    texts = [
        Path(hf_hub_download("user/model", "a/x.txt", revision=revision)).read_text()
        for revision in (None, "v1", "feature/new", old.oid)
    ]
    assert texts == ["old", "old", "new", "old"]
    refs = api.list_repo_refs("user/model")
    assert {branch.name for branch in refs.branches} == {"main", "feature/new"}
    assert [(tag.name, tag.target_commit) for tag in refs.tags] == [("v1", old.oid)]
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_tag("user/model", tag="v1")
    api.create_branch("user/model", branch="feature/new", exist_ok=True)
    with pytest.raises(RevisionNotFoundError):
        api.create_commit("user/model", [add("b", "b")], commit_message="to a tag", revision="v1")
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download("user/model", "a/x.txt", revision="nowhere")
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("user/model", "a/y.txt")
    api.delete_tag("user/model", tag="v1")
    api.delete_branch("user/model", branch="feature/new")
    refs = api.list_repo_refs("user/model")
    assert [branch.name for branch in refs.branches] == ["main"] and not refs.tags


def test_deletions_are_part_of_a_commit(hub):
    api = HfApi()
    api.create_repo("user/model")
    api.create_commit("user/model", [add("a/x", "x"), add("a/y", "y"), add("z", "z")], commit_message="add")
    operations = [CommitOperationDelete("a/"), CommitOperationDelete("z"), add("w", "w")]
    api.create_commit("user/model", operations, commit_message="replace")
    assert stored(hub) == {"w": b"w"}
    with pytest.raises(EntryNotFoundError):
        api.create_commit("user/model", [CommitOperationDelete("z"), add("v", "v")], commit_message="again")
    assert stored(hub) == {"w": b"w"}


def test_pull_request(hub):
    api = HfApi()
    api.create_repo("user/model")
    api.create_commit("user/model", [add("a", "1"), add("b", "1")], commit_message="start")
    opened = api.create_commit("user/model", [add("a", "2")], commit_message="change", create_pr=True)
    assert opened.pr_revision == "refs/pr/1" and opened.pr_url == f"{hub.url}/user/model/discussions/1"
    api.create_commit("user/model", [CommitOperationDelete("b")], commit_message="more", revision="refs/pr/1")
    api.create_commit("user/model", [add("c", "3")], commit_message="meanwhile")
    assert stored(hub, revision="refs/pr/1") == {"a": b"2"}
    assert Path(hf_hub_download("user/model", "a", revision="refs/pr/1")).read_text() == "2"
    assert stored(hub) == {"a": b"1", "b": b"1", "c": b"3"}
    assert [pull.title for pull in api.get_repo_discussions("user/model")] == ["change"]
    api.merge_pull_request("user/model", 1)
    assert stored(hub) == {"a": b"2", "c": b"3"}


def test_conflicts(hub):
    api = HfApi()
    api.create_repo("user/model")
    start = api.model_info("user/model").sha
    api.create_commit("user/model", [add("a", "1")], commit_message="one", parent_commit=start)
    with pytest.raises(HfHubHTTPError, match="412") as caught:
        api.create_commit("user/model", [add("a", "2")], commit_message="two", parent_commit=start)
    assert caught.value.response.status_code == 412 and stored(hub) == {"a": b"1"}
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo("user/model")
    assert api.create_repo("user/model", exist_ok=True).repo_id == "user/model" and stored(hub) == {"a": b"1"}
    with pytest.raises(ValueError, match="Invalid metadata"):
        api.create_commit("user/model", [add("README.md", "---\ntags: [\n---\n")], commit_message="bad card")
    api.delete_repo("user/model")
    with pytest.raises(RepositoryNotFoundError):
        api.delete_repo("user/model")


@pytest.mark.parametrize(
    "token, status",
    [(WRITE_TOKEN, None), (READ_TOKEN, 403), (STRANGER_TOKEN, 403), ("hf_unknown", 401), (False, 401)],
    ids=["write", "read", "stranger", "invalid", "none"],
)
def test_who_may_write(hub, token, status):
    HfApi().create_repo("user/model")
    api = HfApi(token=token)
    calls = [
        lambda: api.create_repo("user/other"),
        lambda: api.create_commit("user/model", [add("a", "1")], commit_message="mine"),
        lambda: api.delete_repo("user/model"),
    ]
    for call in calls:
        if status is None:
            call()
        else:
            with pytest.raises(HfHubHTTPError) as caught:
                call()
            assert caught.value.response.status_code == status
    assert set(hub.repositories) == ({("model", "user/other")} if status is None else {("model", "user/model")})


def test_who_may_read(hub):
    api = HfApi()
    api.create_repo("lab/hidden", private=True)
    api.upload_file(path_or_fileobj=b"1", path_in_repo="a", repo_id="lab/hidden")
    assert api.model_info("lab/hidden", token=READ_TOKEN).private
    for token in (STRANGER_TOKEN, False):
        with pytest.raises(RepositoryNotFoundError):
            api.model_info("lab/hidden", token=token)
        with pytest.raises(RepositoryNotFoundError):
            hf_hub_download("lab/hidden", "a", token=token)
    api.update_repo_settings("lab/hidden", private=False, gated="auto")
    hub.login(STRANGER_TOKEN)
    assert api.whoami()["name"] == "stranger" and api.model_info("lab/hidden").gated == "auto"
    with pytest.raises(GatedRepoError):
        hf_hub_download("lab/hidden", "a")
    hub.login(None)
    with pytest.raises(GatedRepoError):
        hf_hub_download("lab/hidden", "a")
    hub.login(READ_TOKEN)
    hf_hub_download("lab/hidden", "a")
    del hub.tokens[READ_TOKEN]
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        api.whoami()


def test_space(hub, folder):
    api = HfApi()
    url = api.create_repo("user/demo", repo_type="space", space_sdk="gradio")
    assert url.repo_type == "space" and b"sdk: gradio" in stored(hub, "user/demo", "space")["README.md"]
    api.upload_folder(repo_id="user/demo", repo_type="space", folder_path=folder)
    assert stored(hub, "user/demo", "space") == contents(folder)
    assert contents(Path(snapshot_download("user/demo", repo_type="space"))).items() >= contents(folder).items()
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("user/demo")


def test_model_with_its_code(hub, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    namespace = {"__name__": "stand_in_tiny"}
    exec(REMOTE_CODE.format(factor=1), namespace)
    model = namespace["TinyModel"](namespace["TinyConfig"](auto_map={"AutoModel": "modeling_tiny.TinyModel"}))
    model.config.auto_map["AutoConfig"] = "modeling_tiny.TinyConfig"
    model.push_to_hub("user/tiny", commit_message="weights")
    api, inputs = HfApi(), torch.ones(1, 3)
    for factor in (1, 2):
        code = add("modeling_tiny.py", REMOTE_CODE.format(factor=factor))
        api.create_commit("user/tiny", [code], commit_message=f"code {factor}")
        api.create_tag("user/tiny", tag=f"v{factor}")
    for factor, revision in ((1, "v1"), (2, "main"), (1, "v1")):
        loaded = transformers.AutoModel.from_pretrained("user/tiny", trust_remote_code=True, revision=revision)
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
        assert torch.equal(loaded(inputs), model(inputs) * factor)


def test_dataset(hub):
    features = datasets.Features({"id": datasets.Value("string"), "image": datasets.Image()})
    masks = [np.full((5, 4), index, np.uint8) for index in range(6)]
    rows = {"id": [str(index) for index in range(6)], "image": masks}
    dataset = datasets.Dataset.from_dict(rows, features=features)
    first = dataset.push_to_hub("user/labels", "round1", split="train", num_shards=2)
    dataset.select(range(2)).push_to_hub("user/labels", "round2", split="train")
    files = set(stored(hub, "user/labels", "dataset"))
    assert files == {"README.md", "round2/train-00000-of-00001.parquet"} | {
        f"round1/train-{shard:05d}-of-00002.parquet" for shard in range(2)
    }
    assert datasets.get_dataset_config_names("user/labels") == ["round1", "round2"]
    loaded = datasets.load_dataset("user/labels", "round1", split="train")
    streamed = datasets.load_dataset("user/labels", "round1", split="train", streaming=True)
    assert loaded.features == streamed.features == features
    for rows in (list(loaded), list(streamed)):
        assert all(np.array_equal(np.asarray(row["image"]), mask) for row, mask in zip(rows, masks, strict=True))
    assert len(datasets.load_dataset("user/labels", "round2", split="train")) == 2
    with pytest.raises(ValueError, match="round2"):
        datasets.load_dataset("user/labels", "round2", split="train", revision=first.oid)


def test_dataset_in_pull_request(hub):
    HfApi().create_repo("user/labels", repo_type="dataset")
    dataset = datasets.Dataset.from_dict({"a": [1, 2]})
    commit = dataset.push_to_hub("user/labels", create_pr=True)
    assert not stored(hub, "user/labels", "dataset")
    assert datasets.load_dataset("user/labels", split="train", revision=commit.pr_revision)["a"][:] == [1, 2]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_error_that_passes(hub, folder, status):
    api = HfApi()
    api.create_repo("user/model")
    hub.fail("^/lfs/", status=status, times=3)
    api.upload_folder(repo_id="user/model", folder_path=folder)
    assert stored(hub) == contents(folder)
    assert [one.status for one in hub.requests if one.matches("^/lfs/")].count(status) == 3


def test_error_that_stays(hub, folder):
    api = HfApi()
    api.create_repo("user/model")
    hub.fail("/commit/", status=503, times=None)
    hub.fail("/preupload/", at=2, status=500, times=None)
    with pytest.raises(HfHubHTTPError, match="503"):
        api.upload_folder(repo_id="user/model", folder_path=folder)
    with pytest.raises(HfHubHTTPError, match="500"):
        api.upload_folder(repo_id="user/model", folder_path=folder)
    assert hub.count("/preupload/") == 1 + 6 and not stored(hub)


def test_delay(hub):
    HfApi().create_repo("user/model")
    HfApi().upload_file(path_or_fileobj=b"1", path_in_repo="a", repo_id="user/model")
    hub.fail("/resolve/", method="HEAD", delay=0.5)
    # The client gives up on the first request, and asks again with more patience.
    assert Path(hf_hub_download("user/model", "a", etag_timeout=0.1)).read_text() == "1"
    assert hub.count("/resolve/", "HEAD") == 2


def upload(api, folder):
    """One commit of a folder with fresh operations, as every attempt needs."""
    operations = [CommitOperationAdd(name, folder / name) for name in sorted(contents(folder))]
    return api.create_commit("user/model", operations, commit_message="upload", num_threads=1)


@pytest.fixture
def complete(hub, folder):
    """Bytes of request bodies and number of requests of one upload to a repository that exists."""
    HfApi().create_repo("user/model")
    received, requests = hub.received, len(hub.requests)
    upload(HfApi(), folder)
    return hub.received - received, len(hub.requests) - requests


def start_again(hub):
    hub.repositories.clear()
    HfApi().create_repo("user/model")


def test_upload_cut_at_any_byte(hub, folder, complete):
    total = complete[0]
    assert total > 220_000
    for cut in (0, 1, 2000, 50_000, 160_000, total - 100, total - 1):
        start_again(hub)
        received = hub.received
        hub.cut_after(cut)
        # The large files are sent by threads of the client, which wrap what happened to them.
        with pytest.raises((*LOST, RuntimeError)) as caught:
            upload(HfApi(), folder)
        assert isinstance(caught.value, LOST) or isinstance(caught.value.__cause__, LOST)
        assert hub.received - received == cut and not stored(hub)
        hub.heal()
        upload(HfApi(), folder)
        assert stored(hub) == contents(folder)


@pytest.mark.parametrize("answered", [False, True])
def test_upload_cut_at_any_request(hub, folder, complete, answered):
    for number in range(1, complete[1] + 1):
        start_again(hub)
        hub.cut_at_request(number, answered=answered)
        with pytest.raises((*LOST, RuntimeError)):
            upload(HfApi(), folder)
        last = number == complete[1]
        assert stored(hub) == (contents(folder) if answered and last else {})
        hub.heal()
        upload(HfApi(), folder)
        assert stored(hub) == contents(folder) and len(hub.repository("user/model").commits) == 2


def test_lost_connection_is_retried(hub, folder):
    HfApi().create_repo("user/model")
    hub.fail("^/lfs/", cut="request", after=100_000)
    hub.fail("^/lfs/", cut="response", at=2)
    upload(HfApi(), folder)
    assert stored(hub) == contents(folder)
    assert [one.status for one in hub.requests if one.matches("^/lfs/")].count(None) == 2


def test_download_goes_on_where_it_was_cut(hub, folder, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 4096)
    HfApi().create_repo("user/model")
    upload(HfApi(), folder)
    content = (folder / "model.safetensors").read_bytes()
    hub.fail("/resolve/", method="GET", cut="response", after=100_000)
    assert Path(hf_hub_download("user/model", "model.safetensors")).read_bytes() == content
    gets = [one for one in hub.requests if one.matches("/resolve/", "GET")]
    assert [one.status for one in gets] == [None, 206]
    assert gets[1].sent < len(content) and gets[1].headers["range"] == f"bytes={len(content) - gets[1].sent}-"
    hub.cut_after(10_000, of="response")
    with pytest.raises((*LOST, LocalEntryNotFoundError)):
        hf_hub_download("user/model", "model.safetensors", force_download=True)
    hub.heal()
    assert Path(hf_hub_download("user/model", "model.safetensors", force_download=True)).read_bytes() == content


def test_subprocess(hub, hub_environment, folder):
    HfApi().create_repo("user/model", private=True)
    upload(HfApi(), folder)
    code = "from huggingface_hub import snapshot_download as s; print(s('user/model'))"
    path = subprocess.check_output([sys.executable, "-c", code], env=hub_environment, text=True).strip()
    assert contents(Path(path)).items() >= contents(folder).items()
    assert Path(path).is_relative_to(constants.HF_HOME)


def test_nothing_stays_behind(before):
    assert settings() == before
    assert constants.is_offline_mode()
    with pytest.raises(OfflineModeIsEnabled):
        HfApi().model_info("user/model")
