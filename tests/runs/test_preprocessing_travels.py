"""What a trunk's weights are to be fed with goes with them through a whole run."""

import logging
import shutil

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from sbce_hf.config import load_recipe
from sbce_hf.data.preprocessing import IMAGENET, Preprocessing, read_preprocessing
from sbce_hf.inference.checkpoints import read_classifier
from sbce_hf.models.modeling_irn import IrnModel
from sbce_hf.runs.run import run
from sbce_hf.training.classifier import create_classifier

LAST = {"epochs": 1, "batch_size": 4, "crop_size": 48, "num_workers": 0}
# timm's own, of "test_resnet" and many others.
HALF = Preprocessing((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "test_resnet.safetensors"
    save_file(timm.create_model("test_resnet").state_dict(), path)
    return str(path)


@pytest.fixture(scope="module")
def finished(weights, tiny_recipe, tmp_path_factory):
    """A run, and how photos were prepared in it."""
    run_dir, seen = tmp_path_factory.mktemp("run") / "run", []
    irn = {"model": {"side_channels": 8, "radius": 4}, "training": LAST}
    segmenter = {"model": {"head": "largefov", "atrous_rates": [2], "head_channels": 16}, "training": LAST}
    segmenter |= {"score_split": "train"}
    changes = {"rounds": 1, "trunk_weights": weights, "irn": irn, "segmenter": segmenter}
    prepare = Preprocessing.__call__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Preprocessing, "__call__", lambda self, pixels: seen.append(self) or prepare(self, pixels))
        # The forecast of the minutes times noise and photos that no stage ever sees.
        patch.setattr("sbce_hf.runs.run.stage_seconds", lambda *_, **__: {})
        run(load_recipe(str(tiny_recipe), changes), run_dir, "sbce run --recipe tiny.yaml")
    return run_dir, seen


def test_every_stage_prepares_photos_alike(finished):
    run_dir, seen = finished
    assert len(seen) > 100 and set(seen) == {HALF}
    for stage in ("bce", "round_1", "segmenter/adaptive"):
        assert read_preprocessing(run_dir / stage / "model") == HALF
    assert Preprocessing.of(IrnModel.from_pretrained(run_dir / "irn" / "model").config) == HALF


def test_a_checkpoint_is_fed_as_its_image_processor_says(finished, tmp_path, caplog):
    folder = shutil.copytree(finished[0] / "bce" / "model", tmp_path / "model")
    assert Preprocessing.of(read_classifier(folder).config) == HALF
    other = Preprocessing((0.1, 0.2, 0.3), HALF.std, "bicubic")
    from sbce_hf.models.image_processing_spatial_bce import SpatialBceImageProcessor

    SpatialBceImageProcessor(**other.processor_fields()).save_pretrained(folder)
    assert Preprocessing.of(read_classifier(folder).config) == other
    # Without one, what its config says.
    (folder / "preprocessor_config.json").unlink()
    with caplog.at_level(logging.WARNING):
        assert Preprocessing.of(read_classifier(folder).config) == HALF
    assert not caplog.records


def test_a_checkpoint_that_says_nothing_is_fed_as_for_imagenet(tmp_path, caplog):
    create_classifier({"trunk": "test_resnet"}, ("cat",)).save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert Preprocessing.of(read_classifier(tmp_path).config) == IMAGENET
    assert "has no preprocessor_config.json; photos are normalised as for ImageNet" in caplog.text


def test_random_weights_want_nothing(weights):
    assert Preprocessing.of(create_classifier({"trunk": "test_resnet"}, ("cat",)).config) == IMAGENET
    assert Preprocessing.of(create_classifier({"trunk": "test_resnet"}, ("cat",), weights).config) == HALF


def test_what_a_recipe_says_wins(weights):
    fields = {"trunk": "test_resnet", "image_mean": [0.4, 0.4, 0.4], "interpolation": "lanczos"}
    found = Preprocessing.of(create_classifier(fields, ("cat",), weights).config)
    assert found == Preprocessing((0.4, 0.4, 0.4), HALF.std, "lanczos")


def test_mobilenet_stays_as_it_was(shared_dir):
    path = str(shared_dir / "weights" / "mobilenetv2_100_imagenet_fp16.safetensors")
    fields = {"trunk": "mobilenetv2_100", "trunk_kwargs": {"pad_type": "same"}}
    config = create_classifier(fields, ("cat",), path).config
    assert (config.image_mean, config.image_std, config.interpolation) == (None, None, None)


def test_efficientnet_lite_gets_its_own(shared_dir):
    path = str(shared_dir / "weights" / "tf_efficientnet_lite2_imagenet_fp16.safetensors")
    model = create_classifier({"trunk": "tf_efficientnet_lite2"}, ("cat",), path).eval()
    own = Preprocessing.of(model.config)
    assert own == Preprocessing((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic")
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, 64, 64), np.uint8))
    with torch.no_grad():
        right, wrong = (model.spatial_bce(prepare(pixels)).last_hidden_state for prepare in (own, IMAGENET))
    assert (right - wrong).norm() > 0.1 * right.norm()
