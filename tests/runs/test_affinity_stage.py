"""The stage of a run that spreads class maps over what the last round's network finds alike."""

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import yaml
from test_refine import SECTION as IRN

from sbce_hf.cli import main
from sbce_hf.config import load_recipe, to_mapping
from sbce_hf.errors import UserError
from sbce_hf.files import read_json
from sbce_hf.hub.labels import render_label_folder
from sbce_hf.inference.affinity import AffinityMethod
from sbce_hf.labels.store import LabelStore
from sbce_hf.runs import clock
from sbce_hf.runs.run import run

VIT = {"model": {"trunk": "test_vit", "output_stride": None}, "trunk_weights": "random", "rounds": 1}
NOTE = "affinity of patches"


def config_of(tiny_recipe, **overrides):
    base = {**VIT, "affinity": {"layers": 2}}
    return load_recipe(str(tiny_recipe), {**base, **overrides})


@pytest.fixture(scope="module")
def config(tiny_recipe):
    return config_of(tiny_recipe)


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("run") / "finished"
    return run_dir, run(config, run_dir, "sbce run --recipe tiny.yaml")


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


def test_the_label_maps_are_the_run_s_and_everything_says_what_they_are(finished, tmp_path):
    run_dir, summary = finished
    assert summary.label_maps == run_dir / "affinity" / "labels" / "affinity_crf"
    store = LabelStore(run_dir / "affinity/labels/affinity")
    assert store.complete and len(store.done_ids()) == 12
    assert contents(store.directory / "label_maps") != contents(run_dir / "round_1/labels/paper/label_maps")
    record = read_json(run_dir / "affinity" / "stage.json")
    assert list(record["needs"]) == ["round_1"] and not record["uses_masks"]
    rows = [row for row in summary.scores if row.stage == "affinity"]
    assert [(row.crf, row.rule, row.note) for row in rows] == [
        (False, "paper (affinity of attention)", NOTE),
        (True, "paper (affinity of attention)", NOTE),
    ]
    assert f"| affinity | paper (affinity of attention) | yes | {NOTE} |" in (run_dir / "report.md").read_text()
    assert "affinity" in (run_dir / "quality.md").read_text()
    card = render_label_folder(LabelStore(summary.label_maps), "user/labels", tmp_path / "labels").folder / "README.md"
    assert "then the rule: paper (affinity of attention)" in card.read_text()


def test_killed_in_the_middle_it_ends_with_the_same_label_maps(finished, config, tmp_path):
    recipe, run_dir = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(yaml.safe_dump(to_mapping(config)))
    shutil.copytree(finished[0], run_dir, ignore=shutil.ignore_patterns("affinity", "report.md"))
    command = [sys.executable, "-m", "sbce_hf.cli", "run", "--recipe", str(recipe), "--output-dir", str(run_dir)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    while not list(run_dir.glob("affinity/labels/affinity/label_maps")) and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert main([*command[3:]]) == 0
    assert contents(run_dir / "affinity") == contents(finished[0] / "affinity")


def test_a_finished_run_does_nothing_again_and_other_settings_are_another_run(finished, config):
    run_dir, summary = finished
    before = {path: path.stat().st_mtime_ns for path in (run_dir / "affinity").rglob("*.png")}
    assert run(config, run_dir).scores == summary.scores
    assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in before.items())
    for change, words in (({"steps": 9}, "steps was 2, is 9"), ({"layers": 1}, "layers was 2, is 1")):
        other = replace(config, affinity=replace(config.affinity, **change))
        with pytest.raises(ValueError, match=rf"affinity: affinity\.{words}.*remove affinity from it"):
            run(other, run_dir)


def test_a_trunk_without_attention_stops_the_run_and_the_plan_before_anything_is_made(tiny_recipe, tmp_path, capsys):
    command = ["run", "--recipe", str(tiny_recipe), "--set", "affinity={}", "--output-dir", str(tmp_path / "out")]
    for more in ([], ["--dry-run"]):
        assert main([*command, *more]) == 1
        printed = "".join(capsys.readouterr())
        assert "affinity.source: got attention" in printed and "affinity.source=features" in printed
        assert not (tmp_path / "out").exists()


def test_features_of_any_trunk_are_the_other_source(tiny_recipe, tmp_path, capsys):
    overrides = {"rounds": 1, "affinity": {"source": "features"}, "labelling": {"crf": None}, "contact_images": 0}
    config = load_recipe(str(tiny_recipe), overrides)
    summary = run(config, tmp_path)
    assert summary.label_maps == tmp_path / "affinity" / "labels" / "affinity"
    assert read_json(tmp_path / "affinity" / "stage.json")["settings"]["affinity"]["power"] == 8
    command = ["run", "--recipe", str(tmp_path / "config.yaml"), "--output-dir", str(tmp_path), "--dry-run"]
    assert main(command) == 0
    assert "finished so far: bce, round_1, " in (printed := capsys.readouterr().out) and "affinity" in printed


def test_the_plan_times_what_the_stage_does(tiny_recipe, tmp_path, monkeypatch):
    photos = []

    def counted(self, image, maps, crf):
        photos.append(image.shape)
        return AffinityMethod.__call__(self, image, maps, crf)

    monkeypatch.setattr(clock, "AffinityMethod", type("Counted", (AffinityMethod,), {"__call__": counted}))
    command = ["run", "--recipe", str(tiny_recipe), "--output-dir", str(tmp_path / "out"), "--dry-run"]
    assert main(command) == 0 and not photos
    assert main([*command, "--set", "affinity.source=features"]) == 0
    assert len(photos) == clock.PHOTOS * clock.REPEATS


def test_it_and_irn_exclude_each_other(tiny_recipe):
    with pytest.raises(UserError, match="affinity and irn: got both.*irn=null"):
        config_of(tiny_recipe, irn=IRN)


def test_numbers_out_of_range_are_told(tiny_recipe):
    for section, words in (
        ({"layers": 0}, r"affinity\.layers: got 0"),
        ({"threshold": 1.5}, r"affinity\.threshold: got 1\.5"),
        ({"power": 0.0}, r"affinity\.power: got 0\.0"),
        ({"stepps": 3}, "unknown key 'stepps'"),
    ):
        with pytest.raises(UserError, match=words):
            config_of(tiny_recipe, affinity=section)
    assert json.loads(json.dumps(to_mapping(config_of(tiny_recipe))))["affinity"]["power"] == 1
