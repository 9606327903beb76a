"""`sbce` and its subcommands: parse, call, print. Heavy libraries are imported inside the commands."""

import argparse
import json
import logging
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import RunConfig

# What a user can mend is told without a traceback.
USER_ERRORS = (ValueError, OSError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    options = _parser().parse_args(arguments)
    if not hasattr(options, "command"):
        _parser().print_help()
        return 2
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.basicConfig(format="%(message)s", level=logging.INFO if options.verbose else logging.WARNING)
    try:
        return options.command(options)
    except KeyboardInterrupt:
        print("interrupted; the same command continues where it stopped", file=sys.stderr)
        return 130
    except Exception as error:
        # TrainingHealthError is recognised by name: importing it would import torch.
        if options.debug or not (isinstance(error, USER_ERRORS) or type(error).__name__ == "TrainingHealthError"):
            raise
        print(f"sbce: error: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sbce", description="Image tags in, pixel-level label maps out: Adaptive Spatial-BCE."
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    run = _command(commands, "run", _run, "tags to label maps and a report, in one resumable run directory")
    run.add_argument("--output-dir", metavar="DIR", help="run directory (default: runs/<recipe>-seed<seed>)")

    train = _command(commands, "train-classifier", _train_classifier, "train one stage of the classifier")
    train.add_argument("--kind", choices=("bce", "spatial"), default="bce", help="stage 0 or a round (default: bce)")
    train.add_argument("--checkpoint", metavar="DIR", help="start from this model instead of the trunk weights")
    train.add_argument("--labels", metavar="STORE", help="label store the proportions of kind spatial come from")
    train.add_argument("--output-dir", metavar="DIR", required=True, help="gets model/, metrics.jsonl, tensorboard/")

    label = _command(commands, "label", _label, "label the training split with a checkpoint")
    label.add_argument("--checkpoint", metavar="DIR", required=True, help="a trained model")
    label.add_argument("--split", help="label this split instead of the recipe's train_split")
    label.add_argument(
        "--output-dir", metavar="DIR", required=True, help="gets one label store before and one after CRF"
    )

    evaluate = _command(commands, "evaluate", _evaluate, "score a label store against masks")
    evaluate.add_argument("--labels", metavar="STORE", required=True, help="a label store")
    evaluate.add_argument("--split", help="score this split instead of the recipe's score_split")
    evaluate.add_argument("--output", metavar="FILE", help="also write the scores as JSON")
    return parser


def _command(commands: Any, name: str, function: Any, summary: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
    parser.set_defaults(command=function)
    parser.add_argument(
        "--recipe", required=True, metavar="NAME", help="quickstart, voc-animals, own-data, or a YAML file"
    )
    parser.add_argument("--data-dir", metavar="DIR", help="the recipe's data.data_dir")
    parser.add_argument("--trunk-weights", metavar="FILE", help="the recipe's trunk_weights")
    parser.add_argument("--seed", type=int, help="the recipe's seed")
    parser.add_argument("--strict", action="store_true", help="stop at the first unreadable image")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="any key of the recipe, as in spatial.lr=0.001"
    )
    parser.add_argument("--verbose", action="store_true", help="log what is done")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def _config(options: argparse.Namespace) -> "RunConfig":
    from .config import load_recipe, merge, parse_override

    overrides: dict[str, Any] = {}
    for text in options.set:
        overrides = merge(overrides, parse_override(text))
    if options.data_dir is not None:
        overrides = merge(overrides, {"data": {"data_dir": options.data_dir}})
    if options.strict:
        overrides = merge(overrides, {"data": {"strict": True}})
    for name in ("trunk_weights", "seed"):
        if getattr(options, name) is not None:
            overrides[name] = getattr(options, name)
    return load_recipe(options.recipe, overrides)


def _command_line(options: argparse.Namespace) -> str:
    """The command that reproduces the result, quoted for a shell."""
    parts = ["sbce", "run", "--recipe", options.recipe]
    for flag, value in (("data-dir", options.data_dir), ("trunk-weights", options.trunk_weights)):
        if value is not None:
            parts += [f"--{flag}", value]
    if options.seed is not None:
        parts += ["--seed", str(options.seed)]
    parts += ["--strict"] * options.strict
    for text in options.set:
        parts += ["--set", text]
    return shlex.join(parts)


def _run(options: argparse.Namespace) -> int:
    config = _config(options)
    run_dir = Path(options.output_dir or f"runs/{Path(options.recipe).stem}-seed{config.seed}")

    from .evaluation.report import score_table
    from .pipeline import run

    summary = run(config, run_dir, _command_line(options))
    if summary.scores:
        print(score_table(summary.scores))
    print(f"label maps: {summary.label_maps} ({summary.num_images} images, {summary.num_skipped} skipped)")
    print(f"classifier: {summary.model_dir}")
    print(f"report:     {summary.report}")
    return 0


def _train_classifier(options: argparse.Namespace) -> int:
    config = _config(options)

    from .steps import train_stage

    fitted = train_stage(
        config, options.kind, Path(options.output_dir), checkpoint=options.checkpoint, labels=options.labels
    )
    print(f"classifier: {fitted.model_dir} ({fitted.iterations} iterations)")
    return 0


def _label(options: argparse.Namespace) -> int:
    config = _config(options)

    from .steps import label_split

    summary = label_split(config, Path(options.checkpoint), Path(options.output_dir), options.split)
    print(f"label maps: {summary.crf_directory or summary.directory}")
    print(f"{summary.num_labelled} labelled now, {summary.num_images} in all, {len(summary.skipped)} skipped")
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    config = _config(options)

    from .evaluation.report import percent
    from .steps import evaluate_labels

    result = evaluate_labels(config, Path(options.labels), options.split)
    for name, value in result["per_class_iou"].items():
        print(f"{name:20} {percent(value)}")
    print(f"{'mIoU':20} {percent(result['mean_iou'])} % over {result['num_images']} images")
    if options.output:
        from .evaluation.curves import write_atomic

        values = {key: value for key, value in result.items() if key != "confusion"}
        write_atomic(Path(options.output), json.dumps(values | {"confusion": result["confusion"].tolist()}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
