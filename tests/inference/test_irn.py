from dataclasses import replace

import numpy as np
import pytest
import torch

from sbce_hf.config import BoundaryTrainingConfig, CrfConfig, IrnRefinementConfig, LabellingConfig
from sbce_hf.inference.classifier import label_images
from sbce_hf.inference.irn import ObjectMap, WalkMethod
from sbce_hf.inference.irn_seeds import SeedMethod
from sbce_hf.inference.views import class_maps
from sbce_hf.labels.store import LabelStore
from sbce_hf.models.configuration_irn import IrnConfig
from sbce_hf.models.modeling_irn import IrnModel
from sbce_hf.postprocess.otsu import otsu_threshold
from sbce_hf.postprocess.rules import ClassMaps

CONFIG = LabellingConfig(scales=(1.0,), batch_size=2, crf_workers=1, crf=None)
WITH_CRF = replace(CONFIG, crf=CrfConfig(iterations=2))
SECTION = IrnRefinementConfig()
LABELS = [(0,), (1, 2), (), (2,), (0, 1)]


class FixedBoundaries(IrnModel):
    """A boundary network that finds a vertical line in the middle of every image."""

    def __init__(self):
        super().__init__(IrnConfig(trunk="test_resnet", side_channels=4))
        self.line = 20.0

    def forward(self, pixel_values, labels=None, return_dict=None):
        output = super().forward(pixel_values)
        logits = torch.full_like(output.boundary_logits, -20.0)
        logits[:, :, logits.shape[2] // 2] = self.line
        return type(output)(boundary_logits=logits)


def maps_of(logits, threshold_logits, classes=(0,)):
    logits = np.asarray(logits, np.float32)
    thresholds = np.asarray(threshold_logits, np.float32)
    return ClassMaps("a", np.array(classes), logits, thresholds, np.ones(len(classes), np.float32))


def photo(height=64, width=64):
    return np.zeros((height, width, 3), np.uint8)


def answer_of(method, image, maps):
    return [result() for result in method(image, maps, None).label_maps]


def test_seeds_are_shares_of_the_area():
    # Columns fall from 16 to -47.5 above the threshold: the first 32 pass it.
    logits = np.tile(16 - np.arange(64) * 0.5 + 1.0, (64, 1))[None]
    (seeds,) = answer_of(SeedMethod(SECTION), photo(), maps_of(logits, [1.25]))
    # Half of the area of 32 columns is sure, beyond one and a half of it is background.
    assert (seeds == np.repeat([1, 255, 0], [16, 32, 16])[None]).all()


def test_seeds_between_two_classes():
    logits = np.full((2, 64, 64), -9.0)
    logits[0, :, :20], logits[1, :, 44:] = 5, 6
    # No ties: ranks need an order.
    logits += np.random.default_rng(0).normal(0, 0.01, logits.shape)
    (seeds,) = answer_of(SeedMethod(SECTION), photo(), maps_of(logits, [0, 0], (0, 2)))
    assert set(np.unique(seeds)) == {0, 1, 3, 255}
    assert (seeds[:, :20] != 3).all() and (seeds[:, 44:] != 1).all()
    assert abs((seeds == 1).mean() - 10 / 64) < 0.01 and abs((seeds == 3).mean() - 10 / 64) < 0.01


def test_a_lost_class_keeps_a_seed():
    logits = np.random.default_rng(0).normal(-9, 1, (1, 64, 64))
    (seeds,) = answer_of(SeedMethod(SECTION), photo(), maps_of(logits, [0]))
    assert 0 < (seeds == 1).mean() < 0.005 and seeds.ravel()[logits.argmax()] == 1


def test_an_image_that_is_all_object_has_no_background_seed():
    logits = 5 + np.random.default_rng(0).normal(0, 1, (1, 64, 64))
    (seeds,) = answer_of(SeedMethod(SECTION), photo(), maps_of(logits, [0]))
    assert set(np.unique(seeds)) <= {0, 1, 255} and (seeds == 1).mean() == pytest.approx(0.5, abs=0.01)
    assert (seeds == 0).sum() <= 1


def test_walk_fills_up_to_the_boundary():
    logits = np.full((1, 64, 64), -4.0)
    # A blob that fills most of the left half and leaves it at one side.
    logits[:, 8:56, 4:36] = 4
    (refined,) = answer_of(WalkMethod(FixedBoundaries(), SECTION, crf=None), photo(), maps_of(logits, [0]))
    assert (refined[:, :28] == 1).all() and (refined[:, 40:] == 0).all()


def test_the_adaptive_threshold_decides_what_walks():
    logits = np.full((1, 64, 64), 1.0)
    logits[:, :, 34:] = -1
    method = WalkMethod(FixedBoundaries(), SECTION, crf=None)
    for threshold, left, right in ((0, 1, 0), (2, 0, 0), (-2, 1, 1)):
        (refined,) = answer_of(method, photo(), maps_of(logits, [threshold]))
        assert (refined[:, :28] == left).all() and (refined[:, 40:] == right).all()


@pytest.mark.parametrize(("constant", "left"), [(0.25, 1), (0.75, 0)])
def test_what_arrives_is_compared_with_the_constant(constant, left):
    logits = np.full((2, 64, 64), -4.0)
    # One class fills half of its side and evens out, the other fills its side.
    logits[0, :32, :28], logits[1, :, 36:] = 4, 4
    method = WalkMethod(FixedBoundaries(), IrnRefinementConfig(background_threshold=constant), crf=None)
    (refined,) = answer_of(method, photo(), maps_of(logits, [0, 0], (0, 1)))
    assert (refined[:, 40:] == 2).all() and (refined[40:, :24] == left).mean() > 0.5


@pytest.mark.parametrize(("weight", "below"), [(0.0, 1), (0.5, 0)])
def test_the_class_maps_hold_a_flood_back(weight, below):
    logits = np.full((1, 64, 64), -6.0)
    # The walk evens it out over the left half, of which the map saw the upper part only.
    logits[:, :40, :28] = 4
    section = IrnRefinementConfig(map_weight=weight)
    (refined,) = answer_of(WalkMethod(FixedBoundaries(), section, crf=None), photo(), maps_of(logits, [0]))
    assert (refined[:32, :24] == 1).all() and (refined[:, 40:] == 0).all()
    assert (refined[48:, :24] == below).all()


@pytest.mark.parametrize(("weight", "left"), [(0.0, 0), (0.5, 1)])
def test_the_class_maps_keep_a_small_class_beside_a_large_one(weight, left):
    logits = np.full((2, 64, 64), -6.0)
    logits[0, 4:10, 4:10], logits[1, :, 36:] = 4, 4
    section = IrnRefinementConfig(map_weight=weight)
    (refined,) = answer_of(WalkMethod(FixedBoundaries(), section, crf=None), photo(), maps_of(logits, [0, 0], (0, 1)))
    assert (refined[5:9, 5:9] == left).all() and (refined[:, 40:] == 2).all()


@pytest.mark.parametrize(("weight", "on_object"), [(0.0, 0), (2.0, 1)])
def test_objects_keep_more_of_what_arrives(weight, on_object):
    logits = np.full((1, 64, 64), -6.0)
    # The right of the class is certain. Its left is not, and only the upper half of it is an object.
    logits[:, :, 40:], logits[:, :, :24] = 4, -1
    objects = np.full((64, 64), 0.2, np.float32)
    objects[:32, :32] = 1.5
    section = IrnRefinementConfig(walk_steps=0, object_weight=weight)
    method = WalkMethod(FixedBoundaries(), section, crf=None, objects=lambda _: objects)
    (refined,) = answer_of(method, photo(), maps_of(logits, [-2.0]))
    # What is certain stays, although it is no object.
    assert (refined[:, 44:] == 1).all()
    assert (refined[:28, :20] == on_object).all() and (refined[36:, :20] == 0).all()


def test_objects_need_somebody_who_looks():
    with pytest.raises(ValueError, match=r"irn.object_weight: got 1.0, but nothing that looks for objects"):
        WalkMethod(FixedBoundaries(), IrnRefinementConfig(object_weight=1.0), crf=None)


def test_object_maps_are_what_the_rule_looks_at(tiny_model, make_images):
    image = make_images(LABELS).image(1)
    labels = np.ones((1, 3), np.float32)
    (maps,) = class_maps(tiny_model, [image], labels, replace(CONFIG, rule="objects"))
    found = ObjectMap(tiny_model, CONFIG)(np.asarray(image))
    assert found.shape == maps.feature_norm.shape and found.dtype == np.float32
    assert np.allclose(found * otsu_threshold(maps.feature_norm), maps.feature_norm, atol=1e-6)
    assert ((found > 1) == (maps.feature_norm > otsu_threshold(maps.feature_norm))).mean() > 0.999


@pytest.mark.parametrize(("weight", "beyond"), [(0.0, 1), (100.0, 0)])
def test_a_class_ends_where_its_outline_lies_on_boundaries(weight, beyond):
    # Falls to the right all the time. Only in the middle it passes a level where the boundary is.
    logits = np.tile(np.linspace(4, 0, 64), (64, 1))[None]
    section = IrnRefinementConfig(walk_steps=0, boundary_weight=weight)
    (refined,) = answer_of(WalkMethod(FixedBoundaries(), section, crf=None), photo(), maps_of(logits, [0]))
    assert (refined[:, :24] == 1).all() and (refined[:, 52:] == 0).all()
    assert (refined[:, 38:44] == beyond).all()


def test_no_class_loses_all_to_one_whose_threshold_falls(monkeypatch):
    # The second class is a spot within the first, which is a little lower there.
    logits = np.full((2, 64, 64), -4.0)
    logits[0, :, :28] = 4
    logits[0, 20:40, 8:24], logits[1, 20:40, 8:24] = 3, 4
    found = []
    for factors in ([1.0, 1.0], [0.5, 1.0]):
        rest = iter(factors)
        monkeypatch.setattr("sbce_hf.inference.irn._factor", lambda *_, rest=rest: next(rest))
        section = IrnRefinementConfig(walk_steps=0, boundary_weight=1.0)
        method = WalkMethod(FixedBoundaries(), section, crf=None)
        found.append(answer_of(method, photo(), maps_of(logits, [0, 0], (0, 1)))[0])
    assert all((label_map[24:36, 12:20] == 2).all() and (label_map[:16, :20] == 1).all() for label_map in found)


def test_what_has_no_outline_keeps_the_constant():
    network = FixedBoundaries()
    network.line = -20.0
    method = WalkMethod(network, IrnRefinementConfig(boundary_weight=100.0), crf=None)
    (refined,) = answer_of(method, photo(), maps_of(np.full((1, 64, 64), 4.0), [0]))
    assert (refined == 1).all()


@pytest.mark.parametrize("size", [(50, 70), (33, 35), (300, 90)])
def test_walk_at_any_size(size):
    logits = np.full((2, *size), -4.0)
    logits[1, :, : size[1] // 3] = 4
    training = BoundaryTrainingConfig(image_size=size[0] * 2 if size[0] < 60 else 128)
    method = WalkMethod(FixedBoundaries(), IrnRefinementConfig(training=training), crf=None)
    (refined,) = answer_of(method, photo(*size), maps_of(logits, [0, 0], (1, 2)))
    assert refined.shape == size and refined.dtype == np.uint8
    # The padded image's middle, where the boundary is, may lie to the right of the photo's.
    assert (refined[:, : size[1] // 4] == 3).all() and set(np.unique(refined)) <= {0, 3}


def test_no_known_class_is_background():
    nothing = maps_of(np.zeros((0, 64, 64)), [], ())
    assert (answer_of(WalkMethod(FixedBoundaries(), SECTION, crf=None), photo(), nothing)[0] == 0).all()
    assert (answer_of(SeedMethod(SECTION), photo(), nothing)[0] == 0).all()


@pytest.mark.parametrize("crf", [False, True])
def test_both_fill_stores(tiny_model, make_images, tmp_path, crf):
    images, config = make_images(LABELS), WITH_CRF if crf else CONFIG
    for method in (SeedMethod(SECTION), WalkMethod(FixedBoundaries(), SECTION, config.crf)):
        label_images(tiny_model, images, config, output_dir=tmp_path, key="k", method=method)
        for name in method.stores:
            store = LabelStore(tmp_path / name)
            assert store.complete and store.meta["method"] == method.name
            assert store.meta["crf"] == (crf and name != "irn")
            assert store.meta["config"]["irn"]["walk_radius"] == 5
            for image_id, known in zip(images.image_ids, LABELS, strict=True):
                allowed = {0, *(c + 1 for c in known)} | ({255} if method.name == "seeds" else set())
                assert set(np.unique(store.read(image_id))) <= allowed
                assert 0 <= min(store.record(image_id)["thresholds"], default=0) <= 1
    assert (tmp_path / "irn_crf").is_dir() == crf


def test_an_image_in_which_nothing_is_sure_is_skipped(tiny_model, make_images, tmp_path):
    class Unsure(SeedMethod):
        def __call__(self, image, maps, crf):
            answer = super().__call__(image, maps, crf)
            return answer if len(maps.classes) else replace(answer, label_maps=[lambda: None])

    images = make_images(LABELS)
    summary = label_images(tiny_model, images, CONFIG, output_dir=tmp_path, key="k", method=Unsure(SECTION))
    assert summary.complete and summary.skipped == {"set/002": "nothing is sure"}
