import io

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

from sbce_hf.config import DataConfig
from sbce_hf.data import IGNORE_INDEX, decode_image, features, load_images, palette
from sbce_hf.data.schema import TaggedImages, decode_indices


def encode(image, **options):
    stream = io.BytesIO()
    image.save(stream, **{"format": "PNG", **options})
    return stream.getvalue()


def gradient(height=20, width=30):
    """No two rows, columns or channels alike, so that any turn, crop or swap shows."""
    y, x = np.mgrid[:height, :width]
    return np.stack([8 * x, 12 * y, 4 * x + 6 * y], axis=-1).clip(0, 255).astype(np.uint8)


def tagged(image, mask=None, mask_values=(0, 1, 2), mask_known=frozenset(range(3)), count=1):
    columns = {
        "image_id": [f"image{i}" for i in range(count)],
        "image": [{"bytes": image, "path": None}] * count,
        "labels": [[i % 2] for i in range(count)],
    }
    if mask is not None:
        columns["mask"] = [{"bytes": mask, "path": None}] * count
    dataset = Dataset.from_dict(columns, features=features(("cat", "dog"), mask is not None))
    return TaggedImages(dataset, ("cat", "dog"), mask_values, mask_known, (), "hash")


def test_palette_is_vocs():
    colours = np.array(palette()).reshape(256, 3)
    assert colours[[0, 1, 8, 15, 20, 255]].tolist() == [
        [0, 0, 0],
        [128, 0, 0],
        [64, 0, 0],
        [192, 128, 128],
        [0, 64, 128],
        [224, 224, 192],
    ]
    assert len(np.unique(colours, axis=0)) == 256
    assert palette()[:9] == [0, 0, 0, 128, 0, 0, 0, 128, 0] and len(palette()) == 768


def test_rgb_is_exact_from_path_bytes_and_mapping(tmp_path):
    pixels = gradient()
    data = encode(Image.fromarray(pixels))
    (tmp_path / "a.png").write_bytes(data)
    for source in (
        data,
        tmp_path / "a.png",
        {"bytes": data, "path": "gone.png"},
        {"bytes": None, "path": str(tmp_path / "a.png")},
    ):
        decoded = decode_image(source)
        assert decoded.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(decoded), pixels)


def test_16_bit_grey_is_scaled_not_clipped():
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    decoded = np.asarray(decode_image(encode(Image.fromarray(values))))
    assert decoded[0].tolist() == [[0] * 3, [1] * 3, [128] * 3, [255] * 3]


@pytest.mark.parametrize("values", [np.array([[0, 20, 100]], np.int32), np.array([[-1, -0.6, 1]], np.float32)])
def test_32_bit_grey_is_scaled_from_its_range(values):
    decoded = np.asarray(decode_image(encode(Image.fromarray(values), format="TIFF")))
    assert decoded[0, :, 0].tolist() == [0, 51, 255]
    constant = np.asarray(decode_image(encode(Image.fromarray(np.full_like(values, 7)), format="TIFF")))
    assert constant.shape == (1, 3, 3)


def test_transparent_pixels_become_white():
    rgba = np.zeros((1, 3, 4), dtype=np.uint8)
    rgba[0, :, 3] = [0, 128, 255]
    assert np.asarray(decode_image(encode(Image.fromarray(rgba))))[0, :, 0].tolist() == [255, 127, 0]
    grey = Image.fromarray(np.array([[[10, 0], [10, 255]]], dtype=np.uint8))
    assert np.asarray(decode_image(encode(grey)))[0, :, 0].tolist() == [255, 10]
    flat = Image.fromarray(np.array([[0, 1]], dtype=np.uint8), mode="P")
    flat.putpalette([200, 0, 0, 0, 200, 0])
    assert np.asarray(decode_image(encode(flat))).tolist() == [[[200, 0, 0], [0, 200, 0]]]
    assert np.asarray(decode_image(encode(flat, transparency=0))).tolist() == [[[255] * 3, [0, 200, 0]]]


def test_cmyk_jpeg_keeps_its_colours():
    solid = Image.new("RGB", (16, 16), (220, 40, 60))
    decoded = np.asarray(decode_image(encode(solid.convert("CMYK"), format="JPEG", quality=95)))
    assert decoded.shape == (16, 16, 3)
    np.testing.assert_allclose(decoded.reshape(-1, 3).mean(0), (220, 40, 60), atol=4)


def test_exif_rotation_is_applied():
    pixels = gradient(20, 30)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    decoded = np.asarray(decode_image(encode(Image.fromarray(pixels), exif=exif)))
    np.testing.assert_array_equal(decoded, np.rot90(pixels, k=-1))


def test_min_side_reduces_jpegs_only_down_to_it():
    data = encode(Image.fromarray(gradient(400, 800)), format="JPEG")
    assert decode_image(data).size == (800, 400)
    assert decode_image(data, min_side=100).size == (200, 100)
    assert decode_image(data, min_side=101).size == (400, 200)
    assert decode_image(data, min_side=500).size == (800, 400)


@pytest.mark.parametrize("damage", [lambda d: d[: len(d) // 2], lambda d: b"", lambda d: b"not an image"])
def test_unreadable_image_is_a_value_error(damage):
    data = encode(Image.fromarray(gradient(64, 64)), format="JPEG")
    with pytest.raises(ValueError, match="unreadable image"):
        decode_image(damage(data))


def test_missing_file_is_a_value_error(tmp_path):
    with pytest.raises(ValueError, match="unreadable image.*nothing.png"):
        decode_image(tmp_path / "nothing.png")


def test_palette_mask_is_read_as_indices():
    indices = np.array([[0, 1, 15], [20, 255, 7]], dtype=np.uint8)
    mask = Image.fromarray(indices, mode="P")
    mask.putpalette(palette())
    np.testing.assert_array_equal(decode_indices(encode(mask)), indices)
    assert not np.array_equal(np.asarray(mask.convert("L")), indices)
    np.testing.assert_array_equal(decode_indices(encode(Image.fromarray(indices))), indices)
    binary = Image.fromarray(np.array([[0, 255]], dtype=np.uint8)).convert("1")
    assert decode_indices(encode(binary)).tolist() == [[0, 1]]


def test_colour_mask_is_refused():
    images = tagged(encode(Image.fromarray(gradient())), encode(Image.fromarray(gradient())))
    with pytest.raises(ValueError, match="mask of image 'image0'.*mode RGB"):
        images.mask(0)


def test_mask_values_become_contiguous():
    stored = np.array([[0, 8, 12], [15, 255, 8]], dtype=np.uint8)
    image = encode(Image.new("RGB", (3, 2)))
    images = tagged(image, encode(Image.fromarray(stored)), (0, 8, 12), frozenset(range(21)))
    decoded = images.mask(0)
    assert decoded.dtype == np.uint8
    # 15 is another VOC class: background here.
    assert decoded.tolist() == [[0, 1, 2], [0, IGNORE_INDEX, 1]]


@pytest.mark.parametrize("value", [3, 254])
def test_unknown_mask_value_names_image_and_value(value):
    images = tagged(encode(Image.new("RGB", (2, 1))), encode(Image.fromarray(np.array([[0, value]], np.uint8))))
    with pytest.raises(ValueError, match=rf"'image0'.*got value {value}, expected one of \[0, 1, 2\]"):
        images.mask(0)


def test_16_bit_mask_with_a_large_value_is_refused():
    images = tagged(encode(Image.new("RGB", (2, 1))), encode(Image.fromarray(np.array([[0, 300]], np.uint16))))
    with pytest.raises(ValueError, match="got value 300"):
        images.mask(0)


def test_mask_of_another_size_names_both():
    images = tagged(encode(Image.new("RGB", (30, 20))), encode(Image.new("L", (30, 21))))
    with pytest.raises(ValueError, match="'image0'.*got 30 x 21 pixels, expected 30 x 20"):
        images.mask(0)


def test_mask_needs_no_more_than_the_header_of_a_photo():
    jpeg, mask = encode(Image.fromarray(gradient()), format="JPEG"), encode(Image.new("L", (30, 20), 1))
    images = tagged(jpeg[:-20], mask)
    with pytest.raises(ValueError, match="truncated"):
        images.image(0)
    assert (images.mask(0) == 1).all()
    with pytest.raises(ValueError, match="image 'image0': unreadable image"):
        tagged(jpeg[:20], mask).mask(0)


def test_mask_is_upright_where_exif_rotates_the_image():
    exif = Image.Exif()
    exif[0x0112] = 6
    image = encode(Image.fromarray(gradient(20, 30)), exif=exif)
    upright = np.zeros((30, 20), dtype=np.uint8)
    upright[:5] = 1
    np.testing.assert_array_equal(tagged(image, encode(Image.fromarray(upright))).mask(0), upright)
    with pytest.raises(ValueError, match="EXIF"):
        tagged(image, encode(Image.fromarray(upright.T.copy()))).mask(0)


def test_labels():
    images = tagged(encode(Image.new("RGB", (2, 2))), count=3)
    assert images.labels(1).tolist() == [0, 1] and images.labels(1).dtype == np.float32
    assert images.label_matrix().tolist() == [[1, 0], [0, 1], [1, 0]] and images.label_matrix().dtype == np.float32
    assert len(images) == 3 and images.num_classes == 2 and images.image_ids == ["image0", "image1", "image2"]


def test_select_changes_the_hash_and_keeps_the_order():
    images = tagged(encode(Image.new("RGB", (2, 2))), count=3)
    chosen = images.select([2, 0])
    assert chosen.image_ids == ["image2", "image0"]
    hashes = {images.manifest_hash, chosen.manifest_hash, images.select([0, 2]).manifest_hash}
    assert len(hashes) == 3
    assert images.select([2, 0]).manifest_hash == chosen.manifest_hash


def test_without_masks():
    images = tagged(encode(Image.new("RGB", (2, 2))))
    assert len(images.with_masks()) == 0
    with pytest.raises(ValueError, match="'image0'.*there is none"):
        images.mask(0)


def test_load_images_chooses_the_reader():
    images = load_images(DataConfig(source="shapes", shapes_images=4, shapes_size=32), "val")
    assert images.image_ids == ["val_00000"]
