"""Numbers of a config: how they may be written, and which are refused."""

import dataclasses
import math

import pytest
from huggingface_hub.errors import StrictDataclassError

from sbce_hf import config as configs
from sbce_hf.config import (
    BoundaryTrainingConfig,
    LoopConfig,
    RunConfig,
    deciding,
    from_mapping,
    load_recipe,
    parse_override,
    to_mapping,
)
from sbce_hf.config.ranges import Checked
from sbce_hf.runs.stage import flat

CONFIGS = [value for value in vars(configs).values() if isinstance(value, type) and issubclass(value, Checked)]


def recipe(tmp_path, text):
    path = tmp_path / "own.yaml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "0.1e-2", "10.e-4", ".1e-2", "+1e-3", "1.0e-3", "0.001"])
def test_a_recipe_takes_the_same_numbers_as_set(tmp_path, text):
    values = f"bce: {{lr: {text}}}\nmodel: {{kl_weight: {text}}}\nlabelling: {{scales: [{text}]}}"
    written = load_recipe(recipe(tmp_path, values))
    given = load_recipe(
        recipe(tmp_path, ""),
        {
            **parse_override(f"bce.lr={text}"),
            **parse_override(f"model.kl_weight={text}"),
            **parse_override(f"labelling.scales=[{text}]"),
        },
    )
    assert written.bce.lr == written.model["kl_weight"] == written.labelling.scales[0] == 0.001
    assert given == written


def test_whole_numbers_may_be_written_with_an_exponent(tmp_path):
    written = load_recipe(recipe(tmp_path, "bce: {period: 1e3, checkpoint_every: 2.5e2}"))
    assert written.bce.period == 1000 and isinstance(written.bce.period, int)
    assert written.bce.checkpoint_every == 250
    with pytest.raises(ValueError, match="'epochs' expected int, got float"):
        load_recipe(recipe(tmp_path, "bce: {epochs: 1.5e0}"))


def test_text_stays_text(tmp_path):
    # A short git revision, and a class.
    data = load_recipe(recipe(tmp_path, "data: {source: hub, dataset: a, revision: 86e1234, classes: [1e5]}")).data
    assert data.revision == "86e1234" and data.classes == ("1e5",)
    with pytest.raises(ValueError, match="'epochs' expected int, got str"):
        load_recipe(recipe(tmp_path, "bce: {epochs: '3'}"))


@pytest.mark.parametrize("text", [".nan", ".inf", "-.inf", "1e999"])
@pytest.mark.parametrize("key", ["bce.lr", "labelling.crf.gaussian_compat", "labelling.scales", "model.kl_weight"])
def test_numbers_that_are_none_are_refused(tmp_path, key, text):
    text = f"[{text}]" if key.endswith("scales") else text
    nested = text
    for part in reversed(key.split(".")):
        nested = f"{{{part}: {nested}}}"
    message = rf"{key.rsplit('.', 1)[-1]}.*: got -?(nan|inf), expected a finite number"
    with pytest.raises(ValueError, match=message):
        load_recipe(recipe(tmp_path, nested))
    with pytest.raises(ValueError, match=message):
        load_recipe("quickstart", parse_override(f"{key}={text}"))


def floats(cls):
    return [f.name for f in dataclasses.fields(cls) if f.type in (float, float | None)]


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(("cls", "name"), [(cls, name) for cls in CONFIGS for name in floats(cls)])
def test_python_is_refused_them_as_well(cls, name, value):
    with pytest.raises(StrictDataclassError, match=f"{name}: got {value}, expected a finite number"):
        cls(**({"data_dir": "photos"} if cls is configs.DataConfig else {}), **{name: value})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("rounds", "1e9", "rounds: got 1000000000, expected at most 100"),
        ("data.shapes_images", "1e12", "shapes_images: got 1000000000000, expected at most 1000000"),
        ("data.shapes_size", "1000000", "shapes_size: got 1000000, expected at most"),
        ("bce.epochs", "10000000", "epochs: got 10000000, expected at most"),
        ("bce.batch_size", "1" + "0" * 4000, "batch_size: got 10.*expected at most"),
        ("bce.image_size", "1e6", "image_size: got 1000000, expected at most"),
        ("bce.num_workers", "10000", "num_workers: got 10000, expected at most"),
        ("bce.lr", "1" + "0" * 4000, "lr: got 10.*, expected a finite number"),
        ("bce.epochs", "1" + "0" * 5000, "not valid YAML"),
        ("labelling.scales", "[1000]", r"scales: got \[1000.0\], expected at most 64 numbers of at most 64"),
        ("labelling.crf.iterations", "1e9", "iterations: got 1000000000, expected at most"),
        ("irn.walk_steps", "1e9", "walk_steps: got 1000000000, expected at most"),
        ("irn.training.max_scale", "1e6", "max_scale: got 1000000.0, expected at most 64"),
        ("segmenter.prediction.window", "1e9", "window: got 1000000000, expected at most"),
        ("seed", "-1", "seed: got -1, expected 0 to 4294967295"),
        ("contact_images", "1e9", "contact_images: got 1000000000, expected at most"),
    ],
)
def test_slips_are_refused(key, value, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_recipe("quickstart", parse_override(f"{key}={value}"))
    assert len(str(caught.value)) < 1500


def test_a_range_outlives_a_new_default():
    assert BoundaryTrainingConfig().lr != LoopConfig().lr
    with pytest.raises(StrictDataclassError, match=r"training\.lr: got -1\.0, expected more than 0"):
        BoundaryTrainingConfig(lr=-1.0)


def test_ranges_are_checked_before_fields_are_compared():
    with pytest.raises(ValueError, match="gradient_accumulation_steps: got 0, expected at least 1"):
        from_mapping(RunConfig, {"bce": {"gradient_accumulation_steps": 0}})


def test_what_decides_no_result_is_left_out_and_nothing_else():
    config = load_recipe("voc-animals", {"data": {"data_dir": "photos"}})
    left_out = flat(to_mapping(config)).keys() - flat(deciding(config)).keys()
    # What older versions lack decides nothing as long as it says what they did.
    as_before = {name for name in left_out if name.endswith(("labelling.mixed_precision", "crf.backend", ".compile"))}
    assert {"labelling.mixed_precision", "labelling.crf.backend", "bce.compile"} <= as_before
    assert {name.rpartition(".")[2] for name in left_out - as_before} == {
        "num_workers",
        "batch_photos",
        "threads",
        "checkpoint_every",
        "checkpoints_total_limit",
        "log_every",
        "crf_workers",
        "contact_images",
        "odd_images",
        "overlays",
        "strict",
        "outside_files",
        # The table's content decides.
        "file",
        "separator",
        # SGD, which was all there was.
        "optimizer",
        # Trunks were always trained.
        "feature_sizes",
        # Nothing looked for objects, nor for outlines on boundaries.
        "object_weight",
        "boundary_weight",
        # Nor did the rule listen to how sure the network is.
        "confidence_weight",
    }
    # In every training and labelling, however deep.
    assert "segmenter.training.log_every" in left_out and "segmenter.prediction.crf_workers" in left_out
    assert all(flat(to_mapping(config))[name] == value for name, value in flat(deciding(config)).items())
