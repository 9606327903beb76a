"""Class maps spread over what is alike: means stay means, and an object is filled that the map has found a part of."""

import numpy as np
import pytest
import torch

from sbce_hf.config import AffinityConfig
from sbce_hf.postprocess.affinity import cosine_affinity, propagate, spread, transition
from sbce_hf.postprocess.rules import ClassMaps, label_paper

GRID = (6, 8)


def maps_of(logits):
    count = len(logits)
    return ClassMaps("a", np.arange(count), logits.astype(np.float32), np.zeros(count, np.float32), np.ones(count))


def two_things(inside):
    """Attention among 48 cells: each to its own side, with some noise; not symmetric."""
    generator = torch.Generator().manual_seed(0)
    same = inside[:, None] == inside[None]
    scores = 4.0 * same + torch.rand(len(inside), len(inside), generator=generator)
    return scores.softmax(dim=1)


@pytest.fixture
def inside():
    """A thing of 4 x 4 cells."""
    cells = torch.zeros(GRID, dtype=torch.bool)
    cells[1:5, 2:6] = True
    return cells.flatten()


@pytest.mark.parametrize("symmetrise", ["sinkhorn", "mean"])
@pytest.mark.parametrize("power", [1.0, 3.0])
def test_rows_sum_to_1_and_values_stay_in_their_range(inside, symmetrise, power):
    weights = transition(two_things(inside), AffinityConfig(symmetrise=symmetrise, power=power))
    assert weights.min() >= 0 and torch.allclose(weights.sum(dim=1), torch.ones(48), atol=1e-6)
    values = torch.rand(3, 48)
    passed = propagate(values, weights, 5)
    assert (passed.amin(dim=1) >= values.amin(dim=1)).all() and (passed.amax(dim=1) <= values.amax(dim=1)).all()
    assert torch.equal(propagate(values, weights, 0), values)
    assert torch.allclose(propagate(torch.full((1, 48), 0.3), weights, 9), torch.full((1, 48), 0.3), atol=1e-5)


def test_sinkhorn_makes_weights_that_are_symmetric_and_whose_columns_sum_to_1_too(inside):
    weights = transition(two_things(inside), AffinityConfig(sinkhorn_steps=50))
    assert torch.allclose(weights.sum(dim=0), torch.ones(48), atol=1e-4)
    assert torch.allclose(weights, weights.T, atol=1e-5)
    plain = transition(two_things(inside), AffinityConfig(symmetrise="mean"))
    assert (plain.sum(dim=0) - 1).abs().max() > 1e-3


def test_a_higher_power_favours_what_is_most_alike(inside):
    affinity = two_things(inside)
    shares = [
        transition(affinity, AffinityConfig(power=power))[inside][:, inside].sum(dim=1).mean()
        for power in (0.5, 1.0, 4.0)
    ]
    assert shares[0] < shares[1] < shares[2]


@pytest.mark.parametrize("size", [(60, 80), (90, 50), (5, 7)])
def test_what_a_map_has_found_a_part_of_is_filled(inside, size):
    # A quarter of the thing is found: its upper left corner.
    found = torch.zeros(GRID)
    found[1:3, 2:4] = 1
    small = torch.nn.functional.interpolate(found[None, None], size, mode="nearest")[0].numpy()
    logits = np.where(small > 0, 3.0, -6.0)
    weights = transition(two_things(inside), AffinityConfig())
    after = spread(maps_of(logits), weights, GRID, steps=2)
    assert after.logits.shape == (1, *size) and np.isfinite(after.logits).all()
    # The map's peak is what it was, so that its threshold still means something.
    assert after.logits.max() == pytest.approx(logits.max(), abs=0.3)
    if min(size) < 10:
        return
    truth = torch.nn.functional.interpolate(inside.view(1, 1, *GRID).float(), size, mode="nearest")[0, 0].numpy() > 0
    before, label_map = (label_paper(maps).label_map > 0 for maps in (maps_of(logits), after))
    ious = [(one & truth).sum() / (one | truth).sum() for one in (before, label_map)]
    assert ious[0] < 0.3 and ious[1] > 0.85


def test_maps_too_low_to_be_told_from_0_keep_their_order(inside):
    logits = np.full((1, *GRID), -60.0)
    logits[0, 1, 2] = -40.0
    after = spread(maps_of(logits), transition(two_things(inside), AffinityConfig()), GRID, steps=1)
    assert after.logits.max() == pytest.approx(-40, abs=0.1)
    flat = after.logits.reshape(-1)
    assert flat[inside.numpy()].min() > flat[~inside.numpy()].max()


def test_flat_and_saturated_maps_stay_finite(inside):
    weights = transition(two_things(inside), AffinityConfig())
    for value in (-80.0, 0.0, 80.0):
        after = spread(maps_of(np.full((2, 12, 16), value)), weights, GRID, steps=2)
        assert np.isfinite(after.logits).all() and np.ptp(after.logits) < 1e-2
    both = np.stack([np.full((12, 16), 80.0), np.linspace(-80, 80, 192).reshape(12, 16)])
    assert np.isfinite(spread(maps_of(both), weights, GRID, steps=2).logits).all()


def test_cosines_of_features():
    features = torch.tensor([[1.0, 0.0], [3.0, 0.0], [1.0, 1.0], [-1.0, 0.0], [0.0, 0.0]])
    affinity = cosine_affinity(features, 0.5)
    root = 0.5**0.5
    expected = torch.eye(5)
    expected[0, 1] = expected[1, 0] = 1
    expected[0, 2] = expected[2, 0] = expected[1, 2] = expected[2, 1] = root
    assert torch.allclose(affinity, expected, atol=1e-6)
    assert torch.equal(cosine_affinity(features, 0.8) > 0, (expected > 0.8))
    # A cell of nothing is like itself only, and its row is a mean, too.
    assert torch.allclose(transition(affinity, AffinityConfig(source="features")).sum(dim=1), torch.ones(5))


def test_defaults_that_go_with_the_source_are_written_down():
    assert AffinityConfig().power == 1 and AffinityConfig(source="features").power == 8
    assert AffinityConfig(source="features", power=2.0).power == 2
