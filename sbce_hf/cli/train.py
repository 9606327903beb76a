"""`sbce train-classifier` and `sbce train-segmenter`."""

import argparse
from pathlib import Path
from typing import Any

from ..errors import UserError
from .common import CHECKPOINT, LABELS, add_recipe_command, config_from, say
from .console import quiet_loading


def add(commands: Any) -> None:
    """Add the commands."""
    train = add_recipe_command(commands, "train-classifier", _train_classifier, "train one stage of the classifier")
    train.add_argument("--kind", choices=("bce", "spatial"), default="bce", help="stage 0 or a round (default: bce)")
    train.add_argument(
        "--checkpoint", metavar="DIR_OR_ID", help=f"start from this model instead of the trunk weights: {CHECKPOINT}"
    )
    train.add_argument(
        "--labels", metavar="STORE_OR_ID", help=f"what the proportions of kind spatial come from: {LABELS}"
    )
    train.add_argument("--output-dir", metavar="DIR", required=True, help="gets model/, metrics.jsonl, tensorboard/")

    segmenter = add_recipe_command(
        commands, "train-segmenter", _train_segmenter, "train a segmentation network on label maps"
    )
    segmenter.add_argument(
        "--labels",
        metavar="STORE_OR_ID",
        required=True,
        help=f"{LABELS}; or the word mask for true masks (a yardstick)",
    )
    segmenter.add_argument(
        "--checkpoint", metavar="DIR_OR_ID", help=f"classifier whose trunk is the start: {CHECKPOINT}"
    )
    segmenter.add_argument("--model", metavar="TYPE", help="a transformers model type, as segformer")
    segmenter.add_argument("--from-config", metavar="PATH", help="its config.json; starts from random weights")
    segmenter.add_argument(
        "--from-checkpoint", metavar="DIR_OR_ID", help=f"starts from the weights of this one: {CHECKPOINT}"
    )
    segmenter.add_argument(
        "--output-dir", metavar="DIR", required=True, help="gets model/, metrics.jsonl, tensorboard/"
    )


def _train_classifier(options: argparse.Namespace) -> int:
    config = config_from(options)

    from ..runs.early import check_checkpoint, check_labels, check_run

    if options.kind == "spatial" and options.labels is None:
        raise UserError("--labels: missing; kind spatial needs the label store its proportions come from")
    checkpoint = None if options.checkpoint is None else check_checkpoint(options.checkpoint)
    labels = None if options.labels is None else check_labels(options.labels)
    check_run(config, Path(options.output_dir))

    from ..runs.single import train_stage

    quiet_loading()
    fitted = train_stage(config, options.kind, Path(options.output_dir), checkpoint=checkpoint, labels=labels)
    say(f"classifier: {fitted.model_dir} ({fitted.iterations} iterations)")
    return 0


def _train_segmenter(options: argparse.Namespace) -> int:
    from ..runs.layout import result_of

    given = {
        "architecture": options.model,
        "from_config": options.from_config,
        "checkpoint": options.from_checkpoint and result_of(options.from_checkpoint, "segmenter"),
    }
    section = {key: value for key, value in given.items() if value is not None}
    config = config_from(options, {"segmenter": section})

    from ..runs.early import check_checkpoint, check_labels, check_run

    checkpoint = None if options.checkpoint is None else check_checkpoint(options.checkpoint)
    labels = options.labels if options.labels == "mask" else check_labels(options.labels)
    check_run(config, Path(options.output_dir))

    from ..runs.segment import train_segmenter_stage

    quiet_loading()
    fitted = train_segmenter_stage(config, labels, Path(options.output_dir), checkpoint=checkpoint)
    say(f"segmenter: {fitted.model_dir} ({fitted.iterations} iterations)")
    return 0
