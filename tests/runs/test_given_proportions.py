"""Proportions that are given instead of estimated, and what may come of those that were read off masks."""

import numpy as np
import pytest
from huggingface_hub import ModelCard

from sbce_hf.cli import main
from sbce_hf.config import load_recipe
from sbce_hf.data import load_images
from sbce_hf.errors import UserError
from sbce_hf.files import read_json
from sbce_hf.hub.models import find_model, render_model_folder
from sbce_hf.labels.proportions import ProportionTable
from sbce_hf.labels.store import LabelStore
from sbce_hf.runs.proportions import true_proportions
from sbce_hf.runs.run import run
from sbce_hf.runs.single import train_stage
from sbce_hf.runs.stages import outside_of


def recipe(tiny_recipe, **overrides):
    return load_recipe(str(tiny_recipe), {"rounds": 1, **overrides})


@pytest.fixture
def table(tiny_recipe, tmp_path, capsys):
    path = tmp_path / "true.parquet"
    assert main(["proportions", "--recipe", str(tiny_recipe), "--masks", "--output", str(path)]) == 0
    assert "proportions.from_masks=true" in capsys.readouterr().out
    return path


def test_true_proportions_are_the_masks(tiny_recipe, table):
    config = recipe(tiny_recipe)
    images = load_images(config.data, "train")
    found = ProportionTable.load(table)
    assert found.from_masks and found.image_ids == tuple(images.image_ids)
    for index in range(len(images)):
        mask = images.mask(index)
        for c in np.flatnonzero(images.label_matrix()[index]):
            share = max((mask == c + 1).mean(), config.proportions.minimum)
            assert found.proportions[index, c] == pytest.approx(share, abs=1 / 36)
        assert (found.proportions[index][images.label_matrix()[index] == 0] == 0).all()
    assert (true_proportions(images, config).proportions == found.proportions).all()


def test_rounds_are_trained_with_the_given_table_and_marked(tiny_recipe, table, tmp_path):
    section = {"file": str(table), "from_masks": True}
    summary = run(recipe(tiny_recipe, proportions=section), tmp_path / "run")
    plain = run(recipe(tiny_recipe), tmp_path / "plain")
    rows, others = ({(r.stage, r.crf): r for r in reversed(s.scores)} for s in (summary, plain))
    assert rows["bce", True].uses_ground_truth is False and rows["bce", True].rule == "fixed 0.3"
    assert rows["round_1", True].uses_ground_truth and not others["round_1", True].uses_ground_truth
    read = [read_json(tmp_path / name / "round_1" / "summary.json") for name in ("run", "plain")]
    assert read[0]["settings"]["inputs"]["proportions"] != read[1]["settings"]["inputs"]["proportions"]
    assert "[leak" in next(
        line for line in (tmp_path / "run" / "report.md").read_text().splitlines() if "| round_1 |" in line
    )
    cards = {}
    for name in ("run", "plain"):
        (tmp_path / f"card_{name}").mkdir()
        rendered = render_model_folder(find_model(tmp_path / name), "user/model", tmp_path / f"card_{name}")
        cards[name] = ModelCard((rendered.folder / "README.md").read_text())
    assert cards["run"].data.eval_results is None and len(cards["plain"].data.eval_results) == 2
    assert "**proportions of true masks** were trained with" in cards["run"].text
    assert "no mask was trained on" in cards["plain"].text and "no mask was trained on" not in cards["run"].text


def test_another_table_is_another_run(tiny_recipe, table, tmp_path):
    config = recipe(tiny_recipe, proportions={"file": str(table), "from_masks": True})
    images = load_images(config.data, "train")
    before = outside_of(config, images)
    found = ProportionTable.load(table)
    ProportionTable(found.class_names, found.image_ids, found.proportions / 2, found.lost, True).save(table)
    assert outside_of(config, images) != before


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"from_masks": False}, "was read off masks; expected proportions.from_masks=true"),
        ({"file": "absent.parquet"}, "absent.parquet: no table of proportions"),
        ({"file": None}, "from_masks: got true without proportions.file"),
    ],
)
def test_what_a_table_is_has_to_be_said(tiny_recipe, table, tmp_path, fields, message):
    with pytest.raises((UserError, FileNotFoundError), match=message):
        run(recipe(tiny_recipe, proportions={"file": str(table), "from_masks": True, **fields}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_label_maps_are_cut_at_the_given_shares(tiny_recipe, table, tmp_path):
    config = recipe(
        tiny_recipe,
        proportions={"file": str(table), "from_masks": True},
        spatial={"targets": "labels"},
        labelling={"crf": None},
    )
    summary = run(config, tmp_path / "run")
    rows = [row for row in summary.scores if row.stage in ("bce", "round_1") and not row.rule.startswith("best")]
    assert [row.rule for row in rows] == ["given shares"] * 2 and all(row.uses_ground_truth for row in rows)
    given = ProportionTable.load(table)
    for stage in ("bce", "round_1"):
        ids, shares = LabelStore(tmp_path / "run" / stage / "labels" / "share").proportions()
        expected = given.proportions[[given.image_ids.index(image_id) for image_id in ids]]
        alone = (expected > 0).sum(axis=1) == 1
        # Of two classes in one image, one may win what is the other's, too.
        assert alone.any() and shares[alone] == pytest.approx(expected[alone], abs=2 / 36)


def test_a_single_stage_takes_no_table_as_nothing_would_say_so(tiny_recipe, table, tmp_path):
    config = recipe(tiny_recipe, proportions={"file": str(table), "from_masks": True})
    with pytest.raises(UserError, match=r"proportions\.file: is for sbce run"):
        train_stage(config, "spatial", tmp_path / "stage", None, "labels")
    assert not (tmp_path / "stage").exists()
