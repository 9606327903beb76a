import subprocess
import sys

import pytest
import yaml

from sbce_hf.config import (
    OFFICIAL,
    RECIPES,
    DataConfig,
    RunConfig,
    from_mapping,
    load_recipe,
    merge,
    parse_override,
    to_mapping,
)
from sbce_hf.models.configuration_spatial_bce import SpatialBceConfig


def test_round_trip():
    config = from_mapping(
        RunConfig, {"spatial": {"lr": 1, "augmentation": {"flip": False}}, "labelling": {"crf": None}}
    )
    assert config.spatial.lr == 1.0 and config.labelling.crf is None
    assert from_mapping(RunConfig, to_mapping(config)) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"spatail": {}}, "unknown key 'spatail'; did you mean 'spatial'"),
        ({"spatial": {"augmentation": {"flipp": True}}}, "spatial.augmentation: unknown key 'flipp'"),
        ({"spatial": {"lr": -1}}, "lr: got -1.0"),
        ({"spatial": {"epochs": "3"}}, "'epochs' expected int"),
        ({"spatial": {"weights_iterations": 101}}, "expected 0 to period"),
        ({"spatial": {"batch_size": 3, "gradient_accumulation_steps": 2}}, "expected a multiple"),
        ({"labelling": {"rule": "best"}}, "expected one of"),
        ({"labelling": {"scales": []}}, "expected one or more"),
        ({"labelling": {"crf": {"gt_prob": 1.0}}}, "expected between 0 and 1"),
        ({"data": {"source": "voc"}}, "data_dir: missing"),
        ({"data": {"source": "hub"}}, "dataset: missing"),
        ({"data": {"source": "shapes", "classes": ["a", "a"]}}, "each name once"),
        ({"rounds": 0}, "rounds: got 0"),
        ({"proportions": {"minimum": 0.9, "maximum": 0.5}}, "expected 0 < min < max < 1"),
        ({"data": 3}, "expected dict|DataConfig"),
    ],
)
def test_impossible_values(values, message):
    with pytest.raises(ValueError, match="|".join(message.split("|"))):
        from_mapping(RunConfig, values)


def test_overrides():
    assert parse_override("spatial.lr=1e-3") == {"spatial": {"lr": 1e-3}}
    assert parse_override("labelling.crf=null") == {"labelling": {"crf": None}}
    assert merge({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}) == {"a": {"b": 3, "c": 2}}
    with pytest.raises(ValueError, match="key=value"):
        parse_override("spatial.lr")


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_are_valid(path):
    config = load_recipe(path.stem, {"data": {"data_dir": "photos"}})
    assert isinstance(config.data, DataConfig)
    # Fields of the model are checked where it is built, which a recipe must not be the first to find out.
    SpatialBceConfig(**config.model)


def flat(values, prefix=""):
    for key, value in values.items():
        yield from flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_official_replaces_the_recipe_and_is_replaced_by_overrides(path, tmp_path):
    data = {"data": {"data_dir": "photos"}}
    official = to_mapping(load_recipe(path.stem, {**data, "official": True}))
    values = dict(flat(official))
    assert dict(flat(OFFICIAL)).items() <= values.items()
    # What depends on the data set stays the recipe's.
    plain = dict(flat(to_mapping(load_recipe(path.stem, data))))
    assert all(values[key] == plain[key] for key in ("bce.lr", "spatial.epochs", "spatial.period", "model.trunk"))

    overrides = {**data, "official": True, "model": {"kl_slope_leak": 0.1}, "labelling": {"crf": None}}
    changed = load_recipe(path.stem, overrides)
    assert changed.model["kl_slope_leak"] == 0.1 and changed.model["normalization"] == "official"
    assert changed.labelling.crf is None and changed.labelling.rule == "official"
    # What a run saves has every value and gives the same config.
    saved = tmp_path / "config.yaml"
    saved.write_text(yaml.safe_dump(to_mapping(changed)))
    assert load_recipe(str(saved)) == changed


def test_official_in_a_recipe_file(tmp_path):
    recipe = tmp_path / "own.yaml"
    recipe.write_text("official: true\nspatial: {head_lr_factor: 1, lr: 0.5}")
    assert load_recipe(str(recipe)).spatial.head_lr_factor == 10
    assert load_recipe(str(recipe)).spatial.lr == 0.5
    assert load_recipe(str(recipe), {"spatial": {"head_lr_factor": 3}}).spatial.head_lr_factor == 3
    assert load_recipe(str(recipe), {"official": False}).spatial.head_lr_factor == 1
    with pytest.raises(ValueError, match="official: got 'yes', expected true or false"):
        load_recipe(str(recipe), {"official": "yes"})


def test_one_precision_for_all_stages(tmp_path):
    config = load_recipe("voc-animals", {"data": {"data_dir": "photos"}, "mixed_precision": "auto"})
    assert config.bce.mixed_precision == config.spatial.mixed_precision == config.labelling.mixed_precision == "auto"
    assert config.irn.training.mixed_precision == config.segmenter.training.mixed_precision == "auto"
    # Those that are set by themselves stay; a stage that there is not is not made.
    overrides = {"mixed_precision": "bf16", "spatial": {"mixed_precision": "no"}, "irn": None, "segmenter": None}
    config = load_recipe("voc-animals", {"data": {"data_dir": "photos"}, **overrides})
    assert (config.bce.mixed_precision, config.spatial.mixed_precision) == ("bf16", "no")
    assert config.irn is None and config.segmenter is None
    recipe = tmp_path / "own.yaml"
    recipe.write_text("mixed_precision: no\nbce: {mixed_precision: auto, lr: 0.5}\nirn: {}")
    config = load_recipe(str(recipe), {"mixed_precision": "fp16"})
    assert config.bce.mixed_precision == config.irn.training.mixed_precision == "fp16" and config.bce.lr == 0.5
    with pytest.raises(ValueError, match=r"own\.yaml\.bce: Field 'mixed_precision'.* got half"):
        load_recipe(str(recipe), {"mixed_precision": "half"})


def test_official_names_fields_of_the_model_where_it_departs_from_the_defaults():
    released = SpatialBceConfig(**OFFICIAL["model"])
    departs = {key for key in OFFICIAL["model"] if getattr(released, key) != getattr(SpatialBceConfig(), key)}
    assert departs == {
        "logit_scale_init",
        "normalization",
        "kl_slope_leak",
        "kl_in_threshold_phase",
        "detach_threshold_input",
    }


def test_config_loads_nothing_heavy():
    code = "import sys, sbce_hf.config; print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_unknown_recipe_names_the_known(tmp_path):
    with pytest.raises(FileNotFoundError, match="quickstart"):
        load_recipe("quickstrat")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [")
    with pytest.raises(ValueError, match="not valid YAML"):
        load_recipe(str(broken))
    broken.write_text("- a")
    with pytest.raises(ValueError, match="expected a mapping"):
        load_recipe(str(broken))
