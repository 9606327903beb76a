import math

import pytest
import torch

from sbce_hf.models.losses_irn import boundary_loss, directions, line, line_maximum


def brute_force(boundary_logits, labels, radius):
    """The definition, pair by pair."""
    epsilon, kinds = 1e-5, {"background": [], "foreground": [], "different": []}
    batch, height, width = labels.shape
    for b in range(batch):
        boundaries = boundary_logits[b].sigmoid()
        for y in range(height - radius + 1):
            for x in range(radius - 1, width - radius + 1):
                for dy in range(radius):
                    for dx in range(1 - radius, radius):
                        if (dy == 0 and dx <= 0) or dy**2 + dx**2 >= radius**2:
                            continue
                        first, second = int(labels[b, y, x]), int(labels[b, y + dy, x + dx])
                        if 255 in (first, second):
                            continue
                        cells = [
                            boundaries[y + v, x + u]
                            for v in range(dy + 1)
                            for u in range(min(0, dx), max(0, dx) + 1)
                            if (dy * u - dx * v) ** 2 / (dy**2 + dx**2) < 1
                        ]
                        affinity = 1 - torch.stack(cells).max()
                        if first != second:
                            kinds["different"].append(-torch.log(1 + epsilon - affinity))
                        else:
                            kind = "foreground" if first else "background"
                            kinds[kind].append(-torch.log(affinity + epsilon))
    means = {kind: sum(losses) / (len(losses) + epsilon) for kind, losses in kinds.items()}
    return ((means["background"] + means["foreground"]) / 2 + means["different"]) / 2


def test_directions_and_lines():
    assert len(directions(5)) == 34 and len(directions(10)) == 152
    for radius in (5, 10):
        # Of each opposite pair exactly one.
        both = {*directions(radius), *((-dy, -dx) for dy, dx in directions(radius))}
        assert len(both) == 2 * len(directions(radius))
        assert both == {
            (dy, dx)
            for dy in range(-radius, radius + 1)
            for dx in range(-radius, radius + 1)
            if 0 < dy**2 + dx**2 < radius**2
        }
    lengths = [len(line(*direction)) for direction in directions(10)]
    assert min(lengths) == 2 and max(lengths) == 22
    assert all({(0, 0), (dy, dx)} <= set(line(dy, dx)) for dy, dx in directions(10))


@pytest.mark.parametrize("dy, dx", [(0, 3), (2, -1), (3, 3), (4, -3)])
def test_line_maximum(dy, dx):
    torch.manual_seed(0)
    boundaries = torch.rand(2, 9, 11)
    found = line_maximum(boundaries, dy, dx)
    assert found.shape == (2, 9 - dy, 11 - abs(dx))
    for y in range(9 - dy):
        for column in range(11 - abs(dx)):
            x = column + max(0, -dx)
            expected = torch.stack([boundaries[:, y + v, x + u] for v, u in line(dy, dx)]).amax(dim=0)
            assert torch.equal(found[:, y, column], expected)
    assert line_maximum(boundaries, 9, 0).numel() == 0


@pytest.mark.parametrize("radius", [2, 4])
def test_loss_and_gradient_are_the_definition(radius):
    torch.manual_seed(radius)
    logits = torch.randn(2, 7, 10, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 3, (2, 7, 10))
    labels[torch.rand(2, 7, 10) < 0.2] = 255
    found, expected = boundary_loss(logits, labels, radius), brute_force(logits, labels, radius)
    assert found.loss.item() == pytest.approx(expected.item(), rel=1e-12)
    assert found.loss.item() == pytest.approx((found.same.item() + found.different.item()) / 2)
    (gradient,) = torch.autograd.grad(found.loss, logits)
    (wanted,) = torch.autograd.grad(expected, logits)
    assert torch.allclose(gradient, wanted, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("value", [0, 1, 255])
def test_kinds_without_pairs_are_finite(value):
    logits = torch.randn(1, 6, 8, requires_grad=True)
    found = boundary_loss(logits, torch.full((1, 6, 8), value), radius=3)
    assert found.different.item() == 0 and math.isfinite(found.loss.item())
    assert (found.same.item() == 0) == (value == 255)
    (gradient,) = torch.autograd.grad(found.loss, logits)
    assert gradient.isfinite().all() and (gradient == 0).all() == (value == 255)


def test_saturated_boundaries_keep_a_finite_loss():
    labels = torch.zeros(1, 6, 8, dtype=torch.long)
    labels[..., 4:] = 1
    for logit in (-1e4, 1e4):
        found = boundary_loss(torch.full((1, 6, 8), logit), labels, radius=3)
        assert math.isfinite(found.loss) and found.loss > 1


def test_two_processes_give_the_loss_of_one():
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 6, 8, dtype=torch.float64), torch.randint(0, 3, (4, 6, 8))
    whole = boundary_loss(logits, labels, radius=3).loss
    counts = []
    for part in (slice(0, 2), slice(2, 4)):
        boundary_loss(logits[part], labels[part], 3, reduce=lambda count: counts.append(count) or count)
    total = sum(counts)
    parts = [
        boundary_loss(logits[part], labels[part], 3, reduce=lambda _: total).loss
        for part in (slice(0, 2), slice(2, 4))
    ]
    # DDP averages gradients.
    assert (sum(parts) / 2).item() == pytest.approx(whole.item(), rel=1e-6)


def test_half_precision_is_computed_in_float32():
    logits = torch.randn(1, 6, 8).bfloat16()
    found = boundary_loss(logits, torch.randint(0, 2, (1, 6, 8)), radius=3)
    assert found.loss.dtype == torch.float32


def test_errors():
    with pytest.raises(ValueError, match=r"labels: got shape \(1, 6, 7\), expected \(1, 6, 8\)"):
        boundary_loss(torch.zeros(1, 6, 8), torch.zeros(1, 6, 7, dtype=torch.long))
    with pytest.raises(ValueError, match="got 6 x 18 pixels, expected at least 10 x 19 for radius 10"):
        boundary_loss(torch.zeros(1, 6, 18), torch.zeros(1, 6, 18, dtype=torch.long))
