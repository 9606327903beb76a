import pytest
from huggingface_hub import constants

from sbce_hf.labels.hub_store import open_label_maps
from sbce_hf.labels.store import LabelStore
from sbce_hf.references import is_cached, local_checkpoint, split_revision


def test_split_revision(tmp_path, monkeypatch):
    assert split_revision("user/model") == ("user/model", None)
    assert split_revision("user/model@v1.0") == ("user/model", "v1.0")
    assert split_revision("user/model@refs/pr/1") == ("user/model", "refs/pr/1")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a@b").mkdir()
    assert split_revision("a@b") == ("a@b", None)


def test_a_folder_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "user" / "model@v1").mkdir(parents=True)
    assert local_checkpoint("user/model@v1").samefile(tmp_path / "user" / "model@v1")
    store = LabelStore.create("user/labels", ("ant",), key="k", num_images=1)
    assert isinstance(open_label_maps("user/labels"), LabelStore)
    assert open_label_maps(store.directory, ("ant",)).class_names == ("ant",)


def test_what_is_neither(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(NotADirectoryError, match="is a file, expected a model folder"):
        local_checkpoint(tmp_path / "model.safetensors")
    for name in (tmp_path / "absent", "runs/a/bce/model", "-x", "user/na me"):
        with pytest.raises(FileNotFoundError, match="neither a folder nor the id of a model"):
            local_checkpoint(name)
    for name in (tmp_path / "absent", "runs/a/labels/paper", "labels"):
        with pytest.raises(FileNotFoundError, match="no label store in .*meta.json is missing"):
            open_label_maps(name)


def test_offline(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for read in (local_checkpoint, open_label_maps):
        with pytest.raises(FileNotFoundError, match=r"'user/name@v1'.*not in the cache.*offline mode is on"):
            read("user/name@v1")
    assert not is_cached("user/name@v1", "config.json")
