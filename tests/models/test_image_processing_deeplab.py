import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor
from transformers.modeling_outputs import SemanticSegmenterOutput

from sbce_hf import DeepLabConfig, DeepLabImageProcessor


@pytest.fixture
def photo():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (51, 91, 3), dtype=np.uint8))


def pixels(processor, image):
    return processor(images=image, return_tensors="pt")["pixel_values"]


def test_images_keep_their_size_and_are_normalised_for_imagenet(photo):
    values = pixels(DeepLabImageProcessor(), photo)
    scaled = torch.from_numpy(np.array(photo)).permute(2, 0, 1) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    assert values.shape == (1, 3, 51, 91) and values.dtype == torch.float32
    torch.testing.assert_close(values[0], (scaled - mean[:, None, None]) / std[:, None, None], atol=1e-5, rtol=0)


@pytest.mark.parametrize("edge, expected", [(45, (25, 45)), (182, (102, 182)), (91, (51, 91))])
def test_the_longer_side_gets_the_given_length(photo, edge, expected):
    processor = DeepLabImageProcessor(size={"longest_edge": edge})
    assert processor.do_resize
    assert pixels(processor, photo).shape == (1, 3, *expected)
    assert pixels(processor, photo.transpose(Image.Transpose.ROTATE_90)).shape == (1, 3, *expected[::-1])


def test_a_side_never_vanishes():
    assert pixels(DeepLabImageProcessor(size={"longest_edge": 8}), Image.new("RGB", (400, 2))).shape == (1, 3, 1, 8)


def test_other_sizes_of_transformers_work(photo):
    processor = DeepLabImageProcessor(size={"height": 20, "width": 30})
    assert pixels(processor, photo).shape == (1, 3, 20, 30)
    assert pixels(DeepLabImageProcessor(size={"longest_edge": 45}, do_resize=False), photo).shape == (1, 3, 51, 91)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_other_modes_become_rgb(photo, mode):
    assert pixels(DeepLabImageProcessor(), photo.convert(mode)).shape == (1, 3, 51, 91)


@pytest.mark.parametrize("size", [None, {"longest_edge": 33}])
def test_save_and_load(tmp_path, photo, size):
    processor = DeepLabImageProcessor(size=size)
    processor.save_pretrained(tmp_path)
    DeepLabConfig(trunk="test_resnet").save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(loaded) is DeepLabImageProcessor and loaded.do_resize is (size is not None)
    assert torch.equal(pixels(loaded, photo), pixels(processor, photo))


def test_label_maps_are_the_highest_upsampled_logits():
    logits = torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    output = SemanticSegmenterOutput(logits=logits.to(torch.bfloat16))
    logits = output.logits.float()
    process = DeepLabImageProcessor().post_process_semantic_segmentation
    assert all(map(torch.equal, process(output), logits.argmax(dim=1)))
    sizes = [(11, 7), (40, 51)]
    for index, label_map in enumerate(process(output, target_sizes=sizes)):
        upsampled = torch.nn.functional.interpolate(logits, size=sizes[index], mode="bilinear", align_corners=False)
        assert label_map.dtype == torch.long and torch.equal(label_map, upsampled[index].argmax(dim=0))


def test_errors_of_post_processing():
    process = DeepLabImageProcessor().post_process_semantic_segmentation
    with pytest.raises(ValueError, match="got 1 sizes for 2 images"):
        process(SemanticSegmenterOutput(logits=torch.zeros(2, 3, 4, 4)), target_sizes=[(4, 4)])
    with pytest.raises(ValueError, match="expected logits"):
        process(SemanticSegmenterOutput())
