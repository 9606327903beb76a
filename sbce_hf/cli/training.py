"""`sbce train-classifier`."""

import argparse
from pathlib import Path
from typing import Any

from .common import add_recipe_command, config_from


def add(commands: Any) -> None:
    """Add the command."""
    train = add_recipe_command(commands, "train-classifier", _train_classifier, "train one stage of the classifier")
    train.add_argument("--kind", choices=("bce", "spatial"), default="bce", help="stage 0 or a round (default: bce)")
    train.add_argument("--checkpoint", metavar="DIR", help="start from this model instead of the trunk weights")
    train.add_argument("--labels", metavar="STORE", help="label store the proportions of kind spatial come from")
    train.add_argument("--output-dir", metavar="DIR", required=True, help="gets model/, metrics.jsonl, tensorboard/")


def _train_classifier(options: argparse.Namespace) -> int:
    config = config_from(options)

    from ..steps import train_stage

    fitted = train_stage(
        config, options.kind, Path(options.output_dir), checkpoint=options.checkpoint, labels=options.labels
    )
    print(f"classifier: {fitted.model_dir} ({fitted.iterations} iterations)")
    return 0
