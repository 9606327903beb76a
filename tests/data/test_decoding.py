"""What a file is to blame for may cost a photo; what the machine is to blame for stops with its own error."""

import errno
import re
import resource
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from PIL.ExifTags import Base

from sbce_hf.data.decoding import (
    UnreadableError,
    decode_image,
    decode_indices,
    encode_png,
    upright_size,
)
from sbce_hf.data.grey import scaled_to_8_bits
from sbce_hf.data.photos import load_photos
from sbce_hf.inference.writing import read_images
from sbce_hf.labels.label_maps import check_label_maps

OF_THE_MACHINE = [
    MemoryError("no memory"),
    *(OSError(getattr(errno, name), name) for name in ("EMFILE", "ENFILE", "ESTALE", "EIO", "ENOSPC", "ENOMEM")),
]
OF_THE_FILE = [
    OSError("image file is truncated"),
    FileNotFoundError(errno.ENOENT, "gone"),
    PermissionError(errno.EACCES, "not yours"),
    IsADirectoryError(errno.EISDIR, "a folder"),
    SyntaxError("broken PNG file"),
    Image.DecompressionBombError("too large"),
]


@pytest.fixture
def folder(tmp_path):
    for name in ("a", "b", "c"):
        Image.effect_noise((20, 30), 80).convert("RGB").save(tmp_path / f"{name}.png")
    return tmp_path


@pytest.fixture
def fails(monkeypatch):
    """Lets opening one file fail."""
    opened = Image.open

    def let(name, error):
        def patched(source, *arguments, **options):
            if str(source).endswith(name):
                raise error
            return opened(source, *arguments, **options)

        monkeypatch.setattr(Image, "open", patched)

    return let


@pytest.mark.parametrize("decode", [decode_image, upright_size, decode_indices])
@pytest.mark.parametrize("error", OF_THE_MACHINE, ids=repr)
def test_errors_of_the_machine_are_passed_on(folder, fails, decode, error):
    fails("b.png", error)
    with pytest.raises(type(error)) as caught:
        decode(folder / "b.png")
    assert caught.value is error


@pytest.mark.parametrize("decode", [decode_image, upright_size, decode_indices])
@pytest.mark.parametrize("error", OF_THE_FILE, ids=repr)
def test_errors_of_the_file_say_that_it_is_unreadable(folder, fails, decode, error):
    fails("b.png", error)
    with pytest.raises(UnreadableError, match=f"unreadable (image|mask): {type(error).__name__}") as caught:
        decode(folder / "b.png")
    assert caught.value.__cause__ is error


TURNS = {
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def test_too_many_open_files_is_not_a_damaged_photo(folder):
    decode_image(folder / "a.png")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(OSError) as caught:
            decode_image(folder / "a.png")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert caught.value.errno == errno.EMFILE


@pytest.mark.parametrize("error", OF_THE_MACHINE, ids=repr)
def test_no_photo_is_dropped_while_a_data_set_is_checked(folder, fails, error):
    fails("b.png", error)
    with pytest.raises(type(error)) as caught:
        load_photos([folder], ("cat",))
    assert caught.value is error and "b.png" in "".join(error.__notes__)


def test_a_damaged_photo_is_dropped_while_a_data_set_is_checked(folder):
    (folder / "b.png").write_bytes(b"no image")
    images = load_photos([folder], ("cat",))
    assert images.image_ids == ["a", "c"]
    assert [(s.file, s.reason.split(":")[0]) for s in images.skipped] == [(str(folder / "b.png"), "unreadable image")]


@pytest.mark.parametrize("error", OF_THE_MACHINE, ids=repr)
def test_no_photo_is_dropped_while_labelling(folder, fails, error):
    images = load_photos([folder], ("cat",))
    fails("b.png", error)
    with pytest.raises(type(error)) as caught:
        read_images(images, range(3), strict=False)
    assert caught.value is error and "image 'b'" in "".join(error.__notes__)


def test_a_photo_that_went_away_is_dropped_while_labelling(folder):
    images = load_photos([folder], ("cat",))
    (folder / "b.png").unlink()
    readable, skipped = read_images(images, range(3), strict=False)
    assert set(readable) == {0, 2} and skipped[1].startswith("image 'b': unreadable image: FileNotFoundError")
    with pytest.raises(UnreadableError, match="image 'b'"):
        read_images(images, range(3), strict=True)


class FailingLabelMaps:
    class_names = ("cat",)
    complete = True

    def __init__(self, error):
        self.error = error

    def __contains__(self, image_id):
        return True

    def read(self, image_id):
        if image_id == "b":
            raise self.error
        return np.zeros((30, 20), np.uint8)


def test_label_maps_are_not_called_damaged_either(folder):
    images = load_photos([folder], ("cat",))
    for error in OF_THE_MACHINE:
        with pytest.raises(type(error)) as caught:
            check_label_maps(images, FailingLabelMaps(error))
        assert caught.value is error
    with pytest.raises(ValueError, match="label map of image 'b': SyntaxError: broken"):
        check_label_maps(images, FailingLabelMaps(SyntaxError("broken")))


def test_strips_and_the_whole_are_one(monkeypatch):
    noise = np.random.default_rng(0)
    grey = [np.abs(noise.normal(500, 200, (70, 90))).astype(kind) for kind in (np.uint16, ">u2", np.int32, np.float32)]
    cut_out = Image.fromarray(noise.integers(0, 256, (70, 90, 4), dtype=np.uint8))
    palette = cut_out.quantize(40)
    palette.info["transparency"] = 3
    coded = [encode_png(picture) for picture in (cut_out, cut_out.convert("LA"), palette)]

    def all_of_them():
        return [scaled_to_8_bits(values)[0] for values in grey] + [np.asarray(decode_image(png)) for png in coded]

    whole = all_of_them()
    for values, found in zip(grey, whole, strict=False):
        low, high = np.quantile(values.astype(float), (0.001, 0.999))
        expected = np.rint((np.clip(values.astype(float), low, high) - low) * (255 / (high - low)))
        np.testing.assert_array_equal(found, expected)
    on_white = Image.alpha_composite(Image.new("RGBA", cut_out.size, "white"), cut_out).convert("RGB")
    np.testing.assert_array_equal(whole[len(grey)], np.asarray(on_white))
    monkeypatch.setattr("sbce_hf.data.grey._STRIP", 200)
    for found, expected in zip(all_of_them(), whole, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_picture_beyond_all_photos_is_skipped_by_its_header(folder):
    png = (folder / "a.png").read_bytes()
    header = b"IHDR" + struct.pack(">II", 20_000, 20_000) + png[24:29]
    png = png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:]
    (folder / "a.png").write_bytes(png)
    (skipped,) = load_photos([folder], ("cat",)).skipped
    assert "400000000 pixels" in skipped.reason and "178956970" in skipped.reason


def test_a_jpeg_of_endless_scans_is_skipped(folder):
    picture = Image.open(folder / "a.png")
    picture.save(folder / "a.jpg", progressive=True)
    (folder / "a.png").unlink()
    assert not load_photos([folder], ("cat",)).skipped
    content = (folder / "a.jpg").read_bytes()
    start = content.index(b"\xff\xda")
    scan = content[start : content.index(b"\xff\xc4", start)]
    (folder / "a.jpg").write_bytes(content[:start] + 500 * scan + content[start:])
    (skipped,) = load_photos([folder], ("cat",)).skipped
    assert re.search(r"a progressive JPEG of 5\d\d scans, expected at most 100", skipped.reason)


@pytest.mark.parametrize("orientation", [1, 5, 6, 7, 8])
@pytest.mark.parametrize("mode", ["L", "I;16", "P", "RGBA", "CMYK"])
def test_turned_tiffs_are_turned_and_not_scrambled(tmp_path, mode, orientation):
    grey = np.repeat(np.arange(60, dtype=np.uint8)[None] * 4, 40, axis=0)
    grey[:3] = 250
    image = Image.fromarray(grey.astype(np.uint16) * 257 if mode == "I;16" else grey)
    image = image if mode in ("L", "I;16") else image.convert(mode)
    exif = Image.Exif()
    exif[Base.Orientation] = orientation
    image.save(tmp_path / "a.tif", exif=exif)
    turned = grey if orientation == 1 else np.asarray(Image.fromarray(grey).transpose(TURNS[orientation]))
    assert np.abs(np.asarray(decode_image(tmp_path / "a.tif"))[..., 0].astype(int) - turned).max() <= 1


@pytest.mark.parametrize(("kind", "low"), [(np.uint32, 2**31 - 100), (np.int8, -100)])
def test_tiffs_whose_sign_pillow_takes_for_the_other(tmp_path, kind, low):
    values = (low + np.arange(200).reshape(10, 20)).astype(kind)
    image = Image.fromarray(values.view(np.int32 if kind == np.uint32 else np.uint8))
    image.save(tmp_path / "a.tif", tiffinfo={339: 2})
    if kind == np.uint32:
        # Pillow writes signed ones only: tag 339 of one 16-bit number.
        content, tag = (tmp_path / "a.tif").read_bytes(), struct.pack("<HHI", 339, 3, 1)
        assert content.count(tag + b"\2") == 1
        (tmp_path / "a.tif").write_bytes(content.replace(tag + b"\2", tag + b"\1"))
    grey = np.asarray(decode_image(tmp_path / "a.tif"))[..., 0]
    assert (grey == scaled_to_8_bits(values)[0]).all() and (np.diff(grey.ravel().astype(int)) >= 0).all()
    assert grey.min() == 0 and grey.max() == 255
