"""`sbce` and its subcommands: parse, call, print.

Each module of this room has `add(commands)`, which adds its subcommands; heavy libraries are imported inside the
commands, so that `sbce --help` stays instant.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from . import demo, importing, labelling, predicting, preparing, publishing, running, training

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
    for module in (running, training, labelling, predicting, demo, preparing, importing, publishing):
        module.add(commands)
    return parser
