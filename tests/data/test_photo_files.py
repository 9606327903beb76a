"""What is a photo, what only looks like one, and grey of more than 8 bits."""

import sys

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from sbce_hf.config import DataConfig
from sbce_hf.data import decoding, load_images, photo_files
from sbce_hf.data.decoding import decode_image
from sbce_hf.data.grey import scaled_to_8_bits
from sbce_hf.data.image_ids import check_ids
from sbce_hf.data.photo_files import Finder, is_photo_name, walk
from sbce_hf.data.photos import load_photos
from sbce_hf.data.start_table import write_start_table
from sbce_hf.errors import UserError
from sbce_hf.runs.overlays import DRAWN

RAMP = np.linspace(0, 1, 48 * 64).reshape(48, 64)


def gradient():
    return Image.fromarray((255 * RAMP).astype(np.uint8)).convert("RGB")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.avif", "AVIF"),
        ("a.gif", "GIF"),
        ("a.mpo", "MPO"),
        ("a.jfif", "JPEG"),
        ("a.jpe", "JPEG"),
        ("a.JPEG", "JPEG"),
        ("a.jp2", "JPEG2000"),
        ("a.tga", "TGA"),
        ("a.ppm", "PPM"),
        ("a.webp", "WEBP"),
    ],
)
def test_whatever_pillow_opens_is_taken(tmp_path, name, kind):
    gradient().save(tmp_path / name, format=kind)
    images = load_photos([tmp_path], ("cat",))
    assert images.image_ids == ["a"] and not images.skipped
    assert np.abs(np.asarray(images.image(0), float)[..., 0] - 255 * RAMP).mean() < 6


def test_of_what_moves_the_first_picture_is_taken(tmp_path):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert load_photos([tmp_path], ("cat",)).image(0).getpixel((0, 0)) == (255, 0, 0)


@pytest.fixture
def without_heif(monkeypatch):
    """As where the plug-in is not installed."""
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    formats = tuple(name for name in decoding.open_formats() if name != "HEIF")
    monkeypatch.setattr(photo_files, "open_formats", lambda: formats)
    photo_files.photo_suffixes.cache_clear()
    yield
    photo_files.photo_suffixes.cache_clear()


def test_what_looks_like_a_photo_is_listed_with_the_remedy(tmp_path, without_heif):
    root = tmp_path / "photos"
    (root / "deep").mkdir(parents=True)
    gradient().save(root / "deep" / "a.png")
    for name in ("b.heic", "c.NEF", "deep/._a.png", "notes.txt", "d.h5"):
        (root / name).write_bytes(b"something")
    (tmp_path / "elsewhere").mkdir()
    gradient().save(tmp_path / "elsewhere" / "e.png")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    images = load_photos([root, root / "b.heic"], ("cat",))
    assert images.image_ids == ["deep/a"]
    reasons = {skipped.file.removeprefix(f"{root}/"): skipped.reason for skipped in images.skipped}
    assert reasons.keys() == {"b.heic", "c.NEF", "deep/._a.png", "linked", "gone.jpg"}
    assert "pip install 'sbce-hf[heif]'" in reasons["b.heic"] and "raw file" in reasons["c.NEF"]
    assert "macOS" in reasons["deep/._a.png"] and "not followed" in reasons["linked"]
    with pytest.raises(UserError, match=r"no photos; .*b\.heic: needs the plug-in pillow-heif"):
        load_photos([root / "b.heic"], ("cat",))
    with pytest.raises(UserError, match=r"1 files were left out: .*pillow-heif"):
        only = tmp_path / "only"
        (only / "images").mkdir(parents=True)
        (only / "images" / "b.heic").write_bytes(b"")
        load_images(DataConfig(source="folder", data_dir=str(only)), "train")


def test_the_plug_in_that_is_named_reads_them(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.from_pillow(gradient()).save(tmp_path / "a.heic")
    images = load_photos([tmp_path], ("cat",))
    assert not images.skipped and images.image(0).size == (64, 48)
    assert np.abs(np.asarray(images.image(0), float)[..., 0] - 255 * RAMP).mean() < 6


def test_folders_of_results_are_passed_over_without_a_word(tmp_path):
    for name in ("a.png", "out/labels/b.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        gradient().save(tmp_path / name)
    assert walk(tmp_path, [tmp_path / "out"]) == ([tmp_path / "a.png"], [])


def test_results_that_lie_among_the_photos_are_neither_photos_nor_classes(tmp_path):
    results = ("runs/x/figures/sheet.png", "old/labels/label_maps/a.png", "old/overlays/a.jpg", "drawn/b.jpg")
    for name in ("cat/a.png", "dog/b.png", *results):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        gradient().save(tmp_path / name)
    for name in ("runs/x/config.yaml", "runs/x/run.json", "old/labels/meta.json", f"drawn/{DRAWN}"):
        (tmp_path / name).write_text("{}")
    images = load_images(DataConfig(source="folder", data_dir=str(tmp_path)), "train")
    assert images.class_names == ("cat", "dog")
    left_out = {skipped.file.removeprefix(f"{tmp_path}/") for skipped in images.skipped}
    assert left_out == {"runs/x", "old/labels", "old/overlays", "drawn"}
    assert load_photos([tmp_path], ("cat",)).image_ids == ["cat/a", "dog/b"]


@pytest.mark.parametrize("bits", [9, 10, 12, 14])
def test_grey_of_10_to_14_bits_in_16_is_neither_black_nor_white(tmp_path, bits):
    Image.fromarray(np.rint(RAMP * (2**bits - 1)).astype(np.uint16)).save(tmp_path / "a.png")
    image = decode_image(tmp_path / "a.png")
    assert np.abs(np.asarray(image, float)[..., 0] - 255 * RAMP).max() < 2
    images = load_photos([tmp_path], ("cat",))
    assert images.notes == ("1 images have more than 8 bits of grey and were scaled by their own range: a",)


def test_grey_of_16_bits_keeps_its_exposure(tmp_path):
    Image.fromarray(np.rint(20_000 + RAMP * 30_000).astype(np.uint16)).save(tmp_path / "a.png")
    grey = np.asarray(decode_image(tmp_path / "a.png"))[..., 0]
    assert (grey.min(), grey.max()) == (78, 195) and not load_photos([tmp_path], ("cat",)).notes


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -9999, -32768, 1e9, 3.4e38, -3.4e38])
@pytest.mark.parametrize("scale", [1, 300])
def test_floating_point_with_odd_pixels(tmp_path, bad, scale):
    values = (scale * (1 + RAMP)).astype(np.float32)
    values[0, :2] = bad
    Image.fromarray(values).save(tmp_path / "a.tif")
    grey = np.asarray(decode_image(tmp_path / "a.tif"), float)[..., 0]
    assert np.abs(grey - 255 * RAMP)[1:].max() < 3
    assert load_photos([tmp_path], ("cat",)).notes


def test_the_value_that_a_tiff_declares_as_no_data(tmp_path):
    values = (100 + 50 * RAMP).astype(np.float32)
    values[:10] = -1234.5
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[42113] = "-1234.5"
    Image.fromarray(values).save(tmp_path / "a.tif", tiffinfo=tags)
    grey = np.asarray(decode_image(tmp_path / "a.tif"), float)[..., 0]
    assert (grey[:10] == 0).all() and grey[11].max() < 70 and grey[-1].min() > 240


@pytest.mark.parametrize("values", [np.full((4, 4), np.nan), np.full((4, 4), 7.0), np.zeros((4, 4)), np.ones((1, 1))])
def test_nothing_to_scale(values):
    grey, _ = scaled_to_8_bits(values)
    assert grey.dtype == np.uint8 and grey.shape == values.shape


def test_a_table_made_elsewhere_finds_its_files():
    finder = Finder(["a.jpg", "kitchen/b.JPG", "garden/c.png", "kitchen/c.png", "x.jpg", "x.png"])
    assert finder.find("a.jpg") == ("a.jpg", "")
    assert finder.find("images/a.jpg") == ("a.jpg", "")
    assert finder.find("kitchen\\b.jpg") == ("kitchen/b.JPG", "letters")
    assert finder.find("b.JPG") == ("kitchen/b.JPG", "folder")
    assert finder.find("/home/me/kitchen/c.png") == ("kitchen/c.png", "folder")
    assert finder.find("1f2e3d4c-b.jpg") == ("kitchen/b.JPG", "folder")
    assert finder.find("a") == ("a.jpg", "ending")
    # More than one may be meant.
    assert finder.candidates("old/c.png") == ["garden/c.png", "kitchen/c.png"]
    assert finder.find("c.png") == (None, "") and finder.find("x") == (None, "") and finder.find("d.jpg") == (None, "")


def test_folders_that_programs_keep_are_no_classes(tmp_path):
    for folder in ("cat", "dog", ".thumbnails", ".ipynb_checkpoints/deep", "__MACOSX", ".git"):
        (tmp_path / folder).mkdir(parents=True)
        if folder != ".git":
            Image.new("RGB", (8, 8)).save(tmp_path / folder / "a.jpg")
    images = load_images(DataConfig(source="folder", data_dir=str(tmp_path)), "train")
    assert images.class_names == ("cat", "dog")
    left_out = {skipped.file.removeprefix(f"{tmp_path}/") for skipped in images.skipped}
    assert left_out == {".ipynb_checkpoints", ".thumbnails", "__MACOSX"}


def test_blanks_around_names():
    finder = Finder([" a.jpg", "kitchen /b.jpg"])
    assert finder.find(" a.jpg")[0] == finder.find("a.jpg")[0] == " a.jpg"
    assert finder.find("kitchen/b.jpg")[0] == "kitchen /b.jpg"
    with pytest.raises(UserError, match=r"photos ' a\.jpg' and 'a\.jpg': their names differ only in blanks"):
        Finder([" a.jpg", "a.jpg"])


def test_names_of_photos():
    assert all(map(is_photo_name, ("a.jpg", " x\\y.PNG ", "a.heic")))
    assert not any(map(is_photo_name, ("a.txt", "file", "tags", "", "v1.2")))


def test_a_name_that_breaks_tables_is_left_out_with_the_reason(tmp_path):
    odd = ("a\x1b[31m.png", "b\n.png", "c\udcff.png", "d\ufffe.png", "e\udcff/e.png")
    for name in ("ok \u00fc\u200f.png", *odd):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        gradient().save(tmp_path / "photos" / name)
    photos = load_photos([tmp_path / "photos"], ("cat",))
    assert photos.image_ids == ["ok \u00fc\u200f"]
    assert {skipped.file.removeprefix(f"{tmp_path}/photos/") for skipped in photos.skipped} == set(odd)
    assert all("has control characters or is no UTF-8; rename it" in skipped.reason for skipped in photos.skipped)
    with pytest.raises(UserError, match=r"no photos; .*rename it"):
        load_photos([tmp_path / "photos" / "c\udcff.png"], ("cat",))
    for path in ("e\udcff", "e\udcff/e.png"):
        with pytest.raises(UserError, match="the name is no UTF-8; rename it"):
            load_photos([tmp_path / "photos" / path], ("cat",))
    table, count, left_out = write_start_table(tmp_path / "photos")
    assert count == 1 and len(left_out) == len(odd) and "ok \u00fc" in table.read_text(encoding="utf-8-sig")
    with pytest.raises(UserError, match=r"image id 'a\\x1b': has control characters"):
        check_ids(["a\x1b"], "train")
