import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

from sbce_hf import SpatialBceConfig, SpatialBceForImageClassification, SpatialBceImageProcessor
from sbce_hf.models.modeling_spatial_bce import SpatialBceOutput, pool_top


def outputs(pixel_logits, thresholds, logits=None):
    maps = torch.tensor(pixel_logits).reshape(1, -1, 2, 2)
    image_logits = maps.mean(dim=(2, 3)) if logits is None else torch.tensor([logits])
    return SpatialBceOutput(pixel_logits=maps, logits=image_logits, thresholds=torch.tensor([thresholds]))


def test_label_map_is_the_class_furthest_above_its_threshold():
    # p = 0.88, 0.5, 0.12, 0.88 and 0.73, 0.73, 0.12, 0.95.
    out = outputs([[2.0, 0.0, -2.0, 2.0], [1.0, 1.0, -2.0, 3.0]], [0.6, 0.7])
    label_map = SpatialBceImageProcessor().post_process_semantic_segmentation(out, labels=torch.ones(1, 2))[0]
    assert label_map.tolist() == [[1, 2], [0, 1]]


def test_only_known_classes_are_labelled():
    out = outputs([[2.0] * 4, [4.0] * 4], [0.5, 0.5])
    process = SpatialBceImageProcessor().post_process_semantic_segmentation
    assert process(out, labels=torch.tensor([[1, 0]]))[0].unique().tolist() == [1]
    assert process(out)[0].unique().tolist() == [2]
    out.logits = torch.tensor([[-1.0, -1.0]])
    assert process(out)[0].unique().tolist() == [0]


def test_target_sizes():
    out = outputs([[2.0] * 4], [0.5])
    processor = SpatialBceImageProcessor()
    assert processor.post_process_semantic_segmentation(out, target_sizes=[(5, 7)])[0].shape == (5, 7)
    with pytest.raises(ValueError, match="got 2 sizes for 1 images"):
        processor.post_process_semantic_segmentation(out, target_sizes=[(5, 7), (5, 7)])


def test_pool_top():
    maps = torch.arange(100.0).reshape(1, 1, 10, 10)
    assert pool_top(maps, 1.0).item() == 49.5
    assert pool_top(maps, 0.02).item() == 98.5
    assert pool_top(maps, 0.001).item() == 99.0


def test_auto_classes(tmp_path):
    config = SpatialBceConfig(trunk="test_resnet", num_labels=3, embedding_dim=4)
    SpatialBceForImageClassification(config).save_pretrained(tmp_path)
    SpatialBceImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is SpatialBceConfig
    model = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    inputs = processor(images=Image.new("RGB", (90, 50)), return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 64, 64)
    with torch.no_grad():
        label_map = processor.post_process_semantic_segmentation(model(**inputs), target_sizes=[(50, 90)])[0]
    assert label_map.shape == (50, 90) and label_map.max() <= 3
