"""Attention as timm's and transformers' blocks compute it; which trunks have any; label maps from it."""

import numpy as np
import pytest
import torch
from PIL import Image

from sbce_hf.config import AffinityConfig, LabellingConfig
from sbce_hf.errors import UserError
from sbce_hf.inference.affinity import (
    AffinityMethod,
    AttentionRecorder,
    patch_attention,
    probabilities,
)
from sbce_hf.inference.views import class_maps
from sbce_hf.models.configuration_spatial_bce import SpatialBceConfig
from sbce_hf.models.modeling_spatial_bce import SpatialBceForImageClassification
from sbce_hf.postprocess.methods import RuleMethod

TINY = {"embed_dim": 32, "depth": 3, "num_heads": 2}
DINOV2 = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "mlp_ratio": 2, "patch_size": 14,
    "image_size": 56,
}  # fmt: skip
DINOV3 = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64, "patch_size": 16,
    "image_size": 64, "num_register_tokens": 2,
}  # fmt: skip
# With query and key norms, registers, rotary positions, relative positions, and none of these.
TRANSFORMERS = {
    "vit": ("test_vit", {}),
    "norms": ("vit_small_patch16_224", {**TINY, "qk_norm": True}),
    "dinov2": ("vit_small_patch14_reg4_dinov2", TINY),
    "dinov3": ("vit_small_patch16_dinov3", {**TINY, "num_heads": 1}),
    "eva": ("eva02_tiny_patch14_224", {"depth": 3}),
    "beit": ("beit_base_patch16_224", {**TINY, "img_size": 96}),
    "hf dinov2": ("hf:dinov2", DINOV2),
    "hf dinov3": ("hf:dinov3_vit", DINOV3),
}
LABELLING = LabellingConfig(image_size=96, scales=(1.0,), crf=None, rule="peak")


def classifier(name, arguments=None):
    torch.manual_seed(0)
    own = {"backbone_config": arguments} if name.startswith("hf:") else {"trunk_kwargs": arguments or None}
    config = SpatialBceConfig(trunk=name, output_stride=None, num_labels=2, embedding_dim=8, **own)
    model = SpatialBceForImageClassification(config).eval()
    with torch.no_grad():
        # Queries and keys of fresh weights are all but equal: attention would be flat, and any formula right.
        for key, value in model.base_model.named_parameters():
            if value.dim() == 2 and any(part in key for part in ("qkv", "q_proj", "k_proj", "query", "key")):
                value.mul_(8)
    return model


@pytest.fixture(params=TRANSFORMERS)
def transformer(request):
    return classifier(*TRANSFORMERS[request.param])


def unfused(model, pixels):
    """What the last block computes where nothing is fused: what comes into its dropout, or what transformers tells."""
    trunk, found = model.base_model.trunk, []
    if not hasattr(trunk.model, "blocks"):
        trunk.model.set_attn_implementation("eager")
        with torch.no_grad():
            answer = trunk.model(pixels, output_attentions=True).attentions[-1]
        trunk.model.set_attn_implementation("sdpa")
        return answer[0].mean(dim=0)
    attention = trunk.model.blocks[-1].attn
    attention.fused_attn = False
    handle = attention.attn_drop.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    with torch.no_grad():
        trunk(pixels)
    handle.remove()
    attention.fused_attn = True
    return found[0][0].mean(dim=0)


def test_attention_is_that_of_the_unfused_block(transformer):
    pixels = torch.randn(1, 3, 96, 96)
    with torch.no_grad(), AttentionRecorder() as recorder:
        before = transformer.base_model(pixels).last_hidden_state
    assert len(recorder.calls) >= 3, "the fused kernel is in use"
    found = probabilities(*recorder.calls[-1])
    # Fresh cells see more than one thing, and not all alike.
    assert found.max() > 3 / len(found)
    assert torch.allclose(found.sum(dim=1), torch.ones(len(found)), atol=1e-5)
    multiple = transformer.base_model.trunk.multiple
    side = (96 + multiple // 2) // multiple * multiple
    resized = pixels if side == 96 else torch.nn.functional.interpolate(
        pixels, (side, side), mode="bilinear", antialias=True
    )  # fmt: skip
    assert (found - unfused(transformer, resized)).abs().max() <= 1e-5
    # Watching changes nothing.
    with torch.no_grad():
        assert torch.equal(transformer.base_model(pixels).last_hidden_state, before)


def test_patches_alone_and_the_mean_of_the_last_layers(transformer):
    pixels = torch.randn(1, 3, 96, 96)
    with torch.no_grad(), AttentionRecorder() as recorder:
        features = transformer.base_model(pixels).last_hidden_state
        attention, grid = patch_attention(transformer.base_model, pixels, layers=2)
    cells = grid[0] * grid[1]
    assert grid == tuple(features.shape[2:]) and attention.shape == (cells, cells)
    depth = len(recorder.calls) // 2
    last = [probabilities(*call)[-cells:, -cells:] for call in recorder.calls[:depth]]
    assert torch.allclose(attention, (last[-2] + last[-1]) / 2, atol=1e-6)
    with torch.no_grad():
        every, _ = patch_attention(transformer.base_model, pixels, layers=99)
    assert torch.allclose(every, sum(last) / depth, atol=1e-6)


def test_masks_that_hide_and_masks_that_add():
    query, key = torch.randn(2, 1, 2, 5, 4)
    seen = torch.rand(5, 5) > 0.3
    seen.fill_diagonal_(True)
    hidden = probabilities(query, key, seen, 0.5)
    assert (hidden[~seen] == 0).all() and torch.allclose(hidden.sum(dim=1), torch.ones(5))
    added = torch.zeros(5, 5).masked_fill(~seen, -torch.inf)
    assert torch.allclose(probabilities(query, key, added, 0.5), hidden)


NONE = [
    ("test_resnet", {}),
    ("swin_tiny_patch4_window7_224", {"embed_dim": 8, "depths": [1, 1, 2, 1], "num_heads": [1, 1, 2, 2]}),
    ("xcit_nano_12_p16_224", {"depth": 2}),
]


@pytest.mark.parametrize(("name", "arguments"), NONE)
def test_a_trunk_without_such_attention_is_told_the_other_source(name, arguments):
    model = classifier(name, arguments)
    with pytest.raises(UserError, match=f"no layer of trunk '{name}'.*affinity.source=features"):
        AffinityMethod(model, AffinityConfig(), LABELLING).check()
    AffinityMethod(model, AffinityConfig(source="features"), LABELLING).check()


def test_every_transformer_passes_the_check(transformer):
    random = torch.get_rng_state()
    AffinityMethod(transformer, AffinityConfig(), LABELLING).check()
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize(
    ("name", "source"), [("test_vit", "attention"), ("test_vit", "features"), ("test_resnet", "features")]
)
def test_label_maps_of_a_photo(name, source):
    model = classifier(name)
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8))
    (maps,) = class_maps(model, [photo], np.ones((1, 2)), LABELLING)
    method = AffinityMethod(model, AffinityConfig(source=source), LABELLING)
    assert method.stores == ("affinity",) and method.options["in_words"] == f"peak (affinity of {source})"
    weights, grid = method.weights(np.asarray(photo))
    assert weights.shape == (grid[0] * grid[1],) * 2
    assert torch.allclose(weights.sum(dim=1), torch.ones(len(weights)), atol=1e-5)
    label_map = method(np.asarray(photo), maps, None).label_maps[0]()
    assert label_map.shape == (70, 90) and set(np.unique(label_map)) <= {0, 1, 2}
    plain = RuleMethod(LABELLING)(np.asarray(photo), maps, None).label_maps[0]()
    assert (label_map != plain).any()
    # Without classes there is nothing to look at.
    (empty,) = class_maps(model, [photo], np.zeros((1, 2)), LABELLING)
    assert not method(np.asarray(photo), empty, None).label_maps[0]().any()


def test_a_large_photo_is_looked_at_in_a_smaller_size():
    model, photo = classifier("test_vit"), np.zeros((480, 960, 3), np.uint8)
    plain = LabellingConfig(image_size=None)
    sizes = {
        16 * 32: AffinityMethod(model, AffinityConfig(max_cells=512), plain),
        30 * 60: AffinityMethod(model, AffinityConfig(), plain),
        8 * 8: AffinityMethod(model, AffinityConfig(image_size=128), plain),
    }
    for cells, method in sizes.items():
        weights, grid = method.weights(photo)
        assert len(weights) == grid[0] * grid[1] == cells
