import io
import logging

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from torch.utils.data import DataLoader

from sbce_hf.config import AugmentationConfig, DataConfig, SegmenterTrainingConfig, TrainingConfig
from sbce_hf.data import IGNORE_INDEX, features, load_images
from sbce_hf.data.preprocessing import Preprocessing
from sbce_hf.data.schema import TaggedImages
from sbce_hf.labels.label_maps import MaskLabels, check_label_maps
from sbce_hf.labels.store import LabelStore
from sbce_hf.training.crops import LabelledDataset, SegmentationDataset

# Label values up to 250, so that a label can be a coordinate.
NAMES = tuple(f"c{value}" for value in range(250))
# Pixels keep their values.
PLAIN = Preprocessing((0, 0, 0), (1 / 255, 1 / 255, 1 / 255))


class Maps:
    complete = True

    def __init__(self, maps, class_names=NAMES):
        self.maps, self.class_names = maps, class_names

    def __contains__(self, image_id):
        return image_id in self.maps

    def read(self, image_id):
        return self.maps[image_id]


def encode(image, kind="PNG", **options):
    stream = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(stream, kind, **options)
    return stream.getvalue()


def tagged(encoded, names=NAMES):
    columns = {
        "image_id": list(encoded),
        "image": [{"bytes": data, "path": None} for data in encoded.values()],
        "labels": [[0]] * len(encoded),
    }
    return TaggedImages(Dataset.from_dict(columns, features=features(names, False)), names, None, None, (), "hash")


def coordinates(width, height):
    """An image whose red is x and whose green is y."""
    y, x = np.mgrid[:height, :width].astype(np.uint8)
    return np.stack([x, y, np.full_like(x, 77)], axis=-1)


def config(**fields):
    return SegmenterTrainingConfig(**{"crop_size": 64, "flip": False, "color_jitter": 0.0, **fields})


def dataset(image, label_map, seed=0, **fields):
    return SegmentationDataset(tagged({"a": encode(image)}), Maps({"a": label_map}), config(**fields), seed, PLAIN)


def draws(dataset, number):
    for epoch in range(number):
        dataset.set_epoch(epoch)
        yield dataset[0]


def extent(valid):
    """Sides of the rectangle that is valid; everything in it is."""
    rows, columns = np.flatnonzero(valid.any(1)), np.flatnonzero(valid.any(0))
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert valid.sum() == height * width
    return width, height


@pytest.mark.parametrize("channel", [0, 1])
@pytest.mark.parametrize("size", [(200, 120), (40, 50), (30, 180)])
@pytest.mark.parametrize("image_size", [None, 150])
def test_image_and_labels_stay_aligned(size, channel, image_size):
    image = coordinates(*size)
    samples = list(draws(dataset(image, image[..., channel].copy(), flip=True, image_size=image_size), 40))
    differences = []
    for sample in samples:
        pixels, labels = sample["pixel_values"], sample["labels"]
        valid = labels != IGNORE_INDEX
        extent(valid.numpy())
        assert (pixels[:, ~valid] == 0).all()
        # Blue is one colour everywhere; up to the last valid pixel.
        assert torch.allclose(pixels[2][valid], torch.tensor(77.0), atol=0.1)
        difference = (pixels[channel] - labels)[valid]
        assert difference.abs().max() <= 2.1
        differences.append(difference.mean())
    # A shift by half a pixel would be an offset of a quarter at least.
    assert abs(np.mean(differences)) < 0.1


def test_sample_has_the_promised_types():
    sample = dataset(coordinates(90, 80), np.ones((80, 90), np.uint8))[0]
    assert sample["pixel_values"].dtype == torch.float32 and sample["pixel_values"].shape == (3, 64, 64)
    assert sample["labels"].dtype == torch.int64 and sample["labels"].shape == (64, 64)
    assert sample["pixel_values"].is_contiguous() and sample["labels"].is_contiguous() and sample["index"] == 0


def test_without_augmentation_the_sample_is_the_normalised_image():
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    label_map = np.random.default_rng(1).integers(0, 250, (64, 64), dtype=np.uint8)
    images, maps = tagged({"a": encode(image)}), Maps({"a": label_map})
    samples = SegmentationDataset(images, maps, config(min_scale=1.0, max_scale=1.0), 0)
    expected = (image / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    np.testing.assert_allclose(samples[0]["pixel_values"].permute(1, 2, 0), expected, atol=1e-5)
    np.testing.assert_array_equal(samples[0]["labels"], label_map)


def test_scale_is_drawn_evenly_and_keeps_the_aspect():
    samples = dataset(coordinates(100, 50), np.ones((50, 100), np.uint8), crop_size=160)
    sides = np.array([extent(sample["labels"].numpy() == 1) for sample in draws(samples, 300)])
    assert np.abs(sides[:, 0] / 2 - sides[:, 1]).max() <= 1
    shares, _ = np.histogram(sides[:, 0], bins=4, range=(50, 150))
    assert (sides[:, 0] >= 50).all() and (sides[:, 0] <= 150).all()
    assert (shares > 45).all() and (shares < 105).all()


def test_crops_come_from_everywhere():
    image = coordinates(200, 100)
    samples = dataset(image, image[..., 0].copy(), crop_size=40, min_scale=1.0, max_scale=1.0)
    corners = np.array([sample["pixel_values"][:2, 0, 0].numpy() for sample in draws(samples, 300)])
    for values, last in zip(corners.T, (160, 60), strict=True):
        assert values.min() < 0.05 * last and 0.95 * last < values.max() <= last
        assert abs(values.mean() / last - 0.5) < 0.06


def test_what_is_smaller_than_the_crop_is_padded_at_a_random_place():
    samples = dataset(coordinates(30, 50), np.ones((50, 30), np.uint8), min_scale=1.0, max_scale=1.0)
    places = []
    for sample in draws(samples, 200):
        valid = sample["labels"].numpy() == 1
        assert extent(valid) == (30, 50)
        places.append([valid.any(1).argmax(), valid.any(0).argmax()])
    assert np.min(places, axis=0).tolist() == [0, 0] and np.max(places, axis=0).tolist() == [14, 34]


def test_padding_is_the_mean_colour():
    images, maps = tagged({"a": encode(coordinates(32, 32))}), Maps({"a": np.ones((32, 32), np.uint8)})
    sample = SegmentationDataset(images, maps, config(max_scale=1.0), 0)[0]
    padded = sample["labels"] == IGNORE_INDEX
    assert padded.any() and (sample["pixel_values"][:, padded] == 0).all()


def test_half_of_the_samples_are_mirrored():
    image = coordinates(64, 64)
    samples = dataset(image, image[..., 0].copy(), flip=True, min_scale=1.0, max_scale=1.0)
    mirrored = [sample["labels"][0, 0] == 63 for sample in draws(samples, 200)]
    assert 70 < sum(mirrored) < 130


def test_jitter_changes_colours_within_its_range_but_not_labels():
    grey, label_map = np.full((64, 64, 3), 100, np.uint8), np.ones((64, 64), np.uint8)
    samples = dataset(grey, label_map, color_jitter=0.2, min_scale=1.0, max_scale=1.0)
    values = []
    for sample in draws(samples, 100):
        assert (sample["labels"] == 1).all()
        values.append(sample["pixel_values"][0, 0, 0])
    assert 79 <= min(values) < 88 and 112 < max(values) <= 121


def test_long_side_is_resized_first():
    fields = {"image_size": 120, "crop_size": 128, "min_scale": 1.0, "max_scale": 1.0}
    for size, expected in (((60, 30), (120, 60)), ((100, 240), (50, 120))):
        sample = dataset(coordinates(*size), np.ones(size[::-1], np.uint8), **fields)[0]
        assert extent(sample["labels"].numpy() == 1) == expected


def test_large_jpegs_are_decoded_reduced_and_stay_aligned():
    small = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    large = Image.fromarray(small).resize((1031, 1031), Image.Resampling.BICUBIC)
    label_map = np.asarray(large)[..., 0] // 2
    images = tagged({"a": encode(large, "JPEG", quality=95)})
    fields = config(image_size=128, crop_size=128, min_scale=1.0, max_scale=1.0)
    asked = []
    original = TaggedImages.image

    def image(self, index, min_side=None):
        asked.append(min_side)
        return original(self, index, min_side)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TaggedImages, "image", image)
        sample = SegmentationDataset(images, Maps({"a": label_map}), fields, 0, PLAIN)[0]
    assert asked == [256] and images.image(0, min_side=256).size == (258, 258)
    difference = sample["pixel_values"][0] / 2 - sample["labels"]
    assert difference.abs().mean() < 3 and abs(difference.mean() - 0.25) < 0.5


def test_a_crop_may_be_all_ignored():
    label_map = np.full((200, 200), IGNORE_INDEX, np.uint8)
    label_map[0, 0] = 1
    samples = list(draws(dataset(coordinates(200, 200), label_map, crop_size=32), 20))
    assert any((sample["labels"] == IGNORE_INDEX).all() for sample in samples)
    assert all(torch.isfinite(sample["pixel_values"]).all() for sample in samples)


def test_draws_depend_on_seed_epoch_and_index_alone():
    image = np.random.default_rng(0).integers(0, 250, (90, 70, 3), dtype=np.uint8)
    images = tagged({name: encode(image) for name in "abcdef"})
    maps = Maps({name: image[..., 0].copy() for name in "abcdef"})
    full = config(flip=True, color_jitter=0.3)

    def read(samples, order=range(6)):
        got = {index: samples[index] for index in order}
        return [torch.cat([got[i]["pixel_values"], got[i]["labels"][None]]) for i in range(6)]

    def same(ours, theirs):
        return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))

    samples = SegmentationDataset(images, maps, full, 3)
    first = read(samples)
    assert not torch.equal(first[0], first[1])
    torch.manual_seed(99)
    np.random.seed(99)
    state = torch.get_rng_state()
    assert same(first, read(samples, reversed(range(6))))
    assert torch.equal(torch.get_rng_state(), state)
    loaded = list(DataLoader(samples, batch_size=2, num_workers=2))
    assert torch.equal(torch.cat([b["pixel_values"] for b in loaded]), torch.stack(first)[:, :3])
    samples.set_epoch(1)
    assert not same(first, read(samples))
    samples.set_epoch(0)
    assert same(first, read(samples))
    assert not same(first, read(SegmentationDataset(images, maps, full, 4)))


# --- masks as labels ------------------------------------------------------------------------------------------------


def test_masks_are_label_maps():
    images = load_images(DataConfig(source="shapes", shapes_images=6, shapes_size=48), "train")
    masks = MaskLabels(images)
    assert masks.class_names == images.class_names and masks.complete
    for index, image_id in enumerate(images.image_ids):
        assert image_id in masks
        np.testing.assert_array_equal(masks.read(image_id), images.mask(index))
    assert "other" not in masks
    assert check_label_maps(images, masks)[0] is images


# --- checks ---------------------------------------------------------------------------------------------------------

VOC = tuple(f"class{index}" for index in range(20))


@pytest.fixture
def three():
    images = tagged({name: encode(coordinates(12, 8)) for name in ("x", "folder/y", "z")}, VOC)
    return images, {name: np.ones((8, 12), np.uint8) for name in images.image_ids}


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda values: values.__setitem__((3, 4), 21), r"got value 21, expected 0 \(background\) to 20"),
        (lambda values: values.__setitem__((3, 4), 254), "got value 254"),
        (lambda values: values.fill(255), r"got 255 \(ignore\) for every pixel"),
    ],
)
def test_impossible_values_name_the_image(three, change, message):
    images, maps = three
    change(maps["folder/y"])
    with pytest.raises(ValueError, match=f"label map of image 'folder/y': {message}"):
        check_label_maps(images, Maps(maps, VOC))


def test_highest_class_background_and_ignore_are_fine(three):
    images, maps = three
    maps["z"][:] = 0
    maps["z"][0, :2] = 20, 255
    assert check_label_maps(images, Maps(maps, VOC))[0] is images


@pytest.mark.parametrize(
    "label_map, message",
    [
        (np.ones((12, 8), np.uint8), "got 8 x 12 pixels, expected 12 x 8"),
        (np.ones((8, 12, 3), np.uint8), r"got uint8 of shape \(8, 12, 3\)"),
        (np.ones((8, 12), np.int64), "got int64"),
    ],
)
def test_label_maps_of_another_kind_name_the_image(three, label_map, message):
    images, maps = three
    with pytest.raises(ValueError, match=f"image 'z': {message}"):
        check_label_maps(images, Maps(maps | {"z": label_map}, VOC))


@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "PNG"])
def test_size_is_that_of_the_upright_image(kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    images = tagged({"a": encode(coordinates(12, 8), kind, exif=exif)})
    assert images.image(0).size == (8, 12)
    check_label_maps(images, Maps({"a": np.ones((12, 8), np.uint8)}))
    with pytest.raises(ValueError, match="got 12 x 8 pixels, expected 8 x 12"):
        check_label_maps(images, Maps({"a": np.ones((8, 12), np.uint8)}))


def test_size_of_a_jpeg_is_read_without_decoding_it(monkeypatch):
    images = tagged({"a": encode(coordinates(12, 8), "JPEG")})
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda image: pytest.fail("decoded"))
    check_label_maps(images, Maps({"a": np.ones((8, 12), np.uint8)}))


def test_other_classes_are_an_error(three):
    images, maps = three
    with pytest.raises(ValueError, match="expected the images' .* in this order"):
        check_label_maps(images, Maps(maps, VOC[::-1]))


def test_the_hash_is_of_what_is_learned(three):
    images, maps = three
    digest = check_label_maps(images, Maps(maps, VOC))[1]
    assert check_label_maps(images, Maps(dict(reversed(maps.items())) | {"more": 0}, VOC))[1] == digest
    changed = {name: values.copy() for name, values in maps.items()}
    changed["x"][7, 11] = 2
    others = [changed, maps | {"x": maps["x"].reshape(8, 12) * 0}, {"x": maps["x"], "z": maps["z"]}]
    digests = [check_label_maps(images, Maps(other, VOC))[1] for other in others]
    assert len({digest, *digests}) == 4


def write_store(folder, images, maps, num_images):
    store = LabelStore.create(folder, VOC, key="k", num_images=num_images)
    for name, values in maps.items():
        store.write(name, values, {"classes": [], "proportions": [], "thresholds": []})
    return store


def test_images_that_labelling_skipped_are_left_out(three, tmp_path, caplog):
    images, maps = three
    store = write_store(tmp_path, images, {name: maps[name] for name in ("x", "z")}, 3)
    store.skip("folder/y", "unreadable")
    assert store.mark_complete()
    with caplog.at_level(logging.WARNING):
        kept, _ = check_label_maps(images, LabelStore(tmp_path))
    assert kept.image_ids == ["x", "z"] and kept.manifest_hash != images.manifest_hash
    assert "1 of 3 images have no label map: folder/y" in caplog.text


def test_an_unfinished_store_is_an_error_unless_it_has_all_that_is_needed(three, tmp_path):
    images, maps = three
    write_store(tmp_path, images, {name: maps[name] for name in ("x", "z")}, 4)
    with pytest.raises(ValueError, match=r"1 of 3 images have none \(folder/y\), and the store is not complete"):
        check_label_maps(images, LabelStore(tmp_path))
    assert check_label_maps(images.select([0, 2]), LabelStore(tmp_path))[0].image_ids == ["x", "z"]


def test_a_store_of_other_images_is_an_error(three, tmp_path):
    images, maps = three
    write_store(tmp_path, images, {"other": maps["x"]}, 1).mark_complete()
    with pytest.raises(ValueError, match="none of the 3 images has one .*'x'"):
        check_label_maps(images, LabelStore(tmp_path))


def test_a_damaged_label_map_names_the_image(three, tmp_path):
    images, maps = three
    store = write_store(tmp_path, images, maps, 3)
    data = store.path("z").read_bytes()
    for damaged in (data[:40], data[:-30], b"", b"text"):
        store.path("z").write_bytes(damaged)
        with pytest.raises(ValueError, match="label map of image 'z': .*leave the image out"):
            check_label_maps(images, LabelStore(tmp_path))


def test_a_photo_that_has_become_unreadable_is_left_to_the_labelling(three):
    images, maps = three
    broken = tagged({"x": encode(coordinates(12, 8)), "z": b"text"}, VOC)
    checked = Maps({name: maps[name] for name in ("x", "z")}, VOC)
    assert check_label_maps(broken, checked)[0].image_ids == ["x", "z"]


# --- the classifier's -----------------------------------------------------------------------------------------------


def labelled(width, height, **fields):
    """An image whose red is x and whose green is y, with a label map that is x; of classes 0 to 249."""
    image = coordinates(width, height)
    augmentation = AugmentationConfig(flip=fields.pop("flip", False), color_jitter=0.0)
    settings = TrainingConfig(**{"image_size": 64, "targets": "labels", "augmentation": augmentation, **fields})
    return LabelledDataset(tagged({"a": encode(image)}), Maps({"a": image[..., 0].copy()}), settings, 0, PLAIN)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (1.5, 1.5), (0.5, 0.5), (0.6, 1.4)])
def test_image_and_label_map_of_a_classifier_move_together(low, high, flip):
    dataset = labelled(64, 64, min_scale=low, max_scale=high, flip=flip)
    mirrored = set()
    for epoch in range(8):
        dataset.set_epoch(epoch)
        sample = dataset[0]
        pixels, label_map = sample["pixel_values"], sample["label_maps"]
        assert pixels.shape == (3, 64, 64) and label_map.shape == (64, 64) and label_map.dtype == torch.int64
        inside = label_map != IGNORE_INDEX
        assert ((pixels[0] - label_map)[inside].abs() < 1.01).all() and not pixels[:, ~inside].any()
        assert inside.any(dim=0).sum() == min(64, inside.sum(dim=1).max()) and (high >= 1) >= bool(
            (~inside).any() and low >= 1
        )
        row = label_map[inside.any(dim=1).nonzero()[0, 0]]
        row = row[row != IGNORE_INDEX]
        mirrored.add(bool(row[0] > row[-1]))
    assert mirrored == ({False, True} if flip else {False})


def test_proportions_are_those_of_what_is_known_of_the_sample():
    image = np.zeros((8, 8, 3), np.uint8)
    label_map = np.zeros((8, 8), np.uint8)
    label_map[:2], label_map[2:4, :4], label_map[6:] = 1, 2, IGNORE_INDEX
    images = tagged({"a": encode(image)}, ("cat", "dog", "cow"))
    settings = TrainingConfig(image_size=32, targets="labels", min_scale=1.0, max_scale=1.0)
    sample = LabelledDataset(images, Maps({"a": label_map}, ("cat", "dog", "cow")), settings, 0)[0]
    assert sample["proportions"].tolist() == pytest.approx([16 / 48, 8 / 48, 0])
    assert sample["labels"].tolist() == [1, 0, 0]


def test_a_classifiers_sample_depends_on_seed_epoch_and_index_only():
    first, second = (labelled(80, 60) for _ in range(2))
    second.set_epoch(3)
    second[0]
    second.set_epoch(0)
    for key, value in first[0].items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(second[0][key]))
