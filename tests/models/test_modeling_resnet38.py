import json

import pytest
import torch
from common_model_tests import CommonModelTests
from safetensors.torch import load_file, save_file
from torch import nn

from sbce_hf.models.configuration_spatial_bce import SpatialBceConfig
from sbce_hf.models.modeling_resnet38 import PreActivationBlock, ResNet38
from sbce_hf.models.modeling_spatial_bce import SpatialBceForImageClassification, SpatialBceModel
from sbce_hf.models.modeling_trunk import create_trunk
from sbce_hf.models.modeling_trunk_weights import load_trunk_weights

HEADS = ("temperature", "fc_list", "threshold", "mask_layer_downsample")


def config(**fields):
    return SpatialBceConfig(**{"trunk": "resnet38", "num_labels": 20, "frozen_reduction": 2, **fields})


class TestFirstStage(CommonModelTests):
    model_class = trunk_class = SpatialBceModel
    fields = {"trunk": "resnet38", "feature_index": 1}
    pixel_output = "last_hidden_state"


def on_meta(**fields):
    with torch.device("meta"):
        return SpatialBceForImageClassification(config(**fields))


@pytest.fixture(scope="module")
def layout(golden_dir):
    layout = json.loads((golden_dir / "resnet38_layout.json").read_text())
    return {name: tuple(shape) for name, shape in layout.items() if name.split(".")[0] not in HEADS}


def test_names_and_shapes_are_the_released_ones(layout):
    state = on_meta().spatial_bce.trunk.state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == layout
    assert list(state) == [name for name in layout if name in state]


def frozen_and_all(model):
    counts = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(count for count, trained in counts if not trained), sum(count for count, _ in counts)


def test_the_release_freezes_the_stem_the_first_stage_and_batch_norm():
    model = on_meta()
    frozen, total = frozen_and_all(model)
    assert round(frozen / 1e6, 2) == 0.87 and round(total / 1e6, 1) == 105.7
    trunk = model.spatial_bce.trunk
    norms = {
        f"{name}.{key}"
        for name, module in trunk.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for key in ("weight", "bias")
    }
    others = {name for name, p in trunk.named_parameters() if not p.requires_grad} - norms
    assert {name.split(".")[0] for name in others} == {"conv1a", "b2", "b2_1", "b2_2"}
    assert all(not trunk.get_parameter(name).requires_grad for name in norms)


@pytest.mark.parametrize(("reduction", "first_trained"), [(0, "conv1a"), (1, "b2"), (2, "b3"), (4, "b4"), (8, None)])
def test_freezing_ends_with_the_last_level_of_that_stride(reduction, first_trained):
    trunk = on_meta(frozen_reduction=reduction, freeze_batch_norm=False).spatial_bce.trunk
    trained = [name.split(".")[0] for name, p in trunk.named_parameters() if p.requires_grad]
    assert (trained[0] if trained else None) == first_trained


def test_training_mode_keeps_batch_norm_and_frees_dropout():
    trunk = on_meta().train().spatial_bce.trunk
    assert not any(m.training for m in trunk.modules() if isinstance(m, nn.BatchNorm2d))
    assert trunk.b6.training and trunk.b7.training


def test_dilations_strides_and_levels():
    with torch.device("meta"):
        trunk = ResNet38(out_indices=range(7))
        features = trunk(torch.empty(1, 3, 65, 97))
    assert [tuple(f.shape[1:]) for f in features] == [
        (64, 65, 97), (128, 33, 49), (256, 17, 25), (512, 9, 13), (1024, 9, 13), (2048, 9, 13), (4096, 9, 13),
    ]  # fmt: skip
    assert trunk.feature_info.channels() == [f.shape[1] for f in features]
    assert trunk.feature_info.reduction() == [1, 2, 4, 8, 8, 8, 8]
    dilated = {
        name: module.dilation[0]
        for name, module in trunk.named_modules()
        if isinstance(module, nn.Conv2d) and module.dilation[0] > 1
    }
    assert dilated == {
        "b5.conv_branch2b1": 2,
        **{f"b5_{i}.conv_{branch}": 2 for i in (1, 2) for branch in ("branch2a", "branch2b1")},
        "b6.conv_branch2b1": 4,
        "b7.conv_branch2b1": 4,
    }
    assert (trunk.b6._dropout, trunk.b7._dropout, trunk.b5._dropout) == (0.3, 0.5, 0.0)


def test_earlier_levels_leave_out_what_lies_behind():
    with torch.device("meta"):
        trunk = create_trunk(config(feature_index=3))
        assert trunk(torch.empty(1, 3, 64, 64))[-1].shape == (1, 512, 8, 8)
    assert trunk.feature_info.channels() == [512] and not hasattr(trunk, "b5")


def test_features_are_rectified_by_the_model_and_not_by_the_trunk():
    with torch.device("meta"):
        trunk = ResNet38()
    assert [name for name, _ in trunk.named_children()][-1] == "bn7"


def test_blocks_drop_whole_channels_in_training_only():
    torch.manual_seed(0)
    block = PreActivationBlock(8, (2, 4, 8), dilations=(1, 4, 1), dropout=0.5)
    inputs = torch.randn(2, 8, 9, 9)
    seen = []
    block.conv_branch2b2.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    block.eval()
    assert torch.equal(block(inputs), block(inputs))
    block.train()(inputs)
    dead = [(values.amax(dim=(2, 3)) == 0).sum().item() for values in seen]
    assert dead[0] == dead[1] == 0 < dead[2]
    assert block.conv_branch1 is None and PreActivationBlock(8, (4, 4)).conv_branch1 is not None


def test_a_block_leaves_its_input_as_it_is():
    inputs = torch.randn(1, 4, 5, 5)
    before = inputs.clone()
    PreActivationBlock(4, (4, 4)).eval()(inputs)
    assert torch.equal(inputs, before)


@pytest.mark.parametrize("stride", [16, 32])
def test_another_output_stride_is_an_error(stride):
    with pytest.raises(ValueError, match=f"output_stride {stride}, expected 8"):
        on_meta(output_stride=stride)


def test_its_own_output_stride_is_8():
    assert on_meta(output_stride=None).spatial_bce.num_features == 4096


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"trunk_kwargs": {"pad_type": "same"}}, "pad_type.*leave out trunk_kwargs"),
        ({"feature_index": 7}, r"levels \[7\]"),
    ],
)
def test_other_mistakes_are_errors(fields, message):
    with pytest.raises(ValueError, match=message):
        on_meta(**fields)


# --- weights --------------------------------------------------------------------------------------------------------


def test_weights_load_from_a_file(tmp_path):
    # The first three levels, because the whole network has 420 MB.
    model = SpatialBceForImageClassification(config(feature_index=2))
    trunk = model.spatial_bce.trunk
    path = tmp_path / "trunk.safetensors"
    save_file({**trunk.state_dict(), "bn7.weight": torch.ones(4096)}, path)
    embedding = model.embedding.weight.clone()
    with torch.no_grad():
        for value in trunk.state_dict().values():
            value.zero_()
    load_trunk_weights(model, str(path))
    saved = load_file(path)
    assert all(torch.equal(value, saved[name]) for name, value in trunk.state_dict().items())
    assert trunk.conv1a.weight.any() and torch.equal(model.embedding.weight, embedding)
    saved["conv1a.weight"] = saved["conv1a.weight"][:, :1].clone()
    save_file({name: value for name, value in saved.items() if value.ndim < 4 or name == "conv1a.weight"}, path)
    with pytest.raises(ValueError, match="lacks .* of trunk 'resnet38', first 'b2.conv_branch2a.weight'"):
        load_trunk_weights(model, str(path))


def test_another_shape_is_an_error(tmp_path):
    model = on_meta(feature_index=0)
    save_file({"conv1a.weight": torch.zeros(64, 1, 3, 3)}, tmp_path / "trunk.safetensors")
    with pytest.raises(ValueError, match="(?s)are not those of 'resnet38'.*conv1a.weight"):
        load_trunk_weights(model, str(tmp_path / "trunk.safetensors"))


def test_timm_has_no_weights_and_the_error_says_what_to_do():
    with pytest.raises(ValueError, match="timm has none of 'resnet38'.*sbce import"):
        load_trunk_weights(on_meta(), "pretrained")


def tiny():
    return SpatialBceForImageClassification(SpatialBceConfig(trunk="test_resnet", num_labels=2))


def test_a_file_with_other_names_is_an_error_where_timm_would_start_from_random_weights(tmp_path):
    save_file({"module.conv1.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="lacks .* of trunk 'test_resnet'.*sbce import"):
        load_trunk_weights(tiny(), str(tmp_path / "other.safetensors"))


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_a_pickle_is_never_read(tmp_path, name):
    torch.save({"x": torch.zeros(1)}, tmp_path / name)
    with pytest.raises(ValueError, match="safetensors file.*sbce import"):
        load_trunk_weights(tiny(), str(tmp_path / name))
