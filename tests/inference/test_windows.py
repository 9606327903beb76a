import numpy as np
import pytest
import torch

from sbce_hf.inference.windows import average_bands, cover

CASES = [
    (100, 70, 32, 0.5),
    (64, 64, 64, 0.5),
    (10, 300, 64, 0.25),
    (97, 33, 32, 0.0),
    (65, 64, 64, 0.9),
    (1, 1, 64, 0),
]


@pytest.mark.parametrize(("height", "width", "side", "overlap"), CASES)
def test_windows_cover_the_image_and_their_cores_cover_it_once(height, width, side, overlap):
    count, cores = np.zeros((height, width), int), np.zeros((height, width), int)
    windows = cover(height, width, side, overlap)
    for window in windows:
        assert (window.height, window.width) == (min(side, height), min(side, width))
        left, top, right, bottom = window.box
        assert min(left, top) >= 0 and right <= width and bottom <= height
        count[top:bottom, left:right] += 1
        cores[window.core] += 1
        inside = np.zeros((window.height, window.width), int)
        inside[window.own_core] = 1
        assert inside.sum() == np.prod([core.stop - core.start for core in window.core])
    assert count.min() >= 1 and (cores == 1).all()
    assert [(w.top, w.left) for w in windows] == sorted((w.top, w.left) for w in windows)
    tops = sorted({window.top for window in windows})
    assert np.diff(tops).max(initial=0) <= round(min(side, height) * (1 - overlap))


@pytest.mark.parametrize(("height", "width", "side", "overlap"), CASES)
def test_bands_are_the_mean_of_overlapping_windows(height, width, side, overlap):
    generator = torch.Generator().manual_seed(0)
    windows = cover(height, width, side, overlap)
    answers = [torch.rand(3, w.height, w.width, generator=generator) for w in windows]
    total, count = torch.zeros(3, height, width), torch.zeros(height, width)
    for window, answer in zip(windows, answers, strict=True):
        left, top, right, bottom = window.box
        total[:, top:bottom, left:right] += answer
        count[top:bottom, left:right] += 1
    bands = list(average_bands(zip(windows, answers, strict=True), width))
    assert torch.allclose(torch.cat(bands, dim=1), total / count, atol=1e-6)
    assert max(band.shape[1] for band in bands) <= min(side, height)
    assert len(bands) == len({window.top for window in windows})
