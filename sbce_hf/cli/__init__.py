"""`sbce` and its subcommands: parse, call, print.

Each module of this room has `add(commands)`, which adds its subcommands; heavy libraries are imported inside the
commands, so that `sbce --help` stays instant.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from ..text import visible
from . import check, convert, demo, export, label, predict, prepare, push, run, train
from .common import say
from .mistakes import DEFECT, told_in_one_line


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    options = _parser().parse_args(arguments)
    if not hasattr(options, "command"):
        _parser().print_help()
        return 2
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_Plain("%(message)s"))
    try:
        return options.command(options)
    except KeyboardInterrupt:
        say("interrupted; the same command continues where it stopped", file=sys.stderr)
        return 130
    except Exception as error:
        line = told_in_one_line(error)
        if line is None:
            error.add_note(DEFECT)
        if line is None or options.debug:
            raise
        say(f"sbce: error: {line}", file=sys.stderr)
        return 1


class _Plain(logging.Formatter):
    """Log lines with names from anywhere, which cannot control the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record), kept="\n\t")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sbce", description="Image tags in, pixel-level label maps out: Adaptive Spatial-BCE."
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for module in (check, run, train, label, predict, export, demo, prepare, convert, push):
        module.add(commands)
    return parser
