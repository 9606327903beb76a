"""Backbones of transformers as trunks."""

import json
import re

import pytest
import timm
import torch
from safetensors.torch import save_file
from transformers import AutoBackbone, AutoModel, Dinov2Config, Dinov2Model, ViTImageProcessor
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING_NAMES

from sbce_hf.config import SegmenterConfig
from sbce_hf.data.preprocessing import Preprocessing
from sbce_hf.models.configuration_spatial_bce import SpatialBceConfig
from sbce_hf.models.modeling_irn import IrnModel
from sbce_hf.models.modeling_spatial_bce import SpatialBceForImageClassification
from sbce_hf.models.modeling_trunk_backbone import BackboneTrunk, _least_weights, check_backbone_size
from sbce_hf.training.boundary import create_boundary_network
from sbce_hf.training.classifier import create_classifier
from sbce_hf.training.segmenter import create_segmenter

TINY = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "mlp_ratio": 4, "image_size": 70}
SWIN = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "layer_type": "basic"}
KINDS = {
    "dinov2": (TINY, 32, 14),
    "dinov2_with_registers": ({**TINY, "patch_size": 14}, 32, 14),
    "dinov3_vit": ({**TINY, "intermediate_size": 64}, 32, 16),
    "swin": (SWIN, 64, 32),
    "resnet": (RESNET, 32, 32),
}


def build(kind, **fields):
    torch.manual_seed(0)
    config = SpatialBceConfig(
        trunk=f"hf:{kind}", backbone_config=KINDS[kind][0], output_stride=None, num_labels=2, embedding_dim=8, **fields
    )
    return SpatialBceForImageClassification(config)


@pytest.fixture
def folder(tmp_path):
    """DINOv2 as transformers saves it."""
    torch.manual_seed(1)
    Dinov2Model(Dinov2Config(**TINY)).save_pretrained(tmp_path / "dinov2")
    processor = ViTImageProcessor(image_mean=[0.4, 0.4, 0.4], image_std=[0.3, 0.3, 0.3], resample=3)
    processor.save_pretrained(tmp_path / "dinov2")
    return tmp_path / "dinov2"


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_a_trunk_like_others(kind, tmp_path):
    _, channels, stride = KINDS[kind]
    model = build(kind).eval()
    assert model.spatial_bce.num_features == channels
    assert model.config.feature_relu is (kind == "resnet")
    with torch.no_grad():
        for size in ((112, 224), (100, 90)):
            features = model.spatial_bce(torch.randn(1, 3, *size)).last_hidden_state
            cells = [side / stride for side in size]
            assert features.shape[1] == channels
            assert all(abs(got - cell) < 1 for got, cell in zip(features.shape[2:], cells, strict=True))
    model.save_pretrained(tmp_path)
    loaded, pixels = SpatialBceForImageClassification.from_pretrained(tmp_path), torch.randn(1, 3, 112, 112)
    with torch.no_grad():
        torch.testing.assert_close(loaded(pixels).pixel_logits, model(pixels).pixel_logits, atol=1e-5, rtol=1e-5)
    labels = torch.tensor([[1.0, 0]])
    trained = model.train().spatial_bce
    model(pixels, labels=labels, proportions=labels * 0.3).loss.backward()
    moved = [parameter.grad is not None for parameter in trained.parameters() if parameter.requires_grad]
    assert sum(moved) > 0.8 * len(moved) and not all(parameter.requires_grad for parameter in trained.parameters())


def to_transformers(state):
    """timm's names and shapes of DINOv2's weights as transformers has them."""
    names = {"patch_embed.proj": "embeddings.patch_embeddings.projection", "cls_token": "embeddings.cls_token"}
    names |= {"pos_embed": "embeddings.position_embeddings", "blocks": "encoder.layer", "norm": "layernorm"}
    inner = {"attn.proj": "attention.output.dense", "ls1.gamma": "layer_scale1.lambda1"}
    inner |= {"ls2.gamma": "layer_scale2.lambda1"}
    found = {}
    for name, value in state.items():
        if "qkv" in name:
            for part, one in zip(("query", "key", "value"), value.chunk(3), strict=True):
                block, kind = name.split(".")[1], name.rpartition(".")[2]
                found[f"encoder.layer.{block}.attention.attention.{part}.{kind}"] = one
            continue
        for ours, theirs in names.items():
            if name == ours or name.startswith(f"{ours}."):
                name = theirs + name.removeprefix(ours)
                break
        for ours, theirs in inner.items():
            name = name.replace(ours, theirs)
        found[name] = value
    return found


def test_timm_s_and_transformers_dinov2_give_the_same_class_maps(tmp_path):
    torch.manual_seed(0)
    kwargs = {"embed_dim": 32, "depth": 3, "num_heads": 2, "img_size": 70, "init_values": 0.7}
    fields = {"num_labels": 3, "output_stride": None, "embedding_dim": 8}
    config = SpatialBceConfig(trunk="vit_small_patch14_dinov2", trunk_kwargs=kwargs, **fields)
    ours = SpatialBceForImageClassification(config).eval()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    trunk = ours.spatial_bce.trunk.model.state_dict()
    save_file(
        {name: value.contiguous() for name, value in to_transformers(trunk).items()}, tmp_path / "dinov2.safetensors"
    )
    theirs = create_classifier(
        {"trunk": "hf:dinov2", "backbone_config": TINY, "output_stride": None, "embedding_dim": 8},
        ("a", "b", "c"),
        str(tmp_path / "dinov2.safetensors"),
    ).eval()
    heads = {name: value for name, value in ours.state_dict().items() if "trunk" not in name}
    theirs.load_state_dict(heads, strict=False)
    pixels = torch.randn(2, 3, 70, 70)
    with torch.no_grad():
        found, expected = theirs(pixels), ours(pixels)
    assert expected.pixel_logits.std() > 0.1 and expected.pixel_logits.shape == (2, 3, 5, 5)
    torch.testing.assert_close(found.pixel_logits, expected.pixel_logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.thresholds, expected.thresholds, atol=1e-4, rtol=1e-4)


def test_a_folder_of_transformers_is_a_start(folder):
    random = create_classifier({"trunk": f"hf:{folder}"}, ("cat",))
    assert random.config.trunk == "hf:dinov2" and random.config.backbone_config["hidden_size"] == 32
    assert str(folder) not in json.dumps(random.config.to_dict())
    model = create_classifier({"trunk": f"hf:{folder}"}, ("cat",), "pretrained")
    assert Preprocessing.of(model.config) == Preprocessing((0.4, 0.4, 0.4), (0.3, 0.3, 0.3), "bicubic")
    irn = create_boundary_network({"trunk": f"hf:{folder}", "side_channels": 8, "radius": 4}, "pretrained")
    assert isinstance(irn, IrnModel) and len(irn.sides) == 3
    section = SegmenterConfig(
        weights="pretrained", model={"trunk": f"hf:{folder}", "head_channels": 8, "head": "largefov"}
    )
    segmenter = create_segmenter(section, ("cat",))
    with torch.no_grad():
        assert segmenter.eval()(torch.randn(1, 3, 56, 70)).logits.shape == (1, 2, 4, 5)


def test_a_classifier_s_backbone_starts_a_segmenter(folder):
    model = create_classifier({"trunk": f"hf:{folder}"}, ("cat",), "pretrained")
    segmenter = create_segmenter(
        SegmenterConfig(model={"head_channels": 8, "head": "largefov"}), ("cat",), classifier=model
    )
    ours, theirs = (one.base_model.trunk.state_dict() for one in (segmenter, model))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_files_that_do_not_fit_are_errors(folder, tmp_path):
    fields = {"trunk": "hf:dinov2", "output_stride": None, "backbone_config": {**TINY, "num_hidden_layers": 5}}
    with pytest.raises(ValueError, match="lacks .* of trunk 'hf:dinov2', first 'encoder.layer.3"):
        create_classifier(fields, ("cat",), str(folder / "model.safetensors"))
    with pytest.raises(ValueError, match="'pretrained' needs a trunk 'hf:' with a folder or Hub id"):
        create_classifier(fields, ("cat",), "pretrained")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="has no model.safetensors; pickles and shards are not read"):
        create_classifier({"trunk": f"hf:{folder}"}, ("cat",), "pretrained")
    with pytest.raises(OSError, match="no such file"):
        create_classifier({"trunk": f"hf:{tmp_path}"}, ("cat",))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"trunk": "hf:no-such-model"}, "model_type: got 'no-such-model', expected one of"),
        ({"output_stride": 8}, "output_stride: got 8, expected null"),
        ({"trunk_kwargs": {"depth": 2}}, "trunk_kwargs: got .*expected null"),
        ({"backbone_config": {"model_type": "swin"}}, "got model_type 'swin', expected the trunk's"),
        ({"trunk": "test_vit"}, "backbone_config: is for a trunk 'hf:"),
    ],
)
def test_mistakes_are_errors(fields, message):
    usual = {"trunk": "hf:dinov2", "output_stride": None, "backbone_config": TINY, "num_labels": 2}
    with pytest.raises(Exception, match=message):
        SpatialBceForImageClassification(SpatialBceConfig(**{**usual, **fields}))


def test_gradient_checkpointing_is_the_backbone_s():
    model = build("dinov2").train()
    model.activation_checkpointing_enable()
    assert model.spatial_bce.trunk.model.is_gradient_checkpointing
    model.activation_checkpointing_disable()
    assert not model.spatial_bce.trunk.model.is_gradient_checkpointing


def test_levels_are_all_stages_or_some_layers():
    assert BackboneTrunk({"model_type": "resnet", **RESNET}, None).feature_info.reduction() == [4, 8, 16, 32]
    layers = BackboneTrunk({"model_type": "dinov2", **TINY, "num_hidden_layers": 8}, None).feature_info
    assert layers.module_name() == ["stage2", "stage4", "stage6", "stage8"]


def test_the_backbone_alone_is_transformers_own(folder):
    model = create_classifier({"trunk": f"hf:{folder}"}, ("cat",), "pretrained").eval()
    pixels = torch.randn(1, 3, 70, 84)
    with torch.no_grad():
        tokens = AutoModel.from_pretrained(folder).eval()(pixels).last_hidden_state[:, 1:]
        features = model.spatial_bce(pixels).last_hidden_state
    torch.testing.assert_close(features.flatten(2).transpose(1, 2), tokens, atol=1e-5, rtol=1e-5)


def test_timm_and_transformers_agree_on_what_a_patch_is():
    assert timm.create_model(
        "vit_small_patch14_dinov2", embed_dim=32, depth=1, num_heads=2
    ).patch_embed.patch_size == (14, 14)
    assert build("dinov2").spatial_bce.trunk.multiple == 14


DEEP = {
    "transformer": ("dinov2", {**TINY, "num_hidden_layers": 512}, "num_hidden_layers: got 512 in all"),
    "pyramid": ("resnet", {"depths": [128] * 4}, "depths: got 512 in all"),
    "blocks one by one": ("pp_lcnet", {"block_configs": [[[3, 16, 32, 1, False]] * 100] * 5}, "configs: got 500"),
    "layers in blocks": ("hgnet_v2", {"stage_num_blocks": [20] * 4, "stage_numb_of_layers": [20] * 4}, "got 1600"),
    "wide": ("dinov2", {"hidden_size": 16384, "num_hidden_layers": 90, "num_attention_heads": 64}, "least 2.9e+11"),
    "wide pyramid": ("swin", {"embed_dim": 4096, "depths": [2] * 4, "num_heads": [4] * 4}, "least 2.85e+09"),
    "wide convolutions": ("convnextv2", {"hidden_sizes": [16384] * 4, "depths": [20] * 4}, "least 2.15e+10"),
}


@pytest.mark.parametrize(("kind", "values", "message"), DEEP.values(), ids=DEEP)
def test_one_that_is_too_large_is_refused_before_anything_is_built(kind, values, message, monkeypatch):
    def built(*_, **__):
        pytest.fail("built")

    monkeypatch.setattr("sbce_hf.models.modeling_trunk_backbone.AutoBackbone.from_config", built)
    fields = {"trunk": f"hf:{kind}", "backbone_config": values, "output_stride": None}
    with pytest.raises(ValueError, match=re.escape(message)):
        create_classifier(fields, ("a",), "random", 0)


def test_what_is_refused_is_no_more_than_what_is_there():
    """Of every kind that transformers has, at its own size: fewer weights are counted than it has, none is refused."""
    seen = 0
    for kind in sorted(set(MODEL_FOR_BACKBONE_MAPPING_NAMES) - {"timm_backbone"}):
        with torch.device("meta"):
            try:
                config = CONFIG_MAPPING[kind].from_dict(json.loads(CONFIG_MAPPING[kind]().to_json_string()))
                model = AutoBackbone.from_config(config)
            except (ImportError, ValueError):
                # Some need packages that are not installed, or name the parts that they are made of.
                continue
        check_backbone_size(config)
        assert _least_weights(config) <= sum(weight.numel() for weight in model.parameters()), kind
        seen += _least_weights(config) > 0
    assert seen > 15
