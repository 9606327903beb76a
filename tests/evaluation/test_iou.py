import numpy as np
import pytest

from sbce_hf.evaluation.iou import count, runs


@pytest.mark.parametrize("shape", [(0, 0), (1, 1), (1, 7), (6, 9), (40, 50)])
@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
@pytest.mark.parametrize("labels", [1, 2, 5])
def test_runs_add_up_to_the_pixels_of_each_pair(shape, dtype, labels):
    generator = np.random.default_rng(labels)
    first, second = (generator.integers(0, labels, shape).astype(dtype) for _ in range(2))
    if shape == (40, 50):
        # Areas, as label maps have them.
        first[:20], second[5:25, 10:] = 0, labels - 1
    a, b, lengths = runs(first, second)
    expected = np.zeros((labels, labels), np.int64)
    np.add.at(expected, (first.ravel(), second.ravel()), 1)
    counts = count(a.astype(np.int64) * labels + b, lengths, (labels, labels))
    assert counts.dtype == np.int64 and np.array_equal(counts, expected)
    assert lengths.sum() == first.size and (lengths > 0).all()


def test_a_map_of_one_label_is_one_run():
    a, b, lengths = runs(np.full((3, 4), 7), np.zeros((3, 4), int))
    assert (a.tolist(), b.tolist(), lengths.tolist()) == ([7], [0], [12])
