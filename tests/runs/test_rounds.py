"""Rounds that fail, that learn from label maps, and that count in iterations."""

import pytest

from sbce_hf.cli import main
from sbce_hf.config import load_recipe
from sbce_hf.files import read_json
from sbce_hf.labels.store import LabelStore
from sbce_hf.runs.run import run
from sbce_hf.training.folder import read_metrics
from sbce_hf.training.health import TrainingHealthError


def recipe(tiny_recipe, **overrides):
    plain = {"data": {"score_split": None}, "rounds": 1}
    return load_recipe(str(tiny_recipe), {**plain, **overrides})


def test_a_failed_round_fails_again_at_once_until_its_settings_change(tiny_recipe, tmp_path):
    run_dir, hopeless = tmp_path / "run", recipe(tiny_recipe, spatial={"lr": 1e30})
    for attempt in range(2):
        with pytest.raises(TrainingHealthError, match="lower spatial.lr") as error:
            run(hopeless, run_dir)
        assert ("when it was tried before" in str(error.value)) == bool(attempt)
    assert not read_json(run_dir / "round_1" / "stage.json")["finished"]
    trained = (run_dir / "bce" / "model" / "model.safetensors").stat()
    run(recipe(tiny_recipe), run_dir)
    assert not (run_dir / "round_1" / "failure.json").exists()
    assert read_json(run_dir / "round_1" / "stage.json")["finished"]
    assert (run_dir / "bce" / "model" / "model.safetensors").stat() == trained
    run(recipe(tiny_recipe), tmp_path / "straight")
    for path in ("round_1/model/model.safetensors", "round_1/proportions.parquet"):
        assert (run_dir / path).read_bytes() == (tmp_path / "straight" / path).read_bytes()


def test_a_round_on_label_maps_reads_those_of_the_stage_before(tiny_recipe, tmp_path):
    spatial = {"targets": "labels", "min_iterations": 8}
    labelling = {"rule": "peak", "scales": [1.0, 1.5]}
    config = recipe(tiny_recipe, spatial=spatial, labelling=labelling)
    run(config, tmp_path / "run")
    store = LabelStore(tmp_path / "run" / "round_1" / "labels" / "peak_crf")
    assert store.complete and len(store.done_ids()) == 12 and store.meta["method"] == "peak"
    lines = read_metrics(tmp_path / "run" / "round_1" / "metrics.jsonl")
    assert lines[-1]["iteration"] == 9 and not any("proportion_loss" in line for line in lines)
    # Three threshold phases.
    assert sum("threshold_loss" in line for line in lines) >= 2
    settings = read_json(tmp_path / "run" / "round_1" / "summary.json")["settings"]
    assert settings["inputs"]["proportions"] is None and len(settings["inputs"]["label_maps"]) == 64
    # No tag is lost by the rule.
    store = LabelStore(tmp_path / "run" / "round_1" / "labels" / "peak")
    for image_id in store.done_ids():
        assert all(share > 0 for share in store.record(image_id)["proportions"])


def test_the_last_lines_of_the_console_say_what_matters(tiny_recipe, tmp_path, capsys):
    run_dir = tmp_path / "run"
    arguments = ["run", "--recipe", str(tiny_recipe), "--set", "rounds=1", "--output-dir", str(run_dir)]
    assert main([*arguments, "--set", "bce.lr=1e-9"]) == 0
    last = [line for line in capsys.readouterr().out.splitlines() if line.startswith("look at:")]
    # 12 photos of 4 classes; nothing can be learned at such a rate.
    assert any("only" in line and "to learn from" in line for line in last)
    assert any("stage 0 has hardly learned the tags" in line for line in last)
    warnings = (run_dir / "report.md").read_text().split("## Warnings")[1]
    assert all(line.removeprefix("look at:").strip() in warnings for line in last if "more in the report" not in line)


def test_several_seeds_are_runs_of_their_own_and_one_table(tiny_recipe, tmp_path, capsys):
    arguments = ["run", "--recipe", str(tiny_recipe), "--set", "rounds=1", "--seed", "3", "--seeds", "2"]
    assert main([*arguments, "--output-dir", str(tmp_path)]) == 0
    table = (tmp_path / "seeds.md").read_text()
    assert "seeds 3 to 4" in table and table.count("| bce |") == 2 and table.count("| round_1 |") == 2
    assert capsys.readouterr().out.rstrip().endswith(str(tmp_path / "seeds.md"))
    weights = [(tmp_path / f"seed{seed}/bce/model/model.safetensors").read_bytes() for seed in (3, 4)]
    assert weights[0] != weights[1]
    assert "--seed 4" in (tmp_path / "seed4/report.md").read_text()
    run(load_recipe(str(tiny_recipe), {"rounds": 1, "seed": 4}), tmp_path / "alone")
    assert (tmp_path / "alone/bce/model/model.safetensors").read_bytes() == weights[1]


def test_the_yardstick_is_a_constant_whatever_stage_0_has(tiny_recipe, tmp_path):
    config = load_recipe(str(tiny_recipe), {"rounds": 1, "first_rule": "objects", "labelling": {"crf": None}})
    scores = run(config, tmp_path).scores
    assert {row.stage: row.rule for row in scores if not row.uses_ground_truth}["bce"] == "objects 0.1"
    yardstick = next(row for row in scores if row.uses_ground_truth)
    assert yardstick.stage == "bce" and yardstick.rule.startswith("best constant")
