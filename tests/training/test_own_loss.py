from functools import partial, partialmethod

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from sbce_hf.config import DataConfig, TrainingConfig
from sbce_hf.data import load_images
from sbce_hf.errors import UserError
from sbce_hf.labels.label_maps import MaskLabels
from sbce_hf.models.losses_phases import phase_losses
from sbce_hf.training.classifier import create_classifier, train_classifier
from sbce_hf.training.folder import read_metrics
from sbce_hf.training.own_loss import name_of

CONFIG = {
    "epochs": 3,
    "batch_size": 4,
    "image_size": 48,
    "lr": 1e-3,
    "period": 4,
    "weights_iterations": 2,
    "min_threshold_phases": 1,
    "num_workers": 0,
    "checkpoint_every": 2,
    "log_every": 1,
}


@pytest.fixture(scope="module")
def images():
    data = DataConfig(source="shapes", shapes_images=8, shapes_size=48, score_split="train")
    return load_images(data, "train")


def train(images, folder, kind="spatial", loss=None, fields=(), checkpointing=False, **changes):
    config = TrainingConfig(**{**CONFIG, **changes})
    model = create_classifier({"trunk": "test_resnet", "freeze_batch_norm": False, **dict(fields)}, images.class_names)
    if checkpointing:
        model.activation_checkpointing_enable()
    proportions, label_maps = np.where(images.label_matrix() > 0, 0.2, 0.0), MaskLabels(images)
    return train_classifier(
        model, images, config, kind, proportions, output_dir=folder, label_maps=label_maps, loss=loss
    )


def result(folder):
    lines = read_metrics(folder / "metrics.jsonl")
    return [line["loss"] for line in lines], (folder / "model" / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("bce", {}),
        ("spatial", {"checkpointing": True}),
        ("spatial", {"compile": True}),
        ("spatial", {"targets": "labels", "max_grad_norm": 1.0}),
        ("spatial", {"mixed_precision": "bf16", "gradient_accumulation_steps": 2}),
        ("spatial", {"fields": {"train_trunk": False, "kl_in_threshold_phase": True}}),
    ],
)
def test_the_models_own_losses_given_as_one_s_own_train_the_same_bits(tmp_path, images, monkeypatch, kind, options):
    # Without a compiler of C++.
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager"))
    train(images, tmp_path / "theirs", kind, **options)
    train(images, tmp_path / "ours", kind, phase_losses, **options)
    assert result(tmp_path / "ours") == result(tmp_path / "theirs")


def high_thresholds(*, thresholds, labels, target=0.9, **others):
    distance = (thresholds - target).abs()[labels > 0].mean()
    return {"loss": 10 * distance, "distance": distance}


def test_another_loss_trains_what_it_depends_on_and_logs_its_parts(tmp_path, images):
    start = create_classifier({"trunk": "test_resnet", "freeze_batch_norm": False}, images.class_names).state_dict()
    train(images, tmp_path, "bce", high_thresholds, epochs=10, lr=0.02)
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert lines[-1]["threshold"] > lines[0]["threshold"] + 0.1
    assert all(line["loss"] == pytest.approx(10 * line["distance"]) for line in lines)
    trained = load_file(tmp_path / "model" / "model.safetensors")
    assert torch.equal(trained["class_maps.weight"], start["class_maps.weight"])
    assert not torch.equal(trained["threshold_head.weight"], start["threshold_head.weight"])


class Counting:
    """The model's own loss, until it is interrupted."""

    def __init__(self, stop_at=None):
        self.calls, self.stop_at = 0, stop_at

    def __call__(self, **given):
        self.calls += 1
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        return phase_losses(**given)["loss"]


def test_interrupted_it_continues_with_the_same_bits(tmp_path, images):
    train(images, tmp_path / "whole", loss=Counting())
    # Tried once in each phase, then five iterations.
    with pytest.raises(KeyboardInterrupt):
        train(images, tmp_path / "parts", loss=Counting(stop_at=8))
    assert not (tmp_path / "parts" / "model").exists()
    with pytest.raises(ValueError, match=r"inputs.loss was '.*Counting' and is now None"):
        train(images, tmp_path / "parts")
    again = Counting()
    train(images, tmp_path / "parts", loss=again)
    assert again.calls == 2 + 2
    assert result(tmp_path / "parts") == result(tmp_path / "whole")


def test_a_stage_is_of_one_loss(tmp_path, images):
    own = partial(high_thresholds, target=0.8)
    fitted = train(images, tmp_path, "bce", own, epochs=1)
    assert train(images, tmp_path, "bce", partial(high_thresholds, target=0.8), epochs=1) == fitted
    for other in (None, high_thresholds, partial(high_thresholds, target=0.7), phase_losses):
        with pytest.raises(ValueError, match=r"inputs.loss was '.*high_thresholds\(target=0.8\)' and is now"):
            train(images, tmp_path, "bce", other, epochs=1)


def test_names_of_losses():
    assert name_of(phase_losses) == "sbce_hf.models.losses_phases.phase_losses"
    assert name_of(partial(partial(phase_losses, b=1), a="x")) == f"{name_of(phase_losses)}(a='x', b=1)"
    assert name_of(Counting()) == name_of(Counting(3)) == f"{__name__}.Counting"
    assert name_of(nn.MSELoss()) == "torch.nn.modules.loss.MSELoss"


class Learned(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, *, pixel_logits, **others):
        return self.weight * pixel_logits.mean()


def wrong_in_the_second_phase(*, phase, **given):
    return phase_losses(phase=phase, **given) if phase == "weights" else {"spatial_loss": given["thresholds"].mean()}


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda **given: None, "got 'loss' = None, expected a floating-point tensor without dimensions"),
        (lambda **given: 0.5, "got 'loss' = 0.5"),
        (
            lambda *, pixel_logits, **given: pixel_logits.mean(dim=0),
            r"of shape \(4, 8, 8\) and torch.float32",
        ),
        (lambda *, labels, **given: labels.long().sum(), "and torch.int64"),
        (lambda *, pixel_logits, **given: pixel_logits.detach().mean(), "a loss without a gradient"),
        (
            lambda *, pixel_logits, **given: {"loss": pixel_logits.mean(), "mean_p": pixel_logits.mean()},
            "got a part 'mean_p', expected another name than",
        ),
        (
            lambda *, pixel_logits, **given: {"loss": pixel_logits.mean(), "maps": pixel_logits},
            r"got 'maps' = a tensor of shape \(2, 4, 8, 8\)",
        ),
        (
            lambda output, batch: output.loss,
            "TypeError: .*; expected a function of pixel_logits, .* by name",
        ),
        (Learned(), "Learned: has parameters, expected none"),
        (
            wrong_in_the_second_phase,
            r"in phase 'threshold': got a mapping of \['spatial_loss'\]",
        ),
    ],
)
def test_what_gives_no_loss_is_refused_before_anything_is_trained(tmp_path, images, loss, message):
    with pytest.raises(UserError, match=message) as error:
        train(images, tmp_path, loss=loss)
    assert "\n" not in str(error.value) and name_of(loss) in str(error.value)
    assert not any(tmp_path.iterdir())
