"""Saliency maps are looked at before anything starts, and nothing but small grey PNGs of the data's own is opened."""

import io
import struct
import zlib

import numpy as np
import pytest
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image

from sbce_hf.config import DataConfig, SaliencyConfig
from sbce_hf.data import load_images
from sbce_hf.data.hub import load
from sbce_hf.data.saliency_maps import SaliencyMaps, check_saliency_maps
from sbce_hf.errors import UserError

DATA = DataConfig(source="shapes", shapes_images=8, shapes_size=40)


@pytest.fixture(scope="module")
def images():
    return load_images(DATA, "train")


@pytest.fixture
def folder(images, tmp_path):
    root = tmp_path / "maps"
    root.mkdir()
    for seed, image_id in enumerate(images.image_ids):
        write(root / f"{image_id}.png", values(seed))
    return root


def values(seed, size=(40, 40)):
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


def write(path, array):
    Image.fromarray(array).save(path)


def png(array):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, format="PNG")
    return stream.getvalue()


def opened(folder, data=DATA, **options):
    return SaliencyMaps(SaliencyConfig(maps=str(folder), **options), data, "train")


def test_maps_are_read_by_image_id(folder, images):
    maps = opened(folder)
    digest = check_saliency_maps(maps, images)
    for seed, image_id in enumerate(images.image_ids):
        found = maps.read(image_id, (40, 40))
        assert found.dtype == np.uint8 and (found == values(seed)).all()
    # The content counts, not the place, and all of it.
    folder.rename(folder.with_name("moved"))
    moved = opened(folder.with_name("moved"))
    assert check_saliency_maps(moved, images) == digest
    path = folder.with_name("moved") / f"{images.image_ids[3]}.png"
    array = values(3)
    array[-1, -1] ^= 1
    write(path, array)
    assert check_saliency_maps(moved, images) != digest
    write(path, values(3))
    assert check_saliency_maps(moved, images) == digest


def test_all_that_is_missing_or_of_another_size_is_said_at_once(folder, images):
    ids = images.image_ids
    for image_id in ids[:6]:
        (folder / f"{image_id}.png").unlink()
    write(folder / f"{ids[6]}.png", values(0, (20, 30)))
    with pytest.raises(UserError) as caught:
        check_saliency_maps(opened(folder), images)
    message = str(caught.value)
    assert f"saliency.maps {folder}: 6 of 8 images have no saliency map: {folder / ids[0]}.png, " in message
    assert f"{ids[4]}.png and 1 more" in message and f"{ids[5]}.png" not in message
    size = "got 30 x 20 pixels, expected 40 x 40 like its image"
    assert f"1 maps are not of their image's size: {folder / ids[6]}.png ({size})" in message
    assert message.endswith("set saliency.resize=true")


def test_a_resize_only_where_it_is_asked_for(folder, images):
    image_id = images.image_ids[0]
    half = np.repeat(np.repeat(np.array([[0, 200]], np.uint8), 20, axis=0), 10, axis=1)
    write(folder / f"{image_id}.png", half)
    with pytest.raises(UserError, match="got 20 x 20 pixels, expected 40 x 40.*saliency.resize=true"):
        opened(folder).read(image_id, (40, 40))
    maps = opened(folder, resize=True)
    check_saliency_maps(maps, images)
    found = maps.read(image_id, (40, 40))
    assert found.shape == (40, 40) and found[0, 0] == 0 and found[0, -1] == 200 and 0 < found[0, 20] < 200


def test_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent: no such folder; expected saliency maps"):
        opened(tmp_path / "absent")


@pytest.mark.parametrize(
    ("array", "mode"),
    [
        (np.zeros((40, 40, 3), np.uint8), "RGB"),
        (np.zeros((40, 40, 4), np.uint8), "RGBA"),
        (np.zeros((40, 40), np.uint16), "I;16"),
        (np.zeros((40, 40), bool), "1"),
    ],
)
def test_more_than_one_channel_of_8_bits_is_refused(folder, images, array, mode):
    path = folder / f"{images.image_ids[2]}.png"
    write(path, array)
    with pytest.raises(UserError, match=rf"{path}: got a PNG of mode {mode}, expected .*one channel of 8 bits"):
        check_saliency_maps(opened(folder), images)


def test_a_palette_is_no_grey(folder, images):
    path = folder / f"{images.image_ids[2]}.png"
    Image.fromarray(values(0)).convert("P").save(path)
    with pytest.raises(UserError, match="got a PNG of mode P"):
        check_saliency_maps(opened(folder), images)


def bomb():
    """A header that promises more than anybody's memory."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b"")]
    content = b"\x89PNG\r\n\x1a\n"
    for name, data in chunks:
        content += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "unreadable PNG.*expected a saliency map as a grey PNG"),
        (b"\x80\x04\x95pickle", "unreadable PNG"),
        (png(values(0))[:-40], "cut off"),
        (bomb(), "unreadable PNG: DecompressionBombError"),
    ],
)
def test_what_is_no_whole_png_is_refused(folder, images, content, message):
    path = folder / f"{images.image_ids[1]}.png"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{path}: .*{message}"):
        check_saliency_maps(opened(folder), images)


def test_other_formats_are_not_opened(folder, images):
    path = folder / f"{images.image_ids[1]}.png"
    Image.fromarray(values(0)).save(path, format="JPEG")
    with pytest.raises(UserError, match="unreadable PNG"):
        check_saliency_maps(opened(folder), images)


def test_links_out_of_the_folder_are_not_followed(folder, images, tmp_path):
    path, secret = folder / f"{images.image_ids[1]}.png", tmp_path / "secret.png"
    path.rename(secret)
    path.symlink_to(secret)
    with pytest.raises(UserError, match=r"is .*secret\.png, expected a file inside of .*data\.outside_files=true"):
        check_saliency_maps(opened(folder), images)
    allowed = DataConfig(source="shapes", outside_files=True)
    check_saliency_maps(opened(folder, allowed), images)
    path.unlink()
    path.symlink_to(folder / f"{images.image_ids[0]}.png")
    check_saliency_maps(opened(folder), images)
    path.unlink()
    path.symlink_to("nowhere.png")
    with pytest.raises(UserError, match="1 of 8 images have no saliency map"):
        check_saliency_maps(opened(folder), images)


def save(folder, maps, name="glow"):
    count = len(maps)
    photos = [{"bytes": png(values(i, (4, 6, 3))), "path": None} for i in range(count)]
    columns = {"image": photos, "labels": [["cat"]] * count, name: maps, "key": [f"k{i}" for i in range(count)]}
    schema = {"image": ImageFeature(), "labels": List(Value("string")), name: ImageFeature(), "key": Value("string")}
    Dataset.from_dict(columns, features=Features(schema)).to_parquet(folder / "train.parquet")
    return DataConfig(source="hub", dataset=str(folder), columns={"image_id": "key"})


def test_a_column_of_the_dataset(tmp_path):
    data = save(tmp_path, [{"bytes": png(values(i, (4, 6))), "path": None} for i in range(3)])
    images = load(data, "train")
    maps = SaliencyMaps(SaliencyConfig(column="glow"), data, "train")
    check_saliency_maps(maps, images)
    assert all((maps.read(f"k{i}", (4, 6)) == values(i, (4, 6))).all() for i in range(3))
    with pytest.raises(UserError, match=r"column 'shine': got none, expected one of images: image, glow"):
        SaliencyMaps(SaliencyConfig(column="shine"), data, "train")
    with pytest.raises(UserError, match=r"column 'key': got Value.*, expected one of images"):
        SaliencyMaps(SaliencyConfig(column="key"), data, "train")
    with pytest.raises(UserError, match="data.source is 'shapes'; name a folder with saliency.maps"):
        SaliencyMaps(SaliencyConfig(column="glow"), DATA, "train")


def test_rows_of_a_column_without_a_map_or_with_one_of_elsewhere(tmp_path):
    (tmp_path / "data").mkdir()
    write(tmp_path / "secret.png", values(0, (4, 6)))
    whole = {"bytes": png(values(0, (4, 6))), "path": None}
    data = save(tmp_path / "data", [whole, None, {"bytes": png(values(0, (5, 6))), "path": None}])
    maps = SaliencyMaps(SaliencyConfig(column="glow"), data, "train")
    with pytest.raises(UserError) as caught:
        check_saliency_maps(maps, load(data, "train"))
    assert "saliency.column glow: 1 of 3 images have no saliency map: saliency map of image 'k1'." in str(caught.value)
    assert "saliency map of image 'k2' (got 6 x 5 pixels, expected 6 x 4 like its image)" in str(caught.value)
    data = save(tmp_path / "data", [whole, {"bytes": None, "path": str(tmp_path / "secret.png")}])
    with pytest.raises(UserError, match=r"glow of image 'k1': got .*secret\.png.*data\.outside_files=true"):
        SaliencyMaps(SaliencyConfig(column="glow"), data, "train")


def test_one_place_only():
    for given, got in (({}, "neither maps nor column"), ({"maps": "a", "column": "b"}, "maps and column")):
        with pytest.raises(Exception, match=f"saliency: got {got}, expected one of them"):
            SaliencyConfig(**given)
