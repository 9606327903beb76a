"""`sbce` and its subcommands: parse, call, print.

Each module of this room has `add(commands)`, which adds its subcommands; heavy libraries are imported inside the
commands, so that `sbce --help` stays instant.
"""

import argparse
import sys
from collections.abc import Sequence

from .. import __version__
from ..progress import interrupted, remember_interrupts
from . import check, convert, demo, export, label, predict, prepare, push, recipes, run, train
from .common import say
from .console import UNREAD, nobody_reads, require_current_folder, set_up
from .mistakes import DEFECT, told_in_one_line


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    options = _parser().parse_args(arguments)
    if not hasattr(options, "command"):
        _parser().print_help()
        return 2
    set_up(options.verbose)
    remember_interrupts()
    try:
        require_current_folder()
        status = options.command(options)
        sys.stdout.flush()
        return status
    except (Exception, KeyboardInterrupt) as error:
        # Also where what fails is a loader whose processes have heard it first.
        if isinstance(error, KeyboardInterrupt) or interrupted():
            say("interrupted; continue with the same command", file=sys.stderr)
            return 130
        if isinstance(error, BrokenPipeError) and nobody_reads():
            return UNREAD
        line = told_in_one_line(error)
        if line is None:
            error.add_note(DEFECT)
        if line is None or options.debug:
            raise
        say(f"sbce: error: {line}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sbce", description="Image tags in, pixel-level label maps out: Adaptive Spatial-BCE."
    )
    parser.add_argument("--version", action="version", version=f"sbce {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for module in (check, run, recipes, train, label, predict, export, demo, prepare, convert, push):
        module.add(commands)
    return parser
