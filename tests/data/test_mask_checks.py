"""Masks on which a score would say nothing are told before anything starts."""

import numpy as np
import pytest
from PIL import Image

from sbce_hf.config import DataConfig
from sbce_hf.data import load_images
from sbce_hf.errors import UserError


@pytest.fixture
def masked(tmp_path):
    """Makes a folder of photos with the given tags and mask values."""

    def make(*photos):
        rows = ["file,tags"]
        for folder in ("images", "masks"):
            (tmp_path / folder).mkdir()
        for number, (tags, values) in enumerate(photos):
            Image.new("RGB", (8, 6)).save(tmp_path / "images" / f"{number}.png")
            mask = np.zeros((6, 8), np.uint8)
            mask[0, : len(values)] = values
            Image.fromarray(mask).save(tmp_path / "masks" / f"{number}.png")
            rows.append(f"{number}.png,{tags}")
        (tmp_path / "tags.csv").write_text("\n".join(rows))
        return load_images(DataConfig(source="folder", data_dir=str(tmp_path), score_split="train"), "train")

    return make


def test_one_class_of_255_is_not_a_perfect_score(masked):
    with pytest.raises(
        UserError, match=r"hold nothing but 0 and 255, which is ignored: is 255 your class cat\? Write 1"
    ):
        masked(("cat", [255]), ("", []))


def test_masks_of_255_with_two_classes(masked):
    with pytest.raises(UserError, match="hold nothing but 0 and 255, .*Write 1 for cat, 2 for dog and so on"):
        masked(("cat", [255]), ("dog", [255]))


def test_masks_of_background_only(masked):
    with pytest.raises(UserError, match="hold nothing but 0, which is background"):
        masked(("cat", []), ("dog", []))


def test_a_tagged_class_in_no_mask_is_told(masked):
    images = masked(("cat", [1, 255]), ("dog", [255]))
    assert images.notes == (
        "dog: tagged, but in no mask, so its IoU says nothing; 255 in a mask is no class, it is ignored",
    )


def test_numbers_in_another_order_are_told(masked):
    images = masked(("dog", [1]), ("dog", [1]), ("cat", [2]), ("cat;dog", [1, 2]))
    assert images.notes == (
        "3 of 4 masks hold a class that their photo is not tagged with: are their numbers in this order? 1 cat, "
        "2 dog; else set data.classes",
    )


def test_nothing_to_say_of_masks_that_go_with_the_tags(masked):
    assert masked(("dog", [2]), ("cat", [1, 255]), ("", [])).notes == ()
