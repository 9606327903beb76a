"""The last stage of a run: segmenters on label maps and on true masks."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from transformers import SegformerConfig

from sbce_hf.cli import main
from sbce_hf.config import load_recipe
from sbce_hf.labels.store import LabelStore
from sbce_hf.runs.run import run
from sbce_hf.training.health import TrainingHealthError

SEGMENTER = {
    "model": {"head": "largefov", "atrous_rates": [2], "head_channels": 16, "freeze_batch_norm": False},
    "training": {"epochs": 2, "batch_size": 4, "crop_size": 48, "lr": 0.01, "num_workers": 0, "log_every": 2},
    "prediction": {"crf": {"iterations": 2}, "crf_workers": 1},
    "score_split": "val",
    "compare": ["bce", "mask"],
}


@pytest.fixture(scope="module")
def config(tiny_recipe):
    return load_recipe(str(tiny_recipe), {"rounds": 1, "final_scales": [1.0, 1.5], "segmenter": SEGMENTER})


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("run")
    return run_dir, run(config, run_dir)


def test_three_segmenters_are_scored_on_another_split(finished):
    run_dir, summary = finished
    rows = [(row.labels, row.crf) for row in summary.segmenter_scores]
    assert rows == [(labels, crf) for labels in ("adaptive", "bce", "mask") for crf in (False, True)]
    assert all(0 <= row.mean_iou <= 1 for row in summary.segmenter_scores)
    store = LabelStore(run_dir / "segmenter" / "adaptive" / "predictions" / "labels")
    labelled = LabelStore(summary.label_maps)
    assert store.complete and not store.done_ids() & labelled.done_ids(), "val is not what was trained on"
    assert [labelled.meta["config"]["scales"], LabelStore(run_dir / "bce/labels/fixed").meta["config"]["scales"]] == [
        [1.0, 1.5],
        [1.0],
    ], "only the last round's label maps take the final scales"
    report = (run_dir / "report.md").read_text()
    assert "adaptive (paper), scales 1 1.5" in report
    assert "## Segmentation network" in report and "true masks (a yardstick) | no | yes" in report


def test_only_the_labels_differ(finished):
    run_dir, _ = finished
    inputs = {}
    for labels in ("adaptive", "bce", "mask"):
        settings = json.loads((run_dir / "segmenter" / labels / "summary.json").read_text())
        inputs[labels] = settings["settings"]["inputs"]
    assert len({entry["label_maps"] for entry in inputs.values()}) == 3
    assert len({json.dumps(entry["model"]) for entry in inputs.values()}) == 1


def test_a_finished_run_does_nothing_again(finished, config):
    run_dir, summary = finished
    weights = summary.segmenter_dir / "model.safetensors"
    before = weights.stat().st_mtime_ns
    again = run(config, run_dir)
    assert weights.stat().st_mtime_ns == before
    assert [row.mean_iou for row in again.segmenter_scores] == [row.mean_iou for row in summary.segmenter_scores]


def test_yardstick_needs_masks(tiny_recipe, tmp_path):
    images = tmp_path / "photos" / "images"
    images.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(4):
        Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(images / f"{index}.png")
    (tmp_path / "photos" / "tags.csv").write_text("file,tags\n0.png,cup\n1.png,cup\n2.png,cup\n3.png,\n")
    data = {"source": "folder", "data_dir": str(tmp_path / "photos"), "score_split": None}
    config = load_recipe(str(tiny_recipe), {"data": data, "segmenter": {**SEGMENTER, "score_split": None}})
    with pytest.raises(ValueError, match="segmenter.compare: mask is asked for, but split 'train' has no masks"):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_single_step(finished, tiny_recipe, tmp_path, capsys):
    run_dir, summary = finished
    section = [f"--set=segmenter.{key}={json.dumps(SEGMENTER[key])}" for key in ("model", "training")]
    common = ["train-segmenter", "--recipe", str(tiny_recipe), *section, "--output-dir", str(tmp_path / "out")]
    assert main([*common, "--labels", str(summary.label_maps)]) == 1
    assert "--checkpoint: missing" in capsys.readouterr().err
    assert main([*common, "--labels", str(summary.label_maps), "--checkpoint", str(summary.model_dir)]) == 0
    ours = (tmp_path / "out" / "model" / "model.safetensors").read_bytes()
    assert ours == (run_dir / "segmenter" / "adaptive" / "model" / "model.safetensors").read_bytes()


def test_transformers_model_in_its_place(finished, tiny_recipe, tmp_path):
    _, summary = finished
    tiny = SegformerConfig(
        num_encoder_blocks=2,
        depths=[1, 1],
        sr_ratios=[2, 1],
        hidden_sizes=[8, 16],
        patch_sizes=[7, 3],
        strides=[4, 2],
        num_attention_heads=[1, 2],
        mlp_ratios=[2, 2],
        decoder_hidden_size=16,
    )
    tiny.save_pretrained(tmp_path / "segformer")
    arguments = ["--model", "segformer", "--from-config", str(tmp_path / "segformer")]
    training = f"--set=segmenter.training={json.dumps(SEGMENTER['training'])}"
    labels = ["--labels", str(summary.label_maps), "--output-dir", str(tmp_path / "out")]
    assert main(["train-segmenter", "--recipe", str(tiny_recipe), training, *arguments, *labels]) == 0
    predict = ["predict", "--checkpoint", str(tmp_path / "out" / "model"), str(_photo(tmp_path))]
    assert main([*predict, "--output-dir", str(tmp_path / "predictions")]) == 0
    assert LabelStore(tmp_path / "predictions" / "labels").read("photo").shape == (50, 70)


def _photo(folder):
    path = folder / "photo.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (50, 70, 3), dtype=np.uint8)).save(path)
    return path


def test_another_architecture_leaves_the_recipes_fields_behind():
    start = {"architecture": "segformer", "from_config": "config.json"}
    config = load_recipe("voc-animals", {"data": {"data_dir": "x"}, "segmenter": start})
    assert config.segmenter.model == {} and config.segmenter.training.crop_size == 256
    kept = load_recipe("voc-animals", {"data": {"data_dir": "x"}, "segmenter": {"architecture": "deeplab"}})
    assert kept.segmenter.model["head"] == "largefov"


def test_a_segmenter_that_fails_leaves_the_report_and_can_be_tried_with_other_settings(tiny_recipe, tmp_path):
    short = {**SEGMENTER, "compare": [], "prediction": {}}
    diverging = {**short, "training": {**SEGMENTER["training"], "lr": 1e30}}
    config = load_recipe(str(tiny_recipe), {"rounds": 1, "segmenter": diverging})
    with pytest.raises(TrainingHealthError, match="segmenter.training.lr"):
        run(config, tmp_path / "run")
    assert (tmp_path / "run" / "report.md").is_file() and (tmp_path / "run" / "round_1" / "scores.json").is_file()
    weights = tmp_path / "run" / "round_1" / "model" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    shutil.rmtree(tmp_path / "run" / "segmenter")
    summary = run(load_recipe(str(tiny_recipe), {"rounds": 1, "segmenter": short}), tmp_path / "run")
    assert weights.stat().st_mtime_ns == before and len(summary.segmenter_scores) == 1
