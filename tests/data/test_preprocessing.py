import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BeitImageProcessor

from sbce_hf.data.preprocessing import IMAGENET, Preprocessing, read_preprocessing
from sbce_hf.inference.checkpoints import preprocessing_of
from sbce_hf.models.configuration_irn import IrnConfig
from sbce_hf.models.image_processing_deeplab import DeepLabImageProcessor
from sbce_hf.models.image_processing_spatial_bce import SpatialBceImageProcessor

HALF = Preprocessing((0.5, 0.4, 0.3), (0.5, 0.25, 0.2), "bicubic")


@pytest.mark.parametrize("preprocessing", [IMAGENET, HALF], ids=["imagenet", "other"])
def test_a_config_keeps_it(preprocessing, tmp_path):
    config = IrnConfig()
    preprocessing.note(config)
    config.save_pretrained(tmp_path)
    assert Preprocessing.of(IrnConfig.from_pretrained(tmp_path)) == preprocessing
    assert (config.image_mean is None) is (preprocessing == IMAGENET)


@pytest.mark.parametrize("processor_class", [SpatialBceImageProcessor, DeepLabImageProcessor])
def test_an_image_processor_does_the_same(processor_class, tmp_path):
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8))
    size = {"height": 40, "width": 56}
    processor_class(size=size, **HALF.processor_fields()).save_pretrained(tmp_path)
    assert read_preprocessing(tmp_path) == HALF
    processor = processor_class.from_pretrained(tmp_path)
    assert preprocessing_of(processor) == HALF
    values = processor(images=photo, return_tensors="pt")["pixel_values"][0]
    expected = HALF(torch.from_numpy(np.array(photo)).permute(2, 0, 1))
    torch.testing.assert_close(values, expected, atol=1e-5, rtol=0)
    larger = processor(images=photo, size={"height": 80, "width": 112}, return_tensors="pt")["pixel_values"][0]
    resized = HALF(torch.from_numpy(np.array(photo.resize((112, 80), HALF.resample))).permute(2, 0, 1))
    bilinear = HALF(torch.from_numpy(np.array(photo.resize((112, 80), Image.Resampling.BILINEAR))).permute(2, 0, 1))
    # Two programs resize by the same filter to a grey value or two.
    assert (larger - resized).abs().mean() < 0.3 * (larger - bilinear).abs().mean()


def test_imagenet_s_changes_no_byte_of_an_image_processor(tmp_path):
    size = {"height": 64, "width": 64}
    SpatialBceImageProcessor(size=size).save_pretrained(tmp_path / "plain")
    SpatialBceImageProcessor(size=size, **IMAGENET.processor_fields()).save_pretrained(tmp_path / "noted")
    plain, noted = ((tmp_path / name / "preprocessor_config.json").read_bytes() for name in ("plain", "noted"))
    assert plain == noted


def test_other_programs_processors_are_read():
    found = preprocessing_of(BeitImageProcessor(resample=3))
    assert found == Preprocessing((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_mean": [0.5, 0.5]}, "image_mean: got .*expected three numbers"),
        ({"image_std": [0.5, 0.5, 0.0]}, "image_std: got .*above 0"),
        ({"image_std": "0.5"}, "image_std: got '?0.5'?, expected three numbers"),
        ({"image_mean": [0.5, 0.5, float("nan")]}, "expected three numbers"),
        ({"image_mean": [0.5, True, 0.5]}, "image_mean: got .*expected three numbers"),
        ({"image_std": [0.5, 10**400, 0.5]}, "image_std: got .*expected three numbers"),
        ({"resample": 77}, r"resample: got 77, expected one of 0 \(nearest\)"),
    ],
)
def test_what_makes_no_input_is_refused(fields, message, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=message):
        read_preprocessing(tmp_path)


def test_a_folder_without_one(tmp_path):
    assert read_preprocessing(tmp_path) is None
