import pytest

from sbce_hf.config import (
    RECIPES,
    DataConfig,
    RunConfig,
    from_mapping,
    load_recipe,
    merge,
    parse_override,
    to_mapping,
)


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


def test_unknown_recipe_names_the_known(tmp_path):
    with pytest.raises(FileNotFoundError, match="quickstart"):
        load_recipe("quickstrat")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [")
    with pytest.raises(ValueError, match="not valid YAML"):
        load_recipe(str(broken))
