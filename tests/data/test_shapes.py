import numpy as np
import pytest

from sbce_hf.config import DataConfig
from sbce_hf.data.shapes import THINGS, load


def config(**values):
    return DataConfig(**{"source": "shapes", "shapes_images": 40, "shapes_size": 96, **values})


@pytest.fixture(scope="module")
def images():
    return load(config(score_split="train"), "train")


def test_masks_hold_exactly_the_tags(images):
    assert images.class_names == tuple(THINGS) and len(images.class_names) == 4
    for index in range(len(images)):
        mask = images.mask(index)
        assert mask.shape == (96, 96) and images.image(index).size == (96, 96)
        present = np.flatnonzero(images.labels(index))
        assert 1 <= len(present) <= 3
        assert sorted(set(np.unique(mask)) - {0}) == (present + 1).tolist()
        for label in present + 1:
            assert 0.01 < (mask == label).mean() < 0.45


def test_one_class_is_rare_and_all_are_there_in_the_first_four():
    *common, rare = load(config(shapes_images=120), "train").label_matrix().sum(0)
    assert min(common) > 0.7 * max(common)
    assert 0.2 * max(common) < rare < 0.5 * max(common)
    assert load(config(shapes_images=4), "train").label_matrix().max(0).tolist() == [1, 1, 1, 1]


def test_things_have_two_sizes():
    images = load(config(shapes_images=120, score_split="train"), "train")
    single = [index for index in range(len(images)) if images.labels(index).sum() == 1]
    shares = np.sort([(images.mask(index) > 0).mean() for index in single])
    # Nothing between them, where no other thing takes room.
    large = shares[np.diff(shares, prepend=0).argmax() :]
    small = shares[: len(shares) - len(large)]
    assert 0.15 < len(small) / len(shares) < 0.45
    assert small.min() > 0.01 and small.max() < 0.06 < 0.08 < large.min()


@pytest.mark.parametrize("name", THINGS)
def test_body_is_three_to_six_times_the_loud_part(name):
    thing = THINGS[name]
    x, y = np.meshgrid(np.linspace(-1.5, 1.5, 301), np.linspace(-1.5, 1.5, 301))
    whole = thing.body(x, y) > 0
    part = whole & (thing.part(x, y) > 0)
    assert 3 <= (whole & ~part).sum() / part.sum() <= 6
    assert not whole[[0, -1]].any() and not whole[:, [0, -1]].any()


def test_the_loud_part_is_loud(images):
    """Within the things, the most saturated pixels are far more saturated than the median, which is the body's."""
    saturation = [
        np.ptp(np.asarray(images.image(i), dtype=float)[images.mask(i) > 0], axis=1) for i in range(len(images))
    ]
    median, loud = np.quantile(np.concatenate(saturation), [0.5, 0.93])
    assert loud > 120 and loud > 2 * median


def test_some_things_hide_their_loud_part():
    images = load(config(shapes_images=100), "train")
    single = [index for index in range(len(images)) if images.labels(index).sum() == 1]
    saturation = [np.ptp(np.asarray(images.image(i), dtype=float)[images.mask(i) > 0], axis=1) for i in single]
    hidden = np.mean([np.quantile(values, 0.9) < 110 for values in saturation])
    assert 0.2 < hidden < 0.6


def test_same_seed_same_pixels_other_seed_other_pixels(images):
    again = load(config(), "train")
    assert again.manifest_hash == images.manifest_hash
    assert again.dataset["image"][3] == images.dataset["image"][3]
    other = load(config(shapes_seed=1), "train")
    assert other.manifest_hash != images.manifest_hash
    assert other.dataset["image"][3] != images.dataset["image"][3]


def test_an_image_does_not_depend_on_how_many_there_are(images):
    few = load(config(shapes_images=5), "train")
    assert len(few) == 5
    assert few.dataset["image"][4] == images.dataset["image"][4]


def test_validation_split_is_other_images(images):
    val = load(config(), "val")
    assert len(val) == 10
    assert not {r["bytes"] for r in val.dataset["image"]} & {r["bytes"] for r in images.dataset["image"]}
    with pytest.raises(ValueError, match="no split 'test'; splits: train, val"):
        load(config(), "test")


def test_some_classes_in_another_order():
    images = load(config(classes=("beetle", "kite"), shapes_images=6), "train")
    assert images.class_names == ("beetle", "kite") and images.label_matrix().max(0).tolist() == [1, 1]
    one = load(config(classes=("cactus",), shapes_images=2, shapes_size=32), "train")
    assert one.label_matrix().tolist() == [[1], [1]] and set(np.unique(one.mask(0))) == {0, 1}
    with pytest.raises(ValueError, match="tag 'beetel' is no class; did you mean 'beetle'"):
        load(config(classes=("beetel",)), "train")
