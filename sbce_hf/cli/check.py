"""`sbce check` and `sbce init`: what a folder of photos was understood as, and a table to start with."""

import argparse
import shlex
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import add_command, add_recipe_command, command_line, config_from, say
from .plan_text import stage_table, time_lines

if TYPE_CHECKING:
    from ..config import RunConfig
    from ..data import TaggedImages

RECIPE = "own-data"
# Skipped files on the console; a run's report has more.
SHOWN_SKIPPED = 20


def add(commands: Any) -> None:
    """Add the commands."""
    check = add_recipe_command(
        commands, "check", _check, "say what a folder was understood as, and what a run would do", recipe=RECIPE
    )
    check.add_argument("data_dir", metavar="DIR", help="the folder; the recipe's data.data_dir")

    init = add_command(commands, "init", _init, "write a tags table to fill in")
    init.add_argument("directory", metavar="DIR", help="a folder with images/, or with photos")
    init.add_argument("--classes", metavar="A,B,...", help="a column for each class, to mark with 1")


def _check(options: argparse.Namespace) -> int:
    config = config_from(options)

    from ..runs.early_networks import check_networks

    check_networks(config)

    from ..data import load_images

    images = load_images(config.data, config.data.train_split)
    _say_understood(config, images)

    from ..runs.plan import make_plan

    # Nothing is written there, so any folder that is not there serves.
    plan = make_plan(config, Path(config.data.data_dir or ".") / "run", images)
    say("\n".join(f"needs      {need}" for need in plan.needs))
    say("\n".join(["", *stage_table(plan), "", *time_lines(plan)]))
    if plan.problems:
        say("\n".join([f"problem    {problem}" for problem in plan.problems]))
        return 1
    say(f"to start   {command_line(options)}")
    return 0


def _say_understood(config: "RunConfig", images: "TaggedImages") -> None:
    from ..data.layout import understand
    from ..evaluation.tag_counts import count_tags, histogram, tag_concerns

    if config.data.source == "folder":
        found = understand(config.data)
        say(f"reader     {found.reader} ({found.table})")
        say(f"photos     {len(images)} in {found.photos}, split {config.data.train_split}")
        others = Counter(row.split for row in found.rows if row.split and row.split != config.data.train_split)
        if others:
            say(f"           other splits: {', '.join(f'{name} {count}' for name, count in others.items())}")
    else:
        say(f"reader     source {config.data.source}")
        say(f"photos     {len(images)} of split {config.data.train_split}")
    labels = images.label_matrix()
    masked = len(images.with_masks())
    say(f"masks      {f'{masked} photos have one' if masked else 'none, so nothing can be scored; none are needed'}")
    if masked and config.data.score_split is None:
        say(f"           they are neither checked nor scored without --set data.score_split={config.data.train_split}")
    say(f"classes    {images.num_classes}, {int((labels.sum(axis=1) == 0).sum())} photos without any")
    for line in histogram(count_tags(labels, images.class_names), len(images)).splitlines():
        say(f"           {line}")
    for concern in tag_concerns(labels, images.class_names):
        say(f"look at    {concern}")
    for skipped in images.skipped[:SHOWN_SKIPPED]:
        say(f"skipped    {skipped.file}: {skipped.reason}")
    if (more := len(images.skipped) - SHOWN_SKIPPED) > 0:
        say(f"skipped    {more} more")


def _init(options: argparse.Namespace) -> int:
    from ..data.start_table import write_start_table

    classes = [name.strip() for name in (options.classes or "").split(",") if name.strip()]
    path, count, left_out = write_start_table(Path(options.directory), classes)
    for file, reason in left_out:
        say(f"left out   {file}: {reason}")
    say(f"table      {path} ({count} photos)")
    what = "write 1 where a class is on the photo" if classes else "write the tags of each photo, separated by ;"
    say(f"next       {what}, then: {shlex.join(['sbce', 'check', options.directory])}")
    return 0
