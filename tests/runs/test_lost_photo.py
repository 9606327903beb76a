"""A photo that can be read when a run begins, and later cannot: it is skipped and listed, and the run goes on."""

import os

import pytest

from sbce_hf.config import load_recipe
from sbce_hf.data import load_images
from sbce_hf.labels.store import LabelStore
from sbce_hf.runs import classify
from sbce_hf.runs.plan import make_plan
from sbce_hf.runs.run import run

LOST = "train_00003"


def damage(photos):
    path = photos / "images" / f"{LOST}.png"
    path.write_bytes(path.read_bytes()[:60])


def test_the_same_command_goes_on(photos, tmp_path, tiny_recipe, monkeypatch):
    data = {"source": "folder", "data_dir": str(photos), "score_split": None}
    config = load_recipe(str(tiny_recipe), {"data": data})
    trainings = []

    def train(*arguments, **options):
        trainings.append(options["output_dir"].name)
        if len(trainings) == 2:
            # The first round trains without the photo, and skips it.
            damage(photos)
        if len(trainings) == 3:
            raise KeyboardInterrupt
        return train_classifier(*arguments, **options)

    train_classifier = classify.train_classifier
    monkeypatch.setattr(classify, "train_classifier", train)
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "run")
    assert trainings == ["bce", "round_1", "round_2"]
    stores = {
        stage: [LabelStore(path.parent) for path in (tmp_path / "run" / stage).rglob("meta.json")]
        for stage in trainings
    }
    assert all(LOST in store.done_ids() for store in stores["bce"])
    assert len(stores["round_1"]) == 2 and all("unreadable" in store.skipped[LOST] for store in stores["round_1"])
    made = {path: os.stat(path).st_mtime_ns for path in (tmp_path / "run").glob("*/model/model.safetensors")}
    assert len(made) == 2

    # The load at the start no longer finds it readable.
    assert LOST not in load_images(config.data, "train").image_ids
    assert not make_plan(config, tmp_path / "run").problems
    summary = run(config, tmp_path / "run")
    assert {path: os.stat(path).st_mtime_ns for path in made} == made
    assert summary.num_skipped == 1 and summary.num_images == 12
    assert LOST in summary.report.read_text()
    assert LOST not in LabelStore(summary.label_maps).done_ids()
    # Another set of photos is another run.
    (photos / "tags.csv").write_text((photos / "tags.csv").read_text().replace("train_00004.png", "new.png"))
    (photos / "images" / "train_00004.png").rename(photos / "images" / "new.png")
    with pytest.raises(ValueError, match="the images were"):
        run(config, tmp_path / "run")
