"""A mask that is corrected after a run: the same command scores anew, and trains nothing again."""

import os
from dataclasses import replace

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

from sbce_hf.config import load_recipe
from sbce_hf.data import load_images
from sbce_hf.data.coco_instances import InstancePainter
from sbce_hf.data.mask_checks import masks_hash
from sbce_hf.evaluation.confusion import score_store
from sbce_hf.labels.store import LabelStore
from sbce_hf.runs import classify
from sbce_hf.runs.run import run


def correct(photos):
    """Turn every mask's objects into background, and its background into the first class."""
    for path in (photos / "masks").iterdir():
        mask = np.array(Image.open(path))
        Image.fromarray(np.where(mask == 0, 1, 0).astype(np.uint8)).save(path)


@pytest.fixture
def config(photos, tiny_recipe):
    # In the order of the embedded example's values.
    names = load_images(load_recipe(str(tiny_recipe)).data, "train").class_names
    data = {"source": "folder", "data_dir": str(photos), "classes": list(names)}
    return load_recipe(str(tiny_recipe), {"data": data, "rounds": 1})


def test_scores_and_yardstick_follow(photos, config, tmp_path, monkeypatch):
    run_dir = tmp_path / "run"
    before = run(config, run_dir)
    scan, sheet = run_dir / "leak_best_constant" / "scan.json", run_dir / "figures" / "sheet.png"
    seen = {path: path.read_bytes() for path in (scan, sheet, run_dir / "round_1" / "scores.json")}
    same = run(config, run_dir)
    assert same.scores == before.scores and all(path.read_bytes() == content for path, content in seen.items())

    correct(photos)
    with monkeypatch.context() as patch:
        patch.setattr(classify, "train_classifier", None)
        after = run(config, run_dir)
    assert all(path.read_bytes() != content for path, content in seen.items())
    images = load_images(config.data, "train")
    for row in after.scores:
        if row.stage == "round_1":
            store = run_dir / "round_1" / "labels" / ("paper_crf" if row.crf else "paper")
            assert row.mean_iou == score_store(LabelStore(store), images)["mean_iou"]
    assert f"{100 * after.scores[-1].mean_iou:.1f}" in (run_dir / "report.md").read_text()
    # As if the masks had been so from the start.
    assert run(config, tmp_path / "anew").scores == after.scores
    assert scan.read_bytes() == (tmp_path / "anew" / scan.relative_to(run_dir)).read_bytes()


def test_a_constant_of_other_masks_is_found_again_after_a_kill(photos, config, tmp_path, monkeypatch):
    run_dir = tmp_path / "run"
    run(config, run_dir)
    correct(photos)
    with monkeypatch.context() as patch:

        def killed(*_, **__):
            raise KeyboardInterrupt

        # The old label maps are gone by then, and nothing says yet what replaces them.
        patch.setattr("sbce_hf.runs.yardstick.scan_fixed_threshold_on_ground_truth", killed)
        with pytest.raises(KeyboardInterrupt):
            run(config, run_dir)
    assert run(config, run_dir).scores == run(config, tmp_path / "anew").scores


def test_masks_are_told_by_file_meaning_and_annotations(photos, config, tmp_path):
    first = load_images(config.data, "train")
    hashes = {masks_hash(first), masks_hash(first.select(range(5)))}
    hashes.add(masks_hash(replace(first, unlabelled=0)))
    correct(photos)
    hashes.add(masks_hash(first))
    (tmp_path / "instances.json").write_text("{}")
    painted = replace(first, painter=InstancePainter(tmp_path / "instances.json", {}, {}))
    hashes.add(masks_hash(painted))
    os.utime(tmp_path / "instances.json", ns=(1, 1))
    hashes.add(masks_hash(painted))
    assert len(hashes) == 6


def test_masks_in_the_data_set_are_told_by_their_bytes(tiny_recipe):
    images = load_images(load_recipe(str(tiny_recipe)).data, "train")
    rows = images.dataset.to_list()
    rows[0]["mask"] = rows[1]["mask"]
    other = replace(images, dataset=Dataset.from_list(rows, features=images.dataset.features))
    assert masks_hash(other) != masks_hash(images)
