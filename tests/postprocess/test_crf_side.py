"""The CRF of photos that are larger than its side."""

import numpy as np
import pytest
from PIL import Image

from sbce_hf.config import CrfConfig, load_recipe
from sbce_hf.postprocess.crf import dense_crf, dense_crf_from_probabilities


def photo_and_label_map(height, width, seed=0):
    """Two regions of noisy colour, and a label map whose edge is off by an eighth of the width."""
    generator = np.random.default_rng(seed)
    image = generator.normal(60, 5, (height, width, 3))
    image[:, width // 2 :] += 120
    label_map = np.zeros((height, width), np.uint8)
    label_map[:, width // 2 - width // 8 :] = 3
    return image.clip(0, 255).astype(np.uint8), label_map


@pytest.mark.parametrize("side", [96, 97, 512, None])
def test_photos_up_to_the_side_are_not_scaled(side):
    image, label_map = photo_and_label_map(64, 96)
    expected = dense_crf(image, label_map, [2], CrfConfig(side=None))
    assert np.array_equal(dense_crf(image, label_map, [2], CrfConfig(side=side)), expected)


@pytest.mark.parametrize(("height", "width"), [(240, 320), (320, 240), (90, 400), (400, 3)])
def test_a_large_photo_is_labelled_at_its_own_size(height, width):
    image, label_map = photo_and_label_map(height, width)
    result = dense_crf(image, label_map, [2], CrfConfig(side=80))
    assert result.shape == (height, width) and result.dtype == np.uint8
    assert set(np.unique(result)) <= {0, 3}


def test_the_edge_of_a_large_photo_is_found_to_a_small_pixel():
    image, label_map = photo_and_label_map(240, 320)
    result = dense_crf(image, label_map, [2], CrfConfig(side=80))
    wrong = result != np.where(np.arange(320) >= 160, 3, 0)
    # A pixel of the CRF is 4 wide.
    assert wrong.mean(axis=0)[:156].max() == 0 == wrong.mean(axis=0)[164:].max()


def test_the_result_depends_on_the_side_and_not_on_the_size():
    image, label_map = photo_and_label_map(96, 128)
    small = dense_crf(image, label_map, [2], CrfConfig(side=128))
    large = [np.asarray(Image.fromarray(array).resize((512, 384), 0)) for array in (image, label_map)]
    result = dense_crf(large[0], large[1], [2], CrfConfig(side=128))
    # But for one column at the edge, where a large pixel's middle is not a small one's.
    assert (result[2::4, 2::4] == small).mean() > 1 - 1.5 / 128


def test_probabilities_are_scaled_alike():
    image, label_map = photo_and_label_map(240, 320)
    probabilities = np.stack([label_map == 0, label_map == 3]).astype(np.float32) * 0.6 + 0.2
    result = dense_crf_from_probabilities(image, probabilities, CrfConfig(side=80))
    assert result.shape == (240, 320) and result.dtype == np.uint8
    wrong = result != (np.arange(320) >= 160)
    assert wrong.mean(axis=0)[:156].max() == 0 == wrong.mean(axis=0)[164:].max()


def test_errors_are_those_of_the_full_size():
    image, label_map = photo_and_label_map(240, 320)
    with pytest.raises(ValueError, match="got shape"):
        dense_crf(image, label_map[:100], [2], CrfConfig(side=80))
    with pytest.raises(ValueError, match="got shape"):
        dense_crf_from_probabilities(image, np.full((2, 100, 320), 0.5, np.float32), CrfConfig(side=80))


def test_the_released_program_never_scales_nor_keeps():
    official = load_recipe("voc-resnet38", {"official": True, "data": {"data_dir": "x"}})
    assert official.labelling.crf.side is None and official.labelling.crf.min_kept == 0
    assert load_recipe("voc-animals", {"data": {"data_dir": "x"}}).labelling.crf.side == 512
