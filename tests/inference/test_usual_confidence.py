from dataclasses import replace

import numpy as np
import pytest

from sbce_hf.config import LabellingConfig
from sbce_hf.inference import classifier
from sbce_hf.inference.classifier import label_images, look_for_usual, positions_to_look_at
from sbce_hf.inference.views import class_maps
from sbce_hf.labels.store import LabelStore
from sbce_hf.postprocess.confidence import Usual, confidence_of, share_on_objects, with_confidence
from sbce_hf.postprocess.rules import label_peak

LABELS = [(0,), (1, 2), (), (2,), (0, 1), (1,), (0, 2)]
CONFIG = LabellingConfig(rule="peak", confidence_weight=0.5, scales=(1.0,), batch_size=2, crf=None)


def test_what_is_usual_is_the_median_over_photos(tiny_model, make_images):
    images = make_images(LABELS, damaged=(3,))
    readable = [i for i in range(len(LABELS)) if i != 3]
    each = class_maps(tiny_model, [images.image(i) for i in readable], images.label_matrix()[readable], CONFIG)
    values = {index: [] for index in range(3)}
    for maps in each:
        for index, value in zip(maps.classes, confidence_of(maps), strict=True):
            values[index].append(value)
    found = look_for_usual(tiny_model, images, CONFIG)
    assert found.on_objects == {}
    assert found.confidence == pytest.approx({index: np.median(values[index]) for index in range(3)}, rel=1e-4)


def test_a_class_without_photos_has_no_usual_confidence(tiny_model, make_images):
    assert set(look_for_usual(tiny_model, make_images([(2,), (0,)]), CONFIG).confidence) == {0, 2}
    assert look_for_usual(tiny_model, make_images([()]), CONFIG) == Usual()


def left_half(image):
    return np.where(np.arange(image.shape[1]) < image.shape[1] // 2, 2.0, 0.5)[None].repeat(len(image), axis=0)


def test_where_classes_usually_lie_is_the_median_over_photos(tiny_model, make_images):
    images, config = make_images(LABELS, damaged=(3,)), replace(CONFIG, object_weight=2.0)
    readable = [i for i in range(len(LABELS)) if i != 3]
    values = {index: [] for index in range(3)}
    for i in readable:
        (maps,) = class_maps(tiny_model, [images.image(i)], images.label_matrix()[i : i + 1], config)
        if len(maps.classes):
            shares = share_on_objects(maps, left_half(np.asarray(images.image(i))), 0.35)
            for index, value in zip(maps.classes, shares, strict=True):
                values[index].append(value)
    found = look_for_usual(tiny_model, images, config, objects=left_half)
    assert found.on_objects == pytest.approx({index: np.median(values[index]) for index in range(3)}, abs=0.01)
    assert found.confidence == look_for_usual(tiny_model, images, CONFIG).confidence


def test_objects_cannot_be_told_without_who_tells_them(tiny_model, make_images, tmp_path):
    with pytest.raises(ValueError, match=r"labelling\.object_weight: got 2, but nothing that looks for objects"):
        label_images(tiny_model, make_images(LABELS), replace(CONFIG, object_weight=2.0), output_dir=tmp_path, key="k")


def test_no_more_photos_are_looked_at_than_tell(make_images, monkeypatch):
    monkeypatch.setattr(classifier, "PHOTOS_PER_CLASS", 2)
    images = make_images([(0,), (0, 1), (0,), (), (0, 2), (1,), (1,), (2,), (2,)])
    assert positions_to_look_at(images, CONFIG) == [0, 1, 4, 5, 7]
    # Where classes are predicted, tags do not say which photos have them.
    assert positions_to_look_at(images, replace(CONFIG, known_classes="predicted")) == [0, 1, 2, 3, 4, 5]


def test_label_maps_listen_to_it(tiny_model, make_images, tmp_path):
    images = make_images(LABELS)
    usual = look_for_usual(tiny_model, images, CONFIG)
    asked, given, deaf = (tmp_path / name for name in "abc")
    label_images(tiny_model, images, CONFIG, output_dir=asked, key="k")
    label_images(tiny_model, images, CONFIG, output_dir=given, key="k", usual=usual)
    label_images(tiny_model, images, replace(CONFIG, confidence_weight=0.0), output_dir=deaf, key="k")
    stores = [LabelStore(folder / "peak") for folder in (asked, given, deaf)]
    changed = 0
    for i, image_id in enumerate(images.image_ids):
        first, second, third = (store.read(image_id) for store in stores)
        assert (first == second).all()
        changed += (first != third).mean()
        (maps,) = class_maps(tiny_model, [images.image(i)], images.labels(i)[None], CONFIG)
        expected = label_peak(with_confidence(maps, usual, CONFIG), 0.35).label_map
        # Batches differ, so pixels on the very threshold may too.
        assert (first != expected).mean() < 0.01
    assert changed > 0.05


@pytest.mark.parametrize("changed", [{"rule": "paper"}, {"confidence_weight": 0.0}])
def test_nobody_looks_where_it_is_not_asked_for(tiny_model, make_images, tmp_path, monkeypatch, changed):
    monkeypatch.setattr(classifier, "look_for_usual", None)
    label_images(tiny_model, make_images(LABELS), replace(CONFIG, **changed), output_dir=tmp_path, key="k")
