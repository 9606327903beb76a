import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from pydensecrf.utils import unary_from_labels

from sbce_hf.config import CrfConfig
from sbce_hf.postprocess.crf import (
    crf_from_probabilities,
    crf_probabilities,
    dense_crf,
    dense_crf_from_probabilities,
)
from sbce_hf.postprocess.crf_pool import CrfPool

CONFIG = CrfConfig()
PROCESSES = CrfConfig(backend="pydensecrf")


@pytest.fixture(scope="module")
def golden(shared_dir):
    return np.load(shared_dir / "golden" / "crf.npz", allow_pickle=False)  # noqa: TID251 - no pickles


@pytest.mark.parametrize("case", ["c0", "c1", "c2", "c3", "c4", "c5"])
@pytest.mark.parametrize(("iterations", "suffix"), [(10, ""), (1, "_1iter")])
@pytest.mark.parametrize("backend", ["numba", "pydensecrf"])
def test_crf_answers_like_the_released_program(golden, case, iterations, suffix, backend):
    labels = int(golden[f"{case}__n_labels"])
    image, indices = golden[f"{case}__image"], golden[f"{case}__labels"]
    q = crf_probabilities(image, indices, labels, CrfConfig(iterations=iterations, backend=backend))
    assert q.dtype == np.float32
    assert np.allclose(q.sum(axis=0), 1, atol=1e-4)
    assert (q.argmax(axis=0) == golden[f"{case}__argmax{suffix}"]).all()
    rows, columns = golden[f"{case}__probe_yx"]
    assert np.abs(q[:, rows, columns] - golden[f"{case}__probe_prob{suffix}"]).max() < 1e-4


def _two_halves(size=32):
    image = np.zeros((size, size, 3), np.uint8)
    image[:, size // 2 :] = 200
    label_map = np.zeros((size, size), np.uint8)
    label_map[:, size // 2 :] = 3
    return image, label_map


def test_unary_is_that_of_pydensecrf_with_label_0_taken_seriously():
    # Without pairwise terms the marginals are the unary's softmax.
    _, label_map = _two_halves()
    indices = (label_map > 0).astype(np.int64)
    alone = CrfConfig(gaussian_compat=0.0, bilateral_compat=0.0, gt_prob=0.6)
    unary = unary_from_labels(indices, 3, 0.6, zero_unsure=False)
    expected = np.exp(-unary) / np.exp(-unary).sum(axis=0)
    q = crf_probabilities(np.zeros((32, 32, 3), np.uint8), indices, 3, alone)
    assert np.allclose(q.reshape(3, -1), expected, atol=1e-6)


def test_crf_follows_the_edge_of_the_image():
    image, label_map = _two_halves()
    noisy = label_map.copy()
    noisy[:, 14:18] = 3  # two columns too many
    noisy[5:8, 25:28] = 0  # a hole
    assert (dense_crf(image, noisy, [2], CONFIG) == label_map).all()


def test_no_known_class_skips_the_crf():
    image, _ = _two_halves()
    empty = np.zeros((32, 32), np.uint8)
    result = dense_crf(image, empty, [], CONFIG)
    assert (result == empty).all() and result is not empty


def test_a_known_class_without_pixels_still_takes_part():
    # One more label spreads the unary's doubt over more labels: the given ones are trusted more.
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    label_map = generator.choice(np.array([0, 3], np.uint8), (32, 32))
    smooth = CrfConfig(gaussian_sxy=1.5, gaussian_compat=4.0, bilateral_compat=0.0)
    both = crf_probabilities(image, label_map // 3, 3, smooth).argmax(axis=0)
    result = dense_crf(image, label_map, [2, 0], smooth)
    assert (result == np.array([0, 3, 1])[both]).all()
    assert (result != dense_crf(image, label_map, [2], smooth)).any()


@pytest.mark.parametrize(
    ("image", "label_map", "classes", "message"),
    [
        (np.zeros((8, 8, 3), np.float32), np.zeros((8, 8), np.uint8), [0], "uint8"),
        (np.zeros((8, 8), np.uint8), np.zeros((8, 8), np.uint8), [0], "uint8"),
        (np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9), np.uint8), [0], r"\(8, 9\)"),
        (np.zeros((8, 8, 3), np.uint8), np.full((8, 8), 2, np.uint8), [0], r"\[2\].*known classes"),
    ],
)
def test_wrong_input_is_named(image, label_map, classes, message):
    with pytest.raises(ValueError, match=message):
        dense_crf(image, label_map, classes, CONFIG)


def test_one_label_and_indices_out_of_range_are_errors():
    image, indices = np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.int64)
    with pytest.raises(ValueError, match="at least 2"):
        crf_probabilities(image, indices, 1, CONFIG)
    with pytest.raises(ValueError, match="0 to 1"):
        crf_probabilities(image, indices + 2, 2, CONFIG)


def _random_probabilities(labels=3, size=32, seed=0):
    logits = np.random.default_rng(seed).normal(size=(labels, size, size)) * 8
    return (np.exp(logits) / np.exp(logits).sum(axis=0)).astype(np.float32)


def test_unary_of_probabilities_keeps_the_confidence():
    # Without pairwise terms the marginals are the probabilities themselves, but for the clipped ones.
    probabilities = _random_probabilities()
    assert probabilities.min() < 1e-5
    alone = CrfConfig(gaussian_compat=0.0, bilateral_compat=0.0)
    q = crf_from_probabilities(np.zeros((32, 32, 3), np.uint8), probabilities, alone)
    clipped = np.clip(probabilities, 1e-5, 1)
    assert q.dtype == np.float32 and np.allclose(q, clipped / clipped.sum(axis=0), atol=1e-6)


def test_hard_labels_as_probabilities_give_the_crf_of_hard_labels():
    image, label_map = _two_halves()
    noisy = label_map // 3
    noisy[5:8, 25:28] = 0
    probabilities = np.where(noisy == np.arange(3)[:, None, None], 0.7, 0.15)
    assert np.allclose(
        crf_from_probabilities(image, probabilities, CONFIG), crf_probabilities(image, noisy, 3, CONFIG), atol=1e-5
    )


def test_a_confident_pixel_withstands_its_neighbours_and_a_doubtful_one_does_not():
    image = np.full((32, 32, 3), 90, np.uint8)
    smooth = CrfConfig(gaussian_sxy=1.0, gaussian_compat=3.0, bilateral_compat=0.0)
    for confidence, expected in ((0.55, 0), (0.9999, 1)):
        foreground = np.full((32, 32), 0.3)
        foreground[16, 16] = confidence
        refined = dense_crf_from_probabilities(image, np.stack([1 - foreground, foreground]), smooth)
        assert refined.dtype == np.uint8 and refined[16, 16] == expected and refined.sum() == expected


@pytest.mark.parametrize(
    ("shape", "message"), [((8, 8), "labels, H, W"), ((2, 8, 9), r"\(8, 9\)"), ((1, 8, 8), "at least 2")]
)
def test_probabilities_of_a_wrong_shape(shape, message):
    with pytest.raises(ValueError, match=message):
        crf_from_probabilities(np.zeros((8, 8, 3), np.uint8), np.ones(shape, np.float32), CONFIG)


@pytest.mark.parametrize("backend", ["numba", "torch", "pydensecrf"])
def test_pool_answers_like_the_functions(backend):
    config = CrfConfig(backend=backend, batch_photos=3)
    image, label_map = _two_halves()
    probabilities = _random_probabilities()
    expected = dense_crf_from_probabilities(image, probabilities, CONFIG)
    with CrfPool(config, workers=1) as pool:
        future = pool.submit(image, label_map, [2])
        assert (future.result() == dense_crf(image, label_map, [2], CONFIG)).all()
        assert (pool.submit(image, np.zeros_like(label_map), []).result() == 0).all()
        # More than may wait at once.
        for future in [pool.submit_probabilities(image, probabilities) for _ in range(5)]:
            assert (future.result() == expected).all()


def test_a_dead_process_is_explained():
    image, probabilities = np.zeros((32, 32, 3), np.uint8), _random_probabilities()
    with pytest.raises(RuntimeError, match=r"crf_workers.*continues where it stopped"), CrfPool(PROCESSES, 1) as pool:
        pool.submit_probabilities(image, probabilities).result()
        for pid in pool._executor._processes:
            os.kill(pid, signal.SIGKILL)
        for _ in range(100):
            pool.submit_probabilities(image, probabilities)


def test_workers_import_no_torch_and_end_with_a_killed_parent(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys, time
            import numpy as np
            from sbce_hf.config import CrfConfig
            from sbce_hf.postprocess.crf_pool import CrfPool

            if __name__ == "__main__":
                pool = CrfPool(CrfConfig(backend="pydensecrf"), 2)
                zeros = np.zeros((16, 16), np.uint8)
                for future in [pool.submit(np.zeros((16, 16, 3), np.uint8), zeros, [0]) for _ in range(4)]:
                    future.result()
                print(*pool._executor._processes, "torch" in sys.modules, flush=True)
                time.sleep(60)
            """
        )
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        *workers, has_torch = parent.stdout.readline().split()
        assert workers and has_torch == "False"
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    deadline = time.monotonic() + 10
    while any(_is_running(int(pid)) for pid in workers):
        assert time.monotonic() < deadline, "a worker outlived its killed parent"
        time.sleep(0.05)


def _is_running(pid):
    try:
        os.kill(pid, 0)
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def _small_thing():
    image = np.full((40, 40, 3), 120, np.uint8)
    image[:, :12] = 220
    label_map = np.zeros((40, 40), np.uint8)
    label_map[18:20, 18:20] = 3
    label_map[:, :12] = 1
    return image, label_map


def test_a_class_that_the_crf_would_remove_keeps_its_pixels():
    image, label_map = _small_thing()
    off = dense_crf(image, label_map, [0, 2], CrfConfig(min_kept=0.0))
    assert not (off == 3).any() and (off == 1).any()
    kept = dense_crf(image, label_map, [0, 2], CONFIG)
    assert np.array_equal(kept == 3, label_map == 3)
    # Nothing else changes.
    assert np.array_equal(kept[label_map != 3], off[label_map != 3])


def test_a_class_of_which_enough_is_left_is_the_crfs():
    image, label_map = _two_halves()
    noisy = label_map.copy()
    noisy[5:8, 2:5] = 3
    assert np.array_equal(dense_crf(image, noisy, [2], CONFIG), dense_crf(image, noisy, [2], CrfConfig(min_kept=0.0)))


def test_a_device_without_room_for_a_batch_is_told_with_a_remedy(monkeypatch):
    import torch

    from sbce_hf.postprocess import lattice_torch

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(lattice_torch, "solve", full)
    image, label_map = _two_halves()
    with CrfPool(CrfConfig(backend="torch"), 1) as pool:
        future = pool.submit(image, label_map, [2])
        with pytest.raises(RuntimeError, match=r"lower crf\.batch_photos \(got 32\)"):
            future.result()
