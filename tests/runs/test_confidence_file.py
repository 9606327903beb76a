"""What a network usually says of a class is looked for once for each checkpoint, and kept."""

import json
import shutil
from dataclasses import replace

import pytest

from sbce_hf.config import DataConfig, LabellingConfig, load_recipe
from sbce_hf.data import load_images
from sbce_hf.errors import UserError
from sbce_hf.files import read_json
from sbce_hf.labels.store import LabelStore
from sbce_hf.runs import usual
from sbce_hf.runs.run import run
from sbce_hf.runs.single import label_with_checkpoint
from sbce_hf.runs.usual import CONFIDENCE
from sbce_hf.training.classifier import create_classifier

LABELLING = LabellingConfig(rule="peak", confidence_weight=0.5, scales=(1.0,), crf=None)


@pytest.fixture(scope="module")
def images():
    return load_images(DataConfig(source="shapes", shapes_images=8, shapes_size=48), "train")


@pytest.fixture(scope="module")
def model_dir(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    create_classifier({"trunk": "test_resnet"}, images.class_names).save_pretrained(folder)
    return folder


def test_it_is_taken_up_where_all_is_the_same_and_only_there(model_dir, images, tmp_path, monkeypatch):
    label_with_checkpoint(model_dir, images, LABELLING, tmp_path / "a")
    kept = read_json(tmp_path / "a" / CONFIDENCE)
    assert set(kept["classes"]) == set(images.class_names) and all(value > 0 for value in kept["classes"].values())

    looks = []
    look = usual.look_for_usual
    monkeypatch.setattr(usual, "look_for_usual", lambda *arguments: looks.append(1) or look(*arguments))
    label_with_checkpoint(model_dir, images, LABELLING, tmp_path / "b", looked=tmp_path / "a")
    assert not looks and not (tmp_path / "b" / CONFIDENCE).exists()
    first, second = (LabelStore(tmp_path / name / "peak") for name in "ab")
    assert all((first.read(name) == second.read(name)).all() for name in images.image_ids)
    # Nor again where it was killed.
    label_with_checkpoint(model_dir, images, LABELLING, tmp_path / "a")
    assert not looks
    label_with_checkpoint(model_dir, images.select([0, 1, 2]), LABELLING, tmp_path / "c", looked=tmp_path / "a")
    louder = replace(LABELLING, confidence_weight=1.0)
    label_with_checkpoint(model_dir, images, louder, tmp_path / "d", looked=tmp_path / "a")
    assert (
        len(looks) == 2 and (tmp_path / "c" / CONFIDENCE).exists() and read_json(tmp_path / "a" / CONFIDENCE) == kept
    )


@pytest.mark.parametrize(
    "content", ["{}", '{"key": "a", "classes": {"ant": "much"}}', "[", '{"key": 5, "classes": {}}']
)
def test_a_damaged_file_is_named(model_dir, images, tmp_path, content):
    (tmp_path / CONFIDENCE).write_text(content)
    with pytest.raises(UserError, match=r"confidence\.json.*remove it"):
        label_with_checkpoint(model_dir, images, LABELLING, tmp_path)


def test_objects_are_stage_0s(model_dir, images, tmp_path):
    labelling, run_dir = replace(LABELLING, confidence_weight=0.0, object_weight=2.0), tmp_path / "run"
    checkpoint = run_dir / "round_1" / "model"
    shutil.copytree(model_dir, checkpoint)
    with pytest.raises(
        UserError, match=r"labelling\.object_weight: got 2, .*stage 0.*set labelling\.object_weight to 0"
    ):
        label_with_checkpoint(checkpoint, images, labelling, tmp_path / "a")

    first = run_dir / "bce" / "model"
    shutil.copytree(model_dir, first)
    label_with_checkpoint(checkpoint, images, labelling, tmp_path / "a")
    kept = read_json(tmp_path / "a" / CONFIDENCE)
    assert set(kept["on_objects"]) == set(images.class_names)
    assert all(0 <= value <= 1 for value in kept["on_objects"].values())
    label_with_checkpoint(checkpoint, images, labelling, tmp_path / "a")
    assert read_json(tmp_path / "a" / CONFIDENCE) == kept

    # Another stage 0 sees other objects, and label maps that depend on it are not continued.
    create_classifier({"trunk": "test_resnet"}, images.class_names, seed=5).save_pretrained(first)
    label_with_checkpoint(checkpoint, images, labelling, tmp_path / "b", looked=tmp_path / "a")
    assert read_json(tmp_path / "b" / CONFIDENCE)["on_objects"] != kept["on_objects"]
    with pytest.raises(ValueError, match="another checkpoint, other options"):
        label_with_checkpoint(checkpoint, images, labelling, tmp_path / "a")


def test_a_run_looks_once_a_round(tiny_recipe, tmp_path):
    settings = {
        "rounds": 1,
        "labelling": {"rule": "peak", "confidence_weight": 0.5, "object_weight": 2.0, "crf": None},
        "irn": {
            "model": {"trunk": "test_resnet", "side_channels": 8, "radius": 4},
            "training": {"epochs": 1, "batch_size": 4, "crop_size": 48, "num_workers": 0},
        },
    }
    summary = run(load_recipe(str(tiny_recipe), settings), tmp_path)
    # Stage 0 has a rule of its own; the refinement's network for class maps is the round's.
    assert [path.parent.parent.name for path in tmp_path.rglob(CONFIDENCE)] == ["round_1"]
    assert "confidence 0.5, objects 2" in next(row.rule for row in summary.scores if row.stage == "round_1")
    kept = json.loads((tmp_path / "round_1" / "labels" / CONFIDENCE).read_text())
    assert len(kept["classes"]) == len(kept["on_objects"]) == 4 and LabelStore(summary.label_maps).complete
