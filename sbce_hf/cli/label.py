"""`sbce label`, `sbce evaluate` and `sbce proportions`."""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import UserError
from .common import CHECKPOINT, LABELS, add_recipe_command, config_from, say
from .console import quiet_loading


def add(commands: Any) -> None:
    """Add the commands."""
    label = add_recipe_command(commands, "label", _label, "label the training split with a checkpoint")
    label.add_argument("--checkpoint", metavar="DIR_OR_ID", required=True, help=CHECKPOINT)
    label.add_argument("--split", help="label this split instead of the recipe's train_split")
    label.add_argument(
        "--output-dir", metavar="DIR", required=True, help="gets one label store before and one after CRF"
    )

    evaluate = add_recipe_command(commands, "evaluate", _evaluate, "score a label store against masks")
    evaluate.add_argument("--labels", metavar="STORE_OR_ID", required=True, help=LABELS)
    evaluate.add_argument("--split", help="score this split instead of the recipe's score_split")
    evaluate.add_argument("--output", metavar="FILE", help="also write the scores as JSON")

    proportions = add_recipe_command(
        commands, "proportions", _proportions, "write the foreground proportions of the training split as a table"
    )
    source = proportions.add_mutually_exclusive_group(required=True)
    source.add_argument("--labels", metavar="STORE_OR_ID", help=LABELS)
    source.add_argument("--masks", action="store_true", help="of the true masks: a yardstick")
    proportions.add_argument("--output", metavar="FILE", required=True, help="for the recipe's proportions.file")


def _label(options: argparse.Namespace) -> int:
    config = config_from(options)

    from ..runs.early import check_checkpoint, check_run

    checkpoint = check_checkpoint(options.checkpoint)
    check_run(config, Path(options.output_dir))

    from ..runs.single import label_split

    quiet_loading()
    summary = label_split(config, checkpoint, Path(options.output_dir), options.split)
    say(f"label maps: {summary.directories[-1]}")
    say(f"{summary.num_labelled} labelled now, {summary.num_images} in all, {len(summary.skipped)} skipped")
    return 0


def _proportions(options: argparse.Namespace) -> int:
    config = config_from(options)

    from ..runs.early import check_labels, check_run

    labels = None if options.labels is None else check_labels(options.labels)
    check_run(config)

    from ..evaluation.tables import percent
    from ..runs.proportions import write_proportions

    table = write_proportions(config, Path(options.output), labels)
    for index, name in enumerate(table.class_names):
        shares = table.proportions[:, index]
        shown = shares[shares > 0]
        mean = percent(float(shown.mean())) if len(shown) else "-"
        say(f"{name:20} {mean} % in the mean of {len(shown)} photos")
    say(f"proportions: {options.output}")
    if table.from_masks:
        say(f"--set proportions.file={options.output} --set proportions.from_masks=true (its results are a leak)")
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    config = config_from(options)

    from ..runs.early import check_data, check_labels

    labels = check_labels(options.labels)
    split = options.split or config.data.score_split
    if split is None:
        raise UserError("data.score_split: null; name a split with masks, as in --split train")
    check_data(replace(config.data, score_split=split))

    from ..evaluation.tables import percent
    from ..runs.single import evaluate_labels

    result = evaluate_labels(config, labels, split)
    for name, value in result["per_class_iou"].items():
        say(f"{name:20} {percent(value)}")
    say(f"{'mIoU':20} {percent(result['mean_iou'])} % over {result['num_images']} images")
    if options.output:
        from ..files import write_atomic

        values = {key: value for key, value in result.items() if key != "confusion"}
        write_atomic(Path(options.output), json.dumps(values | {"confusion": result["confusion"].tolist()}, indent=1))
    return 0
