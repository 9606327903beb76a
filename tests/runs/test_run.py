import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sbce_hf.cli import main
from sbce_hf.config import load_recipe
from sbce_hf.errors import UserError
from sbce_hf.labels.proportions import ProportionTable
from sbce_hf.labels.store import LabelStore
from sbce_hf.runs.layout import result_of
from sbce_hf.runs.run import run
from sbce_hf.runs.scoring import read_scores

SCRIPTS = Path(__file__).parents[2] / "scripts"


def digests(run_dir):
    """Hash of every label map and of every trained weight."""
    paths = [*run_dir.glob("*/labels/*/label_maps/**/*.png"), *run_dir.glob("*/model/*.safetensors")]
    return {str(p.relative_to(run_dir)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(paths)}


@pytest.fixture(scope="module")
def finished(tiny_recipe, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("run") / "finished"
    summary = run(load_recipe(str(tiny_recipe)), run_dir, "sbce run --recipe tiny.yaml")
    return run_dir, summary


def test_every_stage_leaves_its_results(finished):
    run_dir, summary = finished
    for stage, rule in (("bce", "fixed"), ("round_1", "paper"), ("round_2", "paper")):
        for name in (rule, f"{rule}_crf"):
            store = LabelStore(run_dir / stage / "labels" / name)
            assert store.complete and len(store.done_ids()) == 12
        table = ProportionTable.load(run_dir / stage / "proportions.parquet")
        assert table.proportions.shape == (12, 4)
        assert (run_dir / stage / "model" / "model.safetensors").is_file()
    assert summary.label_maps == run_dir / "round_2" / "labels" / "paper_crf"
    assert summary.num_images == 12 and summary.num_skipped == 0


def test_a_run_directory_stands_for_its_results(finished, tiny_recipe, tmp_path, capsys):
    run_dir, summary = finished
    assert result_of(run_dir, "label_maps") == str(summary.label_maps)
    assert result_of(run_dir, "classifier") == result_of(run_dir / "round_2", "classifier") == str(summary.model_dir)
    assert result_of(summary.model_dir, "classifier") == str(summary.model_dir)
    with pytest.raises(FileNotFoundError, match="the run has no segmenter"):
        result_of(run_dir, "segmenter")
    scores = {}
    for labels in (run_dir, summary.label_maps):
        command = ["evaluate", "--recipe", str(tiny_recipe), "--labels", str(labels)]
        assert main([*command, "--output", str(tmp_path / "scores.json")]) == 0
        scores[labels] = (tmp_path / "scores.json").read_text()
    assert len(set(scores.values())) == 1
    command = ["label", "--recipe", str(tiny_recipe), "--checkpoint", str(run_dir)]
    assert main([*command, "--output-dir", str(tmp_path / "labels")]) == 0
    again = LabelStore(tmp_path / "labels" / "paper_crf")
    assert (again.read("train_00000") == LabelStore(summary.label_maps).read("train_00000")).all()
    shutil.copytree(run_dir, tmp_path / "moved")
    assert result_of(tmp_path / "moved", "label_maps").startswith(str(tmp_path / "moved"))
    notes = json.loads((tmp_path / "moved" / "run.json").read_text())
    (tmp_path / "moved" / "run.json").write_text(json.dumps({key: notes[key] for key in notes if key != "results"}))
    with pytest.raises(FileNotFoundError, match="the run is not finished"):
        result_of(tmp_path / "moved", "label_maps")


def test_report_tells_the_rules_apart_and_marks_the_leak(finished):
    run_dir, summary = finished
    report = (run_dir / "report.md").read_text()
    assert "sbce run --recipe tiny.yaml" in report
    leaks = [row for row in summary.scores if row.uses_ground_truth]
    assert len(leaks) == 2 and all("best constant" in row.rule for row in leaks)
    assert sum("[leak" in line for line in report.splitlines() if line.startswith("| ")) >= 2
    # bce, two rounds, each before and after the CRF, and the two leaks.
    assert len(summary.scores) == 8
    rows = {path.parent.name: read_scores(path.parent) for path in run_dir.glob("*/scores.json")}
    assert {stage: len(found) for stage, found in rows.items()} == dict.fromkeys(
        ("bce", "round_1", "round_2", "leak_best_constant"), 2
    )
    for picture in ("curves.png", "sheet.png", "thresholds.png"):
        with Image.open(run_dir / "figures" / picture) as image:
            assert min(image.size) > 100
    page = (run_dir / "report.html").read_text()
    # In the order in which a reader wants it: what came of it, pictures, scores, and only then versions.
    order = [
        page.index(word) for word in ("photos have a label map", "data:image/", "look at first", ">Scores<", "torch")
    ]
    assert order == sorted(order) and summary.report == run_dir / "report.html"
    assert len(list((run_dir / "overlays").glob("*.jpg"))) == 12
    assert "round_1" in (run_dir / "quality.md").read_text()
    assert (run_dir / "config.yaml").is_file()


def test_proportions_are_the_crf_label_maps_shares(finished):
    run_dir, _ = finished
    store = LabelStore(run_dir / "bce" / "labels" / "fixed_crf")
    table = ProportionTable.load(run_dir / "bce" / "proportions.parquet")
    for image_id, row, lost in zip(table.image_ids, table.proportions, table.lost, strict=True):
        label_map = store.read(image_id)
        for index in store.record(image_id)["classes"]:
            share = float((label_map == index + 1).mean())
            assert lost[index] == (share == 0)
            # One of the 6 x 6 pixels of the class map is the least a present class keeps.
            assert row[index] == pytest.approx(np.clip(share, 1 / 36, 0.95))


def test_same_seed_same_result_and_ground_truth_decides_nothing(finished, tiny_recipe, tmp_path):
    unscored = load_recipe(str(tiny_recipe), {"data": {"score_split": None}})
    summary = run(unscored, tmp_path / "unscored")
    assert summary.scores == []
    expected = {name: value for name, value in digests(finished[0]).items() if "leak" not in name}
    assert digests(tmp_path / "unscored") == expected
    other = run(load_recipe(str(tiny_recipe), {"seed": 1, "data": {"score_split": None}}), tmp_path / "other")
    assert digests(other.report.parent) != expected


def test_finished_run_returns_at_once_and_refuses_another_config(finished, tiny_recipe):
    run_dir, summary = finished
    before = digests(run_dir)
    again = run(load_recipe(str(tiny_recipe)), run_dir)
    assert again.scores == summary.scores and digests(run_dir) == before
    with pytest.raises(ValueError, match=r"spatial\.lr was 0\.01, is 0\.02.*--output-dir"):
        run(load_recipe(str(tiny_recipe), {"spatial": {"lr": 0.02}}), run_dir)


def test_a_run_names_no_results_of_others(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    notes = tmp_path / "run" / "run.json"
    values = json.loads(notes.read_text())
    (tmp_path / "private").mkdir()
    for results in (
        "5",
        5,
        {"label_maps": 5},
        {"label_maps": "../private"},
        {"label_maps": str(tmp_path / "private")},
    ):
        notes.write_text(json.dumps(values | {"results": results}))
        with pytest.raises(UserError, match=r"run\.json: .*results"):
            result_of(tmp_path / "run", "label_maps")
    for content in (b"{", b"[]", b"", b"\xff", b"[" * 100_000):
        notes.write_bytes(content)
        with pytest.raises(UserError, match=r"run\.json"):
            result_of(tmp_path / "run", "label_maps")


def test_nothing_is_written_through_a_link_out_of_a_run(finished, tiny_recipe, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "overlays")
    (tmp_path / "victim").mkdir()
    (tmp_path / "run" / "overlays").symlink_to(tmp_path / "victim")
    with pytest.raises(UserError, match=r"overlays: is a link to .*victim, expected the run's own"):
        run(load_recipe(str(tiny_recipe)), tmp_path / "run")
    assert not list((tmp_path / "victim").iterdir())
    (tmp_path / "run" / "overlays").unlink()
    metrics = tmp_path / "run" / "bce" / "metrics.jsonl"
    metrics.rename(tmp_path / "victim" / "lines")
    metrics.symlink_to(tmp_path / "victim" / "lines")
    with pytest.raises(UserError, match=r"metrics\.jsonl: is a link to .*lines, expected the run's own"):
        run(load_recipe(str(tiny_recipe)), tmp_path / "run")


def test_killed_at_any_time_ends_with_the_same_label_maps(finished, tiny_recipe, tmp_path):
    run_dir = tmp_path / "killed"
    command = [sys.executable, "-m", "sbce_hf.cli", "run", "--recipe", str(tiny_recipe), "--output-dir", str(run_dir)]
    markers = ["bce/checkpoints", "bce/labels/fixed/label_maps", "round_1/metrics.jsonl", "round_2/labels"]
    generator = random.Random(0)
    for marker in markers:
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        while not (run_dir / marker).exists() and process.poll() is None:
            time.sleep(0.02)
        time.sleep(generator.uniform(0, 0.3))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    finished_by = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished_by.returncode == 0, finished_by.stderr
    assert digests(run_dir) == digests(finished[0])
    assert not list(run_dir.rglob("*.tmp"))


def test_two_processes_finish_a_run_and_score_like_one(tiny_recipe, tmp_path):
    command = ["torchrun", "--standalone", "--nproc_per_node", "2", str(SCRIPTS / "run.py")]
    command += ["--recipe", str(tiny_recipe), "--set", "rounds=1", "--output-dir", str(tmp_path / "run")]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert len(LabelStore(tmp_path / "run" / "round_1" / "labels" / "paper_crf").done_ids()) == 12
    measured = sorted([*(tmp_path / "run").glob("*/scores.json"), *(tmp_path / "run").glob("*/quality.json")])
    assert len(measured) == 5
    together = [path.read_bytes() for path in measured]
    for path in measured:
        path.unlink()
    scan = tmp_path / "run" / "leak_best_constant" / "scan.json"
    alone = scan.read_bytes()
    shutil.rmtree(scan.parent)
    run(load_recipe(str(tiny_recipe), {"rounds": 1}), tmp_path / "run")
    assert [path.read_bytes() for path in measured] == together
    assert scan.read_bytes() == alone


def test_two_processes_label_like_one(finished, tiny_recipe, tmp_path):
    run_dir, _ = finished
    command = ["torchrun", "--standalone", "--nproc_per_node", "2", str(SCRIPTS / "label.py")]
    command += ["--recipe", str(tiny_recipe), "--checkpoint", str(run_dir / "round_2" / "model")]
    command += ["--output-dir", str(tmp_path / "labels")]
    labelled = subprocess.run(command, capture_output=True, text=True, check=False)
    assert labelled.returncode == 0, labelled.stderr
    for name in ("paper", "paper_crf"):
        alone = LabelStore(run_dir / "round_2" / "labels" / name)
        together = LabelStore(tmp_path / "labels" / name)
        assert together.complete and together.done_ids() == alone.done_ids()
        assert len(list((tmp_path / "labels" / name).glob("records-*.jsonl"))) == 2
        for image_id in alone.done_ids():
            assert together.path(image_id).read_bytes() == alone.path(image_id).read_bytes()
            assert together.record(image_id) == alone.record(image_id)
