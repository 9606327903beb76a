"""`sbce run`."""

import argparse
from pathlib import Path
from typing import Any

from .common import add_recipe_command, command_line, config_from


def add(commands: Any) -> None:
    """Add the command."""
    run = add_recipe_command(
        commands, "run", _start, "tags to label maps and a report, in one resumable run directory"
    )
    run.add_argument("--output-dir", metavar="DIR", help="run directory (default: runs/<recipe>-seed<seed>)")
    run.add_argument("--dry-run", action="store_true", help="only say what would be done and what is missing")


def _start(options: argparse.Namespace) -> int:
    return _plan(options) if options.dry_run else _run(options)


def _plan(options: argparse.Namespace) -> int:
    config = config_from(options)

    from ..runs.plan import make_plan
    from .plans import render_plan

    plan = make_plan(config, _run_dir(options, config.seed))
    print(render_plan(plan))
    return 1 if plan.problems else 0


def _run_dir(options: argparse.Namespace, seed: int) -> Path:
    return Path(options.output_dir or f"runs/{Path(options.recipe).stem}-seed{seed}")


def _run(options: argparse.Namespace) -> int:
    config = config_from(options)
    run_dir = _run_dir(options, config.seed)

    from accelerate import PartialState

    from ..evaluation.report import score_table, segmenter_table
    from ..runs.run import run

    summary = run(config, run_dir, command_line(options))
    if not PartialState().is_main_process:
        return 0
    if summary.scores:
        print(score_table(summary.scores))
    if summary.segmenter_scores:
        print(segmenter_table(summary.segmenter_scores))
    print(f"label maps: {summary.label_maps} ({summary.num_images} images, {summary.num_skipped} skipped)")
    print(f"classifier: {summary.model_dir}")
    if summary.segmenter_dir is not None:
        print(f"segmenter:  {summary.segmenter_dir}")
    print(f"report:     {summary.report}")
    return 0
