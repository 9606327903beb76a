import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from sbce_hf.models.configuration_deeplab import DeepLabConfig
from sbce_hf.models.modeling_deeplab import DeepLabModel
from sbce_hf.models.modeling_trunk import create_trunk
from sbce_hf.models.modeling_trunk_weights import load_trunk_weights

# The widths and depths of VGG16's five stages.
STAGES = [(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)]
# A narrow classifier, which timm builds and throws away: the checkpoint file of the real one has 550 MB.
NARROW = {"mlp_ratio": 0.01}


def vgg(device="meta", **fields):
    with torch.device(device):
        return create_trunk(DeepLabConfig(**{"trunk": "vgg16", **fields})).eval()


def sides(trunk, size):
    """Side length behind every pool."""
    found = []
    for layer in trunk.values():
        if isinstance(layer, nn.MaxPool2d):
            layer.register_forward_hook(lambda module, inputs, output: found.append(output.shape[-1]))
    trunk(torch.empty(1, 3, size, size, device="meta"))
    return found


def test_layers_are_those_of_vgg16():
    trunk = vgg()
    layers = list(trunk.values())
    expected, inputs = [], 3
    for width, depth in STAGES:
        for _ in range(depth):
            expected.append((inputs, width))
            inputs = width
    convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    assert [(layer.in_channels, layer.out_channels) for layer in convolutions] == expected
    assert all(layer.kernel_size == (3, 3) and layer.stride == (1, 1) for layer in convolutions)
    parameters = sum(9 * a * b + b for a, b in expected)
    assert sum(p.numel() for p in trunk.parameters()) == parameters == 14_714_688
    assert trunk.feature_info.channels() == [512]


@pytest.mark.parametrize(
    "output_stride, expected, conv5_dilation",
    [(8, [161, 81, 41, 41, 41], 2), (16, [161, 81, 41, 21, 21], 1), (32, [161, 81, 41, 21, 11], 1)],
)
def test_pools_and_dilation_give_the_output_stride(output_stride, expected, conv5_dilation):
    trunk = vgg(output_stride=output_stride)
    assert sides(trunk, 321) == expected
    dilations = [layer.dilation for layer in trunk.values() if isinstance(layer, nn.Conv2d)]
    assert dilations == [(1, 1)] * 10 + [(conv5_dilation,) * 2] * 3
    pools = [layer for layer in trunk.values() if isinstance(layer, nn.MaxPool2d)]
    assert all(pool.kernel_size == 3 and pool.padding == 1 for pool in pools)
    assert trunk.feature_info.reduction() == [output_stride]


def test_batch_norm_variant_and_other_levels():
    trunk = vgg(trunk="vgg16_bn", feature_index=-2)
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in trunk.values()) == 13
    assert sides(trunk, 321) == [161, 81, 41, 41]
    assert trunk(torch.empty(1, 3, 64, 64, device="meta"))[-1].shape == (1, 512, 8, 8)


def test_without_an_output_stride_it_is_timms_own():
    trunk, plain = vgg(output_stride=None), timm.create_model("vgg16", features_only=True, **NARROW)
    assert [repr(layer) for layer in trunk.values()] == [repr(layer) for layer in plain.values()]


@pytest.mark.parametrize("name", ["vgg16", "vgg16_bn"])
def test_weights_of_timms_plain_model_load_and_are_used(tmp_path, name):
    torch.manual_seed(0)
    plain = timm.create_model(name, **NARROW).eval()
    for buffer in plain.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    save_file(plain.state_dict(), tmp_path / "plain.safetensors")
    model = DeepLabModel(DeepLabConfig(trunk=name, trunk_kwargs=NARROW)).eval()
    load_trunk_weights(model, str(tmp_path / "plain.safetensors"))
    expected = {
        key.replace(".", "_", 1): value for key, value in plain.features.state_dict(prefix="features.").items()
    }
    state = model.trunk.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in state.items())
    # Up to the first pool the two networks are the same but for the pool's window.
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        first = plain.features[: 4 if name == "vgg16" else 6](image)
        pooled = nn.functional.max_pool2d(first, 3, 2, 1)
        features = image
        for layer in model.trunk.values():
            features = layer(features)
            if isinstance(layer, nn.MaxPool2d):
                break
    assert torch.equal(features, pooled)


@pytest.mark.parametrize("reduction, convolutions", [(0, 0), (1, 2), (2, 4), (4, 7), (8, 13)])
def test_frozen_levels(reduction, convolutions):
    with torch.device("meta"):
        model = DeepLabModel(DeepLabConfig(trunk="vgg16", frozen_reduction=reduction))
    frozen = [name for name, parameter in model.trunk.named_parameters() if not parameter.requires_grad]
    assert frozen == [name for name, _ in model.trunk.named_parameters()][: 2 * convolutions]
