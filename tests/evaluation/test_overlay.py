import numpy as np
import pytest
from PIL import Image

from sbce_hf.evaluation.overlay import beside, overlay

NAMES = ("ant", "bee")


def test_classes_are_tinted_and_background_is_left_alone():
    photo = Image.new("L", (200, 100), 100)
    label_map = np.zeros((100, 200), np.uint8)
    label_map[:50, :100] = 2
    sheet = overlay(photo, label_map, NAMES)
    drawn = np.asarray(sheet)
    assert sheet.mode == "RGB" and sheet.width == 200
    # Half the photo, half the VOC colour of value 2, (0, 128, 0), with a quarter of white.
    assert np.abs(drawn[10, 10].astype(int) - (82, 130, 82)).max() <= 1
    assert (drawn[60, 10] == 100).all() and (drawn[10, 150] == 100).all()


def test_legend_names_the_classes_that_occur():
    photo = Image.new("RGB", (200, 100))
    sheets = {}
    for value in (0, 1, 2):
        legend = np.asarray(overlay(photo, np.full((100, 200), value, np.uint8), NAMES))[100:]
        sheets[value] = legend
        # The swatch has the colour that is drawn.
        for other, colour in ((1, (160, 64, 64)), (2, (64, 160, 64))):
            assert (legend == colour).all(axis=-1).any() == (value == other)
    assert (sheets[0] != 255).any(), "a map without classes says so"


def test_many_classes_wrap_and_a_long_name_fits():
    names = tuple(f"a class with a long name {index}" for index in range(40))
    label_map = np.arange(41, dtype=np.uint8).repeat(5)[None].repeat(3, axis=0)
    sheet = overlay(Image.new("RGB", (205, 3)), label_map, names)
    assert sheet.width > 205 and sheet.height > 40 * 20
    assert (np.asarray(sheet)[:, -1] == 255).all()


def test_a_name_without_end_makes_no_wide_picture():
    drawn = overlay(Image.new("RGB", (40, 40)), np.ones((40, 40), np.uint8), ("x" * 20_000,))
    assert drawn.width < 600


def test_large_photos_are_drawn_smaller():
    label_map = np.zeros((30, 4096), np.uint8)
    label_map[:, 2048:] = 1
    drawn = np.asarray(overlay(Image.new("RGB", (4096, 30)), label_map, NAMES))
    assert drawn.shape[1] == 2048
    assert (drawn[5, 1020] == 0).all() and (drawn[5, 1030] == (80, 32, 32)).all()


def test_an_object_is_outlined_and_what_is_undecided_is_named():
    label_map = np.zeros((60, 90), np.uint8)
    label_map[20:40, 20:40], label_map[20:40, 60:80] = 1, 255
    sheet = overlay(Image.new("RGB", (90, 60)), label_map, NAMES)
    drawn = np.asarray(sheet)
    # A white line around it, black beyond, and its colour within: seen on the darkest photo.
    assert (drawn[30, [19, 20]] == 255).all() and (drawn[30, 17] == 0).all() and (drawn[30, 30] == (80, 32, 32)).all()
    assert sheet.height > 60 + 24, "two names under each other"


def test_beside_shows_photo_and_label_map_at_one_size():
    photo = Image.new("RGB", (120, 60), "red")
    label_map = np.zeros((60, 120), np.uint8)
    label_map[:, 60:] = 1
    drawn = np.asarray(beside(photo, label_map, NAMES, width=60))
    assert (drawn[15, 10] == (255, 0, 0)).all() and (drawn[15, 50] == (255, 0, 0)).all()
    # To the right of a gap; the legend may be wider.
    assert np.abs(drawn[15, 115].astype(int) - (208, 32, 32)).max() <= 1


@pytest.mark.parametrize("size", [(900, 90), (90, 900), (5000, 2), (2, 5000)])
def test_beside_is_of_one_width_whatever_the_photo(size):
    sheet = beside(Image.new("RGB", size), np.zeros(size[::-1], np.uint8), NAMES)
    assert sheet.width == 2 * 240 + 6 and sheet.height <= 600


@pytest.mark.parametrize(
    ("label_map", "message"), [(np.zeros((3, 4)), "label map is"), (np.full((4, 3), 3), "value 3")]
)
def test_wrong_label_maps(label_map, message):
    with pytest.raises(ValueError, match=message):
        overlay(Image.new("RGB", (3, 4)), label_map.astype(np.uint8), NAMES)
