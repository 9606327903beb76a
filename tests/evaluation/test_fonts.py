"""Names in scripts that the drawings' own font lacks: another font of the machine, or a number, never a box."""

import warnings

import numpy as np
import pytest
from fontTools.ttLib import TTFont
from PIL import Image

from sbce_hf.evaluation import fonts
from sbce_hf.evaluation.contact_sheet import ContactRow, contact_sheet
from sbce_hf.evaluation.curves import plot_histograms
from sbce_hf.evaluation.fonts import drawable, font, font_file, meanings, numbered
from sbce_hf.evaluation.overlay import legend, overlay

CAT, DOG = "\u732b", "\u72ac"
RED = np.array([200, 0, 0])


@pytest.fixture
def machine(monkeypatch):
    """Say which font files the machine has."""

    def has(*files):
        for function in (fonts.font_file, fonts._others, fonts._signs):
            function.cache_clear()
        monkeypatch.setattr(fonts, "findSystemFonts", lambda: [str(file) for file in files])

    yield has
    for function in (fonts.font_file, fonts._others, fonts._signs):
        function.cache_clear()


@pytest.fixture
def font_with_cat(tmp_path):
    """Our own font with one sign more, which is drawn as an A."""
    made = TTFont(font_file("A"))
    for table in made["cmap"].tables:
        if table.isUnicode():
            table.cmap[ord(CAT)] = "A"
    path = tmp_path / "Cat-Regular.ttf"
    made.save(path)
    return path


def test_a_font_of_the_machine_draws_what_ours_lacks(machine, font_with_cat, tmp_path):
    (tmp_path / "Broken-Regular.ttf").write_bytes(b"no font")
    machine(tmp_path / "Broken-Regular.ttf", tmp_path / "absent.ttf", font_with_cat)
    assert numbered([CAT, DOG, "cat"]) == [CAT, "2", "cat"]
    assert meanings([CAT, DOG, "cat"]) == f"; 2 is {DOG}" and meanings([CAT]) == ""
    assert font_file(CAT) == font_with_cat and font_file(DOG) is None
    # Not a box, but the sign that this font has.
    assert font(CAT).getmask(CAT).getbbox() == font().getmask("A").getbbox()
    assert (np.asarray(legend([(CAT, RED)], 200)) == np.asarray(legend([("A", RED)], 200))).all()


def test_signs_without_width_need_no_font(machine):
    machine()
    assert drawable("caf\u00e9 \u0434\u043e\u043c", 1) == "caf\u00e9 \u0434\u043e\u043c"
    assert font_file("a\u200db") == font_file("a") and font_file("a", bold=True) != font_file("a")


def test_a_font_of_boxes_is_none(machine, font_with_cat):
    machine(font_with_cat.rename(font_with_cat.with_name("LastResort.otf")))
    assert numbered([CAT]) == ["1"]


def test_pictures_show_the_number_of_a_name_that_cannot_be_drawn(machine, tmp_path):
    machine()
    label_map = np.zeros((40, 60), np.uint8)
    label_map[:20] = 2
    photo = Image.new("RGB", (60, 40), "green")
    pictures = []
    for names in (["cat", DOG], ["cat", "2"]):
        row = ContactRow(CAT if names[1] == DOG else "\\u732b", photo, label_map / 2, label_map)
        contact_sheet([row], names, tmp_path / "sheet.png")
        with warnings.catch_warnings():
            # matplotlib warns of a sign that it has no glyph for.
            warnings.simplefilter("error")
            plot_histograms({"round_1": {name: np.linspace(0, 1, 9) for name in names}}, tmp_path / "histogram.png")
        drawn = [(tmp_path / file).read_bytes() for file in ("sheet.png", "histogram.png")]
        pictures.append([*drawn, overlay(photo, label_map, names).tobytes()])
    assert pictures[0] == pictures[1]
