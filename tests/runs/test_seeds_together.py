"""Several seeds end in one set of label maps that is made of all of them."""

import json
import shutil

import pytest
import yaml

from sbce_hf.cli import main
from sbce_hf.config import load_recipe
from sbce_hf.labels.store import LabelStore
from sbce_hf.runs.together import can_label_together

IRN = {
    "boundary_weight": 1.0,
    "object_weight": 1.0,
    "model": {"trunk": "test_resnet", "side_channels": 8, "radius": 4},
    "training": {"epochs": 1, "batch_size": 4, "crop_size": 48, "num_workers": 0},
}


@pytest.fixture(scope="module")
def arguments(tiny_recipe, tmp_path_factory):
    settings = yaml.safe_load(tiny_recipe.read_text())
    settings |= {"rounds": 1, "irn": IRN}
    settings["labelling"] |= {"rule": "peak", "confidence_weight": 0.5, "object_weight": 2.0}
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(yaml.safe_dump(settings))
    return ["run", "--recipe", str(path), "--seeds", "2"]


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.png")}


def test_two_seeds_and_what_they_say_together(arguments, tmp_path, capsys):
    assert main([*arguments, "--output-dir", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    folder = tmp_path / "together_0-1"
    store, plain = (LabelStore(folder / "labels" / name) for name in ("together_crf", "together"))
    assert f"label maps of all seeds together: {store.directory}" in said
    assert store.complete and plain.complete and len(store.done_ids()) == 12
    rows = json.loads((folder / "scores.json").read_text())["rows"]
    assert [(row["stage"], row["rule"], row["crf"]) for row in rows] == [
        ("together", "walks of 2 runs", False),
        ("together", "walks of 2 runs", True),
    ]
    table = (tmp_path / "seeds.md").read_text()
    assert f"{100 * rows[1]['mean_iou']:.1f}" in table.splitlines()[-1] and "| together |" in table
    assert len(list((folder / "overlays").glob("*.jpg"))) == 12
    # Of neither run alone.
    alone = [LabelStore(tmp_path / f"seed{seed}" / "irn" / "labels" / "irn") for seed in (0, 1)]
    for one in alone:
        assert any((plain.read(name) != one.read(name)).any() for name in plain.done_ids())
    # Where both agree on every pixel of a class, it seldom says otherwise.
    agreed = differs = 0
    for name in plain.done_ids():
        first, second = (one.read(name) for one in alone)
        same = first == second
        agreed += same.sum()
        differs += (plain.read(name) != first)[same].sum()
    assert differs < 0.1 * agreed

    # The same command makes what is missing, the same again, and nothing else.
    before = contents(folder / "labels")
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("seed*/irn/**/*.png")}
    shutil.rmtree(folder / "labels")
    assert main([*arguments, "--output-dir", str(tmp_path)]) == 0
    assert contents(folder / "labels") == before and len(before) == 24
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


@pytest.mark.parametrize(
    ("overrides", "can"),
    [
        ({"irn": IRN}, True),
        ({}, False),
        ({"irn": IRN, "saliency": {"maps": "maps"}}, False),
        ({"irn": IRN, "proportions": {"file": "true.parquet", "from_masks": True}}, False),
    ],
)
def test_what_can_be_averaged(tiny_recipe, overrides, can):
    assert can_label_together(load_recipe(str(tiny_recipe), overrides)) is can


def test_one_seed_is_not_averaged(arguments, tmp_path):
    alone = [value if value != "2" else "1" for value in arguments]
    assert main([*alone, "--output-dir", str(tmp_path), "--set", "irn=null"]) == 0
    assert (tmp_path / "seed0").exists() and not list(tmp_path.glob("together*"))
