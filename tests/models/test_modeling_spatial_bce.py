import json
import math

import pytest
import timm
import torch
from common_model_tests import CommonModelTests, CompiledModelTests
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForImageClassification

from sbce_hf.models.configuration_spatial_bce import SpatialBceConfig
from sbce_hf.models.losses_spatial_bce import spatial_bce_loss
from sbce_hf.models.modeling_spatial_bce import SpatialBceForImageClassification, SpatialBceModel
from sbce_hf.models.modeling_trunk_freezing import count_frozen
from sbce_hf.models.modeling_trunk_weights import load_trunk_weights

HEADS = ("embedding.weight", "class_maps.weight", "class_maps.bias", "threshold_head.weight", "logit_scale")


def build(seed=0, **config):
    torch.manual_seed(seed)
    return SpatialBceForImageClassification(SpatialBceConfig(**{"trunk": "test_resnet", "num_labels": 3, **config}))


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([[1.0, 0, 0], [0, 1, 1]])
    return {
        "pixel_values": torch.randn(2, 3, 64, 64, generator=generator),
        "labels": labels,
        "proportions": labels.double() * 0.3,
    }


# --- what every model does ------------------------------------------------------------------------------------------

VIT = {"trunk": "test_vit", "output_stride": None, "trunk_kwargs": {"img_size": 64}}


class TestClassifier(CompiledModelTests):
    model_class = SpatialBceForImageClassification
    fields = {"trunk": "test_resnet", "embedding_dim": 8, "class_map_bias": True, "image_top_share": 0.1}
    auto_classes = (AutoModelForImageClassification,)
    trunk_class = SpatialBceModel
    pixel_output = "pixel_logits"

    def targets(self):
        labels = torch.tensor([[1.0, 0, 0], [0, 1, 1]])
        return {"labels": labels, "proportions": labels * 0.3}


class TestClassifierOnTransformer(TestClassifier):
    fields = {**TestClassifier.fields, **VIT, "trunk_kwargs": {"dynamic_img_size": True, "img_size": 64}}

    def other_sizes(self):
        return [(3, 96, 128), (1, 80, 112)]


class TestTrunk(CommonModelTests):
    model_class = trunk_class = SpatialBceModel
    fields = {"trunk": "test_resnet"}
    pixel_output = "last_hidden_state"

    def test_a_trunk_without_gradient_checkpointing_is_an_error(self):
        model = self.build()
        model.trunk = nn.Identity()
        with pytest.raises(ValueError, match="trunk 'test_resnet': has no gradient checkpointing"):
            model.activation_checkpointing_enable()

    def test_features_are_rectified(self, saved, pixels):
        with torch.no_grad():
            output = saved.model(pixels, output_hidden_states=True)
            plain = self.build(feature_relu=False)
            plain.load_state_dict(saved.model.state_dict())
            assert torch.equal(output.last_hidden_state, output.hidden_states[0].relu())
            assert torch.equal(plain(pixels).last_hidden_state, output.hidden_states[0])


# --- config ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key, near", [("trnk", "trunk"), ("embeding_dim", "embedding_dim"), ("num_label", "num_labels")]
)
def test_a_misspelt_key_is_an_error_with_the_nearest_name(key, near):
    with pytest.raises(ValueError, match=f"unknown key '{key}'; did you mean '{near}'"):
        SpatialBceConfig(**{key: 3})


def test_an_unknown_key_is_an_error_with_the_known_names():
    with pytest.raises(ValueError, match="unknown key 'colour'; known keys: trunk, .*logit_scale_init"):
        SpatialBceConfig(colour="red")


def test_keys_of_the_base_class_are_known():
    config = SpatialBceConfig(
        num_labels=4,
        dtype="float32",
        output_attentions=False,
        name_or_path="x",
        return_dict=False,
        architectures=["A"],
    )
    assert config.num_labels == 4 and not config.return_dict
    assert config.problem_type == "multi_label_classification"


def test_a_file_keeps_every_field_and_may_hold_keys_of_a_newer_transformers(tmp_path):
    config = SpatialBceConfig(trunk="x", kl_weight=2, id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1})
    config.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "key_of_tomorrow": 1}))
    loaded = SpatialBceConfig.from_pretrained(tmp_path)
    for key in SpatialBceConfig.__annotations__:
        assert getattr(loaded, key) == getattr(config, key)
    assert loaded.id2label == {0: "cat", 1: "dog"}
    path.write_text(json.dumps({**json.loads(path.read_text()), "embeding_dim": 8}))
    with pytest.raises(ValueError, match="did you mean 'embedding_dim'"):
        SpatialBceConfig.from_pretrained(tmp_path)


def test_a_published_palette_goes_with_its_labels(tmp_path):
    build(embedding_dim=4, palette=[[0, 0, 0], [1, 1, 1], [2, 2, 2], [3, 3, 3]]).save_pretrained(tmp_path / "three")
    for labels in ({"num_labels": 5}, {"id2label": dict(enumerate("abcde"))}):
        model = SpatialBceForImageClassification.from_pretrained(
            tmp_path / "three", ignore_mismatched_sizes=True, **labels
        )
        model.save_pretrained(tmp_path / "five")
        loaded = SpatialBceConfig.from_pretrained(tmp_path / "five")
        assert loaded.num_labels == 5 and loaded.palette is None
    assert len(SpatialBceConfig.from_pretrained(tmp_path / "three").palette) == 4
    with pytest.raises(Exception, match="SpatialBceConfig.palette: got .*, expected 3 colours"):
        SpatialBceConfig(num_labels=2, palette=[[0, 0, 0]])


def test_integers_pass_where_numbers_are_expected_and_nothing_else_does():
    assert SpatialBceConfig(kl_weight=1, logit_scale_init=5, initializer_range=0, kl_slope_leak=0).kl_weight == 1
    for key, value in (
        ("kl_weight", "1"),
        ("embedding_dim", 8.0),
        ("normalization", "none"),
        ("freeze_batch_norm", 1),
    ):
        with pytest.raises(Exception, match=key):
            SpatialBceConfig(**{key: value})


@pytest.mark.parametrize(
    "key, value",
    [("embedding_dim", 0), ("kl_weight", -1), ("kl_slope_leak", -0.1), ("logit_scale_init", 0), ("output_stride", 4)],
)
def test_values_out_of_range_are_an_error_that_names_them(key, value):
    with pytest.raises(Exception, match=f"SpatialBceConfig.{key}: got {value}, expected"):
        SpatialBceConfig(**{key: value})


# --- forward --------------------------------------------------------------------------------------------------------

TRUNKS = [
    ({"trunk": "test_resnet"}, 8),
    ({"trunk": "test_resnet", "output_stride": 16}, 16),
    ({"trunk": "resnet10t"}, 8),
    ({"trunk": "mobilenetv2_050", "trunk_kwargs": {"pad_type": "same"}}, 8),
    ({"trunk": "mobilenetv2_050", "feature_index": 3, "output_stride": 16}, 16),
    ({"trunk": "test_convnext", "output_stride": None}, 32),
    (VIT, 16),
]


@pytest.mark.parametrize("config, stride", TRUNKS, ids=lambda value: str(value))
def test_shapes_ranges_and_identities_for_every_kind_of_trunk(batch, config, stride):
    model = build(**config).eval()
    with torch.no_grad():
        output = model(batch["pixel_values"])
    side = 64 // stride
    assert output.pixel_logits.shape == (2, 3, side, side)
    assert output.logits.shape == output.thresholds.shape == output.threshold_logits.shape == (2, 3)
    assert output.loss is None and all(value.isfinite().all() for value in output.to_tuple())
    assert ((output.thresholds > 0) & (output.thresholds < 1)).all()
    torch.testing.assert_close(output.thresholds, output.threshold_logits.sigmoid())
    torch.testing.assert_close(output.logits, output.pixel_logits.mean(dim=(-2, -1)))


def test_forward_is_deterministic_and_scaled(batch):
    model = build().eval()
    with torch.no_grad():
        first, second = model(batch["pixel_values"]), model(batch["pixel_values"])
        assert all(torch.equal(a, b) for a, b in zip(first.to_tuple(), second.to_tuple(), strict=True))
        model.logit_scale += math.log(2)
        torch.testing.assert_close(model(batch["pixel_values"]).pixel_logits, 2 * first.pixel_logits)
        torch.testing.assert_close(model(batch["pixel_values"]).thresholds, first.thresholds)


def test_errors_of_forward(batch):
    model = build()
    with pytest.raises(ValueError, match="phase: got 'warm'"):
        model(batch["pixel_values"], labels=batch["labels"], phase="warm")
    with pytest.raises(ValueError, match="phase 'weights' needs proportions"):
        model(batch["pixel_values"], labels=batch["labels"])


@pytest.mark.parametrize("wrong", [30.0, -0.1, float("nan")])
def test_proportions_that_are_no_shares_are_an_error(batch, wrong):
    row, column = (batch["labels"] == 1).nonzero()[0]
    batch["proportions"][row, column] = wrong
    with pytest.raises(ValueError, match="proportions: got .* for present classes, expected 0 to 1: .* not percent"):
        build()(**batch)


def test_proportions_of_absent_classes_may_be_unknown(batch):
    loss = build()(**batch).loss
    batch["proportions"][batch["labels"] == 0] = torch.nan
    assert torch.equal(build()(**batch).loss, loss)


def test_label_maps_train_the_maps_without_a_proportion_term(batch):
    model = build()
    label_maps = torch.randint(0, 4, (2, 64, 64), generator=torch.Generator().manual_seed(1))
    del batch["proportions"]
    output = model(**batch, label_maps=label_maps)
    expected = spatial_bce_loss(output.pixel_logits, batch["labels"], None, label_maps=label_maps)
    assert torch.equal(output.loss, expected) and output.proportion_loss is None
    # The thresholds are trained as ever.
    assert torch.equal(
        model(**batch, phase="threshold", label_maps=label_maps).loss, model(**batch, phase="threshold").loss
    )


@pytest.mark.parametrize("config", [{"trunk": "no_such_net"}, {"trunk": "test_vit", "output_stride": 8}])
def test_an_impossible_trunk_is_an_error_that_says_what_to_do(config):
    with pytest.raises(ValueError, match=rf"trunk '{config['trunk']}' .* timm\.list_models"):
        build(**config)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("phase", ["bce", "weights", "threshold"])
def test_losses_are_finite_under_autocast(batch, dtype, phase):
    model = build().train()
    with torch.autocast("cpu", dtype=dtype):
        output = model(**batch, phase=phase)
    assert output.loss.dtype == torch.float32
    output.loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


# --- what each phase trains -----------------------------------------------------------------------------------------


def moved(model, batch, phase):
    model.train()
    model.zero_grad()
    model(**batch, phase=phase).loss.backward()
    return {name for name, p in model.named_parameters() if p.grad is not None}


def test_threshold_phase_moves_only_the_threshold_head(batch):
    assert moved(build(), batch, "threshold") == {"threshold_head.weight"}


def test_the_release_lets_the_threshold_phase_into_the_trunk(batch):
    names = moved(build(detach_threshold_input=False), batch, "threshold")
    assert any(name.startswith("spatial_bce.") for name in names)
    assert not names & {"embedding.weight", "class_maps.weight", "logit_scale"}


def test_the_release_keeps_the_proportion_term_in_the_threshold_phase(batch):
    names = moved(build(kl_in_threshold_phase=True), batch, "threshold")
    assert {"threshold_head.weight", "embedding.weight", "class_maps.weight", "logit_scale"} <= names


@pytest.mark.parametrize("phase", ["bce", "weights"])
def test_other_phases_train_all_that_is_not_frozen_but_the_threshold_head(batch, phase):
    model = build(freeze_batch_norm=False)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert moved(model, batch, phase) == trainable - {"threshold_head.weight"}


def test_loss_is_the_sum_of_its_terms(batch):
    model = build(kl_weight=3)
    output = model(**batch)
    torch.testing.assert_close(output.loss, output.spatial_loss + 3 * output.proportion_loss)
    output = model(batch["pixel_values"], labels=batch["labels"], phase="bce")
    expected = nn.functional.binary_cross_entropy_with_logits(output.logits, batch["labels"])
    torch.testing.assert_close(output.loss, expected)


# --- frozen parts ---------------------------------------------------------------------------------------------------


def test_stem_first_stage_and_batch_norms_are_frozen():
    trunk = build().spatial_bce.trunk
    frozen = {name for name, p in trunk.named_parameters() if not p.requires_grad}
    norms = {
        f"{name}.{key}"
        for name, module in trunk.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for key in ("weight", "bias")
    }
    assert norms <= frozen
    assert {name.split("_")[0].split(".")[0] for name in frozen - norms} == {"conv1", "layer1"}
    assert not any(name.startswith("layer2") and "conv" in name for name in frozen)


@pytest.mark.parametrize("reduction, count", [(0, 0), (2, 1), (4, 3), (8, 4)])
def test_frozen_parameters_end_with_the_last_level_of_that_stride(reduction, count):
    levels = [
        {"reduction": 2, "module": "act1"},
        {"reduction": 4, "module": "layer1"},
        {"reduction": 8, "module": "layer2.0"},
    ]
    names = ["act1.weight", "layer1.a", "layer1.b", "layer2_0.a", "layer3.a"]
    assert count_frozen(names, levels, reduction) == count


def test_nothing_is_frozen_on_request():
    model = build(frozen_reduction=0, freeze_batch_norm=False)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_batch_norm_stays_in_evaluation_mode(batch, frozen):
    model = build(freeze_batch_norm=frozen)
    assert model.train() is model and model.training
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and all(m.training is not frozen for m in norms)
    before = norms[0].running_mean.clone()
    model(**batch)
    assert torch.equal(norms[0].running_mean, before) is frozen
    model.eval()
    assert not any(m.training for m in model.modules())


# --- initial values, saving, loading --------------------------------------------------------------------------------


def test_initial_values_are_the_configured_ones():
    model = build(logit_scale_init=5.0, embedding_dim=64, class_map_bias=True, initializer_range=0.5, num_labels=50)
    torch.testing.assert_close(model.logit_scale.exp(), torch.full((50,), 5.0))
    bound = math.sqrt(6 / 65)
    assert 0.95 * bound < model.class_maps.weight.abs().max() <= bound
    assert not model.class_maps.bias.any()
    assert model.threshold_head.weight.std().item() == pytest.approx(0.5, rel=0.1)
    assert model.embedding.weight.abs().max() <= math.sqrt(6 / (64 + 96))


@pytest.mark.parametrize("missing", [*[(key,) for key in HEADS], HEADS])
def test_missing_heads_load_as_configured(tmp_path, batch, missing):
    model = build(class_map_bias=True, logit_scale_init=7.0)
    with torch.no_grad():
        for key in HEADS:
            model.get_parameter(key).fill_(0.125)
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    state = {key: value for key, value in load_file(path).items() if key not in missing}
    save_file(state, path, metadata={"format": "pt"})
    loaded, fresh = SpatialBceForImageClassification.from_pretrained(tmp_path), build(class_map_bias=True)
    for key in HEADS:
        value = loaded.get_parameter(key)
        if key not in missing:
            assert (value == 0.125).all()
        elif key == "logit_scale":
            torch.testing.assert_close(value.exp(), torch.full((3,), 7.0))
        elif key == "class_maps.bias":
            assert not value.any()
        else:
            expected = fresh.get_parameter(key)
            assert value.isfinite().all() and 0.5 < value.std() / expected.std() < 2
    trunk = loaded.spatial_bce.state_dict()
    assert all(torch.equal(value, trunk[key]) for key, value in model.spatial_bce.state_dict().items())
    assert loaded(**batch).loss.isfinite()


@pytest.mark.parametrize(
    "name, arguments", [("test_resnet", {}), ("mobilenetv2_050", {"pad_type": "same"}), ("test_vit", None)]
)
def test_trunk_weights_load_from_a_file_of_the_plain_model(tmp_path, name, arguments):
    torch.manual_seed(1)
    plain = timm.create_model(name)
    with torch.no_grad():
        for buffer in plain.buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 1.5)
    save_file(plain.state_dict(), tmp_path / "plain.safetensors")
    config = {"output_stride": None} if arguments is None else {"trunk_kwargs": arguments}
    model = build(seed=2, trunk=name, **config).eval()
    heads = {key: value.clone() for key, value in model.state_dict().items() if not key.startswith("spatial_bce.")}
    load_trunk_weights(model, str(tmp_path / "plain.safetensors"))
    saved = {tuple(value.shape): value for value in plain.state_dict().values()}
    for parameter in model.spatial_bce.trunk.parameters():
        assert tuple(parameter.shape) in saved
    loaded = {value.double().sum().item() for value in model.spatial_bce.trunk.state_dict().values()}
    original = {value.double().sum().item() for value in plain.state_dict().values()}
    assert loaded <= original
    assert all(torch.equal(model.state_dict()[key], value) for key, value in heads.items())


def test_a_missing_trunk_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.safetensors"):
        load_trunk_weights(build(), str(tmp_path / "nothing.safetensors"))
