import math

import numpy as np
import pytest

from sbce_hf.evaluation.concerns import concerns
from sbce_hf.evaluation.quality import stage_quality

NAMES = ("cat", "dog", "cow")


def quality(lost_dogs=0, photos=20):
    records = [
        {"image_id": f"i{n}", "classes": [0, 1], "proportions": [0.2, 0.0 if n < lost_dogs else 0.3]}
        for n in range(photos)
    ]
    return stage_quality("round_2", NAMES, records)


def tags(cats=10, dogs=19, cows=9, photos=20):
    labels = np.zeros((photos, 3), np.float32)
    for column, count in enumerate((cats, dogs, cows)):
        labels[:count, column] = 1
    return labels


def test_nothing_to_say_of_a_healthy_run():
    assert concerns(tags(), quality(), [0.6, 0.3, 0.1]) == []


@pytest.mark.parametrize(("lost", "said"), [(1, False), (2, True), (20, True)])
def test_a_lost_class_is_counted_in_photos(lost, said):
    found = concerns(tags(), quality(lost))
    assert found == ([f"dog: lost from the label maps on {lost} of its 20 photos"] if said else [])


@pytest.mark.parametrize(
    ("coverage", "words"), [(0.004, "0.4 %"), (0.01, None), (0.9, None), (0.981, "98 %"), (1.0, "100 %")]
)
def test_a_class_that_covers_hardly_anything_or_nearly_all_is_named_with_its_stage(coverage, words):
    records = [{"image_id": f"i{n}", "classes": [0], "proportions": [coverage]} for n in range(20)]
    found = concerns(tags(), stage_quality("round_1", NAMES, records))
    assert found == ([f"round_1: cat covers {words} of its median photo"] if words else [])


def test_a_class_that_is_lost_is_not_said_to_be_small_as_well():
    records = [{"image_id": f"i{n}", "classes": [0], "proportions": [0.0]} for n in range(20)]
    assert concerns(tags(), stage_quality("round_1", NAMES, records)) == [
        "cat: lost from the label maps on 20 of its 20 photos"
    ]


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"cows": 0}, "cow: no photo has this tag"),
        ({"cows": 1}, "cow: only 1 photo to learn from"),
        ({"cows": 7}, "cow: only 7 photos to learn from"),
        ({"cows": 20}, "cow: every photo has this tag"),
    ],
)
def test_tags_that_teach_little(counts, message):
    (found,) = concerns(tags(**counts), quality())
    assert found.startswith(message)


def test_a_stage_0_that_has_hardly_learned_is_told_with_both_losses():
    # Equally frequent, each on photos of its own.
    labels = np.stack([np.roll(tags(10, 10, 10)[:, c], shift) for c, shift in enumerate((0, 10, 5))], axis=1)
    guess = math.log(2)
    assert concerns(labels, quality(), [0.7, 0.45 * guess]) == []
    (found,) = concerns(labels, quality(), [0.7, 0.55 * guess])
    assert f"{0.55 * guess:.3f}" in found and f"{guess:.3f}" in found and "bce.min_iterations" in found


def test_the_gravest_comes_first_and_no_quality_is_no_error():
    found = concerns(tags(cows=3), quality(20), [0.7])
    assert [line.split(":")[0] for line in found] == ["dog", "stage 0 has hardly learned the tags", "cow"]
    assert concerns(tags(), None) == []
