import json
import os

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

from sbce_hf import SpatialBceConfig, SpatialBceForImageClassification
from sbce_hf.cli import main
from sbce_hf.config import DataConfig, PredictionConfig
from sbce_hf.data import load_images
from sbce_hf.data.schema import palette
from sbce_hf.evaluation.confusion import score_store
from sbce_hf.inference.segmenter import segment
from sbce_hf.labels.store import LabelStore
from sbce_hf.runs.single import load_segmenter, predict_with_checkpoint

NAMES = ("disc", "square", "triangle", "ring")


def save_segmenter(folder, names=NAMES, **processor):
    torch.manual_seed(0)
    config = SegformerConfig(
        hidden_sizes=[8, 8, 16, 16],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=16,
        id2label=dict(enumerate(("background", *names))),
        label2id={name: value for value, name in enumerate(("background", *names))},
    )
    model = SegformerForSemanticSegmentation(config)
    with torch.no_grad():
        # Random weights alone give flat maps.
        model.decode_head.classifier.weight.mul_(5000)
    model.save_pretrained(folder)
    SegformerImageProcessor(**{"do_resize": False, **processor}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_segmenter(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    (root / "trip").mkdir()
    for index, name in enumerate(("a.jpg", "b.png", "trip/a.jpg")):
        coarse = np.random.default_rng(index).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((70 + index, 50), Image.Resampling.BICUBIC).save(root / name)
    whole = (root / "a.jpg").read_bytes()
    (root / "trip" / "broken.jpg").write_bytes(whole[: len(whole) // 2])
    return root


def predict(checkpoint, output_dir, *arguments):
    return main(["predict", "--checkpoint", str(checkpoint), "--output-dir", str(output_dir), *map(str, arguments)])


def test_photos_become_label_maps_overlays_and_a_list_of_skipped_ones(checkpoint, photos, tmp_path, capsys):
    assert predict(checkpoint, tmp_path, photos) == 0
    printed = capsys.readouterr().out
    assert str(tmp_path / "labels") in printed and str(tmp_path / "overlays") in printed
    assert "4 photos in all, 1 skipped" in printed and str(tmp_path / "skipped.json") in printed
    model, processor = load_segmenter(checkpoint)
    for name, size in (("a", (70, 50)), ("b", (71, 50)), ("trip/a", (72, 50))):
        with Image.open(tmp_path / "labels" / "label_maps" / f"{name}.png") as label_map:
            assert label_map.mode == "P" and label_map.getpalette() == palette() and label_map.size == size
            file = next(photos.glob(f"{name}.*"))
            probabilities = segment(model, Image.open(file), PredictionConfig())
            assert (np.asarray(label_map) == probabilities.argmax(axis=0)).all()
        with Image.open(tmp_path / "overlays" / f"{name}.jpg") as overlay:
            assert overlay.format == "JPEG" and overlay.height > 50
    (skipped,) = json.loads((tmp_path / "skipped.json").read_text())
    assert skipped["file"].endswith("broken.jpg") and "unreadable" in skipped["reason"]
    assert LabelStore(tmp_path / "labels").class_names == NAMES


def test_no_file_of_a_folder_is_lost_without_a_word(checkpoint, tmp_path, capsys):
    root = tmp_path / "photos"
    root.mkdir()
    for name in ("a.avif", "b.gif", "c.jfif"):
        Image.effect_noise((40, 30), 60).convert("RGB").save(root / name)
    Image.fromarray(np.random.default_rng(0).integers(0, 1024, (30, 40)).astype(np.uint16)).save(root / "d.png")
    (root / "e.dng").write_bytes(b"raw")
    (tmp_path / "more").mkdir()
    (root / "linked").symlink_to(tmp_path / "more")
    assert predict(checkpoint, tmp_path / "out", root, "--no-overlays") == 0
    assert "6 photos in all, 2 skipped" in capsys.readouterr().out
    assert sorted(LabelStore(tmp_path / "out" / "labels").done_ids()) == ["a", "b", "c", "d"]
    listed = json.loads((tmp_path / "out" / "skipped.json").read_text())
    assert [os.path.basename(entry["file"]) for entry in listed] == ["e.dng", "linked"]


def test_the_same_command_again_changes_nothing_but_draws_what_is_missing(checkpoint, photos, tmp_path, capsys):
    # The results lie among the photos and are not taken for photos.
    output_dir = photos / "results"
    arguments = (checkpoint, output_dir, photos, "--set", "flip=false")
    try:
        assert predict(*arguments, "--no-overlays") == 0 and not (output_dir / "overlays").exists()
        assert predict(*arguments) == 0
        before = {path: path.stat().st_mtime_ns for path in output_dir.rglob("*.png")}
        assert len(before) == 3 and len(list(output_dir.rglob("*.jpg"))) == 3
        stale = output_dir / "overlays" / "a.jpg"
        Image.new("RGB", (3, 3)).save(stale)
        os.utime(stale, (0, 0))
        capsys.readouterr()
        assert predict(*arguments) == 0
        assert "0 labelled now, 4 photos in all" in capsys.readouterr().out
        assert {path: path.stat().st_mtime_ns for path in output_dir.rglob("*.png")} == before
        with Image.open(stale) as drawn:
            assert drawn.width >= 70, "an overlay that is older than its label map is drawn again"
    finally:
        for path in sorted(output_dir.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        output_dir.rmdir()


def test_options(checkpoint, photos, tmp_path, capsys):
    options = ["--scales", "1,0.75", "--window", "64", "--no-overlays", "--set", "crf={iterations: 1}"]
    assert predict(checkpoint, tmp_path, photos / "a.jpg", *options, "--set", "overlap=0.25") == 0
    assert str(tmp_path / "labels_crf") in capsys.readouterr().out
    config = LabelStore(tmp_path / "labels_crf").meta["config"]
    assert config["scales"] == [1, 0.75] and config["window"] == 64 and config["overlap"] == 0.25
    assert config["crf"]["iterations"] == 1 and not (tmp_path / "overlays").exists()
    # Fewer CRF processes continue the same work, other scales are other work.
    assert (
        predict(checkpoint, tmp_path, photos / "a.jpg", *options, "--set", "overlap=0.25", "--set", "crf_workers=1")
        == 0
    )
    assert predict(checkpoint, tmp_path, photos / "a.jpg") == 1
    assert "delete the folder or choose another one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("size", "options", "expected"),
    [
        ({"max_height": 96, "max_width": 96}, [], 96),
        ({"longest_edge": 80}, [], 80),
        ({"height": 64, "width": 64}, [], None),
        ({"longest_edge": 80}, ["--set", "image_size=null"], None),
    ],
)
def test_photos_are_looked_at_in_the_size_of_the_training(photos, tmp_path, size, options, expected):
    from sbce_hf import DeepLabImageProcessor

    folder = save_segmenter(tmp_path / "model", do_resize=True, size={"height": 64, "width": 64})
    kind = SegformerImageProcessor if "longest_edge" not in size else DeepLabImageProcessor
    kind(do_resize=True, size=size).save_pretrained(folder)
    assert predict(folder, tmp_path / "out", photos / "a.jpg", "--no-overlays", *options) == 0
    assert LabelStore(tmp_path / "out" / "labels").meta["config"]["image_size"] == expected


def test_mistakes_are_told_before_anything_is_written(checkpoint, photos, tmp_path, capsys):
    out = tmp_path / "out"
    for arguments, message in (
        ([photos, "--set", "scale=2"], "did you mean 'scales'"),
        ([photos, "--set", "window=3"], "window"),
        ([photos, "--scales", "1;2"], "separated by commas"),
        ([photos / "none"], "no such file or folder"),
        ([photos, "--strict"], "broken.jpg"),
    ):
        assert predict(checkpoint, out, *arguments) == 1
        assert message in capsys.readouterr().err and not out.exists()


def test_checkpoints_that_cannot_be_used(photos, tmp_path, capsys):
    def message(folder):
        assert predict(folder, tmp_path / "out", photos) == 1
        return capsys.readouterr().err

    (tmp_path / "empty").mkdir()
    assert "expected the model/ folder" in message(tmp_path / "empty")
    classifier = SpatialBceForImageClassification(SpatialBceConfig(trunk="test_resnet.r160_in1k", embedding_dim=8))
    classifier.save_pretrained(tmp_path / "classifier")
    assert "sbce label" in message(tmp_path / "classifier")
    folder = save_segmenter(tmp_path / "plain", do_normalize=False)
    assert "rescaled by 1/255" in message(folder)
    (folder / "preprocessor_config.json").unlink()
    assert "preprocessor_config.json: missing" in message(folder)


def test_images_of_a_split(tmp_path):
    data = DataConfig(source="shapes", shapes_images=6, shapes_size=48)
    images = load_images(data, "train")
    folder = save_segmenter(tmp_path / "model", images.class_names)
    summary = predict_with_checkpoint(folder, images, PredictionConfig(flip=False), tmp_path / "out")
    store = LabelStore(summary.directories[0])
    assert store.complete and store.meta["config"]["flip"] is False and len(store.done_ids()) == 6
    assert 0 <= score_store(store, images)["mean_iou"] < 1
