"""`sbce run`."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from .common import add_recipe_command, command_line, config_from, say

# On the console; the report has all.
SHOWN_CONCERNS = 8

if TYPE_CHECKING:
    from ..config import RunConfig
    from ..runs.plan import Plan
    from ..runs.run import RunSummary


def add(commands: Any) -> None:
    """Add the command."""
    run = add_recipe_command(
        commands, "run", _start, "tags to label maps and a report, in one resumable run directory"
    )
    run.add_argument("--output-dir", metavar="DIR", help="run directory (default: runs/<recipe>-seed<seed>)")
    run.add_argument(
        "--seeds", type=int, metavar="N", help="N runs, from the seed on, in DIR/seed<number>, and a table of all"
    )
    run.add_argument("--dry-run", action="store_true", help="only say what would be done and what is missing")


def _start(options: argparse.Namespace) -> int:
    return _plan(options) if options.dry_run else _run(options)


def _plan(options: argparse.Namespace) -> int:
    config = config_from(options)

    from ..runs.plan import make_plan

    plan = make_plan(config, _run_dir(options, config.seed))
    say(render_plan(plan))
    return 1 if plan.problems else 0


def _run_dir(options: argparse.Namespace, seed: int) -> Path:
    return Path(options.output_dir or f"runs/{Path(options.recipe).stem}-seed{seed}")


def _run(options: argparse.Namespace) -> int:
    config = config_from(options)
    if options.seeds is None:
        _run_one(options, config, _run_dir(options, config.seed))
        return 0
    if options.seeds < 1:
        raise UserError(f"--seeds: got {options.seeds}, expected at least 1")

    from accelerate import PartialState

    from ..evaluation.seeds import seeds_table
    from ..files import write_atomic

    parent = Path(options.output_dir or f"runs/{Path(options.recipe).stem}")
    found = {}
    for seed in range(config.seed, config.seed + options.seeds):
        options.seed = seed
        found[seed] = _run_one(options, replace(config, seed=seed), parent / f"seed{seed}")
    if PartialState().is_main_process:
        scores = {seed: summary.scores for seed, summary in found.items()}
        table = seeds_table(scores, {seed: summary.qualities for seed, summary in found.items()})
        write_atomic(parent / "seeds.md", f"# {options.recipe}, seeds {min(found)} to {max(found)}\n\n{table}\n")
        say(table)
        say(f"all seeds:  {parent / 'seeds.md'}")
    return 0


def _run_one(options: argparse.Namespace, config: "RunConfig", run_dir: Path) -> "RunSummary":
    from accelerate import PartialState

    from ..evaluation.report import score_table, segmenter_table
    from ..runs.run import run

    summary = run(config, run_dir, command_line(options))
    if not PartialState().is_main_process:
        return summary
    if summary.scores:
        say(score_table(summary.scores))
    if summary.segmenter_scores:
        say(segmenter_table(summary.segmenter_scores))
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


def render_plan(plan: "Plan") -> str:
    """The plan as text for a terminal."""
    from ..runs.provenance import hardware

    config = plan.config
    classes = "?" if plan.class_names is None else f"{len(plan.class_names)}: {', '.join(plan.class_names)}"
    scales = (config.labelling.scales, config.final_scales or config.labelling.scales)
    views, last = (len(chosen) * (2 if config.labelling.flip else 1) for chosen in scales)
    crf = "on" if config.labelling.crf else "off"
    lines = [
        f"plan for {plan.run_dir} (nothing is written)",
        f"machine    {hardware()}, {plan.processes} process{'es' if plan.processes > 1 else ''}",
        f"data       {config.data.source}, classes {classes}",
        *(f"split      {split}" for split in plan.splits),
        *(f"needs      {need}" for need in plan.needs),
        f"directory  {plan.state}",
        f"labelling  rule {config.labelling.rule}, {views} views an image ({last} in the last round), CRF {crf}",
        "",
        *_stage_table(plan),
        "",
        "memory: estimated for one process, in GiB: weights, gradients, optimiser, activations",
        *_time(plan),
    ]
    if plan.problems:
        lines += ["", f"{len(plan.problems)} problem{'s' if len(plan.problems) > 1 else ''}:"]
        lines += [f"- {problem}" for problem in plan.problems]
    return "\n".join(lines)


def _time(plan: "Plan") -> list[str]:
    """The run's duration in words; nothing where it could not be measured."""
    from ..evaluation.report import duration

    known = [stage.seconds for stage in plan.stages if stage.seconds is not None]
    if not known:
        return []
    others = "".join(f", {name} {duration(seconds)}" for name, seconds in plan.others.items())
    total = duration(sum(known) + sum(plan.others.values()))
    return [f"time: about {total} on this machine as it is now, training and labelling{others}; without scores"]


def _stage_table(plan: "Plan") -> list[str]:
    header: tuple[str, ...] = ("stage", "images", "epochs", "iterations", "batch", "size", "precision", "trained")
    header += ("frozen", "memory", "minutes")
    rows: list[tuple[str, ...]] = [header]
    for stage in plan.stages:
        training = stage.training
        cells = (
            stage.name,
            stage.images,
            stage.epochs,
            stage.iterations,
            training.batch_size,
            stage.size,
            "float32" if training.mixed_precision == "no" else training.mixed_precision,
            None if stage.trained is None else f"{stage.trained / 1e6:.2f} M",
            None if stage.frozen is None else f"{stage.frozen / 1e6:.2f} M",
            None if stage.memory is None else f"{stage.memory.total / 2**30:.2f}",
            None if stage.seconds is None else f"{stage.seconds / 60:.1f}",
        )
        rows.append(tuple("?" if cell is None else str(cell) for cell in cells))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
