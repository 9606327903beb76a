"""How a run's settings apply to its stages."""

from dataclasses import replace
from typing import Any

from ..config import LabellingConfig, RunConfig, deciding

BCE = "bce"


def cuts_at_given_shares(config: RunConfig) -> bool:
    """Whether a table says how much of each image every stage's label maps give to a class, instead of a rule."""
    return config.proportions.file is not None and config.spatial.targets == "labels"


def sections_of(config: RunConfig, number: int) -> dict[str, Any]:
    """The sections of a recipe that decide the training of a round, as the recipe has them.

    Args:
        config: of the run.
        number: of the round; 0 is stage 0.
    """
    values = deciding(config)
    if number:
        return {key: values[key] for key in ("seed", "spatial", "guard")}
    data = {key: value for key, value in values["data"].items() if key != "score_split"}
    return {key: values[key] for key in ("seed", "model", "trunk_weights", "bce")} | {"data": data}


def labelling_of(config: RunConfig, number: int) -> LabellingConfig:
    """How the classifier of a round is turned into label maps; stage 0 has no trained thresholds.

    Args:
        config: of the run.
        number: of the round; 0 is stage 0.
    """
    if number == 0:
        return replace(config.labelling, rule=config.first_rule)
    if number == config.rounds and config.final_scales is not None:
        return replace(config.labelling, scales=config.final_scales)
    return config.labelling
