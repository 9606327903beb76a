import logging

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

from sbce_hf.cli import main
from sbce_hf.demo.explain import load_checkpoint
from sbce_hf.inference.checkpoints import load_classifier, load_segmenter, read_classifier
from sbce_hf.models.configuration_deeplab import DeepLabConfig
from sbce_hf.models.configuration_spatial_bce import SpatialBceConfig
from sbce_hf.models.image_processing_deeplab import DeepLabImageProcessor
from sbce_hf.models.image_processing_spatial_bce import SpatialBceImageProcessor
from sbce_hf.models.modeling_deeplab import DeepLabForSemanticSegmentation
from sbce_hf.models.modeling_spatial_bce import SpatialBceForImageClassification

NAMES = {"id2label": {0: "background", 1: "cat"}, "label2id": {"background": 0, "cat": 1}}
TINY = {"depths": [1] * 4, "hidden_sizes": [8] * 4, "num_attention_heads": [1] * 4, "decoder_hidden_size": 16}
MODELS = {
    "classifier": lambda: SpatialBceForImageClassification(
        SpatialBceConfig(trunk="test_resnet", embedding_dim=8, id2label={0: "cat"}, label2id={"cat": 0})
    ),
    "deeplab": lambda: DeepLabForSemanticSegmentation(
        DeepLabConfig(trunk="test_resnet", head="largefov", head_channels=8, head_batch_norm=True, **NAMES)
    ),
    "segformer": lambda: SegformerForSemanticSegmentation(SegformerConfig(**TINY, **NAMES)),
}
PROCESSORS = {
    "classifier": SpatialBceImageProcessor,
    "deeplab": DeepLabImageProcessor,
    "segformer": SegformerImageProcessor,
}
TRUNKS = {"classifier": "spatial_bce.", "deeplab": "deeplab.", "segformer": "segformer."}
LOADERS = {"classifier": load_classifier, "deeplab": load_segmenter, "segformer": load_segmenter}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Kind to folder of a complete checkpoint."""
    root = tmp_path_factory.mktemp("whole")
    torch.manual_seed(0)
    for kind, build in MODELS.items():
        build().save_pretrained(root / kind)
        if kind in PROCESSORS:
            PROCESSORS[kind]().save_pretrained(root / kind)
    return root


def without(source, target, lacks, more=None):
    """A copy of a checkpoint whose file lacks some weights; returns their names as the file has them."""
    target.mkdir()
    for path in source.glob("*.json"):
        (target / path.name).write_bytes(path.read_bytes())
    state = load_file(source / "model.safetensors")
    kept = {name: value for name, value in state.items() if not lacks(name)} | (more or {})
    save_file(kept or {"other": torch.zeros(1)}, target / "model.safetensors", metadata={"format": "pt"})
    return [name for name in state if lacks(name) and not name.endswith("num_batches_tracked")]


LACKS = {
    "heads": lambda kind: lambda name: not name.startswith(TRUNKS[kind]),
    "trunk": lambda kind: lambda name: name.startswith(TRUNKS[kind]),
    "all": lambda kind: lambda name: True,
    "running statistics": lambda kind: lambda name: "running_" in name,
    "one bias": lambda kind: lambda name: name.endswith(FIRST_BIAS[kind]),
}
FIRST_BIAS = {
    "classifier": "layer4.0.bn1.bias",
    "deeplab": "classifier.bias",
    "segformer": "decode_head.classifier.bias",
}


@pytest.mark.parametrize("lacks", LACKS)
@pytest.mark.parametrize("kind", MODELS)
def test_an_incomplete_checkpoint_does_not_predict(kind, lacks, whole, tmp_path, caplog):
    missing = without(whole / kind, tmp_path / "part", LACKS[lacks](kind))
    assert missing
    # Of a Segformer, transformers renames weights while it loads.
    known = set(MODELS[kind]().state_dict())
    for load in (LOADERS[kind], lambda folder: load_checkpoint(str(folder))):
        with pytest.raises(ValueError) as raised:
            load(tmp_path / "part")
        message = str(raised.value)
        assert f"{tmp_path / 'part'}: lacks {len(missing)} weights (" in message
        assert "Fetch the checkpoint again" in message and "train it first: sbce train-" in message
        shown = [part for part in message.split("'") if part in known]
        assert len(shown) == min(3, len(missing)) and (", ..." in message) is (len(missing) > 3)
        if kind != "segformer":
            assert set(shown) <= set(missing)
    assert not [record for record in caplog.records if "newly initialized" in record.getMessage()]


@pytest.mark.parametrize("kind", MODELS)
def test_a_whole_checkpoint_predicts_without_counters_and_with_more_than_it_needs(kind, whole, tmp_path, caplog):
    counters = without(whole / kind, tmp_path / "part", lambda name: name.endswith("num_batches_tracked"))
    assert not counters
    LOADERS[kind](tmp_path / "part")
    assert not caplog.records
    without(whole / kind, tmp_path / "more", lambda name: False, {"auxiliary.weight": torch.zeros(2)})
    LOADERS[kind](tmp_path / "more")
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "holds more than the model: 1 weights ('auxiliary.weight')" in record.getMessage()


@pytest.mark.parametrize("kind", MODELS)
def test_weights_of_another_shape_are_told(kind, whole, tmp_path):
    name = {"classifier": "class_maps.weight", "deeplab": "head.branches.0.classifier.bias"}.get(
        kind, "decode_head.classifier.bias"
    )
    without(whole / kind, tmp_path / "part", lambda _: False, {name: torch.zeros(5)})
    with pytest.raises(ValueError, match=rf"{name} is \(5,\), expected \(.*\), and so 1 in all"):
        LOADERS[kind](tmp_path / "part")


def test_a_training_may_start_without_heads_and_says_so(whole, tmp_path, caplog):
    without(whole / "classifier", tmp_path / "part", LACKS["heads"]("classifier"))
    model = read_classifier(tmp_path / "part")
    assert all(value.isfinite().all() for value in model.state_dict().values())
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "lacks 4 weights ('logit_scale', 'embedding.weight', 'class_maps.weight', ...)" in record.getMessage()
    caplog.clear()
    read_classifier(whole / "classifier")
    assert not caplog.records


@pytest.mark.parametrize("lacks", ["trunk", "all", "one bias"])
def test_a_training_does_not_start_without_a_trunk(lacks, whole, tmp_path):
    without(whole / "classifier", tmp_path / "part", LACKS[lacks]("classifier"))
    with pytest.raises(ValueError, match="lacks weights of the trunk, .*'spatial_bce.trunk.*start a training without"):
        read_classifier(tmp_path / "part")


@pytest.mark.parametrize("kind", ["deeplab", "classifier"])
def test_the_command_line_says_it_in_one_line(kind, whole, tmp_path, tiny_recipe, capfd):
    without(whole / kind, tmp_path / "part", LACKS["heads"](kind))
    (tmp_path / "photos").mkdir()
    from PIL import Image

    Image.new("RGB", (32, 32)).save(tmp_path / "photos" / "a.png")
    output = ["--checkpoint", str(tmp_path / "part"), "--output-dir", str(tmp_path / "out")]
    if kind == "deeplab":
        command = ["predict", str(tmp_path / "photos"), *output]
    else:
        command = ["label", "--recipe", str(tiny_recipe), *output]
    assert main(command) == 1
    captured = capfd.readouterr()
    # Progress bars apart: whether there are any was decided when the first module was imported.
    (line,) = [line for line in captured.err.splitlines() if line.strip() and "%|" not in line]
    assert line.startswith("sbce: error:") and "lacks" in line and "would be random" in line
    assert not list(tmp_path.glob("out/**/*.png"))
