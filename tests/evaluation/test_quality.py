import math
from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image

from sbce_hf.evaluation import quality
from sbce_hf.evaluation.quality import Agreement, StageQuality, agreement, stage_quality
from sbce_hf.evaluation.quality_page import plot_thresholds, render_quality, summary_table
from sbce_hf.files import read_json, write_json


def record(image_id, classes, proportions, thresholds=None, soft_share=None, mean_probability=None):
    return {
        "image_id": image_id,
        "classes": classes,
        "proportions": proportions,
        "thresholds": thresholds,
        "soft_share": soft_share,
        "mean_probability": mean_probability,
    }


def healthy(count=10, coverage=0.2, **changes):
    values = {"thresholds": [0.5], "soft_share": [0.3], "mean_probability": [0.25]} | changes
    return [record(f"i{n}", [0], [coverage], **values) for n in range(count)]


def only(stage):
    (found,) = stage.classes
    return found


def test_numbers_of_one_class():
    records = [
        record("a", [1, 0], [0.1, 0.5], [0.2, 0.9], [0.5, 0.1], [0.3, 0.6]),
        record("b", [1], [0.3], [0.6], [0.1], [0.5]),
        record("c", [], [], [], [], []),
    ]
    stage = stage_quality("round1", ("cat", "dog"), records)
    cat, dog = stage.classes
    assert stage.num_images == 3
    assert (cat.images, dog.images) == (1, 2)
    assert (cat.coverage_mean, cat.coverage_median, cat.soft_share) == (0.5, 0.5, 0.1)
    assert dog.coverage_mean == pytest.approx(0.2)
    assert dog.soft_share == pytest.approx(0.3)
    assert dog.mean_probability == pytest.approx(0.4)
    assert dog.threshold_quantiles == pytest.approx((0.22, 0.3, 0.4, 0.5, 0.58))
    assert dog.thresholds.tolist() == [0.2, 0.6]
    assert stage.warnings == []


def test_lost_before_and_after_the_crf():
    before = healthy(9) + [record("i9", [0], [0.0], [0.99], [0.3], [0.2])]
    after = [record(f"i{n}", [0], [0.0 if n < 3 else 0.3]) for n in range(10)]
    alone, with_crf = only(stage_quality("s", ("cat",), before)), only(stage_quality("s", ("cat",), before, after))
    assert (alone.empty_share, alone.lost_share) == (0.1, 0.1)
    assert (with_crf.empty_share, with_crf.lost_share) == (0.1, 0.3)
    assert with_crf.coverage_median == 0.3 and with_crf.soft_share == pytest.approx(0.3)
    assert not alone.warnings and "30.0 %" in with_crf.warnings[0]


def test_order_of_records_does_not_matter_and_the_last_record_of_an_image_counts():
    after = list(reversed(healthy(4, coverage=0.4)))
    stage = stage_quality("s", ("cat",), [record("i0", [0], [0.0]), *healthy(4)], after)
    assert stage.num_images == 4 and only(stage).images == 4
    assert only(stage).empty_share == 0 and only(stage).coverage_mean == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("records", "words"),
    [
        (healthy(), None),
        (healthy(8) + [record(f"z{n}", [0], [0.0], [0.5], [0.3], [0.1]) for n in range(2)], None),
        (
            healthy(7) + [record(f"z{n}", [0], [0.0], [0.5], [0.3], [0.1]) for n in range(3)],
            "collapse: without a pixel",
        ),
        (healthy(coverage=0.009), "collapse: covers 0.90 %"),
        (healthy(coverage=0.01), None),
        (healthy(coverage=0.9), None),
        (healthy(coverage=0.91), "flood: covers 91.0 %"),
        (healthy(soft_share=[0.019]), "saturated: only 1.9 %"),
        (healthy(soft_share=[0.021]), None),
        ([], "in no image"),
    ],
)
def test_warnings(records, words):
    warnings = stage_quality("round2", ("cat",), records).warnings
    if words is None:
        assert warnings == []
    else:
        assert len(warnings) == 1 and warnings[0].startswith(f"round2, cat: {words}")


def test_a_rule_without_thresholds_has_none():
    found = only(stage_quality("bce", ("cat",), healthy(thresholds=[None], soft_share=None, mean_probability=[None])))
    assert found.thresholds.size == 0 and all(map(math.isnan, found.threshold_quantiles))
    assert math.isnan(found.soft_share) and math.isnan(found.mean_probability) and found.warnings == ()


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([record("a", [0], [0.1, 0.2])], "s, image 'a': proportions has 2 values"),
        ([record("a", [0], [0.1], thresholds=[])], "thresholds has 0 values"),
        ([record("a", [1], [0.1])], "classes holds 1, expected 0 to 0"),
        ([record("a", [-1], [0.1])], "classes holds -1"),
    ],
)
def test_broken_records(records, message):
    with pytest.raises(ValueError, match=message):
        stage_quality("s", ("cat",), records)


def test_images_before_and_after_must_be_the_same():
    with pytest.raises(ValueError, match="image 'i1' has a record only before"):
        stage_quality("s", ("cat",), healthy(2), healthy(1))


def test_agreement_by_hand():
    a = [np.array([[0, 0, 1, 1]], np.uint8), np.array([[2, 2]], np.uint8)]
    b = [np.array([[0, 1, 1, 1]], np.uint8), np.array([[2, 0]], np.uint8)]
    found = agreement(iter(a), iter(b), num_classes=3)
    # Background: 1 of {0, 0, 0}; class 1: 2 of 3 pixels; class 2: 1 of 2; class 3 in neither.
    assert found.per_class_iou[:3] == pytest.approx([1 / 3, 2 / 3, 1 / 2])
    assert math.isnan(found.per_class_iou[3])
    assert found.mean_iou == pytest.approx(0.5) and found.pixels == pytest.approx(4 / 6) and found.num_images == 2


def test_agreement_is_symmetric_one_on_itself_and_zero_when_disjoint():
    rng = np.random.default_rng(0)
    a, b = ([rng.integers(0, 5, (9, 7), dtype=np.uint8) for _ in range(4)] for _ in range(2))
    assert agreement(a, a, 4).mean_iou == 1
    forward, backward = agreement(a, b, 4), agreement(b, a, 4)
    assert np.array_equal(forward.per_class_iou, backward.per_class_iou) and 0 < forward.mean_iou < 1
    disjoint = agreement([np.zeros((2, 2), np.uint8)], [np.ones((2, 2), np.uint8)], 1)
    assert (disjoint.mean_iou, disjoint.pixels) == (0, 0)


def test_agreement_with_80_classes_does_not_wrap():
    assert agreement([np.full((3, 3), 80, np.uint8)], [np.full((3, 3), 80, np.uint8)], 80).per_class_iou[80] == 1


def test_agreement_holds_one_pair_at_a_time():
    events = []

    def maps(name):
        for index in range(3):
            events.append((name, index))
            yield np.zeros((2, 2), np.uint8)

    assert agreement(maps("a"), maps("b"), 1).num_images == 3
    assert events == [(name, index) for index in range(3) for name in "ab"]


def test_ignored_pixels_are_not_compared():
    a, b = np.array([[0, 255, 1, 255, 2]], np.uint8), np.array([[0, 1, 255, 255, 1]], np.uint8)
    found = agreement([a], [b], 2)
    assert found.pixels == 1 / 2 and found.per_class_iou.tolist() == [1, 0, 0] and found.num_images == 1


def test_agreement_of_nothing_is_unknown():
    found = agreement([], [], 2)
    assert math.isnan(found.mean_iou) and math.isnan(found.pixels) and found.num_images == 0


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([np.zeros((2, 2), np.uint8)], [np.zeros((2, 3), np.uint8)]),
        ([np.zeros((2, 2), np.uint8)], [np.full((2, 2), 3, np.uint8)]),
        ([np.zeros((2, 2), np.uint8)], []),
    ],
)
def test_agreement_errors(a, b):
    with pytest.raises(ValueError):
        agreement(a, b, 2)


def test_page_and_summary():
    stages = [
        stage_quality("bce", ("cat", "dog"), healthy(thresholds=[None])),
        stage_quality("round1", ("cat", "dog"), healthy(coverage=0.95)),
    ]
    maps = [np.zeros((2, 2), np.uint8)]
    text = render_quality(stages, {("bce", "round1"): agreement(maps, maps, 2)}, "thresholds.png")
    assert "- round1, cat: flood: covers 95.0 % of its median image" in text
    assert "- bce, dog: in no image's known classes" in text
    assert "| bce | round1 | 100.0 | 100.0 | 1 |" in text
    assert "![Histogram of the adaptive thresholds per class](thresholds.png)" in text
    assert "| cat | 10 | 0.0 | 0.0 | 95.0 | 95.0 | 30.0 | 25.0 | 0.50 | 0.50 | 0.50 | 0.50 | 0.50 |" in text
    assert "| dog | 0 | - | - | - | - | - | - | - | - | - | - | - |" in text
    assert summary_table(stages).markdown().splitlines()[-1] == "| round1 | 10 | 0.0 | 95.0 | 30.0 | 25.0 | 2 |"
    assert "## Agreement" not in render_quality(stages) and "None." not in text


def test_histogram_only_with_thresholds(tmp_path):
    fixed = stage_quality("bce", ("cat",), healthy(thresholds=[None]))
    assert not plot_thresholds([fixed], tmp_path / "none.png") and not list(tmp_path.iterdir())
    adaptive = stage_quality("round1", ("cat", "dog"), healthy())
    assert plot_thresholds([fixed, adaptive], tmp_path / "thresholds.png")
    assert Image.open(tmp_path / "thresholds.png").format == "PNG"
    assert [path.name for path in tmp_path.iterdir()] == ["thresholds.png"]


def test_constants_are_the_documented_ones():
    page = render_quality([])
    for words in ("more than 20 %", "below 1 % or above 90 %", "fewer than 2 % soft"):
        assert words in page
    assert quality.QUANTILES == (0.05, 0.25, 0.5, 0.75, 0.95)


def test_a_file_keeps_what_was_found(tmp_path):
    found = stage_quality("round_1", ("cat", "dog"), healthy())
    write_json(tmp_path / "quality.json", found.to_plain())
    read = StageQuality.from_plain(read_json(tmp_path / "quality.json"))
    assert render_quality([read]) == render_quality([found]) and "| dog | 0 | - |" in render_quality([read])
    maps = [np.array([[0, 1]]), np.array([[1, 1]])]
    compared = agreement(maps, maps[::-1], 2)
    write_json(tmp_path / "agreement.json", {**asdict(compared), "per_class_iou": compared.per_class_iou.tolist()})
    again = Agreement.from_plain(read_json(tmp_path / "agreement.json"))
    assert (again.mean_iou, again.pixels, again.num_images) == (compared.mean_iou, compared.pixels, 2)
    np.testing.assert_array_equal(again.per_class_iou, compared.per_class_iou)


def test_parts_of_the_images_add_up_to_all(tmp_path):
    maps = [np.random.default_rng(seed).integers(0, 3, (4, 5)) for seed in range(6)]
    counted = []
    for part in (slice(0, None, 2), slice(1, None, 2)):
        agreement(maps[part], maps[::-1][part], 2, total=lambda counts: counted.append(counts) or counts)
    sums = iter([counted[0] + counted[2], counted[1] + counted[3]])
    together = agreement(maps[::2], maps[::-1][::2], 2, total=lambda _: next(sums))
    whole = agreement(maps, maps[::-1], 2)
    assert (together.mean_iou, together.pixels, together.num_images) == (whole.mean_iou, whole.pixels, 6)
