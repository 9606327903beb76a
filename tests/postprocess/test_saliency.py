"""The rules by hand: small arrays whose answers are worked out in the comments."""

import numpy as np
import pytest

from sbce_hf.config import CrfConfig, SaliencyConfig
from sbce_hf.postprocess.crf_pool import CrfPool, dense_crf
from sbce_hf.postprocess.rules import ClassMaps
from sbce_hf.postprocess.saliency import SaliencyMethod, activations, ignore_oaa, label_edam, label_oaa

EDAM = SaliencyConfig(maps="maps")
OAA = SaliencyConfig(maps="maps", rule="oaa")


def maps_of(probabilities, classes):
    probabilities = np.asarray(probabilities, np.float64)
    with np.errstate(divide="ignore"):
        logits = (np.log(probabilities) - np.log1p(-probabilities)).astype(np.float32)
    count = len(classes)
    return ClassMaps("a", np.array(classes, np.int64), logits, np.zeros(count, np.float32), np.ones(count, np.float32))


def grey(*rows):
    return np.array(rows, np.uint8)


def test_edam_salient_pixels_get_the_best_known_class():
    # Known are classes 1 and 4, so values 2 and 5; a pixel with 20 is background, one with 21 is not.
    maps = maps_of([[[0.9, 0.2, 0.9, 0.2, 0.5]], [[0.1, 0.3, 0.1, 0.3, 0.5]]], [1, 4])
    assert label_edam(maps, grey([20, 20, 21, 255, 21]), EDAM).tolist() == [[0, 0, 2, 5, 2]]
    moved = SaliencyConfig(maps="maps", background_saliency=21)
    assert label_edam(maps, grey([20, 20, 21, 255, 21]), moved).tolist() == [[0, 0, 0, 5, 0]]


def test_edam_a_certain_pixel_is_foreground_whatever_its_saliency():
    maps = maps_of([[[0.999995, 0.99998, 0.999995, 0.3]], [[0.1, 0.1, 0.999999, 0.1]]], [0, 2])
    assert label_edam(maps, grey([0, 0, 0, 0]), EDAM).tolist() == [[1, 0, 3, 0]]
    never = SaliencyConfig(maps="maps", certain_probability=1.0)
    assert label_edam(maps, grey([0, 0, 0, 0]), never).tolist() == [[0, 0, 0, 0]]


def test_edam_saturated_probabilities_still_have_an_order():
    maps = ClassMaps("a", np.array([0, 1]), np.float32([[[30, 50]], [[40, 40]]]), np.zeros(2), np.ones(2))
    assert (maps.probabilities == 1).all()
    assert label_edam(maps, grey([255, 255]), EDAM).tolist() == [[2, 1]]


def test_edam_takes_classes_from_earlier_labels_where_these_have_a_known_one():
    maps = maps_of([[[0.9, 0.9, 0.9, 0.9, 0.999999]], [[0.1, 0.1, 0.1, 0.1, 0.1]]], [1, 4])
    # Background, an unknown class and "ignore" are no answer; what is not salient stays background.
    labels = grey([5, 0, 3, 255, 5])
    assert label_edam(maps, grey([99, 99, 99, 99, 0]), EDAM, labels).tolist() == [[5, 2, 2, 2, 5]]
    assert label_edam(maps, grey([0, 0, 0, 0, 0]), EDAM, labels).tolist() == [[0, 0, 0, 0, 5]]


def test_edam_without_known_classes_is_background():
    assert label_edam(maps_of(np.zeros((0, 2, 2)), []), np.full((2, 2), 255, np.uint8), EDAM).tolist() == [[0, 0]] * 2


def test_activations_are_stretched_and_cut():
    # From 0.2 to 0.6: 0.3 becomes 0.25, which is cut, 0.4 becomes 0.5.
    found = activations(maps_of([[[0.2, 0.3, 0.4, 0.6]], [[0.7] * 4]], [0, 1]), 0.3)
    assert np.allclose(found, [[[0, 0, 0.5, 1]], [[0, 0, 0, 0]]], atol=1e-6) and found.dtype == np.float32


def test_oaa_background_competes_with_the_classes():
    maps = maps_of([[[0.0, 0.25, 0.5, 1.0, 0.5]]], [2])
    # Background scores 1 - s / 255: 1, 0, 0.6, 0.6 and 0.5 - 1 / 510, activations are 0, 0 (cut), 0.5, 1 and 0.5.
    saliency = grey([0, 255, 102, 102, 128])
    assert label_oaa(maps, saliency, OAA).tolist() == [[0, 0, 0, 3, 3]]
    # What is salient and still background is ignored, from 32 on; pixel 0 is not salient.
    assert ignore_oaa(grey([0, 0, 0, 3, 3]), maps, saliency, OAA).tolist() == [[0, 255, 255, 3, 3]]


def test_oaa_ties_go_to_background_then_to_the_first_class():
    maps = maps_of([[[0.0, 0.2, 1.0, 1.0]], [[0.0, 0.2, 1.0, 1.0]]], [0, 1])
    # Background is 1, 0, 0 and 1, either class 0, 0 (cut), 1 and 1.
    assert label_oaa(maps, grey([0, 255, 255, 0]), OAA).tolist() == [[0, 0, 1, 0]]


def test_oaa_conflicts_are_ignored():
    # Two classes above 0.9; background (1 - 20 / 255 = 0.92) and a class; one class alone; two just below.
    maps = maps_of([[[1.0, 0.95, 0.95, 0.89, 0.0]], [[0.95, 0.0, 0.0, 0.89, 1.0]]], [0, 1])
    saliency = grey([255, 20, 255, 255, 255])
    labels = label_oaa(maps, saliency, OAA)
    assert labels.tolist() == [[1, 1, 1, 1, 2]]
    assert ignore_oaa(labels, maps, saliency, OAA).tolist() == [[255, 255, 1, 1, 2]]


@pytest.mark.parametrize(("saliency", "activation", "expected"), [(31, 0.5, 0), (32, 0.5, 255), (0, 0.81, 255)])
def test_oaa_background_that_is_salient_or_strongly_active_is_ignored(saliency, activation, expected):
    maps = maps_of([[[0.0, activation, 1.0]]], [0])
    # 1 - 31 / 255 is above every activation used here.
    values = grey([0, saliency, 255])
    assert label_oaa(maps, values, OAA).tolist() == [[0, 0, 1]]
    assert ignore_oaa(grey([0, 0, 1]), maps, values, OAA).tolist() == [[0, expected, 1]]


@pytest.mark.parametrize(("count", "ignored"), [(0, True), (1, False)])
def test_oaa_less_than_a_hundredth_of_foreground_is_ignored_as_a_whole(count, ignored):
    probabilities = np.zeros((1, 10, 10))
    probabilities[0, 0, :2] = 1
    saliency = np.zeros((10, 10), np.uint8)
    # One pixel is foreground, the other a conflict with background, which does not count.
    saliency[0, :count] = 255
    maps = maps_of(probabilities, [0])
    marked = ignore_oaa(label_oaa(maps, saliency, OAA), maps, saliency, OAA)
    assert (marked == 255).all() == ignored
    if not ignored:
        assert marked[0, :3].tolist() == [1, 255, 0]


class Store(dict):
    """Saliency maps or label maps in memory."""

    def read(self, image_id, size=None):
        assert size is None or size == self[image_id].shape
        return self[image_id]


def photo_and_maps():
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    probabilities = np.zeros((2, 12, 16))
    probabilities[0, :, :8], probabilities[1, :, 8:] = 0.8, 0.7
    probabilities += generator.uniform(0, 0.1, probabilities.shape)
    saliency = generator.integers(0, 256, (12, 16), dtype=np.uint8)
    return image, maps_of(probabilities, [0, 3]), saliency


def test_the_crf_follows_either_rule_and_ignored_pixels_are_found_after_it():
    image, maps, saliency = photo_and_maps()
    crf = CrfConfig(iterations=2)
    for config in (EDAM, OAA):
        method = SaliencyMethod(config, Store(a=saliency), crf=CrfConfig())
        assert method.stores == ("saliency", "saliency_crf")
        with CrfPool(crf, 1) as pool:
            plain, refined = (result() for result in method(image, maps, pool).label_maps)
        labels = label_edam(maps, saliency, EDAM) if config is EDAM else label_oaa(maps, saliency, OAA)
        expected = labels, dense_crf(image, labels, [0, 3], crf)
        if config is OAA:
            expected = [ignore_oaa(one, maps, saliency, OAA) for one in expected]
            assert 0 < (expected[1] == 255).mean() < 1
        assert (plain == expected[0]).all() and (refined == expected[1]).all()


def test_an_image_of_which_all_is_ignored_has_no_label_map():
    image, maps, saliency = photo_and_maps()
    nothing = maps_of(np.zeros((0, 12, 16)), [])
    method = SaliencyMethod(OAA, Store(a=saliency), crf=None)
    assert [result() for result in method(image, nothing, None).label_maps] == [None]
    assert method(image, maps, None).thresholds.tolist() == [0.5, 0.5]


def test_only_edam_looks_at_earlier_labels_and_only_if_it_is_told_to():
    image, maps, saliency = photo_and_maps()
    labels = Store(a=np.full((12, 16), 4, np.uint8))
    plain = label_edam(maps, saliency, EDAM)
    for values, expected in (
        ({}, np.where(plain > 0, 4, 0)),
        ({"classes_from": "class_maps"}, plain),
        ({"rule": "oaa"}, ignore_oaa(label_oaa(maps, saliency, OAA), maps, saliency, OAA)),
    ):
        config = SaliencyConfig(maps="some/where/maps", **values)
        method = SaliencyMethod(config, Store(a=saliency), crf=None, labels=labels)
        assert (method(image, maps, None).label_maps[0]() == expected).all()
        assert method.options["saliency"]["maps"] == "maps" and "uses a saliency network" in method.options["note"]
    # An image without an earlier label map.
    method = SaliencyMethod(EDAM, Store(a=saliency), crf=None, labels=Store())
    assert (method(image, maps, None).label_maps[0]() == plain).all()
