"""The script that tells what settings of the rule and the walk do to a finished run."""

import runpy
import sys
from pathlib import Path

import pytest

from sbce_hf.config import load_recipe
from sbce_hf.runs.run import run

SCRIPT = Path(__file__).parent.parent / "scripts" / "variants.py"
SETTINGS = {
    "rounds": 1,
    "labelling": {"rule": "peak", "confidence_weight": 0.5, "object_weight": 2.0, "crf": {"iterations": 2}},
    "irn": {
        "object_weight": 1.0,
        "boundary_weight": 5.0,
        "model": {"trunk": "test_resnet", "side_channels": 8, "radius": 4},
        "training": {"epochs": 1, "batch_size": 4, "crop_size": 48, "num_workers": 0},
    },
}


@pytest.fixture(scope="module")
def finished(tiny_recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, run(load_recipe(str(tiny_recipe), SETTINGS), folder)


def table(finished, monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(finished[0]), *arguments])
    capsys.readouterr()
    runpy.run_path(str(SCRIPT), run_name="__main__")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    return {row[0]: row[1:] for row in ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:])}


@pytest.mark.parametrize("stage", ["round_1", "irn"])
def test_the_run_as_it_is_scores_as_the_run_did(finished, monkeypatch, capsys, stage):
    summary = finished[1]
    found = table(finished, monkeypatch, capsys, "--stage", stage, "--try", "labelling.peak_share=0.9")
    before, after = (row.mean_iou for row in summary.scores if row.stage == stage)
    # Another batch, so pixels on the very threshold may differ.
    assert float(found["as it is"][0]) == pytest.approx(100 * before, abs=0.3)
    assert float(found["as it is"][1]) == pytest.approx(100 * after, abs=0.5)
    assert found["labelling.peak_share=0.9"] != found["as it is"]


def test_several_settings_make_a_row(finished, monkeypatch, capsys):
    settings = ["irn.boundary_weight=0", "irn.object_weight=0"]
    found = table(finished, monkeypatch, capsys, "--every", "2", "--no-crf", "--try", *settings, "--try", settings[0])
    assert list(found) == ["as it is", " ".join(settings), settings[0]]
    assert all(row[1] == "" and 0 <= float(row[0]) <= 100 for row in found.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--try", "spatial.lr=1"], "got spatial.lr, expected one of"),
        (["--try", "labelling.scales=[1.0]"], "needs a run of its own"),
        (["--try", "labelling.peak_share=2"], "peak_share"),
        (["--stage", "bce"], "got bce, expected one of ['round_1', 'irn']"),
    ],
)
def test_what_cannot_be_tried(finished, monkeypatch, capsys, arguments, message):
    with pytest.raises(SystemExit, match="2"):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(finished[0]), *arguments])
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert message in capsys.readouterr().err
