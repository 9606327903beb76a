import pytest

from sbce_hf.config import load_recipe
from sbce_hf.data import load_images
from sbce_hf.inference.views import class_maps
from sbce_hf.runs import clock
from sbce_hf.runs.clock import REPEATS, Clock
from sbce_hf.training.classifier import create_classifier


@pytest.fixture
def images(tiny_recipe):
    return load_images(load_recipe(str(tiny_recipe)).data, "train")


def test_what_is_slow_is_timed_once(images, monkeypatch):
    calls = []
    assert Clock(images)._time(lambda: calls.append(0)) >= 0
    assert len(calls) == REPEATS
    monkeypatch.setattr(clock, "SLOW", -1.0)
    assert Clock(images)._time(lambda: calls.append(0)) >= 0
    assert len(calls) == REPEATS + 1


def test_photos_are_looked_at_once_for_all_stages_with_the_same_views(images, tiny_recipe, monkeypatch):
    looked = []
    monkeypatch.setattr(clock, "class_maps", lambda *given: looked.append(given) or class_maps(*given))
    model, watch = create_classifier({"trunk": "test_resnet"}, images.class_names), Clock(images)

    def timed(**settings):
        return watch.labelling(model, load_recipe(str(tiny_recipe), {"labelling": settings}).labelling)

    assert all(timed(rule=rule) > 0 for rule in ("fixed", "peak", "objects"))
    assert len(looked) == REPEATS
    assert timed(scales=[1.0, 2.0]) > 0
    assert len(looked) == 2 * REPEATS


def test_compiling_the_crf_is_not_taken_for_the_time_of_a_photo(images, tiny_recipe, monkeypatch):
    now, refined = [0.0], []

    def crf(image, label_map, *_):
        # What numba does at the first call of a new installation.
        now[0] += 1.0 if refined else 100.0
        refined.append(image.shape)
        return label_map

    monkeypatch.setattr(clock, "dense_crf", crf)
    monkeypatch.setattr(clock.time, "perf_counter", lambda: now[0])
    config = load_recipe(str(tiny_recipe), {"labelling": {"crf": {"iterations": 1}, "crf_workers": 1}}).labelling
    model = create_classifier({"trunk": "test_resnet"}, images.class_names)
    assert Clock(images).labelling(model, config) <= 1.0
    assert len(refined) > 1
