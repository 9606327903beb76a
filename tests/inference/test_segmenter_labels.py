import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from sbce_hf import DeepLabConfig, DeepLabForSemanticSegmentation
from sbce_hf.config import CrfConfig, PredictionConfig
from sbce_hf.data.preprocessing import IMAGENET, Preprocessing
from sbce_hf.evaluation.quality import stage_quality
from sbce_hf.inference import segmenter as segmentation
from sbce_hf.inference.segmenter import foreground_classes, predict_images, segment
from sbce_hf.inference.views import to_pixels
from sbce_hf.inference.windows import cover
from sbce_hf.labels.store import LabelStore
from sbce_hf.postprocess.crf import dense_crf_from_probabilities
from sbce_hf.processes import Share

ID2LABEL = {0: "background", 1: "ant", 2: "bee", 3: "cat"}
PLAIN = PredictionConfig(flip=False)
SIZES = [(64, 64), (50, 80), (70, 40), (33, 33), (64, 90)]


@pytest.fixture(scope="module")
def segformer(photo):
    torch.manual_seed(0)
    config = SegformerConfig(
        hidden_sizes=[8, 8, 16, 16],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=16,
        id2label=ID2LABEL,
        label2id={name: value for value, name in ID2LABEL.items()},
    )
    model = SegformerForSemanticSegmentation(config).eval()
    with torch.no_grad():
        # Random weights alone give flat maps.
        logits = view_logits(model, photo, (60, 80))
        model.decode_head.classifier.weight.mul_(2 / logits.std(dim=(2, 3)).mean())
        model.decode_head.classifier.bias.sub_(view_logits(model, photo, (60, 80)).mean(dim=(0, 2, 3)))
    return model


@pytest.fixture(scope="module")
def photo():
    coarse = np.random.default_rng(3).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((80, 60), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def images(make_images):
    return make_images([()] * len(SIZES), SIZES)


def view_logits(model, photo, size):
    pixels = IMAGENET(to_pixels(photo, size)[None])
    with torch.no_grad():
        return model(pixel_values=pixels).logits


def view_probabilities(model, photo, size):
    upsampled = F.interpolate(view_logits(model, photo, size), size, mode="bilinear", align_corners=False)
    return F.interpolate(upsampled.softmax(1), (photo.height, photo.width), mode="bilinear")[0].numpy()


@pytest.mark.parametrize("merge", ["mean", "max"])
@pytest.mark.parametrize("size", [(60, 80), (33, 57), (3, 5), (1, 1)])
def test_probabilities_at_the_image_s_own_size(segformer, photo, size, merge):
    config = PredictionConfig(scales=(1.0, 0.5), merge=merge)
    probabilities = segment(segformer, photo.resize(size[::-1]), config)
    assert probabilities.shape == (4, *size) and probabilities.dtype == np.float32
    assert np.allclose(probabilities.sum(axis=0), 1, atol=1e-5) and probabilities.min() >= 0


def test_a_network_that_no_photo_fits_is_told_in_one_line(photo):
    config = SegformerConfig(
        depths=[1] * 4,
        hidden_sizes=[8] * 4,
        num_attention_heads=[1] * 4,
        decoder_hidden_size=16,
        reshape_last_stage=False,
        num_labels=2,
    )
    with pytest.raises(ValueError, match="SegformerForSemanticSegmentation cannot be run on a photo of 80x60 pixels"):
        segment(SegformerForSemanticSegmentation(config), photo, PredictionConfig())


def test_softmax_of_upsampled_logits(segformer, photo):
    logits = view_logits(segformer, photo, (60, 80))
    assert logits.shape[-2:] == (15, 20), "at feature resolution"
    expected = F.interpolate(logits, (60, 80), mode="bilinear").softmax(1)[0].numpy()
    result = segment(segformer, photo, PLAIN)
    assert np.allclose(result, expected, atol=1e-5)
    assert len(np.unique(result.argmax(axis=0))) > 1, "one label everywhere: the test shows nothing"


def test_scales_are_merged_by_mean_or_by_normalised_maximum(segformer, photo):
    views = np.stack([view_probabilities(segformer, photo, size) for size in ((60, 80), (90, 120))])
    config = replace(PLAIN, scales=(1.0, 1.5))
    assert np.allclose(segment(segformer, photo, config), views.mean(axis=0), atol=1e-5)
    largest = views.max(axis=0)
    result = segment(segformer, photo, replace(config, merge="max"))
    assert np.allclose(result, largest / largest.sum(axis=0), atol=1e-5)


def test_a_mirrored_image_has_the_mirrored_answer(segformer, photo):
    mirrored = photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    both = [segment(segformer, image, PredictionConfig(scales=(1.0, 0.75))) for image in (photo, mirrored)]
    assert np.allclose(both[0], both[1][:, :, ::-1], atol=1e-4)
    one = [segment(segformer, image, PLAIN) for image in (photo, mirrored)]
    assert not np.allclose(one[0], one[1][:, :, ::-1], atol=1e-2)
    assert np.allclose(both[0].shape, one[0].shape)


def test_image_size_is_that_of_the_long_side(segformer, photo):
    expected = view_probabilities(segformer, photo, (72, 96))
    assert np.allclose(segment(segformer, photo, replace(PLAIN, image_size=96)), expected, atol=1e-5)


def test_normalisation_is_used(segformer, photo):
    other = segment(segformer, photo, PLAIN, Preprocessing((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))
    assert not np.allclose(other, segment(segformer, photo, PLAIN), atol=1e-2)


@pytest.mark.parametrize("options", [{}, {"image_size": 96}, {"merge": "max"}])
def test_a_window_that_covers_the_image_is_the_whole_image(segformer, photo, options):
    config = PredictionConfig(scales=(1.0, 0.5), **options)
    windowed = segment(segformer, photo, replace(config, window=96))
    assert (windowed == segment(segformer, photo, config)).all()


def test_overlapping_windows_are_averaged(segformer, photo):
    total, count = np.zeros((4, 60, 80), np.float32), np.zeros((60, 80))
    for window in cover(60, 80, 64, 0.5):
        left, top, right, bottom = window.box
        total[:, top:bottom, left:right] += segment(segformer, photo.crop(window.box), PLAIN)
        count[top:bottom, left:right] += 1
    assert count.max() > 1
    assert np.allclose(segment(segformer, photo, replace(PLAIN, window=64)), total / count, atol=1e-5)


def test_the_window_is_measured_at_scale_1(monkeypatch, segformer, photo):
    seen = []
    forward = segformer.forward
    monkeypatch.setattr(
        segformer, "forward", lambda pixel_values, **k: seen.append(pixel_values.shape) or forward(pixel_values, **k)
    )
    # At half the size, the whole photo of 160 x 120 has a long side of 80.
    segment(segformer, photo.resize((160, 120)), replace(PLAIN, image_size=80, window=64, batch_size=1))
    assert {tuple(shape) for shape in seen} == {(1, 3, 60, 64)} and len(seen) == 2


def test_label_0_has_to_be_background():
    assert foreground_classes(SegformerConfig(id2label={0: "Background", 1: "ant"})) == ("ant",)
    for names in (["wall", "building"], ["background"], ["ant", "background"]):
        with pytest.raises(ValueError, match=f"'{names[0]}'.*'background' as label 0"):
            foreground_classes(SegformerConfig(id2label=dict(enumerate(names))))


CONFIG = PredictionConfig(scales=(1.0, 0.5))
WITH_CRF = replace(CONFIG, crf=CrfConfig(iterations=2), crf_workers=1)


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def fresh(segformer, images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fresh")
    return folder, predict_images(segformer, images, WITH_CRF, output_dir=folder, key="k")


def test_stores_before_and_after_the_crf(segformer, images, fresh):
    folder, summary = fresh
    assert summary.directories == (folder / "labels", folder / "labels_crf")
    assert summary.num_images == summary.num_labelled == 5 and summary.complete and not summary.skipped
    plain, refined = map(LabelStore, summary.directories)
    assert plain.class_names == ("ant", "bee", "cat") and plain.meta["crf"] is False and refined.meta["crf"] is True
    differs = 0
    for index, image_id in enumerate(images.image_ids):
        image = images.image(index)
        probabilities = segment(segformer, image, WITH_CRF)
        assert (plain.read(image_id) == probabilities.argmax(axis=0)).all()
        expected = dense_crf_from_probabilities(np.asarray(image), probabilities, WITH_CRF.crf)
        assert (refined.read(image_id) == expected).all()
        differs += (plain.read(image_id) != expected).any()
    assert differs, "the CRF changed nothing: the test shows nothing"


def test_records_hold_the_classes_that_a_map_shows(images, fresh):
    stores = [LabelStore(fresh[0] / name) for name in ("labels", "labels_crf")]
    for store in stores:
        for image_id in images.image_ids:
            record, label_map = store.record(image_id), store.read(image_id)
            assert record["classes"] == [value - 1 for value in np.unique(label_map).tolist() if value]
            assert record["proportions"] == [(label_map == c + 1).mean() for c in record["classes"]]
        ids, table = store.proportions()
        assert len(ids) == 5 and table.shape == (5, 3) and table.max() > 0
        row = store.to_dataset()[0]
        assert row["labels"] == store.record(row["image_id"])["classes"] and set(row["thresholds"]) <= {None}
    records = [[store.record(image_id) for image_id in images.image_ids] for store in stores]
    quality = stage_quality("prediction", stores[0].class_names, *records)
    assert quality.num_images == 5 and sum(c.images for c in quality.classes) == sum(
        len(record["classes"]) for record in records[0]
    )


def test_stopped_and_continued_ends_with_the_same_bytes(segformer, images, fresh, tmp_path, monkeypatch):
    write, written = LabelStore.write, []

    def stops(store, image_id, *arguments):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(image_id)
        write(store, image_id, *arguments)

    monkeypatch.setattr(LabelStore, "write", stops)
    with pytest.raises(KeyboardInterrupt):
        predict_images(segformer, images, WITH_CRF, output_dir=tmp_path, key="k")
    monkeypatch.undo()
    summary = predict_images(segformer, images, WITH_CRF, output_dir=tmp_path, key="k")
    assert summary.num_labelled == 4 and contents(tmp_path) == contents(fresh[0])
    monkeypatch.setattr(segmentation, "_predict", lambda *a, **k: pytest.fail("computed again"))
    summary = predict_images(segformer, images, WITH_CRF, output_dir=tmp_path, key="k")
    assert summary.num_labelled == 0 and summary.complete
    with pytest.raises(ValueError, match=r"key 'k'.*'other'"):
        predict_images(segformer, images, WITH_CRF, output_dir=tmp_path, key="other")


def test_processes_share_the_work_and_agree_with_one(segformer, images, fresh, tmp_path):
    summaries = [
        predict_images(segformer, images, CONFIG, output_dir=tmp_path, key="k", share=share)
        for share in (Share(1, 2), Share(0, 2))
    ]
    assert [summary.num_labelled for summary in summaries] == [2, 3]
    assert [summary.complete for summary in summaries] == [False, True]
    one, two = LabelStore(fresh[0] / "labels"), LabelStore(tmp_path / "labels")
    assert all(one.path(i).read_bytes() == two.path(i).read_bytes() for i in images.image_ids)
    assert not (tmp_path / "labels_crf").exists()
    with pytest.raises(ValueError, match="rank: got 2"):
        predict_images(segformer, images, CONFIG, output_dir=tmp_path, key="k", share=Share(2, 2))


def test_unreadable_images_are_skipped_and_listed(segformer, make_images, tmp_path):
    images = make_images([()] * 4, damaged=(1, 2))
    summary = predict_images(segformer, images, CONFIG, output_dir=tmp_path, key="k")
    assert sorted(summary.skipped) == images.image_ids[1:3] and summary.num_labelled == 2 and summary.complete
    meta = json.loads((tmp_path / "labels" / "meta.json").read_text())
    assert [entry["file"] for entry in meta["skipped"]] == images.image_ids[1:3]
    with pytest.raises(ValueError, match=images.image_ids[1]):
        predict_images(segformer, images, CONFIG, output_dir=tmp_path / "strict", key="k", strict=True)


def test_other_classes_are_an_error_before_anything_is_written(segformer, images, tmp_path):
    with pytest.raises(ValueError, match=r"'ant', 'bee', 'cat'.*'bee'"):
        predict_images(segformer, replace(images, class_names=("bee",)), CONFIG, output_dir=tmp_path, key="k")
    assert not list(tmp_path.iterdir())


def test_each_window_is_refined_by_itself(segformer, make_images, tmp_path):
    images = make_images([()], [(60, 110)])
    config = replace(WITH_CRF, window=64)
    predict_images(segformer, images, config, output_dir=tmp_path, key="k")
    refined, photo = LabelStore(tmp_path / "labels_crf").read(images.image_ids[0]), images.image(0)
    windows = cover(60, 110, 64, config.overlap)
    assert len(windows) == 3
    for window in windows:
        crop = photo.crop(window.box)
        own = dense_crf_from_probabilities(np.asarray(crop), segment(segformer, crop, CONFIG), config.crf)
        # The last bits of the probabilities follow the batch.
        assert (refined[window.core] != own[window.own_core]).mean() < 0.01
    plain = LabelStore(tmp_path / "labels").read(images.image_ids[0])
    assert (plain == segment(segformer, photo, config).argmax(axis=0)).all()


@pytest.mark.parametrize("window", [None, 64])
def test_deeplab(images, tmp_path, window):
    torch.manual_seed(0)
    config = DeepLabConfig(trunk="test_resnet.r160_in1k", id2label=ID2LABEL)
    model = DeepLabForSemanticSegmentation(config)
    summary = predict_images(model, images, replace(CONFIG, window=window), output_dir=tmp_path, key="k")
    store = LabelStore(summary.directories[0])
    for image_id, size in zip(images.image_ids, SIZES, strict=True):
        assert store.read(image_id).shape == size
