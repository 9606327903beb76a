import io

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import functional

from sbce_hf.config import AugmentationConfig, DataConfig
from sbce_hf.data import features, load_images, transforms
from sbce_hf.data.preprocessing import Preprocessing
from sbce_hf.data.schema import TaggedImages
from sbce_hf.data.transforms import _GEOMETRIC, _PHOTOMETRIC, TrainingDataset, augment

OFF = AugmentationConfig(flip=False, color_jitter=0.0)
FULL = AugmentationConfig(flip=True, color_jitter=0.4, randaugment=2, geometric=True)


@pytest.fixture(scope="module")
def images():
    return load_images(DataConfig(source="shapes", shapes_images=8, shapes_size=64), "train")


def pixels(dataset):
    return torch.stack([dataset[i]["pixel_values"] for i in range(len(dataset))])


def test_sample_without_augmentation_is_resized_and_normalised(images):
    dataset = TrainingDataset(images, 48, OFF, seed=0, preprocessing=Preprocessing((0.5, 0.4, 0.3), (0.2, 0.25, 0.5)))
    sample = dataset[2]
    resized = images.image(2).resize((48, 48), Image.Resampling.BILINEAR)
    expected = (np.asarray(resized) / 255 - (0.5, 0.4, 0.3)) / (0.2, 0.25, 0.5)
    np.testing.assert_allclose(sample["pixel_values"].permute(1, 2, 0), expected, atol=1e-5)
    assert sample["pixel_values"].dtype == torch.float32 and sample["pixel_values"].is_contiguous()
    assert sample["labels"].tolist() == images.labels(2).tolist() and sample["labels"].dtype == torch.float32
    assert sample["index"] == 2 and "proportions" not in sample


def test_proportions_travel_in_double(images):
    table = np.random.default_rng(0).random((8, 4))
    dataset = TrainingDataset(images, 32, OFF, seed=0, proportions=table)
    assert dataset[5]["proportions"].dtype == torch.float64
    np.testing.assert_array_equal(dataset[5]["proportions"], table[5])
    with pytest.raises(ValueError, match=r"got shape \(8, 3\), expected \(8, 4\)"):
        TrainingDataset(images, 32, OFF, seed=0, proportions=table[:, :3])


def test_draws_depend_on_seed_epoch_and_index_alone(images):
    dataset = TrainingDataset(images, 32, FULL, seed=3)
    first = pixels(dataset)
    torch.manual_seed(99)
    np.random.seed(99)
    state = torch.get_rng_state()
    backwards = torch.stack([dataset[i]["pixel_values"] for i in reversed(range(8))]).flip(0)
    assert torch.equal(first, backwards)
    assert torch.equal(torch.get_rng_state(), state)
    dataset.set_epoch(1)
    assert not torch.equal(pixels(dataset), first)
    dataset.set_epoch(0)
    assert torch.equal(pixels(dataset), first)
    assert not torch.equal(pixels(TrainingDataset(images, 32, FULL, seed=4)), first)


def test_workers_do_not_change_pixels(images):
    dataset = TrainingDataset(images, 32, FULL, seed=3)
    dataset.set_epoch(2)
    expected = pixels(dataset)
    for workers in (1, 2):
        loader = DataLoader(dataset, batch_size=3, num_workers=workers)
        batches = list(loader)
        assert torch.equal(torch.cat([b["pixel_values"] for b in batches]), expected)
        assert torch.cat([b["index"] for b in batches]).tolist() == list(range(8))


def test_same_image_is_augmented_differently_at_another_index(images):
    twice = images.select([1, 1])
    both = pixels(TrainingDataset(twice, 32, FULL, seed=0))
    assert not torch.equal(both[0], both[1])


def test_flip_alone_gives_the_image_or_its_mirror(images):
    config = AugmentationConfig(flip=True, color_jitter=0.0)
    image = images.image(0)
    plain, mirrored = np.asarray(image), np.asarray(image)[:, ::-1]
    flips = 0
    for seed in range(200):
        out = np.asarray(augment(image, config, np.random.default_rng(seed)))
        flips += np.array_equal(out, mirrored)
        assert np.array_equal(out, mirrored) or np.array_equal(out, plain)
    assert 70 < flips < 130


@pytest.mark.parametrize("magnitude", [0, 30])
@pytest.mark.parametrize("operation", range(len(_PHOTOMETRIC)))
def test_photometric_operations_leave_shapes_in_place(operation, magnitude):
    """Two flat halves stay two flat halves, apart from the line between them."""
    operation, weakest, strongest, signed = _PHOTOMETRIC[operation]
    halves = np.zeros((16, 16, 3), dtype=np.uint8)
    halves[:, :8], halves[:, 8:] = (200, 60, 30), (40, 90, 160)
    value = weakest + (strongest - weakest) * magnitude / 30
    for sign in (1, -1) if signed else (1,):
        out = np.asarray(operation(Image.fromarray(halves), sign * value))
        assert out.shape == halves.shape
        for half in (out[:, :6], out[:, 10:]):
            assert (half == half[0, 0]).all()


def test_geometric_operations_move_pixels(images):
    image = images.image(0)
    for operation, weakest, strongest, _ in _GEOMETRIC:
        assert np.array_equal(np.asarray(operation(image, weakest)), np.asarray(image))
        assert not np.array_equal(np.asarray(operation(image, strongest)), np.asarray(image))
        assert operation(image, strongest).size == image.size


def test_geometry_only_when_asked(images):
    """A photometric draw never shows the black border that moving an image leaves."""
    white = Image.new("RGB", (32, 32), (180, 180, 180))

    def borders(geometric):
        config = AugmentationConfig(flip=False, color_jitter=0.0, randaugment=2, geometric=geometric)
        outs = [np.asarray(augment(white, config, np.random.default_rng(seed))) for seed in range(60)]
        return sum(not (out == out[0, 0]).all() for out in outs)

    assert borders(False) == 0 and borders(True) > 10


def test_jitter_stays_in_its_range():
    grey = Image.new("RGB", (8, 8), (100, 100, 100))
    config = AugmentationConfig(flip=False, color_jitter=0.2)
    values = [augment(grey, config, np.random.default_rng(s)).getpixel((0, 0))[0] for s in range(100)]
    assert 79 <= min(values) < 88 and 112 < max(values) <= 121


@pytest.mark.parametrize("name", ["adjust_brightness", "adjust_contrast"])
@pytest.mark.parametrize("factor", [0.0, 0.37, 1.0, 1.21, 1.9, 6.5])
def test_what_is_looked_up_is_what_torchvision_computes(name, factor):
    generator = np.random.default_rng(0)
    photos = [generator.integers(0, 256, (37, 41, 3), np.uint8) // divisor for divisor in (1, 3, 200)]
    photos.append(np.full((5, 7, 3), 255, np.uint8))
    for values in photos:
        image = Image.fromarray(values)
        ours, theirs = getattr(transforms, name)(image, factor), getattr(functional, name)(image, factor)
        assert ours.mode == "RGB" and np.array_equal(np.asarray(ours), np.asarray(theirs))


def test_large_jpegs_are_decoded_reduced_but_look_the_same():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    stream = io.BytesIO()
    noise.resize((512, 512), Image.Resampling.BICUBIC).save(stream, format="JPEG", quality=95)
    columns = {"image_id": ["a"], "image": [{"bytes": stream.getvalue(), "path": None}], "labels": [[0]]}
    images = TaggedImages(Dataset.from_dict(columns, features=features(("x",), False)), ("x",), None, None, (), "")
    assert images.image(0, min_side=128).size == (128, 128)
    unchanged = Preprocessing((0, 0, 0), (1, 1, 1))
    sample = TrainingDataset(images, 64, OFF, seed=0, preprocessing=unchanged)[0]["pixel_values"]
    full = np.asarray(images.image(0).resize((64, 64), Image.Resampling.BILINEAR)) / 255
    assert np.abs(sample.permute(1, 2, 0).numpy() - full).mean() < 0.01
