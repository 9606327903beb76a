"""A finished run's directory, written in a second: real models, configs and reports, but nothing was trained."""

import json
from dataclasses import asdict
from pathlib import Path

import torch
import yaml
from PIL import Image

from sbce_hf.config import RunConfig, from_mapping, to_mapping
from sbce_hf.evaluation.quality import stage_quality
from sbce_hf.evaluation.quality_page import render_quality
from sbce_hf.evaluation.scores import ScoreRow, SegmenterRow
from sbce_hf.files import write_json
from sbce_hf.models.configuration_spatial_bce import SpatialBceConfig
from sbce_hf.models.image_processing_deeplab import DeepLabImageProcessor
from sbce_hf.models.image_processing_spatial_bce import SpatialBceImageProcessor
from sbce_hf.models.modeling_deeplab import DeepLabForSemanticSegmentation
from sbce_hf.models.modeling_spatial_bce import SpatialBceForImageClassification
from sbce_hf.runs.stage import keys_of, write_record
from sbce_hf.runs.stages import stages_of

NAMES = ("ant", "bee|wasp")
LEAK = ScoreRow("bce", "best constant 0.35", True, 0.87654, {"ant": 0.9}, 7, True)


def write_run(run_dir, source="folder", seed=0):
    """A run of one round with a segmenter, whose config and command are full of this machine's paths."""
    photos = run_dir.parent / "my photos"
    data = {"source": source, "train_split": "train", "score_split": "train"}
    if source == "folder":
        data["data_dir"] = str(photos)
    values = {
        "seed": 3,
        "data": data,
        "trunk_weights": str(run_dir.parent / "weights" / "trunk.safetensors"),
        "rounds": 1,
        "segmenter": {"score_split": "val", "compare": ["mask"]},
    }
    config = from_mapping(RunConfig, values)
    classifier = save_classifier(run_dir / "round_1" / "model", seed)
    save_segmenter(run_dir / "segmenter" / "adaptive" / "model", classifier)
    save_segmenter(run_dir / "segmenter" / "mask" / "model", classifier)
    write(run_dir / "config.yaml", yaml.safe_dump(to_mapping(config)))
    command = f"sbce run --recipe {run_dir.parent}/own.yaml --data-dir '{photos}' --set data.data_dir={run_dir.parent}"
    notes = {"command": command, "versions": {"torch": "2.9", "git": "abc1234"}, "hardware": "2 cores, no GPU"}
    write(run_dir / "run.json", json.dumps({**notes, "manifest_hash": "0123456789abcdef"}))
    for stage in ("round_1", "segmenter/adaptive", "segmenter/mask"):
        numbers = {"iterations": 3, "images": 12, "seconds": 1.5, "values": {"loss": 0.1}}
        write(run_dir / stage / "summary.json", json.dumps({"name": "x", **numbers, "settings": {"at": str(photos)}}))
    stages = stages_of(config)
    for stage in stages:
        write_record(run_dir, stage, keys_of(stages, "images"), "images", finished=True)
    scores = {
        "bce": [ScoreRow("bce", "fixed 0.3", False, 0.4, {"ant": 0.4}, 7, False)],
        "leak_best_constant": [LEAK],
        "round_1": [
            ScoreRow("round_1", "adaptive (paper)", False, 0.51234, {"ant": 0.5}, 7, False),
            ScoreRow("round_1", "adaptive (paper)", True, 0.6, {"ant": 0.6}, 7, False),
        ],
        "segmenter/adaptive": [SegmenterRow("adaptive", False, 0.45, {}, 5)],
        "segmenter/mask": [SegmenterRow("mask", False, 0.7, {}, 5)],
    }
    for stage, rows in scores.items():
        write_json(run_dir / stage / "scores.json", {"key": "x", "rows": [asdict(row) for row in rows]})
    records = [{"image_id": "a", "classes": [0, 1], "proportions": [0.25, 0.0], "thresholds": [0.4, 0.5]}]
    quality = stage_quality("round_1", NAMES, records)
    write_json(run_dir / "round_1" / "quality.json", {"key": "x", "stage": quality.to_plain(), "agreement": None})
    write(run_dir / "quality.md", render_quality([quality], histogram="figures/thresholds.png"))
    (run_dir / "figures").mkdir()
    for name in ("thresholds", "sheet"):
        Image.effect_noise((40, 30), 60).save(run_dir / "figures" / f"{name}.png")
    write(run_dir / "report.md", "# Report\n")
    return run_dir


def save_classifier(folder, seed=0):
    torch.manual_seed(seed)
    names = dict(enumerate(NAMES))
    config = SpatialBceConfig(trunk="test_resnet", id2label=names, label2id={n: i for i, n in names.items()})
    config.embedding_dim, config.logit_scale_init = 8, 3.0
    model = SpatialBceForImageClassification(config).eval()
    with torch.no_grad():
        # Random weights alone give flat maps.
        model.class_maps.weight.mul_(3)
    model.save_pretrained(folder)
    SpatialBceImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return model


def save_segmenter(folder, classifier):
    model = DeepLabForSemanticSegmentation.from_classifier(
        classifier, head="largefov", head_channels=8, initializer_range=1.0
    )
    model.save_pretrained(folder)
    DeepLabImageProcessor(size={"longest_edge": 64}).save_pretrained(folder)
    return model


def write(path, text):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)
