"""The two implementations of the CRF against the definition and against pydensecrf."""

import importlib.util
import math
import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from sbce_hf.config import CrfConfig
from sbce_hf.postprocess import crf, lattice, lattice_torch

# On noise, mean field doubles a difference with each iteration; ten of them on photos are in test_crf.py.
CONFIG = CrfConfig(iterations=3)


def _photo(height, width, seed=0):
    """Smooth areas, an edge and noise."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([rows * 200 / height, columns * 200 / width, 90 + 60 * (columns > rows)], axis=-1)
    return np.clip(image + generator.normal(0, 8, image.shape), 0, 255).astype(np.uint8)


def _energies(labels, height, width, seed=0):
    return np.random.default_rng(seed).gamma(1.0, 1.0, (labels, height * width)).astype(np.float32)


def _numba(image, energies, config=CONFIG):
    return crf._numba(image, energies, config, np.zeros(0, np.int64)).reshape(-1, *image.shape[:2])


def _torch(images, energies, config=CONFIG):
    kernels = (
        (config.gaussian_sxy, None, config.gaussian_compat),
        (config.bilateral_sxy, config.bilateral_srgb, config.bilateral_compat),
    )
    given = [
        torch.from_numpy(values).reshape(len(values), *image.shape[:2])
        for image, values in zip(images, energies, strict=True)
    ]
    return [
        found.numpy()
        for found in lattice_torch.mean_field(list(map(torch.from_numpy, images)), given, kernels, config.iterations)
    ]


@pytest.mark.parametrize("labels", [2, 3, 4, 5, 6, 21])
@pytest.mark.parametrize(("height", "width"), [(37, 41), (40, 32)])
def test_numba_answers_like_pydensecrf(labels, height, width):
    image, energies = _photo(height, width), _energies(labels, height, width)
    expected = crf._pydensecrf(image, energies, CONFIG, np.zeros(0, np.int64)).reshape(labels, height, width)
    found = _numba(image, energies)
    assert found.dtype == np.float32 and np.abs(found - expected).max() < 3e-5
    assert np.allclose(found.sum(axis=0), 1, atol=1e-5)


@pytest.mark.parametrize("labels", [2, 3, 5])
def test_torch_answers_like_numba_with_photos_of_any_sizes_in_one_batch(labels):
    sizes = [(37, 41), (40, 32), (5, 9)]
    images = [_photo(*size, seed) for seed, size in enumerate(sizes)]
    # One of them has more labels than the others.
    energies = [_energies(labels + (seed == 1), *size, seed) for seed, size in enumerate(sizes)]
    for image, given, found in zip(images, energies, _torch(images, energies), strict=True):
        assert np.abs(found - _numba(image, given)).max() < 1e-4


@pytest.mark.parametrize("shape", [(2, 90), (5, 64)])
def test_the_filter_is_nearly_the_gaussian(shape):
    """Brute force: the lattice approximates `exp(-|f_i - f_j|^2 / 2)`, as Adams et al. do, to a few percent."""
    features = np.random.default_rng(0).normal(0, 1.0, shape).astype(np.float32)
    distances = ((features[:, :, None] - features[:, None]) ** 2).sum(axis=0)
    kernel = np.exp(-distances / 2)
    expected = kernel / np.sqrt(kernel.sum(axis=0)[:, None] * kernel.sum(axis=0)[None])
    built = lattice.build_lattice(features)
    found = np.stack([lattice._filtered(built, row) for row in np.eye(shape[1], dtype=np.float32)])
    assert np.abs(found.sum(axis=0) - built.mass).max() < 1e-5
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.9
    assert np.abs(found.sum(axis=0) - expected.sum(axis=0)).max() < 0.25


def test_mean_field_by_its_definition():
    """A dense kernel matrix from the lattice, and the update written out: softmax, message, Potts."""
    height, width, labels = 9, 11, 4
    image, energies = _photo(height, width), _energies(labels, height, width)
    kernels = ((lattice.spatial_lattice(height, width, 3.0), 2.0), (lattice.bilateral_lattice(image, 20.0, 8.0), 5.0))
    matrix = sum(
        weight * np.stack([lattice._filtered(built, row) for row in np.eye(height * width, dtype=np.float32)])
        for built, weight in kernels
    )
    expected = np.exp(-energies) / np.exp(-energies).sum(axis=0)
    for _ in range(5):
        logits = expected @ matrix - energies
        expected = np.exp(logits - logits.max(axis=0))
        expected /= expected.sum(axis=0)
    found = lattice.mean_field(energies, np.ones(labels, np.float32), kernels, 5)
    assert np.abs(found - expected).max() < 1e-5


def test_labels_that_nothing_tells_apart_share_one_row():
    image = _photo(30, 40)
    indices = np.random.default_rng(0).integers(0, 3, (30, 40)) * 7
    found = crf.crf_probabilities(image, indices, 21, CONFIG)
    unary = np.full((21, indices.size), -math.log(0.3 / 20), np.float32)
    unary[indices.ravel(), np.arange(indices.size)] = -math.log(0.7)
    assert np.abs(found - _numba(image, unary)).max() < 1e-5
    assert (found[1] == found[20]).all()


def test_threads_change_nothing():
    images = [_photo(60, 80, seed) for seed in range(6)]
    energies = [_energies(3, 60, 80, seed) for seed in range(6)]
    alone = list(map(_numba, images, energies))
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(_numba, images, energies))
    assert all((one == other).all() for one, other in zip(alone, together, strict=True))


def test_keys_too_long_to_be_packed_are_sorted_in_another_way():
    features = np.concatenate([lattice.spatial_features(20, 20, 1.0), 400 * np.random.default_rng(0).random((3, 400))])
    features = features.astype(np.float32)
    strides, _, cells = lattice.packing(features)
    assert cells > 2**32 and len(strides) == 6
    built = lattice.build_lattice(features)
    # Nobody is near: the kernel's answer to ones is what each gets from itself.
    assert built.mass.max() < 2 and len(np.unique(built.vertices)) > 2000


def test_a_deviation_that_is_far_too_small_is_refused():
    with pytest.raises(ValueError, match="make the kernels' standard deviations larger"):
        lattice.bilateral_lattice(_photo(50, 50), 1e-3, 1e-4)


def test_photos_of_one_colour_and_of_one_pixel():
    for height, width in ((1, 1), (1, 7), (16, 16)):
        image, energies = np.full((height, width, 3), 255, np.uint8), _energies(2, height, width)
        expected = crf._pydensecrf(image, energies, CONFIG, np.zeros(0, np.int64)).reshape(2, height, width)
        assert np.abs(_numba(image, energies) - expected).max() < 2e-4
        assert np.abs(_torch([image], [energies])[0] - expected).max() < 1e-3


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="torch came without triton")
def test_kernels_for_cuda_answer_like_torch():
    """On the CPU, by Triton's interpreter, which has to be asked for before it is imported."""
    code = """
        import sys; sys.path.insert(0, {folder!r})
        import torch
        from test_lattice import _energies, _photo, _torch, lattice_torch
        from sbce_hf.postprocess import lattice_triton

        images = [_photo(9, 11), _photo(8, 8, 1), _photo(5, 7, 2)]
        energies = [_energies(labels, *image.shape[:2]) for labels, image in zip((3, 4, 2), images)]
        plain = _torch(images, energies)
        lattice_torch._kernels = lambda device: lattice_triton
        for own, kernels in zip(plain, _torch(images, energies), strict=True):
            assert abs(own - kernels).max() < 1e-5
        print("same")
    """
    folder = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code.format(folder=folder))],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "same\n", done.stderr


def test_without_a_place_for_a_cache_it_is_compiled_each_time(monkeypatch):
    """As where neither the package's folder nor the user's can be written to."""
    from numba.core.dispatcher import Dispatcher

    from sbce_hf.postprocess.lattice_kernels import compiled

    def no_place(self):
        raise RuntimeError("cannot cache function '<lambda>': no locator available")

    monkeypatch.setattr(Dispatcher, "enable_caching", no_place)
    assert compiled(lambda x: x + 1)(1) == 2
