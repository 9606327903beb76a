import json

import numpy as np
import pytest
import torch

from sbce_hf.config import BoundaryTrainingConfig, DataConfig
from sbce_hf.data import load_images
from sbce_hf.labels.label_maps import MaskLabels
from sbce_hf.models.modeling_irn import IrnModel
from sbce_hf.training.boundary import create_boundary_network, train_boundary

FIELDS = {"trunk": "test_resnet", "side_channels": 8, "radius": 4}
CONFIG = {"batch_size": 4, "crop_size": 64, "min_scale": 1.0, "max_scale": 1.0, "num_workers": 0, "lr": 0.2}


@pytest.fixture(scope="module")
def images():
    data = DataConfig(source="shapes", train_split="train", score_split="train", shapes_images=8, shapes_size=64)
    return load_images(data, "train")


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_it_learns_boundaries_and_leaves_the_trunk_alone(images, tmp_path):
    model = create_boundary_network(FIELDS, "random")
    trunk = {name: value.clone() for name, value in model.trunk.state_dict().items()}
    config = BoundaryTrainingConfig(**CONFIG, epochs=30, momentum=0.9, log_every=10)
    summary = train_boundary(model, images, MaskLabels(images), config, output_dir=tmp_path)
    course = losses(tmp_path)
    assert course[-1] < 0.85 * course[0]
    trained = IrnModel.from_pretrained(summary.model_dir)
    assert all(torch.equal(value, trunk[name]) for name, value in trained.trunk.state_dict().items())


def test_same_seed_same_network_also_after_a_kill(images, tmp_path, monkeypatch):
    config = BoundaryTrainingConfig(**CONFIG, epochs=2, checkpoint_every=2)

    def train(folder, seed=0):
        network = create_boundary_network(FIELDS, "random", seed)
        return train_boundary(network, images, MaskLabels(images), config, output_dir=folder, seed=seed).model_dir

    whole = (train(tmp_path / "whole") / "model.safetensors").read_bytes()
    calls = iter(range(100))
    forward = IrnModel.forward

    def killed(self, *args, **kwargs):
        if next(calls) == 3:
            raise KeyboardInterrupt
        return forward(self, *args, **kwargs)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(IrnModel, "forward", killed)
        train(tmp_path / "again")
    assert (train(tmp_path / "again") / "model.safetensors").read_bytes() == whole
    assert (train(tmp_path / "other", seed=1) / "model.safetensors").read_bytes() != whole


def test_other_seeds_do_not_continue_a_training(images, tmp_path):
    config = BoundaryTrainingConfig(**CONFIG, epochs=1)
    train_boundary(create_boundary_network(FIELDS, "random"), images, MaskLabels(images), config, output_dir=tmp_path)

    class Flipped(MaskLabels):
        def read(self, image_id):
            return np.ascontiguousarray(super().read(image_id)[::-1])

    network = create_boundary_network(FIELDS, "random")
    with pytest.raises(ValueError, match="seeds"):
        train_boundary(network, images, Flipped(images), config, output_dir=tmp_path)


def test_trunk_weights_are_loaded(shared_dir):
    weights = shared_dir / "weights" / "mobilenetv2_100_imagenet_fp16.safetensors"
    fields = {"trunk": "mobilenetv2_100", "trunk_kwargs": {"pad_type": "same"}}
    first, second = (create_boundary_network(fields, str(weights), seed) for seed in (0, 1))
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]) == name.startswith("trunk.") or value.numel() <= 32, name
    with pytest.raises(FileNotFoundError, match="no file"):
        create_boundary_network(fields, "absent.safetensors")
