import numpy as np
import pytest
import torch

from sbce_hf.config import TrainingConfig
from sbce_hf.models.configuration_spatial_bce import SpatialBceConfig
from sbce_hf.models.modeling_spatial_bce import SpatialBceForImageClassification
from sbce_hf.training.optimization import parameter_groups, phase_for, poly_factor

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
