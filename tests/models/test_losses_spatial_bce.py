import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from sbce_hf.models.losses_pair_means import descending_order, softplus
from sbce_hf.models.losses_present_classes import quantile_rank, quantile_threshold, threshold_ratio
from sbce_hf.models.losses_spatial_bce import proportion_kl, spatial_bce_loss, threshold_loss, weights_loss

GOLDEN = Path(__file__).parent.parent / "golden"
KINDS = {case["case"]: case["kind"] for case in json.loads((GOLDEN / "index.json").read_text())["losses"]}
# What we do differently by design, each with its own test below.
SATURATED, SINGLE_PIXEL, NO_POSITIVES = "g", "k", "o"
RANK_ZERO = ("d", "e", "h")
DIVERGENT = {*RANK_ZERO, SATURATED, SINGLE_PIXEL, NO_POSITIVES}
UNDEFINED = {SINGLE_PIXEL, NO_POSITIVES}


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "losses.npz", allow_pickle=False) as file:  # noqa: TID251 - no pickles
        return {key: torch.from_numpy(file[key]) for key in file.files}


def case(golden, name, dtype=torch.float64):
    values = {key.split("__", 1)[1]: value for key, value in golden.items() if key.startswith(name + "__")}
    values["x"] = values["x"].to(dtype).requires_grad_()
    return values


def close(ours, theirs, tolerance=1e-12):
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def rank_in_range(v):
    pixels = v["x"].shape[-1] * v["x"].shape[-2]
    return (v["quantile_index"] >= 1) & (v["quantile_index"] <= pixels - 1)


def thresholds_at_rank(logits, proportions):
    pairs = logits.detach().sigmoid().flatten(0, 1).flatten(1)
    return quantile_threshold(pairs, proportions.flatten()).view(proportions.shape)


def threshold_map(v):
    return v["threshold_p"].double().requires_grad_()


def thresholds_of(threshold_map):
    return threshold_map.mean(dim=(-2, -1)).sigmoid()


# --- against the released program -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(KINDS) - DIVERGENT))
def test_weights_phase_equals_the_released_program(golden, name):
    v = case(golden, name)
    loss = spatial_bce_loss(v["x"], v["y"], v["fg"], "official")
    close(loss, v["f64__weights_loss"])
    close(torch.autograd.grad(loss, v["x"])[0], v["f64__weights_grad_x"])


@pytest.mark.parametrize("name", sorted(set(KINDS) - UNDEFINED))
def test_threshold_phase_equals_the_released_program(golden, name):
    v = case(golden, name)
    u = threshold_map(v)
    loss = threshold_loss(v["x"], thresholds_of(u), v["y"])
    close(loss, v["f64__threshold_loss"])
    expected = v["f64__threshold_grad_tp"][..., None, None].expand_as(u)
    close(torch.autograd.grad(loss, u)[0], expected)


@pytest.mark.parametrize("name", sorted(set(KINDS) - {NO_POSITIVES}))
def test_proportion_term_equals_the_released_program(golden, name):
    v = case(golden, name)
    loss = proportion_kl(v["x"], v["y"], v["fg"])
    close(loss, v["f64__kl_loss"])
    close(torch.autograd.grad(loss, v["x"])[0], v["f64__kl_grad_x"])


@pytest.mark.parametrize("name", sorted(set(KINDS) - DIVERGENT))
def test_float32_stays_near_the_released_program(golden, name):
    v = case(golden, name, torch.float32)
    loss = spatial_bce_loss(v["x"], v["y"], v["fg"], "official")
    close(loss, v["f32__weights_loss"], 1e-6)
    gradient = torch.autograd.grad(loss, v["x"])[0]
    expected = v["f32__weights_grad_x"]
    # Where p is within rounding of t, the two programs may put a pixel on different sides; there the gradient is 0.
    assert (gradient - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", sorted(KINDS))
def test_quantile_rank_and_threshold_equal_the_released_program_in_range(golden, name):
    v = case(golden, name)
    pixels = v["x"].shape[-1] * v["x"].shape[-2]
    in_range = rank_in_range(v)
    assert torch.equal(quantile_rank(v["fg"], pixels)[in_range], v["quantile_index"].long()[in_range])
    ours = thresholds_at_rank(v["x"], v["fg"])
    close(ours[in_range], v["f64__quantile_threshold"][in_range], 1e-15)


# --- where we differ from it by design ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RANK_ZERO)
def test_rank_is_clamped_and_the_other_pairs_keep_the_released_gradient(golden, name):
    v = case(golden, name)
    loss = spatial_bce_loss(v["x"], v["y"], v["fg"], "official")
    gradient = torch.autograd.grad(loss, v["x"])[0]
    expected = v["f64__weights_grad_x"]
    moved = (v["y"] > 0) & ~rank_in_range(v)
    assert moved.any() and (~moved).any()
    close(gradient[~moved], expected[~moved])
    assert not torch.allclose(gradient[moved], expected[moved], atol=1e-6)
    # With rank 0 no pixel lies above t and all of them are pushed down: the class dies out. Ours keeps one.
    above = v["x"].detach().sigmoid() > thresholds_at_rank(v["x"], v["fg"])[..., None, None]
    assert (above.sum(dim=(-2, -1))[moved] == 1).all()


def test_saturated_false_positives_keep_a_gradient(golden):
    v = case(golden, SATURATED)
    gradient = torch.autograd.grad(spatial_bce_loss(v["x"], v["y"], v["fg"], "official"), v["x"])[0]
    absent = (v["y"] == 0)[..., None, None].expand_as(gradient)
    dead = absent & (v["f64__weights_grad_x"] == 0) & (v["x"] > 0)
    assert dead.sum() > 50
    assert (gradient[dead] > 0.99 / gradient.numel()).all()
    alive = absent & (v["x"].abs() < 10)
    close(gradient[alive], v["f64__weights_grad_x"][alive], 1e-6)


@pytest.mark.parametrize("name", [SINGLE_PIXEL, NO_POSITIVES])
def test_terms_without_pixels_are_zero_where_the_released_program_is_nan(golden, name):
    v = case(golden, name)
    u = threshold_map(v)
    assert v["f64__threshold_loss"].isnan()
    loss = threshold_loss(v["x"], thresholds_of(u), v["y"])
    assert loss.isfinite() and torch.autograd.grad(loss, u)[0].isfinite().all()
    if name == NO_POSITIVES:
        assert loss == 0
        assert v["f64__kl_loss"].isnan()
        divergence = proportion_kl(v["x"], v["y"], v["fg"])
        assert divergence == 0
        assert not torch.autograd.grad(divergence, v["x"])[0].any()


@pytest.mark.parametrize("normalization", ["official", "balanced"])
@pytest.mark.parametrize("labels", [[[0.0, 0.0]], [[1.0, 1.0]]])
@pytest.mark.parametrize("side", [1, 3])
def test_every_loss_is_finite_for_degenerate_batches(normalization, labels, side):
    logits = torch.randn(1, 2, side, side, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.tensor(labels)
    for q in (0.0, 1e-9, 0.5, 1.0):
        proportions = torch.full((1, 2), q, dtype=torch.float64)
        thresholds = torch.full((1, 2), 0.5, requires_grad=True)
        loss = (
            spatial_bce_loss(logits, labels, proportions, normalization)
            + proportion_kl(logits, labels, proportions)
            + threshold_loss(logits, thresholds, labels)
        )
        assert loss.isfinite()
        for gradient in torch.autograd.grad(loss, (logits, thresholds)):
            assert gradient.isfinite().all()


# --- properties -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [0.1, 0.5, 0.83])
def test_ratio_is_one_at_the_threshold_zero_at_the_ends_and_monotone_between(t):
    p = torch.linspace(0, 1, 1001, dtype=torch.float64)
    p[(p - t).abs().argmin()] = t
    ratio, above = threshold_ratio(p[None, None, None], torch.tensor([[t]], dtype=torch.float64))
    ratio, above = ratio.flatten(), above.flatten()
    assert ratio[0].abs() < 1e-12 and ratio[-1].abs() < 1e-12
    assert ratio[p == t] == 1 and not above[p == t]
    assert (ratio[p <= t].diff() > 0).all() and (ratio[p >= t].diff() < 0).all()


def test_ratio_is_symmetric_under_exchange_of_foreground_and_background():
    p, t = torch.rand(2, 3, 4, 4, dtype=torch.float64), torch.rand(2, 3, dtype=torch.float64) * 0.8 + 0.1
    torch.testing.assert_close(threshold_ratio(p, t)[0], threshold_ratio(1 - p, 1 - t)[0])


def test_so_many_pixels_lie_above_the_quantile_threshold_as_the_proportion_says():
    logits = torch.randn(3, 4, 9, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    proportions = torch.rand(3, 4, dtype=torch.float64) * 0.9 + 0.05
    above = logits.sigmoid() > thresholds_at_rank(logits, proportions)[..., None, None]
    assert torch.equal(above.sum(dim=(-2, -1)), (proportions * 99).long())


def test_descent_separates_pixels_at_the_proportion():
    torch.manual_seed(0)
    logits = torch.randn(1, 1, 10, 10, dtype=torch.float64).requires_grad_()
    start = logits.detach().flatten()
    proportions = torch.tensor([[0.3]])
    labels = torch.ones(1, 1)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        spatial_bce_loss(logits, labels, proportions).backward()
        optimizer.step()
    foreground = (logits.detach().sigmoid() > 0.5).flatten()
    # The pixel at the threshold itself has no gradient and may stay on either side.
    assert foreground.sum() in (30, 31)
    assert start[foreground].min() >= start[~foreground].max()


def test_threshold_flow_has_an_inner_fixed_point():
    torch.manual_seed(0)
    logits = torch.cat([torch.randn(600) * 0.7 - 2, torch.randn(400) * 0.7 + 2]).view(1, 1, 25, 40)
    labels = torch.ones(1, 1)

    def flow(t):
        thresholds = torch.tensor([[t]], requires_grad=True)
        return -torch.autograd.grad(threshold_loss(logits, thresholds, labels), thresholds)[0].item()

    assert flow(0.2) > 0 and flow(0.8) < 0


def test_threshold_phase_gives_class_maps_no_gradient():
    logits = torch.randn(2, 2, 4, 4, requires_grad=True)
    thresholds = torch.full((2, 2), 0.4, requires_grad=True)
    threshold_loss(logits, thresholds, torch.ones(2, 2)).backward()
    assert logits.grad is None and thresholds.grad.abs().sum() > 0


def test_balanced_loss_does_not_depend_on_the_number_of_satisfied_absent_classes():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    labels = torch.tensor([[1.0, 0, 0], [0, 1.0, 0]])
    proportions = labels.double() * 0.3

    def gradient(classes, normalization):
        maps = torch.cat([logits, torch.full((2, classes, 6, 6), -60.0, dtype=torch.float64)], dim=1).requires_grad_()
        pad = torch.zeros(2, classes)
        loss = spatial_bce_loss(maps, torch.cat([labels, pad], 1), torch.cat([proportions, pad], 1), normalization)
        present = torch.autograd.grad(loss, maps)[0][:, :3][labels > 0]
        return present

    torch.testing.assert_close(gradient(0, "balanced"), gradient(37, "balanced"))
    # The official mean shrinks the present classes' gradient with every class that is added.
    torch.testing.assert_close(gradient(0, "official"), gradient(37, "official") * 40 / 3)


def test_balanced_loss_is_the_sum_of_the_two_means():
    torch.manual_seed(0)
    logits = torch.randn(3, 5, 4, 4, dtype=torch.float64)
    labels = (torch.rand(3, 5) < 0.4).double()
    proportions = torch.full((3, 5), 0.4, dtype=torch.float64)
    ratio, _ = threshold_ratio(logits.sigmoid(), thresholds_at_rank(logits, proportions))
    expected = ratio[labels > 0].mean() + torch.nn.functional.softplus(logits)[labels == 0].mean()
    torch.testing.assert_close(spatial_bce_loss(logits, labels, proportions, "balanced"), expected)


@pytest.mark.parametrize("form", ["bernoulli", "odds"])
def test_divergence_is_zero_exactly_where_mean_equals_proportion(form):
    logits = torch.randn(2, 3, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()
    proportions = logits.detach().sigmoid().mean(dim=(-2, -1))
    loss = proportion_kl(logits, torch.ones(2, 3), proportions, form)
    assert loss.abs() < 1e-8
    if form == "bernoulli":
        assert torch.autograd.grad(loss, logits)[0].abs().max() < 1e-8


@pytest.mark.parametrize("logit, q", [(-40.0, 0.3), (40.0, 0.3)])
def test_slope_leak_moves_a_saturated_map_towards_its_proportion_and_keeps_the_value(logit, q):
    logits = torch.full((1, 1, 3, 3), logit, requires_grad=True)
    labels, proportions = torch.ones(1, 1), torch.full((1, 1), q)
    without, leaky = (proportion_kl(logits, labels, proportions, slope_leak=leak) for leak in (0.0, 0.05))
    assert without == leaky
    assert torch.autograd.grad(without, logits)[0].abs().max() < 1e-8
    assert (torch.autograd.grad(leaky, logits)[0] * logit > 1e-3).all()


def test_bernoulli_form_is_positive_elsewhere_and_the_odds_form_need_not_be():
    values = {}
    for form in ("bernoulli", "odds"):
        values[form] = [
            proportion_kl(
                torch.full((1, 1, 2, 2), m, dtype=torch.float64).logit(), torch.ones(1, 1), q.view(1, 1), form
            )
            for m in (0.1, 0.4, 0.9)
            for q in torch.tensor([0.05, 0.3, 0.7], dtype=torch.float64)
        ]
    assert min(values["bernoulli"]) > 0
    assert min(values["odds"]) < 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_maps_give_finite_float32_losses(dtype):
    logits = torch.linspace(-80, 80, 2 * 3 * 16, dtype=torch.float32).view(2, 3, 4, 4).to(dtype).requires_grad_()
    labels = torch.tensor([[1.0, 0, 1], [0, 1, 1]])
    proportions = torch.full((2, 3), 0.01, dtype=torch.float64)
    thresholds = torch.full((2, 3), 1e-3, dtype=dtype, requires_grad=True)
    with torch.autocast("cpu", dtype=dtype):
        losses = [
            spatial_bce_loss(logits, labels, proportions),
            spatial_bce_loss(logits, labels, proportions, "official"),
            proportion_kl(logits, labels, proportions),
            threshold_loss(logits, thresholds, labels),
        ]
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses)
    for gradient in torch.autograd.grad(sum(losses), (logits, thresholds)):
        assert gradient.isfinite().all()


def test_losses_are_permutation_equivariant_in_images_classes_and_pixels():
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 4, 5, 5, dtype=torch.float64), (torch.rand(3, 4) < 0.5).double()
    q = torch.rand(3, 4, dtype=torch.float64)
    images, classes, pixels = torch.randperm(3), torch.randperm(4), torch.randperm(25)

    def shuffled(x):
        return x[images][:, classes]

    mixed = shuffled(logits).flatten(2)[..., pixels].view(3, 4, 5, 5)
    for loss in (spatial_bce_loss, proportion_kl):
        torch.testing.assert_close(loss(mixed, shuffled(labels), shuffled(q)), loss(logits, labels, q))


def test_reduction_over_two_processes_gives_the_one_process_gradient(monkeypatch):
    """Counts come from both processes, and each local loss is scaled by their number before averaging."""
    torch.manual_seed(0)
    logits = torch.randn(4, 3, 5, 5, dtype=torch.float64).requires_grad_()
    labels = torch.zeros(4, 3)
    labels[0, 0] = labels[1, 2] = labels[1, 1] = 1  # the second process has no positive label
    q, t = torch.full((4, 3), 0.3, dtype=torch.float64), torch.full((4, 3), 0.6, dtype=torch.float64)
    monkeypatch.setattr("sbce_hf.models.losses_spatial_bce._world_size", lambda: 2)
    t.requires_grad_()

    def losses(rows, reduce):
        x, y = logits[rows], labels[rows]
        return (
            spatial_bce_loss(x, y, q[rows], reduce=reduce)
            + proportion_kl(x, y, q[rows], reduce=reduce)
            + threshold_loss(x, t[rows], y, reduce=reduce)
        )

    halves = (slice(0, 2), slice(2, 4))
    counts = []
    for rows in halves:
        seen = []
        losses(rows, lambda count, seen=seen: seen.append(count) or count)
        counts.append(seen)
    totals = [sum(pair) for pair in zip(*counts, strict=True)]
    expected = torch.autograd.grad(losses(slice(0, 4), None), (logits, t))
    local = []
    for rows in halves:
        queue = iter(totals)
        local.append(losses(rows, lambda count, queue=queue: next(queue)))
    averaged = torch.autograd.grad(sum(local) / 2, (logits, t))
    # `_world_size` is only read where counts are reduced, so the one-process loss is not scaled.
    for ours, theirs in zip(averaged, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("present_loss", ["ratio", "cross_entropy"])
@pytest.mark.parametrize("normalization", ["balanced", "official"])
def test_unknown_proportions_of_absent_classes_change_nothing(normalization, present_loss):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, 5, 6, generator=generator)
    labels = (torch.rand(4, 3, generator=generator) > 0.5).float()
    proportions = torch.rand(4, 3, dtype=torch.float64, generator=generator)
    results = []
    for table in (proportions, torch.where(labels > 0, proportions, torch.nan)):
        x = logits.clone().requires_grad_()
        loss = spatial_bce_loss(x, labels, table, normalization, present_loss) + proportion_kl(x, labels, table)
        results.append((loss.detach(), torch.autograd.grad(loss, x)[0]))
    assert results[0][0].isfinite() and torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_quantile_cross_entropy_by_hand():
    # Four pixels, half of them foreground: ranks 1, 0, 3, 2; weights (2-1)/2, 2/2 inside, 2/2, 1/2 outside.
    x = torch.tensor([1.0, 3.0, -2.0, 0.5], dtype=torch.float64).view(1, 1, 2, 2).requires_grad_()
    expected = [0.5 * math.log1p(math.exp(-1)), math.log1p(math.exp(-3)), math.log1p(math.exp(-2))]
    expected.append(0.5 * math.log1p(math.exp(0.5)))
    one = torch.ones(1, 1)
    loss = spatial_bce_loss(x, one, torch.tensor([[0.5]]), present_loss="cross_entropy")
    close(loss, torch.tensor(sum(expected) / 4, dtype=torch.float64))
    p = x.detach().sigmoid().flatten()
    slopes = torch.tensor([0.5, 1, 1, 0.5]) * (p - torch.tensor([1.0, 1, 0, 0])) / 4
    close(torch.autograd.grad(loss, x)[0].flatten(), slopes)


@pytest.mark.parametrize("proportion", [0.02, 0.1, 0.5])
def test_cross_entropy_brings_a_rough_map_to_a_right_proportion(proportion):
    # As stage 0 leaves it: its order may be right, but almost all of it is foreground.
    x = torch.linspace(3, -0.6, 1024, dtype=torch.float64).view(1, 1, 32, 32).requires_grad_()
    start, labels, q = x.detach().clone(), torch.ones(1, 1), torch.full((1, 1), proportion, dtype=torch.float64)
    optimizer = torch.optim.SGD([x], lr=1e3)
    for _ in range(400):
        optimizer.zero_grad()
        spatial_bce_loss(x, labels, q, present_loss="cross_entropy").backward()
        optimizer.step()
    expected = start > start.quantile(1 - proportion)
    # Pixels at the threshold itself hardly weigh anything, and come last.
    assert ((x > 0) != expected).sum() <= 10


def test_equal_pixels_are_divided_in_their_order():
    x = torch.zeros(1, 1, 2, 4, dtype=torch.float64, requires_grad=True)
    loss = spatial_bce_loss(x, torch.ones(1, 1), torch.tensor([[0.25]]), present_loss="cross_entropy")
    gradient = torch.autograd.grad(loss, x)[0].flatten()
    assert (gradient[:2] < 0).all() and (gradient[2:] > 0).all()


def test_cross_entropy_with_a_label_map_by_hand():
    # Class maps of 1 x 2 pixels for two classes; the label map is read at their centres.
    x = torch.tensor([[0.5, -1.0], [2.0, 0.25]], dtype=torch.float64).view(1, 2, 1, 2).requires_grad_()
    label_map = torch.zeros(1, 3, 6, dtype=torch.long)
    label_map[0, 1, 1] = 2
    both = torch.ones(1, 2)
    loss = spatial_bce_loss(x, both, None, label_maps=label_map)
    plus = [math.log1p(math.exp(value)) for value in (0.5, -1.0, -2.0, 0.25)]
    close(loss, torch.tensor(sum(plus) / 4, dtype=torch.float64))
    slopes = (x.detach().sigmoid().flatten() - torch.tensor([0.0, 0, 1, 0])) / 4
    close(torch.autograd.grad(loss, x)[0].flatten(), slopes)
    label_map[0, 1, 4] = 255
    loss = spatial_bce_loss(x, both, None, label_maps=label_map)
    close(loss, torch.tensor((plus[0] + plus[2]) / 4, dtype=torch.float64))
    assert not torch.autograd.grad(loss, x)[0][..., 1].any()


def plain_label_maps(x, label_maps):
    small = torch.nn.functional.interpolate(label_maps[:, None].double(), size=x.shape[-2:], mode="nearest-exact")
    target = (small == torch.arange(1, x.shape[1] + 1)[:, None, None]).to(x.dtype)
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(x, target, reduction="none")
    return entropy * (small != 255)


@pytest.mark.parametrize("normalization", ["balanced", "official"])
def test_label_maps_take_the_place_of_proportions_for_present_classes_only(normalization):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 4, 4, generator=generator).requires_grad_()
    labels = torch.tensor([[1.0, 0, 1], [0, 1, 0]])
    label_maps = torch.randint(0, 4, (2, 16, 16), generator=generator)
    loss = spatial_bce_loss(x, labels, None, normalization, label_maps=label_maps)
    per_map = plain_label_maps(x, label_maps).mean(dim=(-2, -1))
    absent = torch.nn.functional.softplus(x).mean(dim=(-2, -1))
    if normalization == "official":
        expected = torch.where(labels > 0, per_map, absent).mean()
    else:
        expected = per_map[labels > 0].mean() + absent[labels == 0].mean()
    assert torch.allclose(loss, expected)


def test_neither_proportions_nor_label_maps_is_an_error():
    with pytest.raises(ValueError, match="neither proportions nor label_maps"):
        spatial_bce_loss(torch.zeros(1, 1, 2, 2), torch.ones(1, 1), None)


# --- what is written by hand, against autograd and other ways -------------------------------------------------------

FORMS = {
    "ratio": {},
    "official": {"normalization": "official"},
    "cross_entropy": {"present_loss": "cross_entropy"},
    "label_maps": {"label_maps": torch.arange(2 * 8 * 8).view(2, 8, 8) % 4},
}


def batch(dtype=torch.float64):
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(2, 3, 4, 5, dtype=dtype, generator=generator).requires_grad_()
    labels = torch.tensor([[1.0, 0, 0.5], [0, 1, 0]])
    return logits, labels, torch.tensor([[0.3, 0.5, 0.21], [0.1, 0.62, 0.9]], dtype=torch.float64)


@pytest.mark.parametrize("form", [name for name in FORMS if name not in ("ratio", "official")])
def test_gradients_are_those_of_finite_differences(form):
    logits, labels, proportions = batch()
    arguments = {"proportions": proportions, **FORMS[form]}
    assert torch.autograd.gradcheck(lambda x: spatial_bce_loss(x, labels, **arguments), logits)


@pytest.mark.parametrize("kl_form", ["bernoulli", "odds"])
def test_gradient_of_the_proportion_term_is_that_of_finite_differences(kl_form):
    logits, labels, proportions = batch()
    assert torch.autograd.gradcheck(lambda x: proportion_kl(x, labels, proportions, kl_form), logits)


@pytest.mark.parametrize("normalization", ["balanced", "official"])
def test_gradient_of_the_ratio_is_that_of_autograd_with_the_threshold_held(normalization):
    # Not of finite differences: these would move the threshold, which has no gradient, with its pixel.
    logits, labels, proportions = batch()
    ratio, _ = threshold_ratio(logits.sigmoid(), thresholds_at_rank(logits, proportions))
    present = labels * ratio.mean(dim=(-2, -1))
    absent = (1 - labels) * torch.nn.functional.softplus(logits).mean(dim=(-2, -1))
    if normalization == "balanced":
        expected = present.sum() / labels.sum() + absent.sum() / (1 - labels).sum()
    else:
        expected = (present + absent).mean()
    loss = spatial_bce_loss(logits, labels, proportions, normalization)
    close(loss, expected)
    close(torch.autograd.grad(loss, logits)[0], torch.autograd.grad(expected, logits)[0])


@pytest.mark.parametrize("present_loss", ["ratio", "cross_entropy"])
def test_both_terms_at_once_are_the_terms_one_by_one(present_loss):
    logits, labels, proportions = batch()
    together = weights_loss(logits, labels, proportions, "balanced", present_loss, "bernoulli", 0.05)
    apart = (
        spatial_bce_loss(logits, labels, proportions, "balanced", present_loss),
        proportion_kl(logits, labels, proportions, "bernoulli", 0.05),
    )
    for ours, theirs in zip(together, apart, strict=True):
        close(ours, theirs)
    weights = (1.0, 0.3)
    gradients = [sum(w * loss for w, loss in zip(weights, losses, strict=True)) for losses in (together, apart)]
    close(*(torch.autograd.grad(loss, logits)[0] for loss in gradients))


@pytest.mark.parametrize("form", sorted(FORMS))
def test_the_ways_of_the_cpu_and_of_other_devices_agree(monkeypatch, form):
    results = []
    for by_numpy in (True, False):
        if not by_numpy:
            monkeypatch.setattr("sbce_hf.models.losses_pair_means._by_numpy", lambda tensor: False)
        logits, labels, proportions = batch(torch.float32)
        loss = spatial_bce_loss(logits, labels, **{"proportions": proportions, **FORMS[form]})
        loss = loss + proportion_kl(logits, labels, proportions, slope_leak=0.05)
        results.append((loss.detach(), torch.autograd.grad(loss, logits)[0]))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("form", sorted(FORMS))
def test_compiled_losses_are_the_same(form):
    logits, labels, proportions = batch(torch.float32)
    arguments = {"proportions": proportions, **FORMS[form]}

    def losses(x):
        spatial = spatial_bce_loss(x, labels, **arguments)
        return spatial + proportion_kl(x, labels, proportions) + threshold_loss(x, proportions.float(), labels)

    torch._dynamo.reset()
    compiled = torch.compile(losses, fullgraph=True, backend="aot_eager")(logits)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (losses(logits), compiled)]
    torch.testing.assert_close(*gradients)
    torch.testing.assert_close(compiled, losses(logits))


@pytest.mark.parametrize("values", [[0.0, -0.0, 3.5, -3.5, 0.0, 3.5, -1e-40, 1e38, -1e38], [-2.0, -1.0, -3.0]])
def test_descending_order_is_the_stable_one(values):
    rows = torch.tensor([values, values[::-1]])
    assert torch.equal(descending_order(rows), rows.argsort(dim=-1, descending=True, stable=True))


def test_softplus_is_exact_at_both_ends():
    x = torch.tensor([-80.0, -20.0, -1e-3, 0.0, 5.0, 80.0])
    expected = torch.tensor([math.log1p(math.exp(-abs(v))) + max(v, 0) for v in x.tolist()])
    torch.testing.assert_close(softplus(x), expected, rtol=3e-7, atol=0)


def test_a_network_that_is_trained_by_autograd_of_the_plain_form_becomes_the_same():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 6, 8, 8, generator=generator)
    labels = (torch.rand(4, 3, generator=generator) < 0.5).float()
    shares = torch.rand(4, 3, generator=generator) * 0.6 + 0.2

    def plain(maps):
        ratio, _ = threshold_ratio(maps.sigmoid(), thresholds_at_rank(maps, shares))
        absent = torch.nn.functional.softplus(maps)
        spatial = ratio[labels > 0].mean() + absent[labels == 0].mean()
        m = maps.sigmoid().mean(dim=(-2, -1))
        divergence = m * (m / shares).log() + (1 - m) * ((1 - m) / (1 - shares)).log()
        return spatial + divergence[labels > 0].mean()

    trained = []
    for loss in (plain, lambda maps: sum(weights_loss(maps, labels, shares))):
        weight = torch.linspace(-1, 1, 18).view(3, 6, 1, 1).requires_grad_()
        optimizer = torch.optim.SGD([weight], lr=0.05, momentum=0.9)
        for _ in range(60):
            optimizer.zero_grad()
            loss(torch.nn.functional.conv2d(images, weight)).backward()
            optimizer.step()
        trained.append(weight.detach())
    assert (trained[0] - torch.linspace(-1, 1, 18).view(3, 6, 1, 1)).abs().max() > 0.1
    torch.testing.assert_close(*trained, rtol=1e-3, atol=1e-4)
