"""`sbce run`."""

import argparse
from pathlib import Path
from typing import Any

from .common import add_recipe_command, command_line, config_from


def add(commands: Any) -> None:
    """Add the command."""
    run = add_recipe_command(commands, "run", _run, "tags to label maps and a report, in one resumable run directory")
    run.add_argument("--output-dir", metavar="DIR", help="run directory (default: runs/<recipe>-seed<seed>)")


def _run(options: argparse.Namespace) -> int:
    config = config_from(options)
    run_dir = Path(options.output_dir or f"runs/{Path(options.recipe).stem}-seed{config.seed}")

    from ..evaluation.report import score_table
    from ..pipeline import run

    summary = run(config, run_dir, command_line(options))
    if summary.scores:
        print(score_table(summary.scores))
    print(f"label maps: {summary.label_maps} ({summary.num_images} images, {summary.num_skipped} skipped)")
    print(f"classifier: {summary.model_dir}")
    print(f"report:     {summary.report}")
    return 0
