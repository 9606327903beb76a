"""`sbce prepare`."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import add_command, say

if TYPE_CHECKING:
    from ..data.prepare import SourceCheck


def add(commands: Any) -> None:
    """Add the command."""
    prepare = add_command(commands, "prepare", _prepare, "check a copy of VOC 2012 or COCO 2014, and export it")
    prepare.add_argument("source", choices=("voc", "coco"), help="which data set")
    prepare.add_argument("directory", metavar="DIR", help="VOCdevkit/VOC2012, or the folder of train2014/ and so on")
    prepare.add_argument(
        "--split", action="append", default=[], metavar="NAME", help="check this split only; may be repeated"
    )
    prepare.add_argument("--partial", action="store_true", help="a part of the images is enough")
    prepare.add_argument("--export", metavar="DIR", help="write what is there as parquet files, images included")


def _prepare(options: argparse.Namespace) -> int:
    from ..data.prepare import check_source, export_source

    root = Path(options.directory)
    check = check_source(options.source, root, options.split)
    _print_check(check)
    enough = check.complete or (options.partial and check.usable)
    if not enough:
        hint = "; --partial (and data.partial in a recipe) uses what is there" if check.usable else ""
        say(f"sbce: incomplete{hint}", file=sys.stderr)
        return 1
    say("complete" if check.complete else "incomplete; usable with --set data.partial=true")
    if options.export:
        for path in export_source(options.source, root, check, Path(options.export)):
            say(path)
    return 0


def _print_check(check: "SourceCheck") -> None:
    for part in check.missing:
        kind = "missing (optional)" if part.optional else "missing"
        say(f"{kind}: {' or '.join(part.paths)} ({part.what}): fetch {part.archive}")
    say(f"{'split':12} {'images':>8} {'listed':>8} {'expected':>8} {'masks':>8}")
    for split in check.splits:
        expected = "-" if split.expected is None else split.expected
        painted = " painted from annotations" if split.painted else ""
        say(f"{split.split:12} {split.found:8} {split.listed:8} {expected:>8} {split.masks:8}{painted}")
    for split in check.splits:
        # Of a split whose files are missing everything is said above.
        if split.problem and not any(split.split in part.splits for part in check.missing):
            say(f"{split.split}: {split.problem}")
    found = [split for split in check.splits if split.found]
    if found:
        say(f"{'images with':16}" + "".join(f" {split.split:>10}" for split in found))
        for index, name in enumerate(check.class_names):
            say(f"{name:16}" + "".join(f" {split.class_images[index]:10}" for split in found))
