"""Trunks that are no convolutional pyramids: maps in the usual order, of any image, behind the final norm."""

import pytest
import timm
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn

from sbce_hf.models.configuration_spatial_bce import SpatialBceConfig
from sbce_hf.models.modeling_spatial_bce import SpatialBceForImageClassification, SpatialBceModel
from sbce_hf.models.modeling_trunk import create_trunk
from sbce_hf.models.modeling_trunk_adapters import PyramidTrunk, TokenTrunk, fit, spread

# A tiny network of each kind: its name and arguments, its adapter, channels and stride.
TINY = {"embed_dim": 32, "depth": 3, "num_heads": 2}
SWIN = {"embed_dim": 8, "depths": [1, 1, 2, 1], "num_heads": [1, 1, 2, 2]}
KINDS = {
    "vit": ("test_vit", None, TokenTrunk, 64, 16),
    "distilled": ("deit_tiny_distilled_patch16_224", TINY, TokenTrunk, 32, 16),
    "dinov2": ("vit_small_patch14_dinov2", TINY, TokenTrunk, 32, 14),
    "dinov2 with registers": ("vit_small_patch14_reg4_dinov2", TINY, TokenTrunk, 32, 14),
    "dinov3": ("vit_small_patch16_dinov3", {**TINY, "num_heads": 1}, TokenTrunk, 32, 16),
    "eva": ("eva02_tiny_patch14_224", {"depth": 3}, TokenTrunk, 192, 14),
    "mean of tokens": ("vit_medium_patch16_rope_reg1_gap_256", {"depth": 3}, TokenTrunk, 512, 16),
    "xcit": ("xcit_nano_12_p16_224", {"depth": 3}, TokenTrunk, 128, 16),
    "mambaout": ("test_mambaout", None, PyramidTrunk, 64, 32),
    "swin": ("swin_tiny_patch4_window7_224", SWIN, PyramidTrunk, 64, 32),
    "swinv2": ("swinv2_tiny_window8_256", SWIN, PyramidTrunk, 64, 32),
    "pyramid of tokens": ("hiera_tiny_224", {"embed_dim": 16}, PyramidTrunk, 128, 32),
}
FIXED = ("hiera_tiny_224",)


def config(kind, **fields):
    name, arguments, *_ = KINDS[kind]
    return SpatialBceConfig(trunk=name, trunk_kwargs=arguments, output_stride=None, num_labels=2, **fields)


@pytest.fixture(params=KINDS)
def kind(request):
    torch.manual_seed(0)
    return request.param


def test_maps_cover_the_image_whatever_its_size(kind):
    model = SpatialBceModel(config(kind)).eval()
    _, _, adapter, channels, stride = KINDS[kind]
    assert type(model.trunk) is adapter and model.num_features == channels
    sizes = [(224, 224)] if KINDS[kind][0] in FIXED else [(224, 224), (333, 250), (97, 160), (8, 8)]
    for height, width in sizes:
        with torch.no_grad():
            features = model(torch.randn(1, 3, height, width)).last_hidden_state
        cells = [max(1, int(side / stride + 0.5)) for side in (height, width)]
        assert features.shape[:2] == (1, channels) and features.isfinite().all()
        # Pyramids round up at each level.
        most = 1 if adapter is PyramidTrunk else 0
        assert all(0 <= got - cell <= most for got, cell in zip(features.shape[2:], cells, strict=True))


def test_an_object_is_found_where_it_is(kind):
    """Rows stay rows and columns stay columns."""
    model = SpatialBceModel(config(kind)).eval()
    stride = KINDS[kind][-1]
    plain = torch.zeros(1, 3, 224, 224)
    marked = plain.clone()
    # The last row of cells, in the second column.
    marked[..., -stride:, stride : 2 * stride] = torch.randn(3, stride, stride) * 9
    with torch.no_grad():
        change = (model(marked).last_hidden_state - model(plain).last_hidden_state).norm(dim=1)[0]
    row, column = divmod(int(change.argmax()), change.shape[1])
    assert (row, column) == (change.shape[0] - 1, 1)


def test_levels_at_every_depth(kind):
    trunk = create_trunk(config(kind), out_indices=None).eval()
    with torch.no_grad():
        levels = trunk(torch.randn(1, 3, 224, 224))
    assert [level.shape[1] for level in levels] == trunk.feature_info.channels()
    assert [round(224 / level.shape[2]) for level in levels] == list(trunk.feature_info.reduction())
    assert len(levels) >= 3
    if isinstance(trunk, TokenTrunk):
        depth = len(trunk.model.blocks)
        assert trunk.feature_info.module_name() == [f"blocks.{index}" for index in spread(depth)]


def test_a_step_trains_what_is_not_frozen(kind):
    model = SpatialBceForImageClassification(config(kind, embedding_dim=8)).train()
    labels = torch.tensor([[1.0, 0], [0, 1]])
    model(torch.randn(2, 3, 224, 224), labels=labels, proportions=labels * 0.3).loss.backward()
    trunk = list(model.spatial_bce.trunk.parameters())
    frozen = [parameter for parameter in trunk if not parameter.requires_grad]
    assert frozen and all(parameter.grad is None for parameter in frozen)
    assert len(frozen) < 0.6 * len(trunk)
    assert any(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in trunk)


def test_saved_and_loaded_alike(kind, tmp_path):
    model = SpatialBceForImageClassification(config(kind, embedding_dim=8)).eval()
    model.save_pretrained(tmp_path)
    loaded = SpatialBceForImageClassification.from_pretrained(tmp_path)
    pixels = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(loaded(pixels).pixel_logits, model(pixels).pixel_logits, atol=1e-5, rtol=1e-5)
    assert loaded.config.feature_relu is False


@pytest.mark.parametrize(
    ("kind", "prefix"), [("vit", 1), ("distilled", 2), ("dinov2", 1), ("dinov2 with registers", 5), ("xcit", 0)]
)
def test_tokens_are_timm_s_behind_the_final_norm(kind, prefix):
    name, arguments, *_ = KINDS[kind]
    torch.manual_seed(0)
    plain = timm.create_model(name, num_classes=0, **(arguments or {})).eval()
    model = SpatialBceModel(config(kind)).eval()
    state = {f"model.{key}": value for key, value in plain.state_dict().items()}
    missing, _ = model.trunk.load_state_dict(state, strict=False)
    assert not missing
    size = plain.patch_embed.img_size or (224, 224)
    pixels = torch.randn(1, 3, *size)
    with torch.no_grad():
        output, tokens = model(pixels), plain.forward_features(pixels)
    maps = output.last_hidden_state.flatten(2).transpose(1, 2)
    if kind == "xcit":
        # Its class token is made of the others, behind the last layer.
        assert output.prefix_tokens is None
        return
    torch.testing.assert_close(maps, tokens[:, prefix:])
    torch.testing.assert_close(output.prefix_tokens, tokens[:, :prefix])


def test_the_norm_of_the_mean_counts_as_the_final_norm():
    model = SpatialBceModel(config("mean of tokens")).eval()
    assert isinstance(model.trunk.model.norm, nn.Identity)
    nn.init.constant_(model.trunk.model.fc_norm.weight, 2.0)
    with torch.no_grad():
        features = model(torch.randn(1, 3, 256, 256)).last_hidden_state
    assert features.mean(dim=1).abs().max() < 1e-4
    torch.testing.assert_close(features.std(dim=1), torch.full((1, 16, 16), 2.0), atol=0.01, rtol=0)


def test_a_share_of_the_layers_is_frozen():
    def trained(share, **fields):
        trunk = SpatialBceModel(config("vit", frozen_share=share, **fields)).trunk
        return [name for name, parameter in trunk.named_parameters() if parameter.requires_grad]

    everything = trained(0)
    assert not trained(1) and trained(None, frozen_reduction=0) == everything
    assert trained(None) == trained(0.25)
    half = trained(0.5)
    assert 0 < len(half) < len(trained(0.25)) < len(everything)
    # What is frozen comes first, and no layer is frozen in part.
    assert half == everything[-len(half) :] and not any("patch_embed" in name or "blocks.0." in name for name in half)
    assert {name.rpartition(".")[0] for name in half}.isdisjoint(
        {name.rpartition(".")[0] for name in everything if name not in half}
    )


def test_a_share_of_a_convolutional_trunk():
    def frozen(**fields):
        model = SpatialBceModel(SpatialBceConfig(trunk="test_resnet", num_labels=2, **fields))
        return sum(not parameter.requires_grad for parameter in model.trunk.parameters())

    assert frozen(frozen_share=0, freeze_batch_norm=False) == 0
    assert 0 < frozen(frozen_share=0.3, freeze_batch_norm=False) < frozen(frozen_share=0.9, freeze_batch_norm=False)


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_no_share(share):
    with pytest.raises(StrictDataclassError, match="frozen_share: got .*expected 0 to 1"):
        SpatialBceConfig(trunk="test_vit", frozen_share=share)


@pytest.mark.parametrize(
    ("trunk", "relu"),
    [("test_resnet", True), ("test_efficientnet", True), ("test_convnext", False), ("test_vit", False)],
)
def test_the_trunk_says_whether_it_is_rectified(trunk, relu):
    model = SpatialBceModel(SpatialBceConfig(trunk=trunk, output_stride=None, num_labels=2))
    assert model.config.feature_relu is relu
    other = SpatialBceModel(SpatialBceConfig(trunk=trunk, output_stride=None, num_labels=2, feature_relu=not relu))
    assert other.config.feature_relu is not relu


@pytest.mark.parametrize(("size", "expected"), [((333, 250), (336, 252)), ((6, 14), (14, 14)), ((28, 42), (28, 42))])
def test_sides_are_rounded_to_the_patch(size, expected):
    pixels = torch.randn(1, 3, *size)
    found = fit(pixels, 14)
    assert found.shape[-2:] == expected
    assert (found is pixels) is (size == expected)


def test_layers_at_equal_distances():
    assert spread(12) == [2, 5, 8, 11] and spread(24)[-1] == 23 and spread(2) == [0, 1]


def test_a_transformer_has_no_output_stride():
    with pytest.raises(ValueError, match="unless output_stride is None.*which transformers do not have"):
        SpatialBceModel(SpatialBceConfig(trunk="test_vit", num_labels=2))
