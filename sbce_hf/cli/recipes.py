"""`sbce recipes` and `sbce config`: what there is to choose from, and what a setting means."""

import argparse
from typing import Any

from ..errors import UserError
from .common import add_command, add_recipe_options, config_from, say


def add(commands: Any) -> None:
    """Add the commands."""
    add_command(commands, "recipes", _recipes, "list the built-in recipes")

    config = add_command(commands, "config", _config, "print a recipe with every default, or explain one of its keys")
    config.add_argument("recipe", metavar="RECIPE", help="a built-in recipe's name, or a YAML file")
    config.add_argument("--explain", metavar="KEY", help="what a key means, as in spatial.lr")
    add_recipe_options(config, named=True)


def _recipes(options: argparse.Namespace) -> int:
    from ..config.explain import summaries

    found = summaries()
    width = max(map(len, found))
    for name, summary in found.items():
        say(f"{name:{width}}  {summary}")
    return 0


def _config(options: argparse.Namespace) -> int:
    import yaml

    from ..config import to_mapping
    from ..config.explain import explain_key

    try:
        config = config_from(options)
    except UserError:
        # A recipe for somebody's folder is complete only with one. Whatever else is wrong is wrong again.
        config = config_from(options, {"data": {"data_dir": "DIR"}})
    if options.explain is None:
        say(yaml.safe_dump(to_mapping(config), sort_keys=False).rstrip())
        return 0
    found = explain_key(config, options.explain)
    say(f"{found.key} ({found.kind})")
    if found.documentation:
        say(found.documentation)
    if found.range:
        say(f"range    {found.range}")
    for name, value in (("default", found.default), (options.recipe, found.value)):
        text = yaml.safe_dump(value, sort_keys=False).removesuffix("...\n").rstrip()
        say(f"{name}:\n{text}" if isinstance(value, dict) and value else f"{name:8} {text}")
    return 0
