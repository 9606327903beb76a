import dataclasses

import pytest
import timm
import yaml

from sbce_hf import DeepLabConfig, IrnConfig, SpatialBceConfig
from sbce_hf.cli import main
from sbce_hf.config import RECIPES, RunConfig, from_mapping, load_recipe
from sbce_hf.config.explain import every_key, explain_key, summaries
from sbce_hf.config.network_fields import is_of_kind, network_fields, trunk_names, undeclared_keys
from sbce_hf.errors import UserError


def test_every_key_is_documented():
    config = load_recipe("quickstart")
    missing = [key for key in every_key() if not explain_key(config, key).documentation]
    assert missing == [] and len(list(every_key())) > 190


def test_value_default_and_range_are_those_of_the_dataclasses():
    found = explain_key(load_recipe("quickstart", {"spatial": {"lr": 0.25}}), "spatial.lr")
    assert (found.value, found.default, found.range, found.kind) == (0.25, 0.001, "more than 0", "float")
    side = explain_key(load_recipe("quickstart"), "labelling.crf.side")
    assert side.kind == "int | None" and side.range == "at least 32" and "long side" in side.documentation
    # A section that the recipe leaves out has no value, but its keys are there to read about.
    assert explain_key(load_recipe("quickstart"), "irn.map_weight").value is None


@pytest.mark.parametrize(("key", "word"), [("official", "released"), ("mixed_precision", "every stage's network")])
def test_what_stands_for_other_keys_is_told_too(key, word, capsys):
    assert main(["config", "quickstart", "--explain", key]) == 0
    assert word in capsys.readouterr().out


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("spatal.lr", "did you mean 'spatial'"),
        ("spatial.lrr", "did you mean 'lr'"),
        ("size", r"no key by itself; keys with this word: .*bce\.batch_size, .*labelling\.image_size"),
        ("stride", r"keys with this word: .*model\.output_stride"),
        ("lr", r"keys with this word: bce\.lr"),
        ("wavelength", "a recipe has no key 'wavelength'; known keys: affinity, bce"),
        ("spatial.lr.x", "lr has no keys of its own"),
        ("model.tunk", "model has no key 'tunk'; did you mean 'trunk'"),
        ("irn.model.depth", "irn.model has no key 'depth'; known keys: backbone_config"),
    ],
)
def test_wrong_keys(key, message):
    with pytest.raises(UserError, match=message):
        explain_key(load_recipe("quickstart"), key)


@pytest.mark.parametrize(
    ("section", "configuration"),
    [("model", SpatialBceConfig), ("irn.model", IrnConfig), ("segmenter.model", DeepLabConfig)],
)
def test_fields_of_networks_are_those_of_their_configurations(section, configuration):
    config = load_recipe("quickstart", {"model": {"kl_weight": 0.5}})
    fields, own = network_fields(section), configuration()
    assert len(fields) >= 10 and all(field.documentation for field in fields.values())
    for name in fields:
        found = explain_key(config, f"{section}.{name}")
        # `None` stands for what the configuration finds out by itself.
        assert found.default is None or found.default == getattr(own, name), name
    assert explain_key(config, "model.kl_weight").value == 0.5 and explain_key(config, "model.kl_weight").default == 1


def test_every_default_has_the_type_of_its_field():
    for section, configuration in (("model", SpatialBceConfig), ("irn.model", IrnConfig)):
        own = configuration()
        for name, field in network_fields(section).items():
            assert is_of_kind(field, getattr(own, name)), name
    fields = network_fields("model")
    assert not is_of_kind(fields["output_stride"], "eight") and not is_of_kind(fields["train_trunk"], 3)
    assert not is_of_kind(fields["kl_form"], "odd") and is_of_kind(fields["kl_weight"], 2)


def test_keys_of_every_model_are_known():
    known = {field.name for field in dataclasses.fields(SpatialBceConfig)} | {"num_labels", "attn_implementation"}
    assert known <= {*network_fields("model"), *undeclared_keys()}


def test_trunks_are_those_that_timm_would_make():
    names, earlier = trunk_names()
    # Tests may have registered others.
    modules = {name: timm.model_entrypoint(name).__module__ for name in timm.list_models()}
    assert names == {name for name, module in modules.items() if module.startswith(("timm.", "sbce_hf."))}
    # Renamed models are made with a warning.
    assert "vit_base_patch16_224_in21k" in earlier and timm.is_model("vit_base_patch16_224_in21k")
    assert "resnet5" not in names | earlier


def test_fields_of_another_architecture_are_not_deeplab_s():
    config = load_recipe("quickstart", {"segmenter": {"architecture": "segformer", "checkpoint": "user/segformer"}})
    with pytest.raises(UserError, match="of architecture 'segformer' are those of transformers"):
        explain_key(config, "segmenter.model.depths")


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
