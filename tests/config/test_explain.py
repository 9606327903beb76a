import dataclasses

import pytest
import yaml

from sbce_hf.cli import main
from sbce_hf.config import RECIPES, RunConfig, from_mapping, load_recipe
from sbce_hf.config.explain import _section_of, explain_key, summaries
from sbce_hf.errors import UserError


def every_key(section=RunConfig, prefix=""):
    import typing

    hints = typing.get_type_hints(section)
    for field in dataclasses.fields(section):
        yield f"{prefix}{field.name}"
        if (inner := _section_of(hints[field.name])) is not None:
            yield from every_key(inner, f"{prefix}{field.name}.")


def test_every_key_is_documented():
    config = load_recipe("quickstart")
    missing = [key for key in every_key() if not explain_key(config, key).documentation]
    assert missing == [] and len(list(every_key())) > 150


def test_value_default_and_range_are_those_of_the_dataclasses():
    found = explain_key(load_recipe("quickstart", {"spatial": {"lr": 0.25}}), "spatial.lr")
    assert (found.value, found.default, found.range, found.kind) == (0.25, 0.001, "more than 0", "float")
    side = explain_key(load_recipe("quickstart"), "labelling.crf.side")
    assert side.kind == "int | None" and side.range == "at least 32" and "long side" in side.documentation
    # A section that the recipe leaves out has no value, but its keys are there to read about.
    assert explain_key(load_recipe("quickstart"), "irn.map_weight").value is None


@pytest.mark.parametrize(
    ("key", "message"),
    [("spatal.lr", "did you mean 'spatial'"), ("spatial.lrr", "did you mean 'lr'"), ("model.trunk", "configuration_")],
)
def test_wrong_keys(key, message):
    with pytest.raises(UserError, match=message):
        explain_key(load_recipe("quickstart"), key)


def test_recipes_are_listed_with_a_line_each(capsys):
    assert summaries().keys() == {path.stem for path in RECIPES.glob("*.yaml")}
    assert all(len(line) > 20 for line in summaries().values())
    assert main(["recipes"]) == 0
    assert "quickstart     The embedded example" in capsys.readouterr().out


def test_config_prints_what_a_run_would_use(capsys):
    # One for a folder, without naming it.
    assert main(["config", "own-data", "--set", "spatial.lr=0.25"]) == 0
    printed = from_mapping(RunConfig, yaml.safe_load(capsys.readouterr().out))
    assert printed == load_recipe("own-data", {"spatial": {"lr": 0.25}, "data": {"data_dir": "DIR"}})
    assert main(["config", "own-data", "--explain", "spatial.lr"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3:] == ["range    more than 0", "default  0.001", "own-data 0.002"]
    assert main(["config", "own-data", "--set", "spatial.lrr=1"]) == 1
    assert "did you mean 'lr'" in capsys.readouterr().err


def test_version(capsys):
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert left.value.code == 0 and capsys.readouterr().out.startswith("sbce 0.")
