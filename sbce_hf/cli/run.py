"""`sbce run`."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from .common import add_recipe_command, command_line, config_from, say, say_table
from .console import quiet_loading
from .plan_text import render_plan

# On the console; the report has all.
SHOWN_CONCERNS = 8

if TYPE_CHECKING:
    from ..config import RunConfig
    from ..data import TaggedImages
    from ..runs.run import RunSummary


def add(commands: Any) -> None:
    """Add the command."""
    run = add_recipe_command(
        commands, "run", _start, "tags to label maps and a report, in one resumable run directory"
    )
    run.add_argument(
        "--output-dir", metavar="DIR", help="run directory (default: runs/<recipe>-<data folder>-seed<seed>)"
    )
    run.add_argument(
        "--seeds",
        type=int,
        metavar="N",
        help="N runs, from the seed on, in DIR/seed<number>, a table of all, and with IRN label maps of all together",
    )
    run.add_argument("--dry-run", action="store_true", help="only say what would be done and what is missing")


def _start(options: argparse.Namespace) -> int:
    if options.seeds is not None and options.seeds < 1:
        raise UserError(f"--seeds: got {options.seeds}, expected at least 1")
    return _plan(options) if options.dry_run else _run(options)


def _plan(options: argparse.Namespace) -> int:
    config = config_from(options)

    from ..runs.early_networks import check_networks

    check_networks(config)

    from ..runs.plan import make_plan

    plan = make_plan(config, run_dir_of(options, config))
    say(render_plan(plan, options.seeds))
    return 1 if plan.problems else 0


def run_dir_of(options: argparse.Namespace, config: "RunConfig") -> Path:
    """The run's directory, or of several runs the one that holds theirs; by default named like recipe and data."""
    if options.output_dir is not None:
        return Path(options.output_dir)
    data = config.data.data_dir if config.data.source != "hub" else (config.data.dataset or "").partition("@")[0]
    parts = [Path(options.recipe).stem, *([Path(data).resolve().name] if data else [])]
    return Path("runs") / "-".join([*parts, *([f"seed{config.seed}"] if options.seeds is None else [])])


def _run(options: argparse.Namespace) -> int:
    config = config_from(options)

    from ..runs.early import check_run

    run_dir = run_dir_of(options, config)
    check_run(config, run_dir)
    if options.seeds is None:
        _run_one(options, config, run_dir)
        return 0

    from accelerate import PartialState

    from ..evaluation.seeds import seeds_table
    from ..evaluation.tables import Table
    from ..files import write_atomic
    from ..runs.together import TOGETHER, can_label_together, label_together

    parent = run_dir
    found = {}
    for seed in range(config.seed, config.seed + options.seeds):
        options.seed = seed
        found[seed] = _run_one(options, replace(config, seed=seed), parent / f"seed{seed}")
    together = None
    if len(found) > 1 and can_label_together(config):
        # More seeds make other label maps.
        folder = parent / f"{TOGETHER}_{min(found)}-{max(found)}"
        together = label_together(config, [parent / f"seed{seed}" for seed in found], folder)
    if PartialState().is_main_process:
        scores = {seed: summary.scores for seed, summary in found.items()}
        table = seeds_table(scores, {seed: summary.qualities for seed, summary in found.items()})
        if together is not None:
            rows, quality, store = together
            last = seeds_table({0: rows}, {0: {TOGETHER: quality}})
            table = Table(table.header, [*table.rows, *last.rows], table.text_columns)
        title = f"# {options.recipe}, seeds {min(found)} to {max(found)}"
        write_atomic(parent / "seeds.md", f"{title}\n\n{table.markdown()}\n")
        say_table(table)
        if together is not None:
            say(f"label maps of all seeds together: {store}")
        say(f"all seeds:  {parent / 'seeds.md'}")
    return 0


def say_classes(images: "TaggedImages") -> None:
    """How many photos each class has, and which tags teach little: before the hours that follow."""
    from ..evaluation.tag_counts import count_tags, histogram, tag_concerns

    labels = images.label_matrix()
    say(histogram(count_tags(labels, images.class_names), len(images)))
    for concern in tag_concerns(labels, images.class_names):
        say(f"look at:    {concern}")


def _run_one(options: argparse.Namespace, config: "RunConfig", run_dir: Path) -> "RunSummary":
    from accelerate import PartialState

    from ..evaluation.scores import score_table, segmenter_table
    from ..runs.run import run

    quiet_loading()
    summary = run(config, run_dir, command_line(options), started=say_classes)
    if not PartialState().is_main_process:
        return summary
    if summary.scores:
        say_table(score_table(summary.scores))
    if summary.segmenter_scores:
        say_table(segmenter_table(summary.segmenter_scores))
    say(f"label maps: {summary.label_maps} ({summary.num_images} images, {summary.num_skipped} skipped)")
    say(f"classifier: {summary.model_dir}")
    if summary.segmenter_dir is not None:
        say(f"segmenter:  {summary.segmenter_dir}")
    say(f"report:     {summary.report}")
    for concern in summary.concerns[:SHOWN_CONCERNS]:
        say(f"look at:    {concern}")
    if (more := len(summary.concerns) - SHOWN_CONCERNS) > 0:
        say(f"look at:    {more} more in the report's warnings")
    return summary
