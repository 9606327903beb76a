import pytest
from PIL import Image

from sbce_hf.cli import main
from sbce_hf.config import load_recipe
from sbce_hf.errors import UserError
from sbce_hf.runs.plan import make_plan
from sbce_hf.runs.run import open_bench, run

SEGMENTER = {
    "model": {"output_stride": None, "head": "largefov", "head_channels": 8},
    "training": {"epochs": 1, "batch_size": 4, "crop_size": 48, "num_workers": 0},
    "score_split": "train",
}
IRN = {
    "model": {"output_stride": None, "side_channels": 8, "radius": 4},
    "training": {"epochs": 1, "batch_size": 4, "crop_size": 48, "num_workers": 0},
}


def recipe(path, trunk, **overrides):
    kwargs = overrides.pop("trunk_kwargs", None)
    model = {"trunk": trunk, "trunk_kwargs": kwargs, "output_stride": None}
    return load_recipe(str(path), {"model": model, "rounds": 1, **overrides})


SIZE = {"image_size": 64}
ONE_SIZE = {"trunk_kwargs": {"img_size": 64}}


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        ({}, "bce: training: trunk 'levit_128s' .*: cannot look at images of 48 x 48: .*trunk_kwargs={img_size: 48}"),
        ({**ONE_SIZE, "bce": SIZE, "spatial": SIZE}, "bce: labelling: trunk 'levit_128s' .* images of 48 x 48"),
        ({**ONE_SIZE, "bce": SIZE, "labelling": SIZE}, "round_1: training: .* images of 48 x 48"),
        (
            {**ONE_SIZE, "bce": SIZE, "spatial": SIZE, "labelling": {**SIZE, "scales": [1.0, 1.5]}},
            "bce: labelling: .* images of 96 x 96",
        ),
    ],
    ids=["training", "labelling", "round", "view"],
)
def test_a_trunk_of_one_size_says_so_before_anything_starts(overrides, problem, tiny_recipe, tmp_path):
    config = recipe(tiny_recipe, "levit_128s", **overrides)
    with pytest.raises(UserError, match=problem) as caught:
        open_bench(config, tmp_path / "run")
    assert make_plan(config, tmp_path / "run").problems == (str(caught.value),)
    assert not (tmp_path / "run").exists()


def test_one_size_everywhere_is_enough(tiny_recipe, tmp_path):
    config = recipe(tiny_recipe, "levit_128s", **ONE_SIZE, bce=SIZE, spatial=SIZE, labelling=SIZE)
    assert make_plan(config, tmp_path / "run").problems == ()


def test_networks_of_later_stages_are_looked_at(tiny_recipe, tmp_path):
    irn = {**IRN, "model": {**IRN["model"], "trunk": "levit_128s"}, "trunk_weights": "random"}
    (problem,) = make_plan(recipe(tiny_recipe, "test_vit", irn=irn), tmp_path / "run").problems
    assert problem.startswith("irn: training: trunk 'levit_128s'")
    segmenter = {**SEGMENTER, "model": {**SEGMENTER["model"], "trunk": "levit_128s"}, "weights": "random"}
    (problem,) = make_plan(recipe(tiny_recipe, "test_vit", segmenter=segmenter), tmp_path / "run").problems
    assert problem.startswith("segmenter/adaptive: training: trunk 'levit_128s'")


@pytest.mark.parametrize(
    ("trunk", "kwargs"),
    [
        ("test_vit", None),
        ("vit_small_patch14_reg4_dinov2", {"embed_dim": 32, "depth": 2, "num_heads": 2}),
    ],
)
def test_a_whole_run_with_other_trunks_than_convolutional_ones(trunk, kwargs, tiny_recipe, tmp_path):
    config = recipe(tiny_recipe, trunk, trunk_kwargs=kwargs, irn=IRN, segmenter=SEGMENTER)
    summary = run(config, tmp_path / "run")
    assert len(summary.scores) >= 4 and len(summary.segmenter_scores) == 1
    assert summary.label_maps.parent.parent.name == "irn"
    photo = tmp_path / "photo.png"
    Image.new("RGB", (61, 45), (90, 120, 60)).save(photo)
    command = [
        "predict",
        "--checkpoint",
        str(summary.segmenter_dir),
        str(photo),
        "--output-dir",
        str(tmp_path / "out"),
    ]
    assert main(command) == 0
