import math
from dataclasses import replace

import numpy as np
import pytest

from sbce_hf.config import LabellingConfig
from sbce_hf.evaluation.confusion import confusion_matrix
from sbce_hf.evaluation.iou import class_iou
from sbce_hf.evaluation.scan import scan_fixed_threshold_on_ground_truth
from sbce_hf.postprocess.otsu import otsu_threshold
from sbce_hf.postprocess.rules import (
    RULES,
    ClassMaps,
    apply_rule,
    label_at,
    label_fixed,
    label_mean,
    label_objects,
    label_official,
    label_paper,
    label_peak,
    sigmoid,
    with_thresholds,
)


def make_maps(logits, thresholds=None, scales=None, classes=None):
    logits = np.asarray(logits, np.float32)
    count = len(logits)
    thresholds = np.full(count, 0.5) if thresholds is None else np.asarray(thresholds, np.float64)
    return ClassMaps(
        image_id="a",
        classes=np.arange(count) if classes is None else np.asarray(classes),
        logits=logits,
        threshold_logits=(np.log(thresholds) - np.log1p(-thresholds)).astype(np.float32),
        scales=np.full(count, 10, np.float32) if scales is None else np.asarray(scales, np.float32),
    )


def random_maps(seed, classes=3, size=(24, 31)):
    generator = np.random.default_rng(seed)
    return make_maps(
        generator.normal(0, 3, (classes, *size)),
        generator.uniform(0.05, 0.95, classes),
        generator.uniform(1, 20, classes),
    )


def test_sigmoid_is_exact_and_does_not_overflow():
    x = np.linspace(-30, 30, 601)
    assert np.allclose(sigmoid(x), 1 / (1 + np.exp(-x)), rtol=0, atol=1e-15)
    with np.errstate(all="raise"):
        assert sigmoid(np.array([-1e5, 0.0, 1e5])).tolist() == [0, 0.5, 1]
    assert sigmoid(np.zeros(2, np.float32)).dtype == np.float32


def official_thresholds(threshold, scale):
    """What `label_official` compares maps of `sigmoid(z)` with, where `sigmoid(scale * z)` has this threshold."""
    threshold, scale = np.asarray(threshold, np.float64), np.asarray(scale, np.float64)
    logits = (np.log(threshold) - np.log1p(-threshold)).ravel()
    maps = ClassMaps("a", np.arange(logits.size), np.zeros((logits.size, 1, 1), np.float32), logits, scale.ravel())
    return label_official(maps).thresholds.reshape(threshold.shape)


def test_threshold_conversion_is_the_released_one_where_that_one_converges(golden_dir):
    golden = np.load(golden_dir / "threshold_conversion.npz", allow_pickle=False)  # noqa: TID251 - no pickles
    ours = official_thresholds(*np.broadcast_arrays(golden["a"][:, None], np.exp(golden["temperature"])[None]))
    assert np.allclose(ours, golden["closed_form"], rtol=0, atol=1e-12)
    ok = golden["fsolve_ok"]
    assert ok.mean() > 0.5
    assert np.abs(ours - golden["official"])[ok].max() < 1e-6


def test_conversion_keeps_the_decision_and_its_fixed_point():
    z = np.linspace(-2, 2, 401)
    for t, s in [(0.3, 5.0), (0.9, 20.0), (0.02, 1.0)]:
        assert ((sigmoid(s * z) > t) == (sigmoid(z) > official_thresholds(t, s))).all()
    assert official_thresholds(0.5, 17.0) == pytest.approx(0.5)


def test_paper_rule_by_hand():
    # P = .88 .12 .73 / .5 .27 .73 against thresholds .8 and .3: margins .08 -.68 -.07 / .2 -.03 .43
    maps = make_maps([[[2, -2, 1]], [[0, -1, 1]]], thresholds=[0.8, 0.3], classes=[1, 4])
    labelled = label_paper(maps)
    assert np.allclose(labelled.thresholds, [0.8, 0.3], atol=1e-6)
    assert np.allclose(labelled.scores[:, 0, 0], [0.8808 - 0.8, 0.2], atol=1e-4)
    assert labelled.label_map.tolist() == [[5, 0, 5]]
    assert labelled.label_map.dtype == np.uint8


def test_paper_rule_reads_the_scaled_domain():
    maps = make_maps([[[0.4]]], thresholds=[0.55], scales=[10])
    assert label_paper(maps).label_map.tolist() == [[1]]  # sigmoid(.4) = .599
    assert label_paper(make_maps([[[0.1]]], thresholds=[0.55])).label_map.tolist() == [[0]]  # .525


def test_higher_threshold_only_removes_pixels():
    low, high = (make_maps(random_maps(0, 1).logits, thresholds=[t]) for t in (0.3, 0.6))
    assert ((label_paper(high).label_map > 0) <= (label_paper(low).label_map > 0)).all()
    assert label_paper(high).label_map.sum() < label_paper(low).label_map.sum()


def test_official_rule_written_out():
    maps = random_maps(1)
    unscaled = 1 / (1 + np.exp(-(maps.logits.astype(np.float64) / maps.scales[:, None, None])))
    # The released program solves sigmoid(s * z) = t for z.
    t = sigmoid(maps.threshold_logits.astype(np.float64) / maps.scales)
    expected = np.zeros(unscaled.shape[1:], np.uint8)
    winner = unscaled.argmax(axis=0)
    for c in range(3):
        won = np.where(winner == c, unscaled[c], 0)
        expected[won / won.max() > t[c]] = c + 1
    labelled = label_official(maps)
    assert (labelled.label_map == expected).all()
    assert np.allclose(labelled.thresholds, t, atol=1e-6)
    assert set(np.unique(labelled.label_map)) == {0, 1, 2, 3}


def test_official_rule_gives_every_winning_class_a_pixel_but_the_paper_rule_need_not():
    # Wins one pixel with a probability far below its threshold.
    maps = make_maps([[[-3.0, -9.0]], [[-5.0, -4.0]]], thresholds=[0.9, 0.9])
    assert label_official(maps).label_map.max() > 0
    assert label_paper(maps).label_map.max() == 0


def test_official_rule_survives_a_class_that_wins_nowhere():
    maps = make_maps([[[1.0, 2.0]], [[-1.0, -2.0]]])
    with np.errstate(all="raise"):
        assert 2 not in label_official(maps).label_map


def test_fixed_rule_by_hand():
    maps = make_maps([[[4, 1.1, -3]], [[-1, 1, -2]]], classes=[0, 2])
    labelled = label_fixed(maps, 0.3)
    # relu(z)/max: 1 .275 0 / 0 1 0
    assert labelled.label_map.tolist() == [[1, 3, 0]]
    assert labelled.thresholds.tolist() == [0.3, 0.3]


def test_fixed_rule_does_not_see_the_scale_of_a_map():
    maps = random_maps(2)
    other = make_maps(maps.logits * np.array([2, 4, 8], np.float32)[:, None, None])
    assert (label_fixed(maps, 0.3).label_map == label_fixed(other, 0.3).label_map).all()


def test_fixed_rule_of_a_map_without_a_positive_value_is_background():
    with np.errstate(all="raise"):
        assert label_fixed(make_maps([[[-1.0, -2.0]]]), 0.3).label_map.tolist() == [[0, 0]]


@pytest.mark.parametrize("rule", RULES)
def test_no_known_class_is_background(rule):
    maps = make_maps(np.zeros((0, 3, 4)))
    labelled = apply_rule(maps, LabellingConfig(rule=rule))
    assert labelled.label_map.shape == (3, 4) and labelled.label_map.dtype == np.uint8
    assert not labelled.label_map.any() and len(labelled.thresholds) == 0


@pytest.mark.parametrize("height", [-30.0, -3.0, 0.0, 5.0])
def test_peak_rule_keeps_what_is_above_a_share_of_the_highest_probability(height):
    # 200 pixels, the highest two of which do not decide; then the peak, then what is just above and below its share.
    p = 1 / (1 + math.exp(-height))
    logit = [math.log(share * p) - math.log1p(-share * p) for share in (0.36, 0.34)]
    values = [height + 9, height + 4, height, *logit, *[height - 20.0] * 195]
    labelled = label_peak(make_maps([[values]]), 0.35)
    assert labelled.label_map.ravel()[:5].tolist() == [1, 1, 1, 1, 0] and not labelled.label_map.ravel()[5:].any()
    assert labelled.thresholds[0] == pytest.approx(0.35 * p, rel=1e-5)


def test_peak_rule_finds_every_class_of_a_map_that_has_collapsed():
    logits = np.random.default_rng(0).normal(-80, 1, (2, 20, 30)).astype(np.float32)
    with np.errstate(all="raise", under="ignore"):
        labelled = label_peak(make_maps(logits), 0.35)
    assert set(np.unique(labelled.label_map)) == {0, 1, 2}


def test_mean_rule_takes_as_many_pixels_as_the_mean_probability_says():
    logits = np.random.default_rng(0).normal([[[-2.0]], [[1.0]]], 2, (2, 40, 50)).astype(np.float32)
    for index in range(2):
        maps = make_maps(logits[[index]])
        share = (label_mean(maps).label_map > 0).mean()
        assert share == pytest.approx(maps.probabilities.mean(), abs=1 / 2000)


@pytest.mark.parametrize("offset", [-90.0, 90.0])
def test_mean_rule_neither_loses_nor_floods_a_saturated_map(offset):
    logits = offset + np.random.default_rng(0).normal(0, 1, (1, 20, 30)).astype(np.float32)
    found = (label_mean(make_maps(logits)).label_map > 0).sum()
    assert found == (1 if offset < 0 else 599)


def test_a_given_share_goes_to_objects_first():
    # The class answers to the upper half, and most at its left; objects are on the right.
    logits = np.full((1, 20, 20), -4.0)
    logits[0, :10] = np.linspace(3, 2, 20)
    maps, norm = make_maps(logits), np.full((20, 20), 0.3, np.float32)
    norm[:, 10:] = 0.9
    plain, on_objects = (label_at(m, np.array([0.25])) for m in (maps, replace(maps, feature_norm=norm)))
    assert (plain.label_map > 0).mean() == pytest.approx(0.25, abs=0.01)
    assert (plain.label_map[:10, :9] == 1).all() and (plain.label_map[:10, 11:] == 0).all()
    assert (on_objects.label_map > 0).mean() == pytest.approx(0.25, abs=0.01)
    assert (on_objects.label_map[:10, 11:] == 1).all() and (on_objects.label_map[:, :10] == 0).all()
    # No share is wanted where the class is not.
    assert (on_objects.label_map[10:] == 0).all() and 0 < on_objects.thresholds[0] < 1


def sky_and_thing(**changes):
    """A class that answers on a thing, and half as much on the upper half of the photo, where a thing lies within."""
    logits, norm = np.full((1, 20, 20), -2.0), np.full((20, 20), 0.2)
    logits[0, :10], logits[0, 4:8, 6:14] = 2, 4
    norm[4:8, 6:14] = 0.9
    maps = replace(make_maps(logits), feature_norm=(norm + np.linspace(0, 0.02, 20)).astype(np.float32))
    return replace(maps, **changes)


def test_objects_rule_leaves_out_what_a_class_is_always_seen_with():
    maps = sky_and_thing()
    thing = np.zeros((20, 20), np.uint8)
    thing[4:8, 6:14] = 1
    assert label_fixed(maps, 0.3).label_map.mean() == 0.5
    labelled = label_objects(maps, 0.1, 0.3, 0.0)
    assert (labelled.label_map == thing).all() and labelled.thresholds.tolist() == [0.1]
    assert ((labelled.scores[0] > 0) == (thing > 0)).all()
    # Of what it had, it keeps 32 pixels of 200.
    assert (label_objects(maps, 0.1, 0.3, 0.15).label_map == thing).all()
    kept = label_objects(maps, 0.1, 0.3, 0.2)
    assert (kept.label_map == label_fixed(maps, 0.3).label_map).all() and (kept.scores > 0).mean() == 0.5


def test_objects_rule_gives_an_object_to_the_class_that_answers_most():
    maps = sky_and_thing()
    other = np.full((1, 20, 20), 0.4)
    other[0, 15:] = 4
    maps = replace(maps, logits=np.concatenate([maps.logits, other]).astype(np.float32), classes=np.array([2, 5]))
    label_map = label_objects(maps, 0.1, 0.3, 0.1).label_map
    # The second class has nothing on the object, so it stays where rule "fixed" finds it.
    assert (label_map[4:8, 6:14] == 3).all() and (label_map[15:] == 6).all() and (label_map[:4] == 0).all()


def test_objects_rule_needs_the_features():
    with pytest.raises(ValueError, match="image 'a': no feature_norm"):
        label_objects(sky_and_thing(feature_norm=None), 0.1, 0.3, 0.2)


def test_otsu_parts_two_groups():
    values = np.concatenate([np.random.default_rng(0).normal(0.2, 0.05, 700), np.full(300, 0.8)])
    threshold = otsu_threshold(values)
    assert values[:700].max() <= threshold < 0.8
    assert otsu_threshold(np.ones((3, 4))) >= 1 - 0.5


def test_other_rules_have_the_heads_thresholds():
    maps = random_maps(3)
    assert with_thresholds("paper", maps, 0.35) is maps
    mean = with_thresholds("mean", maps, 0.35)
    assert np.array_equal(label_paper(mean).label_map > 0, label_mean(maps).label_map > 0)
    moved = with_thresholds("peak", maps, 0.35)
    # Where a class passes them is where it passes the rule; which of several wins may differ.
    assert np.array_equal(label_paper(moved).label_map > 0, label_peak(maps, 0.35).label_map > 0)
    assert not np.array_equal(moved.threshold_logits, maps.threshold_logits)


def test_class_iou():
    confusion = np.array([[6, 2, 0, 0], [1, 3, 0, 4], [0, 0, 0, 0]])
    # the pixels without a label belong to the union of their true class only
    assert np.allclose(class_iou(confusion), [6 / 9, 3 / 10, np.nan], equal_nan=True)


def test_scan_equals_the_rule_at_every_constant():
    generator = np.random.default_rng(3)
    maps = [random_maps(seed, classes) for seed, classes in [(4, 3), (5, 1), (6, 0)]]
    truths = [generator.choice(np.array([0, 1, 2, 3, 255], np.uint8), m.logits.shape[1:]) for m in maps]
    constants = (0.1, 0.35, 0.8)
    scan = scan_fixed_threshold_on_ground_truth(iter(maps), iter(truths), 3, constants)
    for constant, confusion in zip(constants, scan.confusions, strict=True):
        expected = sum(
            confusion_matrix(label_fixed(m, constant).label_map, truth, 3)[:, :4]
            for m, truth in zip(maps, truths, strict=True)
        )
        assert (confusion == expected).all()
    assert scan.confusions.dtype == np.int64 and scan.num_images == 3


def test_scan_finds_the_constant():
    # Foreground has values 1 and .6 of the maximum, background .4: only constants in [.4, .6) are right.
    maps = make_maps([[[10.0, 6.0, 4.0, 4.0]]])
    truth = np.array([[1, 1, 0, 0]], np.uint8)
    scan = scan_fixed_threshold_on_ground_truth([maps], [truth], 1)
    constant, mean_iou = scan.best
    assert 0.4 <= constant < 0.6 and mean_iou == 1
    assert len(scan.constants) == 19 and scan.constants[0] == 0.05 and scan.constants[-1] == 0.95
    assert scan.mean_iou[0] < 1 and scan.mean_iou[-1] < 1


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        (np.zeros((2, 4), np.uint8), r"'a'.*\(2, 4\).*\(1, 4\)"),
        (np.full((1, 4), 2, np.uint8), "'a'.*value 2"),
        (np.full((1, 4), 255, np.uint8), "without one pixel of ground truth"),
    ],
)
def test_scan_names_wrong_ground_truth(truth, message):
    maps = make_maps([[[10.0, 6.0, 4.0, 4.0]]])
    with pytest.raises(ValueError, match=message):
        scan_fixed_threshold_on_ground_truth([maps], [truth], 1)


def test_scan_needs_as_many_truths_as_maps():
    with pytest.raises(ValueError):
        scan_fixed_threshold_on_ground_truth([random_maps(0), random_maps(1)], [np.zeros((24, 31), np.uint8)], 3)
    with pytest.raises(ValueError, match="between 0 and 1"):
        scan_fixed_threshold_on_ground_truth([], [], 3, [0.0, 0.5])


def test_a_value_on_the_constant_is_background_in_rule_and_scan():
    maps, truth = make_maps([[[8.0, 4.0]]]), np.array([[1, 0]], np.uint8)
    assert label_fixed(maps, 0.5).label_map.tolist() == [[1, 0]]
    assert scan_fixed_threshold_on_ground_truth([maps], [truth], 1, [0.5]).best == (0.5, 1.0)
