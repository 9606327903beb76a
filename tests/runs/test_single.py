import numpy as np
import pytest

from sbce_hf.config import DataConfig, ProportionConfig, RunConfig, TrainingConfig
from sbce_hf.data import load_images
from sbce_hf.inference.checkpoints import load_classifier
from sbce_hf.labels.proportions import ProportionTable
from sbce_hf.labels.store import LabelStore
from sbce_hf.runs.proportions import class_map_stride, estimate_proportions


@pytest.fixture
def images():
    return load_images(DataConfig(source="shapes", shapes_images=8, shapes_size=32), "train")


@pytest.fixture
def store(images, tmp_path):
    """Every tagged class covers an eighth of its image, but the first image's first class is lost."""
    store = LabelStore.create(tmp_path / "store", images.class_names, key="k", num_images=len(images))
    for index, image_id in enumerate(images.image_ids):
        label_map = np.zeros((32, 32), np.uint8)
        classes = np.flatnonzero(images.labels(index))
        for row, c in enumerate(classes):
            if index or row:
                label_map[4 * row : 4 * row + 4] = c + 1
        shares = [float((label_map == c + 1).mean()) for c in classes]
        record = {"classes": classes.tolist(), "thresholds": [0.5] * len(classes), "proportions": shares}
        store.write(image_id, label_map, record)
    return store


@pytest.mark.parametrize(("lost", "expected"), [("minimum", 1 / 16), ("previous", 0.4)])
def test_lost_class_keeps_the_minimum_or_its_previous_proportion(images, store, lost, expected):
    spatial = TrainingConfig(image_size=32)
    config = RunConfig(spatial=spatial, proportions=ProportionConfig(lost=lost))
    labels = images.label_matrix()
    before = ProportionTable(images.class_names, tuple(images.image_ids), labels * 0.4, labels > 1)
    table = estimate_proportions(store, images, config, before)
    first = int(np.flatnonzero(labels[0])[0])
    assert table.lost.sum() == 1 and table.lost[0, first]
    assert table.proportions[0, first] == pytest.approx(expected)
    kept = (labels > 0) & ~table.lost
    assert table.proportions[kept] == pytest.approx(1 / 8)
    assert not table.proportions[labels == 0].any()


def test_image_without_a_label_map_is_named(images, tmp_path):
    empty = LabelStore.create(tmp_path / "empty", images.class_names, key="k", num_images=len(images))
    with pytest.raises(ValueError, match=f"no label map of image '{images.image_ids[0]}'"):
        estimate_proportions(empty, images, RunConfig())


def test_folder_without_a_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match="no model.safetensors"):
        load_classifier(tmp_path)


@pytest.mark.parametrize(
    ("model", "stride"),
    [
        ({}, 8),
        ({"output_stride": 16}, 16),
        ({"output_stride": None}, 32),
        ({"output_stride": None, "feature_index": -3}, 8),
    ],
)
def test_the_stride_of_class_maps_is_the_trunks(model, stride, images, store):
    config = RunConfig(model={"trunk": "test_resnet", **model}, spatial=TrainingConfig(image_size=64))
    assert class_map_stride(config) == stride
    labels = images.label_matrix()
    first = int(np.flatnonzero(labels[0])[0])
    # One pixel of the class map is the least that a present class keeps.
    assert estimate_proportions(store, images, config).proportions[0, first] == pytest.approx((stride / 64) ** 2)
