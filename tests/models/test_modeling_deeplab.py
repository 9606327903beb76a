import importlib.util
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from common_model_tests import CommonModelTests, CompiledModelTests
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
    pipeline,
)
from transformers.modeling_outputs import SemanticSegmenterOutput

from sbce_hf import (
    DeepLabConfig,
    DeepLabForSemanticSegmentation,
    DeepLabImageProcessor,
    SpatialBceConfig,
    SpatialBceForImageClassification,
    SpatialBceImageProcessor,
    load_trunk_weights,
)
from sbce_hf.data import schema
from sbce_hf.models import modeling_deeplab
from sbce_hf.models.configuration_deeplab import voc_palette
from sbce_hf.models.losses_segmentation import segmentation_loss
from sbce_hf.models.modeling_deeplab import AtrousHead, DeepLabModel
from sbce_hf.models.modeling_trunk import create_trunk

CLASSES = 21
NAMES = ("background", "cat", "dog", "sheep")
SMALL = {"head": "largefov", "atrous_rates": [2], "head_channels": 8}
HEADS = {
    "plain": {"atrous_rates": [1, 2]},
    "hidden": {**SMALL, "head_dropout": 0.5},
    "norm": {**SMALL, "head_batch_norm": True},
}


def config(**fields):
    names = dict(enumerate(NAMES))
    labels = {"id2label": names, "label2id": {name: index for index, name in names.items()}}
    return DeepLabConfig(**{"trunk": "test_resnet", **labels, **fields})


def build(seed=0, **fields):
    torch.manual_seed(seed)
    return DeepLabForSemanticSegmentation(config(**fields))


@torch.no_grad()
def open_residuals(model):
    """timm starts each residual branch at 0 times its output, and so without a gradient."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.fill_(1)
    return model


def spread(model, seed=0):
    """Larger classifier weights: a fresh network gives every pixel the same label."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        open_residuals(model)
        for branch in model.head.branches:
            branch.classifier.weight.normal_(std=1, generator=generator)
    return model.eval()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (2, 64, 64), generator=generator)
    labels[:, :8] = 255
    return {"pixel_values": torch.randn(2, 3, 64, 64, generator=generator), "labels": labels}


@pytest.fixture(scope="module")
def photo():
    noise = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((131, 83), Image.Resampling.BICUBIC)


# --- what every model does ------------------------------------------------------------------------------------------


class TestSegmenter(CompiledModelTests):
    model_class = DeepLabForSemanticSegmentation
    fields = {"trunk": "test_resnet", **HEADS["norm"]}
    auto_classes = (AutoModelForSemanticSegmentation,)
    trunk_class = DeepLabModel
    pixel_output = "logits"

    def targets(self):
        return {"labels": torch.arange(64).div(22, rounding_mode="floor").expand(2, 64, 64)}


class TestSegmenterOnEfficientNet(CommonModelTests):
    model_class = DeepLabForSemanticSegmentation
    fields = {"trunk": "test_efficientnet", **HEADS["plain"]}
    auto_classes = (AutoModelForSemanticSegmentation,)
    trunk_class = DeepLabModel
    pixel_output = "logits"


class TestTrunk(CommonModelTests):
    model_class = trunk_class = DeepLabModel
    fields = {"trunk": "test_convnext", "output_stride": None}
    pixel_output = "last_hidden_state"


# --- config ---------------------------------------------------------------------------------------------------------

ASPP, LARGEFOV = [6, 12, 18, 24], [12]


@pytest.mark.parametrize(
    "trunk, head, rates, channels, norm, dropout",
    [
        ("vgg16", "largefov", LARGEFOV, 1024, False, 0.5),
        ("vgg16_bn", "aspp", ASPP, 1024, False, 0.5),
        ("resnet101", "largefov", LARGEFOV, 1024, False, 0),
        ("resnet101", "aspp", ASPP, 0, False, 0),
        ("resnet38", "largefov", LARGEFOV, 512, True, 0.5),
        ("resnet38", "aspp", ASPP, 0, False, 0),
        ("mobilenetv2_100", "aspp", ASPP, 0, False, 0),
    ],
)
def test_unset_head_fields_become_those_of_the_published_head(tmp_path, trunk, head, rates, channels, norm, dropout):
    expected = {
        "atrous_rates": rates,
        "head_channels": channels,
        "head_batch_norm": norm,
        "head_dropout": dropout,
    }
    DeepLabConfig(trunk=trunk, head=head).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    loaded = DeepLabConfig.from_pretrained(tmp_path)
    for key, value in expected.items():
        assert saved[key] == getattr(loaded, key) == value


def test_set_head_fields_are_kept():
    values = {"atrous_rates": [3, 5], "head_channels": 7, "head_batch_norm": True, "head_dropout": 0.25}
    for trunk in ("vgg16", "resnet38", "test_resnet"):
        kept = DeepLabConfig(trunk=trunk, head="aspp", **values)
        assert {key: getattr(kept, key) for key in values} == values
    assert DeepLabConfig(trunk="vgg16", head_channels=0).head_dropout == 0


def test_a_file_keeps_every_field(tmp_path):
    saved = config(**HEADS["norm"], balanced_loss=True, palette=[[0, 0, 0], [1, 2, 3], [4, 5, 6], [7, 8, 9]])
    saved.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is DeepLabConfig
    for key in (*DeepLabConfig.__annotations__, "id2label", "label2id"):
        assert getattr(loaded, key) == getattr(saved, key)


def test_the_default_palette_is_the_voc_colour_map():
    palette = DeepLabConfig(num_labels=255).palette
    assert len({tuple(colour) for colour in palette}) == 255
    assert sum(voc_palette(256), []) == schema.palette()
    aeroplane, person, monitor = (palette[index] for index in (1, 15, 20))
    assert palette[0] == [0, 0, 0] and aeroplane == [128, 0, 0]
    assert person == [192, 128, 128] and monitor == [0, 64, 128]


@pytest.mark.parametrize(
    "labels",
    [{"num_labels": 6}, {"id2label": {index: f"thing {index}" for index in range(6)}}, {"num_labels": 2}],
    ids=["more", "names", "fewer"],
)
def test_the_palette_follows_the_labels_that_from_pretrained_is_given(tmp_path, batch, labels):
    own = [[0, 0, 0], [1, 2, 3], [4, 5, 6], [7, 8, 9]]
    build(**SMALL, palette=own).save_pretrained(tmp_path / "four")
    model = DeepLabForSemanticSegmentation.from_pretrained(tmp_path / "four", ignore_mismatched_sizes=True, **labels)
    number = labels.get("num_labels", 6)
    loss = model.train()(batch["pixel_values"], labels=batch["labels"].clamp(max=number - 1)).loss
    assert loss.isfinite()
    model.save_pretrained(tmp_path / "others")
    loaded = DeepLabForSemanticSegmentation.from_pretrained(tmp_path / "others")
    assert loaded.config.palette == voc_palette(number) and loaded.config.num_labels == number
    # As many labels as before keep the colours: only their names are new.
    renamed = DeepLabConfig.from_pretrained(tmp_path / "four", id2label=dict(enumerate("abcd")))
    assert renamed.palette == own
    colours = voc_palette(number + 1)[1:]
    given = DeepLabConfig.from_pretrained(tmp_path / "four", palette=colours, **labels)
    assert given.palette == colours


def test_a_misspelt_key_is_an_error_with_the_nearest_name(tmp_path):
    with pytest.raises(ValueError, match="DeepLabConfig: unknown key 'atrous_rate'; did you mean 'atrous_rates'"):
        DeepLabConfig(atrous_rate=[3])
    config().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "key_of_tomorrow": 1}))
    DeepLabConfig.from_pretrained(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "balanced_los": True}))
    with pytest.raises(ValueError, match="did you mean 'balanced_loss'"):
        DeepLabConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"atrous_rates": []}, "DeepLabConfig.atrous_rates: got .*, expected one or more numbers of at least 1"),
        ({"atrous_rates": [0]}, "DeepLabConfig.atrous_rates"),
        ({"head": "largefov", "atrous_rates": [1, 2]}, r"atrous_rates: got \[1, 2\], expected one number"),
        ({"head": "psp"}, "head"),
        ({"head_channels": -1}, "DeepLabConfig.head_channels: got -1"),
        ({"head_channels": 4, "head_dropout": 1.0}, "DeepLabConfig.head_dropout: got 1.0"),
        ({"head_channels": 0, "head_dropout": 0.5}, "head_channels: got 0 with head_dropout 0.5"),
        ({"head_channels": 0, "head_batch_norm": True}, "head_channels: got 0 with"),
        ({"output_stride": 4}, "DeepLabConfig.output_stride: got 4, expected 8, 16, 32 or None"),
        ({"frozen_reduction": -1}, "DeepLabConfig.frozen_reduction: got -1"),
        ({"num_labels": 256}, "DeepLabConfig.id2label: got .*, expected 0, 1, .* at most 255"),
        ({"id2label": {0: "background", 255: "ignore"}}, "DeepLabConfig.id2label"),
        ({"num_labels": 3, "semantic_loss_ignore_index": 2}, "semantic_loss_ignore_index: got 2"),
        ({"num_labels": 2, "palette": [[0, 0, 0]]}, "DeepLabConfig.palette: .* expected 2 colours"),
        ({"num_labels": 1, "palette": [[0, 0, 256]]}, "DeepLabConfig.palette"),
    ],
)
def test_impossible_values_are_an_error_that_names_them(fields, message):
    with pytest.raises(Exception, match=message):
        DeepLabConfig(**fields)


# --- layers of the published networks, by hand; on the meta device --------------------------------------------------


def conv(inputs, outputs, side, bias=True):
    return inputs * outputs * side * side + bias * outputs


def largefov(channels, width=1024):
    return conv(channels, width, 3) + conv(width, width, 1) + conv(width, CLASSES, 1)


def bottlenecks(inputs, width, depth):
    """Parameters of a stage of bottlenecks; every convolution is followed by batch norm (2 per channel)."""
    count = conv(inputs, 4 * width, 1, bias=False) + 2 * 4 * width
    for _ in range(depth):
        count += conv(inputs, width, 1, False) + conv(width, width, 3, False) + conv(width, 4 * width, 1, False)
        count += 2 * (width + width + 4 * width)
        inputs = 4 * width
    return count


VGG16 = sum(
    conv(a, b, 3)
    for a, b in [(3, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 256), (256, 512)]
    + [(512, 512)] * 5
)
RESNET101 = (
    conv(3, 64, 7, bias=False)
    + 2 * 64
    + sum(bottlenecks(*stage) for stage in [(64, 64, 3), (256, 128, 4), (512, 256, 23), (1024, 512, 3)])
)
RESNET38_HEAD = conv(4096, 512, 3, False) + 2 * 512 + conv(512, 512, 1, False) + 2 * 512 + conv(512, CLASSES, 1)
NETWORKS = [
    ("vgg16", "largefov", VGG16, largefov(512)),
    ("vgg16", "aspp", VGG16, 4 * largefov(512)),
    ("resnet101", "aspp", RESNET101, 4 * conv(2048, CLASSES, 3)),
    ("resnet101", "largefov", RESNET101, largefov(2048)),
]


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def branch_layers(branch, features):
    """Kind, dilation and output shape of each of a branch's layers, in the order in which they run."""
    found = []
    for layer in [*branch.hidden, branch.classifier]:
        layer.register_forward_hook(
            lambda module, inputs, output: found.append(
                (type(module).__name__, getattr(module, "dilation", (0,))[0], tuple(output.shape[1:]))
            )
        )
    branch(features)
    return found


def hidden_layers(rate, width, side):
    shape = (width, side, side)
    layers = [("Conv2d", rate, shape), ("ReLU", 0, shape), ("Dropout", 0, shape)]
    layers += [("Conv2d", 1, shape), ("ReLU", 0, shape), ("Dropout", 0, shape)]
    return [*layers, ("Conv2d", 1, (CLASSES, side, side))]


@pytest.mark.parametrize("trunk, head, trunk_parameters, head_parameters", NETWORKS)
def test_published_networks_have_their_layers_and_parameters(trunk, head, trunk_parameters, head_parameters):
    with torch.device("meta"):
        model = DeepLabForSemanticSegmentation(DeepLabConfig(trunk=trunk, head=head, num_labels=CLASSES)).eval()
    assert count(model.deeplab) == trunk_parameters
    assert count(model.head) == head_parameters
    image = torch.empty(1, 3, 321, 321, device="meta")
    features = model.deeplab(image).last_hidden_state
    assert features.shape == (1, 512 if trunk == "vgg16" else 2048, 41, 41)
    assert model(image).logits.shape == (1, CLASSES, 41, 41)
    rates = ASPP if head == "aspp" else LARGEFOV
    assert len(model.head.branches) == len(rates)
    for branch, rate in zip(model.head.branches, rates, strict=True):
        if trunk == "resnet101" and head == "aspp":
            expected = [("Conv2d", rate, (CLASSES, 41, 41))]
        else:
            expected = hidden_layers(rate, 1024, 41)
        assert branch_layers(branch, features) == expected
        probabilities = {layer.p for layer in branch.modules() if isinstance(layer, nn.Dropout)}
        assert probabilities == ({0.5} if trunk == "vgg16" else {0.0} if head == "largefov" else set())
        assert branch.classifier.bias is not None


def test_resnet38_head_has_batch_norm_and_one_dropout():
    with torch.device("meta"):
        head = AtrousHead(4096, DeepLabConfig(trunk="resnet38", head="largefov", num_labels=CLASSES)).eval()
        features = torch.empty(1, 4096, 56, 56)
    shape = (512, 56, 56)
    assert count(head) == RESNET38_HEAD
    assert branch_layers(head.branches[0], features) == [
        ("Conv2d", 12, shape),
        ("BatchNorm2d", 0, shape),
        ("ReLU", 0, shape),
        ("Conv2d", 1, shape),
        ("BatchNorm2d", 0, shape),
        ("ReLU", 0, shape),
        ("Dropout", 0, shape),
        ("Conv2d", 1, (CLASSES, 56, 56)),
    ]


@pytest.mark.skipif(
    importlib.util.find_spec("sbce_hf.models.modeling_resnet38") is None, reason="the package has no ResNet-38"
)
def test_resnet38_network():
    with torch.device("meta"):
        model = DeepLabForSemanticSegmentation(DeepLabConfig(trunk="resnet38", head="largefov", num_labels=CLASSES))
        logits = model.eval()(torch.empty(1, 3, 448, 448)).logits
    assert logits.shape == (1, CLASSES, 56, 56)
    assert count(model.head) == RESNET38_HEAD


def test_resnet101_is_dilated_in_its_last_two_stages():
    with torch.device("meta"):
        trunk = create_trunk(DeepLabConfig())
    for stage, depth, rate in (("layer1", 3, 1), ("layer2", 4, 1), ("layer3", 23, 2), ("layer4", 3, 4)):
        blocks = list(trunk[stage])
        # A stage's first 3x3 still sees the grid of the stage before, as in timm's and torchvision's own.
        assert [block.conv2.dilation[0] for block in blocks] == [max(1, rate // 2)] + [rate] * (depth - 1)
        assert blocks[0].conv2.stride[0] == (2 if stage == "layer2" else 1)
        assert all(block.conv2.stride == (1, 1) for block in blocks[1:])


# --- forward --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields, stride",
    [
        ({}, 8),
        ({"output_stride": 16}, 16),
        ({"trunk": "mobilenetv2_050", "trunk_kwargs": {"pad_type": "same"}}, 8),
        ({"trunk": "test_convnext", "output_stride": None}, 32),
        ({"trunk": "test_vit", "output_stride": None, "trunk_kwargs": {"img_size": 64}}, 16),
    ],
    ids=str,
)
@pytest.mark.parametrize("head", ["largefov", "aspp"])
def test_both_heads_on_every_kind_of_trunk(batch, fields, stride, head):
    model = build(head=head, **fields).eval()
    with torch.no_grad():
        output = model(batch["pixel_values"])
    assert isinstance(output, SemanticSegmenterOutput) and output.loss is None
    assert output.logits.shape == (2, 4, 64 // stride, 64 // stride) and output.logits.isfinite().all()


def test_an_impossible_trunk_is_an_error():
    with pytest.raises(ValueError, match="trunk 'test_vit'"):
        build(trunk="test_vit")


def test_branches_are_summed(batch):
    model = spread(build(**HEADS["plain"]))
    with torch.no_grad():
        features = model.deeplab(batch["pixel_values"]).last_hidden_state
        logits = model(batch["pixel_values"]).logits
        parts = [
            F.conv2d(features, b.classifier.weight, b.classifier.bias, padding=rate, dilation=rate)
            for b, rate in zip(model.head.branches, (1, 2), strict=True)
        ]
    torch.testing.assert_close(logits, parts[0] + parts[1])
    assert not torch.equal(parts[0], parts[1])


@pytest.mark.parametrize("balanced", [False, True])
def test_loss_is_the_configured_one(batch, balanced):
    model = spread(build(balanced_loss=balanced))
    with torch.no_grad():
        output = model(**batch)
    assert output.loss == segmentation_loss(output.logits, batch["labels"], balanced=balanced)
    assert output.loss != segmentation_loss(output.logits, batch["labels"], balanced=not balanced)
    other = build(semantic_loss_ignore_index=-100, balanced_loss=balanced)
    other.load_state_dict(model.state_dict())
    labels = torch.where(batch["labels"] == 255, -100, batch["labels"])
    with torch.no_grad():
        assert other.eval()(batch["pixel_values"], labels=labels).loss == output.loss


def test_counts_are_summed_over_processes_in_training_only(batch, monkeypatch):
    calls = []
    monkeypatch.setattr(modeling_deeplab, "sum_over_processes", lambda counts: calls.append(counts) or counts)
    model = build()
    model.eval()(**batch)
    assert not calls
    model.train()(**batch)
    assert len(calls) == 1


def test_loss_is_float32_under_autocast(batch):
    model = build().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(**batch)
    assert output.logits.dtype == torch.bfloat16 and output.loss.dtype == torch.float32
    output.loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


# --- what is trained ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("fields", [{}, {"freeze_batch_norm": False}, {"frozen_reduction": 4}], ids=str)
def test_gradient_reaches_every_trainable_parameter_and_no_other(batch, head, fields):
    model = open_residuals(build(**HEADS[head], **fields)).train()
    model(**batch).loss.backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert reached == trainable
    assert {name for name, _ in model.named_parameters() if name.startswith("head.")} <= trainable
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    norms = {
        f"deeplab.{name}.{key}"
        for name, module in model.deeplab.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for key in ("weight", "bias")
    }
    assert norms and (norms <= frozen) is ("freeze_batch_norm" not in fields)
    stem = {name for name in frozen if name.startswith(("deeplab.trunk.conv1", "deeplab.trunk.layer1"))}
    assert bool(frozen - norms) is ("frozen_reduction" in fields) and frozen - norms <= stem


def test_vgg16_trains_as_a_whole(batch):
    # 1/64 of the width of its hidden layers, and without timm's wide classifier, which is thrown away anyway.
    model = build(trunk="vgg16", trunk_kwargs={"mlp_ratio": 0.01}, head="largefov", head_channels=16).train()
    model(batch["pixel_values"][:1], labels=batch["labels"][:1]).loss.backward()
    assert all(p.requires_grad and p.grad.any() for p in model.parameters())


def test_a_level_without_parameters_freezes_what_is_before_it():
    frozen = {name for name, p in build(frozen_reduction=2).deeplab.trunk.named_parameters() if not p.requires_grad}
    assert any(name.startswith("conv1") for name in frozen)
    norms_only = {name for name, p in build().deeplab.trunk.named_parameters() if not p.requires_grad}
    assert {name.split(".")[0] for name in frozen - norms_only} == {"conv1"}


def test_batch_norm_is_trained_in_the_head_and_frozen_in_the_trunk(tmp_path, batch):
    build(**HEADS["norm"]).save_pretrained(tmp_path)
    for model in (build(**HEADS["norm"]), DeepLabForSemanticSegmentation.from_pretrained(tmp_path)):
        assert model.train() is model
        trunk = [m for m in model.deeplab.modules() if isinstance(m, nn.BatchNorm2d)]
        head = [m for m in model.head.modules() if isinstance(m, nn.BatchNorm2d)]
        assert len(head) == 2 and all(m.training and m.weight.requires_grad for m in head)
        assert trunk and not any(m.training or m.weight.requires_grad for m in trunk)
        before = [m.running_mean.clone() for m in (trunk[0], head[0])]
        model(**batch)
        assert torch.equal(trunk[0].running_mean, before[0]) and not torch.equal(head[0].running_mean, before[1])


# --- initial values, saving, loading --------------------------------------------------------------------------------


def check_initial_head(model, std):
    for branch in model.head.branches:
        assert not branch.classifier.bias.any()
        assert branch.classifier.weight.std().item() == pytest.approx(std, rel=0.1)
        for layer in branch.hidden:
            if isinstance(layer, nn.Conv2d):
                fan_in = layer.weight[0].numel()
                assert layer.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.1)
                assert layer.bias is None or not layer.bias.any()
            elif isinstance(layer, nn.BatchNorm2d):
                assert (layer.weight == 1).all() and not layer.bias.any()
                assert not layer.running_mean.any() and (layer.running_var == 1).all()
                assert layer.num_batches_tracked == 0


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("std", [0.01, 0.5])
def test_initial_values_are_the_configured_ones(head, std):
    wide = {} if head == "plain" else {"head_channels": 64}
    check_initial_head(build(**{**HEADS[head], **wide}, initializer_range=std, num_labels=40, **UNNAMED), std)


UNNAMED = {"id2label": None, "label2id": None}


@pytest.mark.parametrize("head", HEADS)
def test_missing_head_keys_load_as_configured(tmp_path, batch, head):
    wide = {} if head == "plain" else {"head_channels": 64}
    model = build(**{**HEADS[head], **wide}, initializer_range=0.3, num_labels=40, **UNNAMED)
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    state = {key: value for key, value in load_file(path).items() if key.startswith("deeplab.")}
    save_file(state, path, metadata={"format": "pt"})
    loaded = DeepLabForSemanticSegmentation.from_pretrained(tmp_path)
    check_initial_head(loaded, 0.3)
    trunk = loaded.deeplab.state_dict()
    assert all(torch.equal(value, trunk[key]) for key, value in model.deeplab.state_dict().items())
    assert loaded(**batch).loss.isfinite()


def test_trunk_weights_load_from_a_file(tmp_path):
    torch.manual_seed(1)
    plain = timm.create_model("test_resnet")
    save_file(plain.state_dict(), tmp_path / "plain.safetensors")
    model = build(seed=2)
    head = {key: value.clone() for key, value in model.head.state_dict().items()}
    load_trunk_weights(model, str(tmp_path / "plain.safetensors"))
    expected = plain.state_dict()
    state = model.deeplab.trunk.state_dict()
    assert state and all(torch.equal(value, expected[key]) for key, value in state.items())
    assert all(torch.equal(model.head.state_dict()[key], value) for key, value in head.items())


# --- from a classifier ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(3)
    names = dict(enumerate(NAMES[1:]))
    fields = {"trunk": "test_resnet", "output_stride": 16, "trunk_kwargs": {"drop_rate": 0.1}, "frozen_reduction": 2}
    labels = {"id2label": names, "label2id": {name: index for index, name in names.items()}}
    model = SpatialBceForImageClassification(SpatialBceConfig(**fields, **labels, embedding_dim=4))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
    return model.eval()


def test_from_classifier_takes_trunk_and_classes(classifier):
    model = DeepLabForSemanticSegmentation.from_classifier(classifier, head="largefov", balanced_loss=True)
    for name in ("trunk", "trunk_kwargs", "output_stride", "frozen_reduction", "freeze_batch_norm", "feature_relu"):
        assert getattr(model.config, name) == getattr(classifier.config, name)
    assert model.config.id2label == dict(enumerate(NAMES))
    assert model.config.label2id == {name: index for index, name in enumerate(NAMES)}
    assert model.config.balanced_loss and model.config.head == "largefov"
    ours, theirs = model.deeplab.state_dict(), classifier.spatial_bce.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        features = model.eval().deeplab(image).last_hidden_state
        assert torch.equal(features, classifier.spatial_bce(image).last_hidden_state)
    assert model(image).logits.shape == (1, 4, 4, 4)
    # The classifier keeps its own weights.
    with torch.no_grad():
        model.deeplab.trunk.conv1[0].weight.zero_()
    assert classifier.spatial_bce.trunk.conv1[0].weight.any()


def test_fields_win_over_the_classifiers(classifier):
    model = DeepLabForSemanticSegmentation.from_classifier(classifier, output_stride=8, frozen_reduction=0)
    assert model(torch.randn(1, 3, 64, 64)).logits.shape == (1, 4, 8, 8)
    norms = {p for m in model.deeplab.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()}
    assert all(p.requires_grad for p in model.parameters() if p not in norms)


def test_another_trunk_than_the_classifiers_is_an_error(classifier):
    with pytest.raises(ValueError, match="is not the classifier's 'test_resnet'"):
        DeepLabForSemanticSegmentation.from_classifier(classifier, trunk="resnet10t", trunk_kwargs=None)
    with pytest.raises(ValueError, match="unknown key 'hed'"):
        DeepLabForSemanticSegmentation.from_classifier(classifier, hed="aspp")


# --- transformers around it -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("deeplab")
    spread(build(head="largefov", head_channels=16)).save_pretrained(folder)
    DeepLabImageProcessor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def label_map(checkpoint, photo):
    """Our own forward pass."""
    model = DeepLabForSemanticSegmentation.from_pretrained(checkpoint).eval()
    values = DeepLabImageProcessor()(images=photo, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        logits = model(values).logits
    size = (photo.height, photo.width)
    found = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)[0].argmax(dim=0).numpy()
    assert len(np.unique(found)) > 2
    return found


def composed(segments, shape):
    found = np.full(shape, 255, dtype=np.uint8)
    for segment in segments:
        found[np.array(segment["mask"]) > 0] = NAMES.index(segment["label"])
    return found


def test_pipeline_gives_our_own_label_map(checkpoint, photo, label_map):
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    try:
        segments = pipeline("image-segmentation", model=str(checkpoint))(photo)
    finally:
        logger.removeHandler(handler)
    assert not [record.getMessage() for record in records if "not supported" in record.getMessage()]
    assert np.array_equal(composed(segments, label_map.shape), label_map)


@pytest.fixture(scope="module")
def classifier_checkpoint(classifier, tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier")
    classifier.save_pretrained(folder)
    SpatialBceImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("trust", [None, True])
def test_installed_classes_are_used_without_a_question(checkpoint, classifier_checkpoint, monkeypatch, trust):
    monkeypatch.setattr(sys, "stdin", None)
    for folder, auto, config_class, model, processor in (
        (
            checkpoint,
            AutoModelForSemanticSegmentation,
            DeepLabConfig,
            DeepLabForSemanticSegmentation,
            DeepLabImageProcessor,
        ),
        (
            classifier_checkpoint,
            AutoModelForImageClassification,
            SpatialBceConfig,
            SpatialBceForImageClassification,
            SpatialBceImageProcessor,
        ),
    ):
        assert "auto_map" in json.loads((folder / "config.json").read_text())
        assert type(AutoConfig.from_pretrained(folder, trust_remote_code=trust)) is config_class
        assert type(auto.from_pretrained(folder, trust_remote_code=trust)) is model
        assert type(AutoImageProcessor.from_pretrained(folder, trust_remote_code=trust)) is processor


ONE_AUTO_MODULE_FIRST = """
import sys
from transformers import AutoImageProcessor
import sbce_hf.models
from transformers import AutoModelForImageClassification, AutoModelForSemanticSegmentation
for auto, folder in zip((AutoModelForSemanticSegmentation, AutoModelForImageClassification), sys.argv[1:]):
    for loaded in (auto.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)):
        assert type(loaded).__module__.startswith("sbce_hf.models."), type(loaded)
"""


def test_installed_classes_are_used_whatever_was_imported_first(checkpoint, classifier_checkpoint):
    subprocess.run(
        [sys.executable, "-c", ONE_AUTO_MODULE_FIRST, str(checkpoint), str(classifier_checkpoint)],
        stdin=subprocess.DEVNULL,
        check=True,
    )


WITHOUT_THE_PACKAGE = """
import json, sys
from pathlib import Path

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "sbce_hf":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
try:
    import sbce_hf
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("the package must be absent")

from PIL import Image
from transformers import pipeline

segmenter_dir, classifier_dir, photo = sys.argv[1:]
photo = Image.open(photo)
segment = pipeline("image-segmentation", model=segmenter_dir, trust_remote_code=True)
for found in segment(photo):
    found["mask"].save(f"{found['label']}.png")
classify = pipeline("image-classification", model=classifier_dir, trust_remote_code=True, top_k=None)
Path("scores.json").write_text(json.dumps({found["label"]: found["score"] for found in classify(photo)}))
for name, pipe in (("segmenter", segment), ("classifier", classify)):
    pipe.model.save_pretrained(name)
    pipe.image_processor.save_pretrained(name)
assert not [name for name in sys.modules if name.startswith("sbce_hf")]
"""


@pytest.fixture(scope="module")
def without_the_package(checkpoint, classifier_checkpoint, photo, tmp_path_factory):
    """Folder of what a process wrote that cannot import the package."""
    folder = tmp_path_factory.mktemp("elsewhere")
    photo.save(folder / "photo.png")
    environment = {**os.environ, "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_MODULES_CACHE", None)
    arguments = [str(checkpoint), str(classifier_checkpoint), "photo.png"]
    process = subprocess.run(
        [sys.executable, "-c", WITHOUT_THE_PACKAGE, *arguments],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    return folder


def test_segmenter_works_where_the_package_is_not_installed(without_the_package, label_map):
    segments = [
        {"label": name, "mask": Image.open(path)}
        for name in NAMES
        if (path := without_the_package / f"{name}.png").exists()
    ]
    assert np.array_equal(composed(segments, label_map.shape), label_map)


def test_classifier_works_where_the_package_is_not_installed(without_the_package, classifier, photo):
    scores = json.loads((without_the_package / "scores.json").read_text())
    values = SpatialBceImageProcessor(size={"height": 64, "width": 64})(images=photo, return_tensors="pt")
    with torch.no_grad():
        expected = classifier(values["pixel_values"]).logits[0].sigmoid().tolist()
    assert scores == pytest.approx(dict(zip(NAMES[1:], expected, strict=True)))


def files(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}


def test_copies_save_what_they_were_loaded_from(without_the_package, checkpoint, classifier_checkpoint):
    for name, original in (("segmenter", checkpoint), ("classifier", classifier_checkpoint)):
        assert files(without_the_package / name) == files(original)
