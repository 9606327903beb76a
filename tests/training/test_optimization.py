from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import (
    ResNetConfig,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from sbce_hf.config import SegmenterConfig, SegmenterTrainingConfig, TrainingConfig, deciding, from_mapping, to_mapping
from sbce_hf.errors import UserError
from sbce_hf.models.configuration_deeplab import DeepLabConfig
from sbce_hf.models.configuration_spatial_bce import SpatialBceConfig
from sbce_hf.models.modeling_deeplab import DeepLabForSemanticSegmentation
from sbce_hf.models.modeling_spatial_bce import SpatialBceForImageClassification
from sbce_hf.training.optimization import (
    alternation,
    parameter_groups,
    phase_for,
    poly_factor,
    segmenter_parameter_groups,
)

CONFIG = TrainingConfig(lr=0.01, head_lr_factor=5.0, scale_lr_factor=3.0, weight_decay=0.1)


@pytest.fixture
def model():
    return SpatialBceForImageClassification(SpatialBceConfig(trunk="test_resnet", num_labels=3, class_map_bias=True))


def test_groups_hold_every_trainable_parameter_once_with_its_rate(model):
    groups = {group["name"]: group for group in parameter_groups(model, CONFIG)}
    assert {name: (group["lr"], group["weight_decay"]) for name, group in groups.items()} == {
        "trunk": (0.01, 0.1),
        "heads": (pytest.approx(0.05), 0.1),
        "logit_scale": (pytest.approx(0.03), 0.0),
    }
    members = [id(parameter) for group in groups.values() for parameter in group["params"]]
    assert len(members) == len(set(members))
    assert set(members) == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    heads = [model.embedding.weight, model.class_maps.weight, model.class_maps.bias, model.threshold_head.weight]
    assert [id(parameter) for parameter in groups["heads"]["params"]] == [id(parameter) for parameter in heads]
    assert groups["logit_scale"]["params"] == [model.logit_scale]


def test_frozen_kinds_have_no_group(model):
    model.base_model.requires_grad_(False)
    assert [group["name"] for group in parameter_groups(model, CONFIG)] == ["heads", "logit_scale"]
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="every parameter is frozen"):
        parameter_groups(model, CONFIG)


def test_frozen_parameters_survive_weight_decay(model):
    before = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.SGD(parameter_groups(model, CONFIG), lr=1.0)
    model(torch.randn(2, 3, 32, 32), labels=torch.ones(2, 3), phase="bce").loss.backward()
    optimizer.step()
    assert before
    assert all(torch.equal(model.get_parameter(name), value) for name, value in before.items())


def test_what_a_recipe_leaves_open_goes_with_the_optimizer():
    sgd, adamw = (SegmenterTrainingConfig().filled(name) for name in ("sgd", "adamw"))
    assert (sgd.lr, sgd.weight_decay, sgd.head_bias_lr_factor) == (2.5e-4, 5e-4, 20)
    assert (adamw.lr, adamw.weight_decay, adamw.head_bias_lr_factor, adamw.head_lr_factor) == (6e-5, 0.01, 10, 10)
    assert (sgd.optimizer, adamw.optimizer) == ("sgd", "adamw")
    given = SegmenterTrainingConfig(optimizer="adamw", lr=0.1, weight_decay=0.0)
    assert given.filled("sgd") == replace(given, head_bias_lr_factor=10.0)
    assert (sgd.optimizer_states, adamw.optimizer_states, replace(sgd, momentum=0.0).optimizer_states) == (1, 2, 0)


def test_the_architecture_decides_the_optimizer():
    deeplab = from_mapping(SegmenterConfig, {})
    assert deeplab.training == SegmenterTrainingConfig().filled("sgd")
    section = {"architecture": "segformer", "from_config": "config.json"}
    segformer = from_mapping(SegmenterConfig, section)
    assert segformer.training == SegmenterTrainingConfig().filled("adamw")
    assert from_mapping(SegmenterConfig, to_mapping(segformer)) == segformer
    # What was trained before there was a choice is taken up: its settings are the same.
    assert "optimizer" not in deciding(deeplab)["training"]
    old = from_mapping(SegmenterConfig, section | {"training": {"optimizer": "sgd"}})
    assert "optimizer" not in deciding(old)["training"] and deciding(segformer)["training"]["optimizer"] == "adamw"


SEGMENTER = SegmenterTrainingConfig(
    lr=0.01, head_lr_factor=10.0, head_bias_lr_factor=20.0, weight_decay=0.1, bias_weight_decay=0.03
)


def deeplab(**fields):
    return DeepLabForSemanticSegmentation(
        DeepLabConfig(trunk="test_resnet", num_labels=3, freeze_batch_norm=False, **fields)
    ), "deeplab."


def segformer():
    config = SegformerConfig(
        depths=[1] * 4, hidden_sizes=[8] * 4, num_attention_heads=[1] * 4, decoder_hidden_size=8, num_labels=3
    )
    return SegformerForSemanticSegmentation(config), "segformer."


def upernet():
    stages = [f"stage{level}" for level in range(1, 5)]
    backbone = ResNetConfig(embedding_size=8, hidden_sizes=[8] * 4, depths=[1] * 4, out_features=stages)
    config = UperNetConfig(backbone_config=backbone, hidden_size=8, auxiliary_in_channels=8, num_labels=3)
    return UperNetForSemanticSegmentation(config), "backbone."


@pytest.mark.parametrize("build", [deeplab, segformer, upernet])
def test_segmenter_groups_hold_every_parameter_once_with_its_rate_and_decay(build):
    model, trunk = build()
    groups = {group["name"]: group for group in segmenter_parameter_groups(model, SEGMENTER)}
    assert {name: (group["lr"], group["weight_decay"]) for name, group in groups.items()} == {
        "trunk weights": (0.01, 0.1),
        "trunk biases": (0.01, 0.03),
        "head weights": (pytest.approx(0.1), 0.1),
        "head biases": (pytest.approx(0.2), 0.03),
    }
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    members = {kind: [names[id(parameter)] for parameter in group["params"]] for kind, group in groups.items()}
    assert sorted(sum(members.values(), [])) == sorted(names.values())
    for kind, found in members.items():
        assert all(name.startswith(trunk) == kind.startswith("trunk") for name in found)
        assert all(name.endswith(".bias") == kind.endswith("biases") for name in found)


def test_segmenter_without_a_head_or_with_a_frozen_one_is_an_error():
    model, _ = deeplab()
    with pytest.raises(ValueError, match="DeepLabModel: has no trainable weights besides its trunk's"):
        segmenter_parameter_groups(model.deeplab, SEGMENTER)
    model.deeplab.requires_grad_(False)
    assert [group["name"] for group in segmenter_parameter_groups(model, SEGMENTER)] == ["head weights", "head biases"]
    model.head.requires_grad_(False)
    with pytest.raises(ValueError, match="expected a segmentation network with a head"):
        segmenter_parameter_groups(model, SEGMENTER)


def test_poly_factor_falls_from_one_to_zero():
    factors = [poly_factor(i, 50, 0.9) for i in range(51)]
    assert factors[0] == 1 and factors[-1] == 0
    assert all(a > b for a, b in zip(factors, factors[1:], strict=False))
    assert factors[25] == pytest.approx(0.5**0.9)
    assert {poly_factor(i, 50, 0.0) for i in range(50)} == {1.0}


def test_alternation_equals_the_released_program(golden_dir):
    with np.load(golden_dir / "phase.npz", allow_pickle=False) as golden:  # noqa: TID251 - no pickles
        iterations, weights_phase = golden["iter"], golden["weights_phase"]
    assert [phase_for(int(i), 100, 80) == "weights" for i in iterations] == weights_phase.tolist()


@pytest.mark.parametrize("weights_iterations, phases", [(0, {"threshold"}), (10, {"weights"})])
def test_alternation_can_be_all_of_one_phase(weights_iterations, phases):
    assert {phase_for(i, 10, weights_iterations) for i in range(30)} == phases


@pytest.mark.parametrize(
    ("iterations", "expected"),
    [(1000, (100, 80)), (300, (100, 80)), (299, (99, 79)), (60, (20, 16)), (12, (4, 3)), (6, (2, 1))],
)
def test_a_short_stage_has_as_many_threshold_phases(iterations, expected):
    period, weights = alternation(iterations, TrainingConfig(period=100, weights_iterations=80))
    assert (period, weights) == expected
    phases = [phase_for(i, period, weights) for i in range(iterations)]
    assert sum(a == "threshold" and b == "weights" for a, b in zip(phases, [*phases[1:], "weights"], strict=True)) >= 3


@pytest.mark.parametrize(
    ("iterations", "fields"), [(5, {}), (1, {}), (1000, {"period": 20, "weights_iterations": 20})]
)
def test_a_stage_that_trains_no_threshold_is_an_error(iterations, fields):
    with pytest.raises(UserError, match=rf"spatial: {iterations} iterations .* train no threshold.*min_iterations"):
        alternation(iterations, TrainingConfig(**fields))
