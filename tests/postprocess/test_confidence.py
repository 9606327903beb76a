import math
from dataclasses import replace

import numpy as np
import pytest

from sbce_hf.config import LabellingConfig
from sbce_hf.postprocess.confidence import (
    MOST,
    MOST_RAISED,
    ON_OBJECTS,
    Usual,
    confidence_of,
    share_on_objects,
    with_confidence,
)
from sbce_hf.postprocess.rules import ClassMaps, label_paper, label_peak, with_thresholds

HALF = LabellingConfig(rule="peak", confidence_weight=0.5)


def maps_of(*peaks, size=60):
    """Maps that fall from a peak to the right; the first two columns are the peak itself."""
    slope = np.concatenate([[0], np.linspace(0, -6, size - 1)])
    logits = np.float32([np.tile(peak + slope, (size, 1)) for peak in peaks])
    count = len(peaks)
    return ClassMaps("a", np.arange(count), logits, np.zeros(count, np.float32), np.ones(count, np.float32))


def test_confidence_grows_where_the_probability_has_saturated():
    first, second, third = confidence_of(maps_of(-3.0, 20.0, 40.0))
    assert first == pytest.approx(-math.log(1 - 1 / (1 + math.exp(3))))
    assert second == pytest.approx(20) and third == pytest.approx(40)


def test_what_is_usual_changes_nothing_and_what_is_not_is_bounded():
    maps = maps_of(-2.0, 1.0, 5.0)
    usual = dict(enumerate(confidence_of(maps)))
    assert with_confidence(maps, Usual(usual), HALF).confidence.tolist() == [1.0, 1.0, 1.0]
    assert with_confidence(maps, Usual(), HALF).confidence.tolist() == [1.0, 1.0, 1.0]
    found = with_confidence(maps, Usual({0: 4 * usual[0], 1: usual[1] / 4, 2: 1e9}), HALF).confidence
    assert found == pytest.approx([0.5, 2.0, 1 / MOST])
    deaf = LabellingConfig(rule="peak", confidence_weight=0.0)
    assert with_confidence(maps, Usual({0: 4 * usual[0]}), deaf).confidence[0] == 1


def test_a_class_that_usually_reaches_beyond_objects_is_held_back():
    maps = maps_of(1.0, 1.0, 1.0, 1.0)
    usual = Usual(dict(enumerate(confidence_of(maps))), {0: 0.8 * ON_OBJECTS, 1: 1.0, 2: 0.01})
    weighed = replace(HALF, object_weight=2.0)
    assert with_confidence(maps, usual, weighed).confidence == pytest.approx([0.64, 1, 1 / MOST_RAISED, 1])
    assert with_confidence(maps, usual, HALF).confidence.tolist() == [1.0] * 4
    # Both say something.
    surer = replace(usual, confidence={0: confidence_of(maps)[0] / 4})
    assert with_confidence(maps, surer, weighed).confidence[0] == pytest.approx(2 * 0.64)


def test_the_share_on_objects_is_that_of_what_passes_the_constant():
    maps = maps_of(1.0, -3.0, 20.0)
    objects = np.zeros((60, 60), np.float32)
    objects[:, :10] = 1.5
    own = maps.probabilities / maps.probabilities[:, :1, :1] > 0.35
    expected = np.minimum(own.sum(axis=(1, 2)), 600) / own.sum(axis=(1, 2))
    found = share_on_objects(maps, objects, 0.35)
    assert found == pytest.approx(expected) and 0 < found[2] < found[1] <= 1
    assert share_on_objects(maps, objects + 2, 0.35).tolist() == [1, 1, 1]
    assert share_on_objects(maps, np.ones_like(objects), 0.35).tolist() == [0, 0, 0]


def test_a_map_of_no_confidence_at_all():
    with np.errstate(all="raise", under="ignore"):
        found = with_confidence(maps_of(-2000.0, -2000.0), Usual({0: 1.0, 1: 0.0}), HALF).confidence
    assert found == pytest.approx([1 / MOST, 1.0])


def test_the_less_sure_the_less_is_kept_but_never_nothing():
    maps = maps_of(0.0)
    sizes = []
    for confidence in (MOST, 1.0, 0.5, 1 / MOST, 1e-6):
        labelled = label_peak(replace(maps, confidence=np.array([confidence])), 0.35)
        sizes.append(int(labelled.label_map.sum()))
        # The threshold that is told is the one that was taken, and the one that refinements go on from.
        assert ((maps.probabilities[0] > labelled.thresholds[0]) == (labelled.label_map == 1)).all()
        moved = with_thresholds("peak", replace(maps, confidence=np.array([confidence])), 0.35)
        assert (label_paper(moved).label_map == labelled.label_map).all()
    assert sizes[0] > sizes[1] > sizes[2] > sizes[3] >= sizes[4] >= 60
    assert (label_peak(maps, 0.35).label_map == label_peak(replace(maps, confidence=np.ones(1)), 0.35).label_map).all()


def test_of_two_classes_the_one_that_is_surer_than_usual_wins():
    first, second = maps_of(1.0), maps_of(1.0)
    logits = np.concatenate([first.logits, second.logits[:, :, ::-1]])
    maps = replace(maps_of(1.0, 1.0), logits=logits)
    sizes = []
    for confidence in ([0.5, 2.0], [1.0, 1.0], [2.0, 0.5]):
        label_map = label_peak(replace(maps, confidence=np.array(confidence)), 0.35).label_map
        sizes.append((label_map == 2).sum())
    assert sizes[0] > sizes[1] > sizes[2] > 0


def test_no_class_loses_all_to_one_that_is_surer_than_usual():
    # The second class is a spot within the first, which is a little lower there.
    logits = np.full((2, 40, 40), -6.0, np.float32)
    logits[0, :, :20] = 2.0
    logits[0, 10:20, 5:15], logits[1, 10:20, 5:15] = 1.0, 2.0
    maps = replace(maps_of(0.0, 0.0), logits=logits, confidence=np.array([2.0, 0.5]))
    label_map = label_peak(maps, 0.35).label_map
    assert (label_map[10:20, 5:15] == 2).all() and (label_map[:10, :20] == 1).all()
