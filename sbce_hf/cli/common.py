"""What the subcommands share: options, and the config they make."""

import argparse
import shlex
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TextIO

from ..text import visible

if TYPE_CHECKING:
    from ..config import RunConfig
    from ..evaluation.tables import Table

# What a checkpoint and label maps may be, for help texts.
CHECKPOINT = "a model folder, a run directory, or a Hub id with an optional @revision"
LABELS = "a label store, a run directory, or on the Hub user/name[@revision][:config]"

Command = Callable[[argparse.Namespace], int]


def say(text: object, file: TextIO | None = None) -> None:
    r"""Print what may hold names from anywhere: they cannot control the terminal.

    What the terminal's encoding lacks is shown as `\u732b`.

    Args:
        text: of one line or several.
        file: by default standard output.
    """
    stream = sys.stdout if file is None else file
    encoding = getattr(stream, "encoding", None) or "utf-8"
    shown = visible(str(text), kept="\n\t").encode(encoding, "backslashreplace").decode(encoding)
    print(shown, file=stream)


def say_table(table: "Table") -> None:
    """Print a table between two empty lines."""
    say("\n".join(["", *table.lines(), ""]))


def add_command(commands: Any, name: str, function: Command, summary: str) -> argparse.ArgumentParser:
    """Add a subcommand with the options that all have."""
    parser = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
    parser.set_defaults(command=function)
    parser.add_argument("--verbose", action="store_true", help="log what is done")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def add_recipe_command(
    commands: Any, name: str, function: Command, summary: str, recipe: str | None = None
) -> argparse.ArgumentParser:
    """Add a subcommand that follows a recipe; [`config_from`] reads its options.

    Args:
        commands: to add it to.
        name: of it.
        function: that it calls.
        summary: what it does.
        recipe: is followed if none is named; the command then takes the data's folder as an argument of its own.
    """
    parser = add_command(commands, name, function, summary)
    add_recipe_options(parser, recipe)
    return parser


def add_recipe_options(parser: argparse.ArgumentParser, recipe: str | None = None, named: bool = False) -> None:
    """Add what [`config_from`] reads; see [`add_recipe_command`].

    Args:
        parser: to add it to.
        recipe: see [`add_recipe_command`].
        named: the command has an argument of its own for the recipe.
    """
    what = "a built-in recipe's name, or a YAML file"
    if named:
        parser.add_argument("--data-dir", metavar="DIR", help="the recipe's data.data_dir")
    elif recipe is None:
        parser.add_argument("--recipe", required=True, metavar="NAME", help=what)
        parser.add_argument("--data-dir", metavar="DIR", help="the recipe's data.data_dir")
    else:
        parser.add_argument("--recipe", default=recipe, metavar="NAME", help=f"{what} (default: {recipe})")
    parser.add_argument("--trunk-weights", metavar="FILE", help="the recipe's trunk_weights")
    parser.add_argument("--seed", type=int, help="the recipe's seed")
    parser.add_argument("--strict", action="store_true", help="stop at the first unreadable image")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="any key of the recipe, as in spatial.lr=0.001"
    )


def config_from(options: argparse.Namespace, overrides: Mapping[str, Any] | None = None) -> "RunConfig":
    """The recipe with `overrides`, then the options of [`add_recipe_command`] applied."""
    from ..config import load_recipe, merge, parse_override

    overrides = dict(overrides or {})
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


def command_line(options: argparse.Namespace) -> str:
    """The `sbce run` that reproduces the result, quoted for a shell."""
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
