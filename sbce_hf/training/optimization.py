"""What is trained at which rate, and which loss has its turn: stateless functions of the iteration."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import nn

from ..config import LoopConfig, SegmenterTrainingConfig, TrainingConfig
from ..errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOGIT_SCALE = "logit_scale"
Groups = list[dict[str, Any]]


def sgd(groups: Groups, config: LoopConfig) -> torch.optim.Optimizer:
    """Stochastic gradient descent with momentum; groups may have a rate and a weight decay of their own."""
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)


def adamw(groups: Groups, config: LoopConfig) -> torch.optim.Optimizer:
    """AdamW with torch's betas; groups may have a rate and a weight decay of their own."""
    return torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay)


OPTIMIZERS: Mapping[str, Callable[[Groups, LoopConfig], torch.optim.Optimizer]] = {"sgd": sgd, "adamw": adamw}


def parameter_groups(model: "PreTrainedModel", config: TrainingConfig) -> Groups:
    """Sort the trainable parameters into trunk, heads and logit scales (paper, sec. 4.1).

    Args:
        model: its `base_model` is the trunk; everything else is a head.
        config: learning rates and weight decay.

    Returns:
        One group per kind that has trainable parameters, with `params`, `lr`, `weight_decay` and `name`. Frozen
        parameters are in no group: weight decay would move them.

    Raises:
        ValueError: every parameter is frozen.
    """
    trunk = {id(parameter) for parameter in model.base_model.parameters()}
    members: dict[str, list[nn.Parameter]] = {"trunk": [], "heads": [], LOGIT_SCALE: []}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.split(".")[-1] == LOGIT_SCALE:
            members[LOGIT_SCALE].append(parameter)
        else:
            members["trunk" if id(parameter) in trunk else "heads"].append(parameter)
    factors = {"trunk": 1.0, "heads": config.head_lr_factor, LOGIT_SCALE: config.scale_lr_factor}
    groups: Groups = [
        {
            "name": kind,
            "params": parameters,
            "lr": config.lr * factors[kind],
            # Decay would pull the scale exp(tau) towards 1 and with it every probability towards 0.5.
            "weight_decay": 0.0 if kind == LOGIT_SCALE else config.weight_decay,
        }
        for kind, parameters in members.items()
        if parameters
    ]
    if not groups:
        raise ValueError(f"{type(model).__name__}: every parameter is frozen, there is nothing to train")
    return groups


def segmenter_parameter_groups(model: "PreTrainedModel", config: SegmenterTrainingConfig) -> Groups:
    """Sort the trainable parameters of a segmentation network into weights and biases of trunk and head (DeepLab).

    Args:
        model: its `base_model` is the trunk, or `backbone` for models that have no base model; everything else is the
            head.
        config: learning rates and weight decay, [`filled`][SegmenterTrainingConfig.filled].

    Returns:
        See [`parameter_groups`].

    Raises:
        ValueError: there is no head, or nothing of it is trainable.
    """
    base = model.base_model if model.base_model is not model else getattr(model, "backbone", model)
    trunk = {id(parameter) for parameter in base.parameters()}
    members: dict[str, list[nn.Parameter]] = {
        f"{part} {kind}": [] for part in ("trunk", "head") for kind in ("weights", "biases")
    }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = "trunk" if id(parameter) in trunk else "head"
            kind = "biases" if name.split(".")[-1] == "bias" else "weights"
            members[f"{part} {kind}"].append(parameter)
    if not members["head weights"]:
        raise ValueError(
            f"{type(model).__name__}: has no trainable weights besides its trunk's; expected a segmentation network "
            "with a head"
        )
    factors = {"head weights": config.head_lr_factor, "head biases": cast(float, config.head_bias_lr_factor)}
    return [
        {
            "name": kind,
            "params": parameters,
            "lr": cast(float, config.lr) * factors.get(kind, 1.0),
            "weight_decay": config.bias_weight_decay if kind.endswith("biases") else config.weight_decay,
        }
        for kind, parameters in members.items()
        if parameters
    ]


def poly_factor(iteration: int, iterations: int, power: float) -> float:
    """Factor of every learning rate at one iteration of a poly schedule.

    Args:
        iteration: 0-based, below `iterations`.
        iterations: of the whole stage.
        power: 0 is a constant rate.

    Returns:
        `(1 - iteration / iterations) ** power`, 1 at the start.
    """
    return (1 - iteration / iterations) ** power


def alternation(iterations: int, config: TrainingConfig) -> tuple[int, int]:
    """Period and weights iterations of a stage of this length; see `min_threshold_phases`.

    Args:
        iterations: of the stage.
        config: of the stage.

    Returns:
        The `period` and `weights_iterations` of [`phase_for`].

    Raises:
        UserError: no threshold would be trained.
    """
    period = min(config.period, iterations // config.min_threshold_phases)
    # At least one iteration of either kind that the recipe has.
    weights = min(
        max(round(config.weights_iterations * period / config.period), config.weights_iterations > 0), period - 1
    )
    if config.weights_iterations == config.period or period < 2:
        raise UserError(
            f"spatial: {iterations} iterations with weights_iterations {config.weights_iterations} of a period of "
            f"{config.period} train no threshold, at least {2 * config.min_threshold_phases} iterations and "
            "weights_iterations below period do; raise spatial.min_iterations"
        )
    return period, weights


def phase_for(iteration: int, period: int, weights_iterations: int) -> Literal["weights", "threshold"]:
    """Which loss has its turn (paper, sec. 3.3).

    Args:
        iteration: 0-based.
        period: length `r` of the alternation.
        weights_iterations: the first `theta` of every period.
    """
    return "weights" if iteration % period < weights_iterations else "threshold"
