from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from sbce_hf.config import IrnRefinementConfig, LabellingConfig
from sbce_hf.inference.classifier import look_for_usual, to_refine
from sbce_hf.inference.irn import WalkMethod
from sbce_hf.inference.together import Member, TogetherMethod
from sbce_hf.inference.views import class_maps
from sbce_hf.models.configuration_irn import IrnConfig
from sbce_hf.models.modeling_irn import IrnModel

LABELLING = LabellingConfig(rule="peak", confidence_weight=0.5, scales=(1.0,), batch_size=2, crf=None)
SECTION = IrnRefinementConfig(boundary_weight=5.0, map_weight=0.3)
LABELS = [(0,), (1, 2), (), (0, 1, 2)]


def member(model, images, seed):
    torch.manual_seed(seed)
    network = IrnModel(IrnConfig(trunk="test_resnet", side_channels=4))
    return Member(model, WalkMethod(network, SECTION, None), look_for_usual(model, images, LABELLING))


def answers(method, model, images, usual):
    found = []
    for index in range(len(images)):
        photo = images.image(index)
        (maps,) = class_maps(model, [photo], images.labels(index)[None], LABELLING)
        answer = method(np.asarray(photo), to_refine(maps, LABELLING, usual), None)
        found.append(answer.label_maps[0]())
    return found


@pytest.fixture(scope="module")
def images(make_images):
    return make_images(LABELS, [(64, 64), (64, 48), (40, 40), (50, 64)])


def test_a_run_twice_says_what_it_says_alone(tiny_model, images):
    one = member(tiny_model, images, 0)
    alone = answers(one.walk, tiny_model, images, one.usual)
    twice = answers(TogetherMethod([one, one], LABELLING, None), tiny_model, images, one.usual)
    assert max(found.max() for found in alone) == 3
    # Logarithms and back.
    assert all((first != second).mean() < 0.002 for first, second in zip(alone, twice, strict=True))


def test_each_run_has_a_say(tiny_model, images):
    members = [member(tiny_model, images, seed) for seed in (0, 1)]
    # Of another opinion, and not sure of it.
    other = tiny_model.__class__(tiny_model.config).eval()
    members[1] = replace(members[1], model=other, usual=look_for_usual(other, images, LABELLING))
    together = answers(TogetherMethod(members, LABELLING, None), tiny_model, images, members[0].usual)
    alone = [
        answers(one.walk, model, images, one.usual) for one, model in zip(members, (tiny_model, other), strict=True)
    ]
    for single in alone:
        assert any((first != second).any() for first, second in zip(together, single, strict=True))
    assert not together[2].any()


class Arrives:
    """A walk whose outcome is known."""

    config, options = SECTION, {}

    def __init__(self, rows):
        self.rows = rows

    def arrive(self, image, maps):
        arrived = torch.zeros(1, 32, 32)
        arrived[:, self.rows] = 1.0
        return arrived, torch.zeros(8, 8)


def test_two_of_three_runs_decide_and_a_class_on_whose_place_none_agree_is_not_lost(tiny_model):
    photo = np.zeros((32, 32, 3), np.uint8)
    maps = class_maps(tiny_model, [Image.fromarray(photo)], np.array([[1, 0, 0]]), LABELLING)[0]
    first, last, middle = slice(0, 8), slice(20, 32), slice(10, 14)
    for places, expected in (
        ((first, last, first), (first,)),
        ((first, slice(4, 16), slice(6, 12)), (slice(4, 12),)),
        ((first, last, middle), (first, last, middle)),
    ):
        members = [Member(tiny_model, Arrives(rows), None) for rows in places]
        label_map = TogetherMethod(members, LABELLING, None)(photo, maps, None).label_maps[0]()
        rows = np.zeros((32, 32), bool)
        for there in expected:
            rows[there] = True
        assert ((label_map == 1) == rows).all()


def test_without_confidence(tiny_model, images):
    deaf = replace(LABELLING, confidence_weight=0.0)
    one = replace(member(tiny_model, images, 0), usual=None)
    found = answers(TogetherMethod([one, one], deaf, None), tiny_model, images, None)
    alone = answers(one.walk, tiny_model, images, None)
    assert all((first != second).mean() < 0.002 for first, second in zip(alone, found, strict=True))
