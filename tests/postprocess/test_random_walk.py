import numpy as np
import pytest
import torch

from sbce_hf.models.losses_irn import directions, line
from sbce_hf.postprocess.random_walk import random_walk


def dense(maps, boundaries, radius, exponent, steps):
    """The released program's way: the whole transition matrix."""
    height, width = boundaries.shape
    affinity = np.eye(height * width)
    for y in range(height):
        for x in range(width):
            for dy, dx in directions(radius):
                if y + dy < height and 0 <= x + dx < width:
                    value = 1 - max(boundaries[y + v, x + u] for v, u in line(dy, dx))
                    first, second = y * width + x, (y + dy) * width + x + dx
                    affinity[first, second] = affinity[second, first] = value
    transition = affinity**exponent
    transition /= transition.sum(axis=0)
    return (maps.reshape(len(maps), -1) @ np.linalg.matrix_power(transition, steps)).reshape(maps.shape)


@pytest.mark.parametrize("steps", [1, 256])
def test_equals_the_dense_matrix(steps):
    generator = np.random.default_rng(0)
    maps, boundaries = generator.random((3, 17, 21)), generator.random((17, 21)) ** 4
    found = random_walk(torch.from_numpy(maps), torch.from_numpy(boundaries), steps=steps)
    expected = dense(maps, boundaries, 5, 10, steps)
    assert found.dtype == torch.float64
    assert np.abs(found.numpy() - expected).max() < 2e-13 * expected.max() * steps


def test_values_stop_at_a_boundary():
    boundaries = torch.zeros(12, 16)
    boundaries[:, 8] = 1
    maps = torch.zeros(1, 12, 16)
    maps[0, 5, 3] = 1
    found = random_walk(maps, boundaries)
    assert found[0, :, 9:].max() == 0 and found[0, :, :8].min() > 0
    # Without one they even out.
    open_space = random_walk(maps, torch.zeros(12, 16), steps=2000)
    assert open_space.max() / open_space.min() < 4


def test_a_map_smaller_than_the_radius():
    maps = torch.rand(2, 2, 3)
    found = random_walk(maps, torch.zeros(2, 3))
    assert found.shape == (2, 2, 3) and found.isfinite().all()
    assert torch.equal(random_walk(maps, torch.ones(2, 3)), maps)
    assert torch.equal(random_walk(maps, torch.zeros(2, 3), steps=0), maps)


def test_sizes_must_agree():
    with pytest.raises(ValueError, match=r"boundaries: got shape \(4, 5\), expected \(4, 6\)"):
        random_walk(torch.zeros(1, 4, 6), torch.zeros(4, 5))
