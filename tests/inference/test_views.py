from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from sbce_hf.config import LabellingConfig
from sbce_hf.data.transforms import IMAGENET
from sbce_hf.inference import views
from sbce_hf.inference.views import class_maps, view_sizes

ONE = LabellingConfig(scales=(1.0,), flip=False, batch_size=4)


def make_photo(seed, height=64, width=64):
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def forward(model, photo, size, flip=False):
    pixels = np.asarray(photo.resize((size[1], size[0]), Image.Resampling.BILINEAR), np.float32) / 255
    pixels = (pixels - np.array(IMAGENET.mean, np.float32)) / np.array(IMAGENET.std, np.float32)
    batch = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    with torch.inference_mode():
        return model(batch.flip(-1) if flip else batch)


def upsample(logits, size):
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)[0].numpy()


def test_sizes_of_views():
    config = LabellingConfig(scales=(1.0, 0.5, 1.5))
    assert view_sizes(375, 500, config) == [(375, 500), (188, 250), (562, 750)]
    assert view_sizes(40, 500, config)[1] == (32, 250)
    assert view_sizes(375, 500, replace(config, image_size=369)) == [(369, 369), (184, 184), (554, 554)]


def test_one_view_is_the_models_answer_at_image_size(tiny_model):
    photo = make_photo(0, 70, 90)
    labels = np.array([[1, 0, 1]], np.float32)
    (maps,) = class_maps(tiny_model, [photo], labels, ONE)
    output = forward(tiny_model, photo, (70, 90))
    assert maps.classes.tolist() == [0, 2] and maps.classes.dtype == np.int64
    assert maps.logits.shape == (2, 70, 90) and maps.logits.dtype == np.float32
    assert np.allclose(maps.logits, upsample(output.pixel_logits, (70, 90))[[0, 2]], atol=1e-4)
    assert np.allclose(maps.threshold_logits, output.threshold_logits[0, [0, 2]], atol=1e-5)
    assert np.allclose(maps.scales, 3.0)


def test_views_are_averaged_at_image_size_and_mirrored_back(tiny_model):
    photo = make_photo(1, 64, 96)
    config = LabellingConfig(scales=(1.0, 0.5, 1.5), flip=True)
    (maps,) = class_maps(tiny_model, [photo], np.ones((1, 3)), config)
    logits, thresholds = [], []
    for size in view_sizes(64, 96, config):
        for flip in (False, True):
            output = forward(tiny_model, photo, size, flip)
            # here mirrored back at image size, unlike the implementation
            full = upsample(output.pixel_logits, (64, 96))
            logits.append(full[..., ::-1] if flip else full)
            thresholds.append(output.threshold_logits[0].numpy())
    assert np.allclose(maps.logits, np.mean(logits, axis=0), atol=1e-4)
    assert np.allclose(maps.threshold_logits, np.mean(thresholds, axis=0), atol=1e-5)


def test_the_length_of_the_features_is_there_for_the_rule_that_asks(tiny_model):
    photo = make_photo(3, 70, 90)
    labels = np.array([[1, 0, 1]], np.float32)
    (maps,) = class_maps(tiny_model, [photo], labels, ONE)
    assert maps.feature_norm is None
    (maps,) = class_maps(tiny_model, [photo], labels, replace(ONE, rule="objects"))
    size = (70, 90)
    pixels = np.asarray(photo, np.float32) / 255
    pixels = (pixels - np.array(IMAGENET.mean, np.float32)) / np.array(IMAGENET.std, np.float32)
    with torch.inference_mode():
        features = tiny_model.spatial_bce(torch.from_numpy(pixels).permute(2, 0, 1)[None]).last_hidden_state
    length = features.square().sum(dim=1, keepdim=True).sqrt()
    assert maps.feature_norm.shape == size and maps.feature_norm.dtype == np.float32
    assert np.allclose(maps.feature_norm, upsample(length / length.max(), size)[0], atol=1e-5)


def test_a_mirrored_photo_has_mirrored_maps_with_flip_only(tiny_model):
    photo = make_photo(2)
    mirrored = photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for flip in (True, False):
        config = replace(ONE, flip=flip)
        one, two = class_maps(tiny_model, [photo, mirrored], np.ones((2, 3)), config)
        assert np.allclose(one.logits, two.logits[..., ::-1], atol=1e-4) is flip


def test_image_size_resizes_to_a_square_and_back(tiny_model):
    photo = make_photo(3, 50, 90)
    (maps,) = class_maps(tiny_model, [photo], np.ones((1, 3)), replace(ONE, image_size=64))
    expected = upsample(forward(tiny_model, photo, (64, 64)).pixel_logits, (50, 90))
    assert np.allclose(maps.logits, expected, atol=1e-4)


def test_batches_of_mixed_sizes_keep_every_image_its_own(tiny_model):
    photos = [make_photo(i, *size) for i, size in enumerate([(64, 64), (64, 80), (64, 64), (96, 64), (64, 64)])]
    labels = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 1], [1, 1, 1]], np.float32)
    config = LabellingConfig(scales=(1.0, 0.5), batch_size=4)
    together = class_maps(tiny_model, photos, labels, config, image_ids=list("abcde"))
    assert [maps.image_id for maps in together] == list("abcde")
    for photo, row, maps in zip(photos, labels, together, strict=True):
        (alone,) = class_maps(tiny_model, [photo], row[None], config)
        assert (maps.classes == np.flatnonzero(row)).all()
        assert maps.logits.shape == (int(row.sum()), photo.height, photo.width)
        assert np.allclose(maps.logits, alone.logits, atol=1e-4)


def test_images_without_tags_do_not_run(tiny_model, monkeypatch):
    labels = np.zeros((2, 3), np.float32)
    monkeypatch.setattr(type(tiny_model), "forward", lambda *a, **k: pytest.fail("ran"))
    maps = class_maps(tiny_model, [make_photo(0), make_photo(1, 40, 50)], labels, ONE)
    assert [m.logits.shape for m in maps] == [(0, 64, 64), (0, 40, 50)]
    assert class_maps(tiny_model, [], np.zeros((0, 3)), ONE) == []


def test_predicted_classes_come_from_the_views_mean_logit(tiny_model):
    photo = make_photo(4)
    config = LabellingConfig(scales=(1.0, 0.5), known_classes="predicted")
    outputs = [forward(tiny_model, photo, s, flip) for s in view_sizes(64, 64, config) for flip in (False, True)]
    probabilities = torch.stack([output.logits for output in outputs]).mean(dim=0)[0].sigmoid()
    # between the classes' probabilities: some pass, some do not
    middle = float(probabilities.sort().values[:2].mean())
    (maps,) = class_maps(tiny_model, [photo], None, replace(config, class_threshold=middle))
    assert maps.classes.tolist() == np.flatnonzero(probabilities > middle).tolist()
    assert 0 < len(maps.classes) < 3


def test_labels_are_checked(tiny_model):
    with pytest.raises(ValueError, match="labels: got none.*known_classes"):
        class_maps(tiny_model, [make_photo(0)], None, ONE)
    with pytest.raises(ValueError, match=r"shape \(1, 2\).*\(1, 3\)"):
        class_maps(tiny_model, [make_photo(0)], np.ones((1, 2)), ONE)


def test_a_diverged_model_is_an_error_that_names_the_image(tiny_model):
    scale = tiny_model.logit_scale.detach().clone()
    try:
        with torch.no_grad():
            tiny_model.logit_scale[1] = float("nan")
        with pytest.raises(ValueError, match="'photo'.*not finite.*diverged"):
            class_maps(tiny_model, [make_photo(0)], np.ones((1, 3)), ONE, image_ids=["photo"])
    finally:
        with torch.no_grad():
            tiny_model.logit_scale.copy_(scale)


def test_model_is_used_in_evaluation_mode(tiny_model):
    tiny_model.train()
    class_maps(tiny_model, [make_photo(0)], np.ones((1, 3)), ONE)
    assert not tiny_model.training


def test_maps_at_the_images_size_are_made_one_image_at_a_time(tiny_model, monkeypatch):
    made, merge = [], views._merge
    monkeypatch.setattr(views, "_merge", lambda *arguments: made.append(1) or merge(*arguments))
    photos = [make_photo(seed) for seed in range(3)]
    for count, maps in enumerate(views.iterate_class_maps(tiny_model, photos, np.ones((3, 3)), ONE), start=1):
        assert len(made) == count and maps.logits.shape[1:] == (photos[0].height, photos[0].width)


def test_half_precision_changes_little_and_only_when_asked_for(tiny_model):
    photos, config = [Image.effect_noise((64, 64), 90).convert("RGB")], LabellingConfig(crf=None, scales=(1.0,))
    plain, half = (
        class_maps(tiny_model, photos, np.ones((1, 3)), replace(config, mixed_precision=precision))[0].logits
        for precision in ("no", "bf16")
    )
    assert half.dtype == np.float32
    assert 0 < np.abs(half - plain).max() < 0.05 * np.abs(plain).max()
