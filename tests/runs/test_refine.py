"""The refinement stage of a run: seeds, boundary network, random walk."""

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import yaml
from PIL import Image

from sbce_hf.cli import main
from sbce_hf.config import IrnRefinementConfig, from_mapping, load_recipe, to_mapping
from sbce_hf.data import load_images
from sbce_hf.files import file_digest, weights_digest
from sbce_hf.labels.label_maps import check_label_maps
from sbce_hf.labels.store import LabelStore
from sbce_hf.runs.run import run

SECTION = {
    "object_weight": 1.0,
    "boundary_weight": 1.0,
    "model": {"trunk": "test_resnet", "side_channels": 8, "radius": 4},
    "training": {
        "epochs": 2,
        "batch_size": 4,
        "crop_size": 48,
        "num_workers": 0,
        "log_every": 2,
        "checkpoint_every": 2,
    },
}
SEGMENTER = {
    "model": {"head": "largefov", "atrous_rates": [2], "head_channels": 16, "freeze_batch_norm": False},
    "training": {"epochs": 1, "batch_size": 4, "crop_size": 48, "num_workers": 0},
}


@pytest.fixture(scope="module")
def tiny_recipe(tiny_recipe, tmp_path_factory):
    """Of other pictures: ones from which so little training learns something that can be refined."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(tiny_recipe.read_text().replace("shapes_size: 48", "shapes_size: 48, shapes_seed: 1"))
    return path


@pytest.fixture(scope="module")
def config(tiny_recipe):
    return load_recipe(str(tiny_recipe), {"rounds": 1, "irn": SECTION, "segmenter": SEGMENTER})


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("run") / "finished"
    return run_dir, run(config, run_dir, "sbce run --recipe tiny.yaml")


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


def test_the_refined_label_maps_are_the_run_s(finished, tiny_recipe):
    run_dir, summary = finished
    assert summary.label_maps == run_dir / "irn" / "labels" / "irn_crf"
    for folder in ("irn/seeds", "irn/labels/irn", "irn/labels/irn_crf"):
        store = LabelStore(run_dir / folder)
        assert store.complete and len(store.done_ids()) == 12
    plain, refined = (contents(run_dir / stage / "label_maps") for stage in ("round_1/labels/paper", "irn/labels/irn"))
    assert plain.keys() == refined.keys() and plain != refined
    # The segmenter was trained on them: another training on the same maps agrees about their hash.
    settings = json.loads((run_dir / "segmenter" / "adaptive" / "summary.json").read_text())["settings"]
    images = load_images(load_recipe(str(tiny_recipe)).data, "train")
    assert settings["inputs"]["label_maps"] == check_label_maps(images, LabelStore(summary.label_maps))[1]


def test_the_report_shows_it(finished):
    run_dir, summary = finished
    rows = [row for row in summary.scores if row.stage == "irn"]
    assert [row.crf for row in rows] == [False, True]
    assert all(row.note == "IRN random walk" and not row.uses_ground_truth for row in rows)
    assert all(row.note == "" for row in summary.scores if row.stage != "irn")
    report = (run_dir / "report.md").read_text()
    assert "| irn | adaptive (paper) | yes | IRN random walk |" in report and "after the CRF, refined, truth" in report
    assert "irn" in (run_dir / "quality.md").read_text()
    assert "](figures/curves_irn.png)" in report
    with (
        Image.open(run_dir / "figures" / "curves_irn.png") as picture,
        Image.open(run_dir / "figures/curves.png") as whole,
    ):
        assert min(picture.size) > 100 and picture.height < whole.height
    with Image.open(run_dir / "figures" / "sheet.png") as sheet:
        assert sheet.width > 6 * 280


def test_masks_decide_nothing(finished, config, tmp_path):
    values = to_mapping(config)
    values["data"]["score_split"] = None
    path = tmp_path / "unscored.yaml"
    path.write_text(yaml.safe_dump(values))
    run(load_recipe(str(path)), tmp_path / "run")
    assert contents(tmp_path / "run" / "irn") == contents(finished[0] / "irn")


def test_killed_in_any_part_ends_with_the_same_label_maps(finished, config, tmp_path):
    recipe, run_dir = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(yaml.safe_dump(to_mapping(config)))
    shutil.copytree(finished[0], run_dir, ignore=shutil.ignore_patterns("irn", "segmenter", "report.md"))
    command = [sys.executable, "-m", "sbce_hf.cli", "run", "--recipe", str(recipe), "--output-dir", str(run_dir)]
    killed = 0
    for marker in ("irn/seeds/label_maps", "irn/checkpoints/0*", "irn/labels/irn/label_maps"):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
        while not list(run_dir.glob(marker)) and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
    assert killed == 3
    assert main([*command[3:]]) == 0
    assert contents(run_dir / "irn") == contents(finished[0] / "irn")
    weights = "irn/model/model.safetensors"
    assert (run_dir / weights).read_bytes() == (finished[0] / weights).read_bytes()


def test_added_to_a_finished_run(finished, tiny_recipe, config, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(finished[0], run_dir, ignore=shutil.ignore_patterns("irn", "segmenter"))
    plain = load_recipe(str(tiny_recipe), {"rounds": 1, "segmenter": SEGMENTER})
    assert run(plain, run_dir).label_maps == run_dir / "round_1" / "labels" / "paper_crf"
    assert not (run_dir / "irn").exists()
    # Its segmenter was trained on other label maps.
    with pytest.raises(
        ValueError, match=r"made from round_1, now from irn and round_1.*remove segmenter/adaptive from it"
    ):
        run(config, run_dir)
    assert load_recipe(str(run_dir / "config.yaml")).irn is None and not (run_dir / "irn").exists()
    shutil.rmtree(run_dir / "segmenter")
    run(config, run_dir)
    assert contents(run_dir / "irn") == contents(finished[0] / "irn")


def test_a_finished_run_does_nothing_again(finished, config):
    run_dir, summary = finished
    made = [path for path in run_dir.glob("*/**/*") if path.suffix in (".png", ".safetensors")]
    before = {path: path.stat().st_mtime_ns for path in made if "figures" not in path.parts}
    again = run(config, run_dir)
    assert [row for row in again.scores if row.stage == "irn"] == [row for row in summary.scores if row.stage == "irn"]
    assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in before.items())
    changed = {**SECTION, "background_threshold": 0.3}
    with pytest.raises(ValueError, match=r"irn.background_threshold was 0.25, is 0.3.*remove irn and segmenter"):
        run(replace(config, irn=from_mapping(IrnRefinementConfig, changed)), run_dir)


def test_what_a_training_starts_from_is_kept(finished, tmp_path):
    settings = json.loads((finished[0] / "irn" / "summary.json").read_text())["settings"]
    assert settings["inputs"]["trunk_weights"] == "random"
    assert "transformers_version" not in settings["inputs"]["model"]
    segmenter = json.loads((finished[0] / "segmenter" / "adaptive" / "summary.json").read_text())["settings"]
    assert segmenter["inputs"]["weights"] == file_digest(finished[0] / "round_1" / "model" / "model.safetensors")
    (tmp_path / "weights").write_bytes(b"1")
    assert weights_digest(str(tmp_path / "weights")) == file_digest(tmp_path / "weights")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": {"trunk": "absent"}}, "trunk 'absent'"),
        ({"trunk_weights": "absent.safetensors"}, "no file absent.safetensors"),
        ({"model": {"trunk": "test_resnet"}}, "crop_size: got 48, expected at least 73 for irn.model.radius 10"),
        ({"model": {"feature_index": 2}}, "irn.model.*unknown key 'feature_index'"),
    ],
)
def test_what_cannot_work_stops_before_anything_is_trained(tiny_recipe, tmp_path, fields, message):
    config = load_recipe(str(tiny_recipe), {"irn": {**SECTION, **fields}})
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_ranges(tiny_recipe):
    with pytest.raises(ValueError, match="foreground_share and background_share: got 1.5 and 1.5"):
        load_recipe(str(tiny_recipe), {"irn": {"foreground_share": 1.5}})
    with pytest.raises(ValueError, match="unknown key 'walk_lenght'; did you mean"):
        load_recipe(str(tiny_recipe), {"irn": {"walk_lenght": 3}})


def test_plan_names_the_stage(tiny_recipe, tmp_path, capsys):
    override = f"--set=irn={json.dumps(SECTION)}"
    assert main(["run", "--recipe", str(tiny_recipe), override, "--output-dir", str(tmp_path / "r"), "--dry-run"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.split()[:1] == ["irn"]]
    assert line.split()[1:4] == ["12", "2", "6"]


def test_seeds_say_less_than_label_maps(finished):
    store = LabelStore(finished[0] / "irn" / "seeds")
    ignored = np.mean([(store.read(image_id) == 255).mean() for image_id in store.done_ids()])
    assert 0 < ignored < 1
