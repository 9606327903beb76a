import io

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image

from sbce_hf.data.schema import TaggedImages, features
from sbce_hf.models.configuration_spatial_bce import SpatialBceConfig
from sbce_hf.models.modeling_spatial_bce import SpatialBceForImageClassification

CLASS_NAMES = ("ant", "bee", "cat")


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def tiny_model():
    torch.manual_seed(0)
    config = SpatialBceConfig(
        trunk="test_resnet.r160_in1k", id2label=dict(enumerate(CLASS_NAMES)), embedding_dim=8, logit_scale_init=3.0
    )
    model = SpatialBceForImageClassification(config).eval()
    with torch.no_grad():
        # Random weights alone give flat maps: spread them so that every rule finds both foreground and background.
        model.class_maps.weight.mul_(3)
        model.threshold_head.weight.mul_(3)
    return model


@pytest.fixture(scope="session")
def make_images():
    def make(labels, sizes=None, seed=0, damaged=(), names=None, masks=False):
        generator = np.random.default_rng(seed)
        columns = {"image_id": [], "image": [], "labels": [], "mask": []}
        for i, present in enumerate(labels):
            height, width = (64, 64) if sizes is None else sizes[i]
            coarse = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            photo = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
            data = png(photo)
            columns["image_id"].append(names[i] if names else f"set/{i:03d}")
            columns["image"].append({"path": None, "bytes": data[: len(data) // 2] if i in damaged else data})
            columns["labels"].append(list(present))
            truth = generator.choice(np.array([0, *(c + 1 for c in present)], np.uint8), (height, width))
            columns["mask"].append({"path": None, "bytes": png(truth)})
        if not masks:
            del columns["mask"]
        dataset = Dataset.from_dict(columns, features=features(CLASS_NAMES, masks))
        values, known = ((0, 1, 2, 3), frozenset(range(4))) if masks else (None, None)
        return TaggedImages(dataset, CLASS_NAMES, values, known, (), "manifest")

    return make
