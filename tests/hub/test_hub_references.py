"""Hub ids where a folder of this machine could stand."""

import datasets
import huggingface_hub
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from huggingface_hub import HfApi, constants
from PIL import Image
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from sbce_hf.cli import main
from sbce_hf.config import DataConfig, SegmenterConfig, load_recipe
from sbce_hf.data import load_images
from sbce_hf.demo.explain import load_checkpoint
from sbce_hf.labels.store import LabelStore
from sbce_hf.references import is_cached, local_checkpoint, require_answer
from sbce_hf.training.classifier import create_classifier
from sbce_hf.training.segmenter import create_segmenter


@pytest.fixture
def model(hub):
    """A model with two revisions."""
    api = HfApi()
    api.create_repo("user/model")
    for version in ("v1", "v2"):
        for name in ("config.json", "model.safetensors", "pytorch_model.bin"):
            api.upload_file(path_or_fileobj=version.encode(), path_in_repo=name, repo_id="user/model")
        api.create_tag("user/model", tag=version)
    return hub


def go_offline(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()


def test_revision_and_cache(model, monkeypatch):
    folder = local_checkpoint("user/model@v1")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"], "no pickle"
    assert (folder / "config.json").read_text() == "v1"
    assert (local_checkpoint("user/model") / "config.json").read_text() == "v2"
    assert is_cached("user/model@v1", "config.json") and not is_cached("user/model@v2", "config.json")
    go_offline(monkeypatch)
    assert local_checkpoint("user/model@v1") == folder
    assert (local_checkpoint("user/model") / "config.json").read_text() == "v2"
    with pytest.raises(FileNotFoundError, match="'user/model@v2'.*offline mode is on"):
        local_checkpoint("user/model@v2")


def test_errors(model, capsys, tmp_path):
    with pytest.raises(FileNotFoundError, match="'user/absent'.*nor a model on the Hub that you may see"):
        local_checkpoint("user/absent")
    with pytest.raises(FileNotFoundError, match="user/model has no revision 'v3'"):
        local_checkpoint("user/model@v3")
    model.repository("user/model").gated = "auto"
    model.login(None)
    with pytest.raises(PermissionError, match="'user/model@v1': access is restricted"):
        local_checkpoint("user/model@v1")
    model.login("hf_write")
    model.fail("/api/models/", status=503, times=None)
    with pytest.raises(OSError, match="(?s)'user/model'.*does not answer .*503"):
        local_checkpoint("user/model")
    model.heal()
    model.cut_at_request(1)
    with pytest.raises(OSError, match="'user/model@v2'"):
        local_checkpoint("user/model@v2")
    model.heal()
    photo = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(photo)
    assert main(["predict", str(photo), "--checkpoint", "user/absent", "--output-dir", str(tmp_path / "out")]) == 1
    assert "sbce: error: checkpoint 'user/absent': neither a folder nor a model" in capsys.readouterr().err


def test_data_set_with_revision(hub):
    features = Features(
        {"image_id": Value("string"), "image": datasets.Image(), "labels": List(ClassLabel(names=["ant"]))}
    )
    for version, side in (("v1", 6), ("v2", 9)):
        columns = {"image_id": ["a"], "image": [Image.new("RGB", (side, 5))], "labels": [[0]]}
        Dataset.from_dict(columns, features=features).push_to_hub("user/photos")
        HfApi().create_tag("user/photos", tag=version, repo_type="dataset")
    for name, side in (("user/photos@v1", 6), ("user/photos", 9)):
        images = load_images(DataConfig(source="hub", dataset=name), "train")
        assert images.image(0).size == (side, 5)
    with pytest.raises(ValueError, match="data.revision: got 'v2', but data.dataset 'user/photos@v1' names one"):
        load_images(DataConfig(source="hub", dataset="user/photos@v1", revision="v2"), "train")


def upload(model, folder, repo):
    """Two revisions of a model: `v1` is this one, the newest has other weights."""
    for version in ("v1", "v2"):
        model.save_pretrained(folder)
        HfApi().create_repo(repo, exist_ok=True)
        HfApi().upload_folder(repo_id=repo, folder_path=folder)
        HfApi().create_tag(repo, tag=version)
        with torch.no_grad():
            for weights in model.parameters():
                weights.mul_(0.5)


def test_commands_take_ids(hub, tiny_recipe, tmp_path, capsys):
    config = load_recipe(str(tiny_recipe))
    images = load_images(config.data, "train")
    local = tmp_path / "local"
    create_classifier(config.model, images.class_names, "random", seed=3).save_pretrained(local)
    upload(create_classifier(config.model, images.class_names, "random", seed=3), tmp_path / "up", "user/classifier")
    common = ["--recipe", str(tiny_recipe), "--set", "labelling.crf=null"]
    for name, checkpoint in (("a", str(local)), ("b", "user/classifier@v1")):
        assert main(["label", *common, "--checkpoint", checkpoint, "--output-dir", str(tmp_path / name)]) == 0
    ours, theirs = (LabelStore(tmp_path / name / config.labelling.rule) for name in "ab")
    assert ours.meta["key"] == theirs.meta["key"] and ours.meta["checkpoint"] == theirs.meta["checkpoint"]
    assert all((ours.read(image_id) == theirs.read(image_id)).all() for image_id in images.image_ids)

    assert main(["push", "labels", str(ours.directory), "user/labels"]) == 0
    capsys.readouterr()
    for labels in (str(ours.directory), "user/labels"):
        assert main(["evaluate", *common, "--labels", labels]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[: len(said) // 2] == said[len(said) // 2 :] and "mIoU" in said[-1]
    spatial = ["train-classifier", *common, "--kind", "spatial"]
    weights = []
    for name, checkpoint, labels in (
        ("c", str(local), str(ours.directory)),
        ("d", "user/classifier@v1", "user/labels"),
    ):
        folder = tmp_path / name
        options = ["--checkpoint", checkpoint, "--labels", labels, "--output-dir", str(folder)]
        assert main([*spatial, *options]) == 0
        weights.append((folder / "model" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    assert main([*spatial, "--labels", "user/absent", "--output-dir", str(tmp_path / "e")]) == 1
    assert "label maps 'user/absent': neither a folder nor a dataset" in capsys.readouterr().err


def test_segmenter_from_a_revision(hub, tmp_path):
    tiny = SegformerConfig(
        num_encoder_blocks=1,
        depths=[1],
        sr_ratios=[2],
        hidden_sizes=[8],
        patch_sizes=[7],
        strides=[4],
        num_attention_heads=[1],
        mlp_ratios=[2],
        decoder_hidden_size=8,
    )
    model = SegformerForSemanticSegmentation(tiny)
    # The decoder ends in the checkpoint's own classes, which give way.
    expected = {name: weights.clone() for name, weights in model.state_dict().items() if name.startswith("segformer.")}
    assert expected
    upload(model, tmp_path, "user/segformer")
    for name, equal in (("user/segformer@v1", True), ("user/segformer", False)):
        config = SegmenterConfig(architecture="segformer", checkpoint=name)
        found = create_segmenter(config, ("ant",)).state_dict()
        assert all(torch.equal(found[key], weights) for key, weights in expected.items()) is equal, name
    with pytest.raises(FileNotFoundError, match="user/segformer has no revision .v9."):
        create_segmenter(SegmenterConfig(architecture="segformer", checkpoint="user/segformer@v9"), ("ant",))


def test_demo_takes_an_id(hub, tiny_recipe, tmp_path):
    config = load_recipe(str(tiny_recipe))
    upload(create_classifier(config.model, ("ant", "bee"), "random", seed=3), tmp_path, "user/classifier")
    assert load_checkpoint("user/classifier@v1").names == ("background", "ant", "bee")


def test_weights_that_cannot_be_downloaded_are_asked_for_once(hub):
    hub.cut_at_request(1)
    before = len(hub.requests)
    with pytest.raises(FileNotFoundError, match="test_resnet.r160_in1k is not in the cache, .*--trunk-weights FILE"):
        create_classifier({"trunk": "test_resnet"}, ("ant",), "pretrained")
    assert len(hub.requests) - before <= 1
    hub.heal()
    # The stand-in answers that it has no such repository: for the download to tell.
    require_answer("weights", "user/absent", "wait")
