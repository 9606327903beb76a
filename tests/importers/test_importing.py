import importlib.util
import json

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from sbce_hf.cli import main
from sbce_hf.data.coco import COCO_CLASSES
from sbce_hf.data.voc import VOC_CLASSES
from sbce_hf.importers import released
from sbce_hf.importers.released import import_released
from sbce_hf.importers.trunks import import_trunk
from sbce_hf.models.configuration_spatial_bce import SpatialBceConfig
from sbce_hf.models.image_processing_spatial_bce import SpatialBceImageProcessor
from sbce_hf.models.modeling_spatial_bce import SpatialBceForImageClassification
from sbce_hf.models.modeling_trunk import create_trunk
from sbce_hf.models.modeling_trunk_weights import load_trunk_weights


@pytest.fixture(scope="module")
def golden(golden_dir, tmp_path_factory):
    """The released program's network with golden weights, imported from what it would have saved."""
    spec = importlib.util.spec_from_file_location("resnet38_fill", golden_dir / "resnet38_fill.py")
    fill = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fill)
    weights = fill.fill(json.loads((golden_dir / "resnet38_layout.json").read_text()))
    path = tmp_path_factory.mktemp("released") / "checkpoint.pth"
    torch.save({f"module.{name}": torch.from_numpy(np.asarray(value)) for name, value in weights.items()}, path)
    model, report = import_released(path)
    with np.load(golden_dir / "resnet38_forward.npz", allow_pickle=False) as arrays:  # noqa: TID251 - no pickles
        return path, model, report, {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def test_an_imported_checkpoint_computes_what_the_released_program_does(golden):
    _, model, report, expected = golden
    with torch.no_grad():
        features = model.spatial_bce.trunk(expected["x"])[-1]
        output = model(expected["x"])
        maps = model.class_maps(model.embedding(features.relu()))
        thresholds = model.threshold_head(features.relu())
    got = {
        "features": features[:, :64],
        "raw_logits": maps,
        "scaled_logits": output.pixel_logits,
        "threshold_map": thresholds,
    }
    for name, value in got.items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-4 * expected[name].std().item())
    torch.testing.assert_close(output.thresholds, expected["threshold_map"].mean(dim=(2, 3)).sigmoid())
    assert not report.unused and not report.missing and not report.notes


def test_an_imported_checkpoint_is_configured_as_the_released_program(golden):
    _, model, _, _ = golden
    config = model.config
    assert (config.trunk, config.output_stride, config.frozen_reduction, config.embedding_dim) == (
        "resnet38",
        8,
        2,
        128,
    )
    assert config.normalization == "official" and config.kl_slope_leak == 0 and config.kl_in_threshold_phase
    assert tuple(config.id2label.values()) == VOC_CLASSES and config.label2id["cat"] == 7
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    assert round(frozen / 1e6, 2) == 0.87
    assert all(p.dtype == torch.float32 and p.device.type == "cpu" for p in model.parameters())


def test_the_trunk_of_a_released_checkpoint_is_a_trunk_file(golden, tmp_path, capsys):
    path, model, _, _ = golden
    output = tmp_path / "trunk.safetensors"
    assert main(["import", str(path), "--trunk", "resnet38", "--output", str(output)]) == 0
    assert "temperature" in capsys.readouterr().out
    small = SpatialBceForImageClassification(SpatialBceConfig(trunk="resnet38", feature_index=2, num_labels=2))
    load_trunk_weights(small, str(output))
    for name, value in small.spatial_bce.trunk.state_dict().items():
        assert torch.equal(value, model.spatial_bce.trunk.state_dict()[name])


# --- the rest on a trunk of a few thousand weights ------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch):
    """Stands in for ResNet-38 in the released program's layout."""

    def trunk():
        return create_trunk(SpatialBceConfig(trunk="test_resnet"))

    monkeypatch.setattr(released, "trunk_on_meta", trunk)
    monkeypatch.setattr(released, "RESNET38", "test_resnet")
    return trunk()


def layout(trunk, classes, width=16):
    torch.manual_seed(0)
    channels = trunk.feature_info.channels()[-1]
    heads = {f"fc_list.{index}.weight": torch.randn(1, width, 1, 1) for index in range(classes)}
    heads["threshold.weight"] = torch.randn(classes, channels, 1, 1)
    heads["mask_layer_downsample.weight"] = torch.randn(width, channels, 1, 1)
    return trunk.state_dict() | heads | {"temperature": torch.randn(classes)}


@pytest.fixture
def save(tmp_path):
    def save(state):
        torch.save(state, tmp_path / "checkpoint.pth")
        return tmp_path / "checkpoint.pth"

    return save


@pytest.mark.parametrize("names", [VOC_CLASSES, COCO_CLASSES], ids=len)
def test_classes_are_told_by_their_number(small, save, names):
    state = layout(small, len(names))
    model, _ = import_released(save({"state_dict": {f"module.{name}": value for name, value in state.items()}}))
    assert tuple(model.config.id2label.values()) == names
    maps = torch.cat([state[f"fc_list.{index}.weight"] for index in range(len(names))])
    assert torch.equal(model.class_maps.weight, maps) and torch.equal(model.logit_scale, state["temperature"])
    assert torch.equal(model.embedding.weight, state["mask_layer_downsample.weight"])
    assert torch.equal(model.threshold_head.weight, state["threshold.weight"])
    assert all(
        torch.equal(model.spatial_bce.trunk.state_dict()[name], small.state_dict()[name])
        for name in small.state_dict()
    )


def test_other_numbers_of_classes_need_names(small, save):
    path = save(layout(small, 3))
    with pytest.raises(ValueError, match="has 3 classes.*give class_names"):
        import_released(path)
    with pytest.raises(ValueError, match="expected 3 different ones"):
        import_released(path, ["cat", "dog"])
    model, _ = import_released(path, ["cat", "dog", "cow"])
    assert model.config.label2id == {"cat": 0, "dog": 1, "cow": 2}


def test_a_missing_scale_is_10_and_noted(small, save):
    state = {name: value for name, value in layout(small, 2).items() if name != "temperature"}
    counters = [name for name in state if name.endswith("num_batches_tracked")]
    state = {name: value for name, value in state.items() if name not in counters}
    model, report = import_released(save(state), ["cat", "dog"])
    torch.testing.assert_close(model.logit_scale.exp(), torch.full((2,), 10.0))
    assert report.missing == (*counters, "temperature") and "no 'temperature'" in str(report)


def test_unused_arrays_are_reported(small, save):
    _, report = import_released(save(layout(small, 2) | {"extra.weight": torch.zeros(2)}), ["cat", "dog"])
    assert report.unused == ("extra.weight",) and "extra.weight" in str(report)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("fc_list.0.weight"), "class maps 1, expected fc_list.0.weight"),
        (lambda state: [state.pop(f"fc_list.{index}.weight") for index in (0, 1)], "class maps none among conv1"),
        (lambda state: state.pop("conv1.0.weight"), "lacks 1 of .* arrays of .*: conv1.0.weight"),
        (lambda state: state.pop("mask_layer_downsample.weight"), "'mask_layer_downsample.weight': got nothing"),
        (lambda state: state.update({"mask_layer_downsample.weight": torch.tensor(1.0)}), r"got \(\), expected"),
        (
            lambda state: state.update({"threshold.weight": torch.zeros(3, 4)}),
            r"'threshold.weight': got shape \(3, 4\)",
        ),
        (lambda state: state["temperature"].fill_(float("nan")), "'temperature': got NaN or infinity"),
        (lambda state: state["threshold.weight"].fill_(float("inf")), "'threshold.weight': got NaN or infinity"),
    ],
)
def test_other_checkpoints_are_errors_that_name_the_array(small, save, change, message):
    state = layout(small, 2)
    change(state)
    with pytest.raises(ValueError, match=rf"checkpoint\.pth: .*{message}"):
        import_released(save(state), ["cat", "dog"])


def test_the_command_writes_a_whole_checkpoint(small, save, tmp_path, capsys):
    state, output = layout(small, 2), tmp_path / "model"
    (tmp_path / ".model.tmp").mkdir()
    arguments = ["import", str(save(state)), "--output", str(output)]
    assert main(arguments) == 1 and not output.exists()
    assert main([*arguments, "--classes", "cat, dog"]) == 0
    model = SpatialBceForImageClassification.from_pretrained(output)
    assert model.config.id2label == {0: "cat", 1: "dog"} and torch.equal(model.logit_scale, state["temperature"])
    assert dict(SpatialBceImageProcessor.from_pretrained(output).size) == {"height": 369, "width": 369}
    assert not (tmp_path / ".model.tmp").exists() and "mapped:" in capsys.readouterr().out
    assert main([*arguments, "--classes", "cat, dog"]) == 1
    assert "not empty" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "mobilenetv2_050"])
def test_a_timm_checkpoint_becomes_a_trunk_file(tmp_path, name, suffix):
    torch.manual_seed(1)
    plain = timm.create_model(name, num_classes=7)
    path, output = tmp_path / f"plain.{suffix}", tmp_path / "out" / "trunk.safetensors"
    if suffix == "pth":
        torch.save({"state_dict": {f"module.{key}": value for key, value in plain.state_dict().items()}}, path)
    else:
        save_file(plain.state_dict(), path)
    assert main(["import", str(path), "--trunk", name, "--output", str(output)]) == 0
    _, report = import_trunk(path, name)
    assert (
        any(key in ("fc.weight", "head.weight", "classifier.weight") for key in report.unused) and not report.missing
    )
    torch.manual_seed(2)
    model = SpatialBceForImageClassification(SpatialBceConfig(trunk=name, output_stride=None, num_labels=2))
    load_trunk_weights(model, str(output))
    with torch.no_grad():
        image = torch.randn(1, 3, *plain.pretrained_cfg["input_size"][1:])
        features = model.eval().spatial_bce.trunk(image)[-1]
        # Transformers are taken behind their final norm.
        options = {"intermediates_only": True, "norm": "vit" in name}
        torch.testing.assert_close(features, plain.eval().forward_intermediates(image, **options)[-1])


def test_a_file_of_another_network_is_an_error(tmp_path):
    save_file(timm.create_model("test_resnet").state_dict(), tmp_path / "plain.safetensors")
    with pytest.raises(ValueError, match="lacks .* of trunk 'test_vit'"):
        import_trunk(tmp_path / "plain.safetensors", "test_vit")
    with pytest.raises(ValueError, match="whose weights"):
        import_trunk(tmp_path / "plain.safetensors")
    with pytest.raises(ValueError, match="trunk 'nothing'"):
        import_trunk(tmp_path / "plain.safetensors", "nothing")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.pth", "--output", "model"], "nothing.pth: no such file"),
        (["FILE", "--output", "trunk.safetensors"], "expected a folder"),
        (["FILE", "--output", "model"], "no checkpoint of the released program"),
        (["FILE", "--trunk", "test_resnet", "--output", "model"], "expected a file FILE.safetensors"),
        (["FILE", "--trunk", "test_resnet", "--output", "x.safetensors", "--classes", "a"], "a trunk has no classes"),
        (["FILE", "--output", "model", "--image-mean", "0,0,0", "--image-std", "1,1,1"], "are for a trunk"),
        (["FILE", "--trunk", "a", "--output", "x.safetensors", "--image-mean", "0,0"], "got '0,0', expected"),
        (["FILE", "--trunk", "a", "--output", "x.safetensors", "--image-mean", "0,0,0"], "only some of them"),
    ],
)
def test_mistakes_of_the_command_are_errors(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    save_file({"fc.weight": torch.zeros(2)}, tmp_path / "FILE")
    assert main(["import", *arguments]) == 1
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["FILE"]


def test_a_trunk_file_says_what_its_weights_are_fed_with(tmp_path):
    source, output = tmp_path / "plain.safetensors", tmp_path / "trunk.safetensors"
    save_file(timm.create_model("test_resnet").state_dict(), source)
    options = ["--image-mean", "0.1,0.2,0.3", "--image-std", "0.25,0.25,1", "--interpolation", "bicubic"]
    assert main(["import", str(source), "--trunk", "test_resnet", "--output", str(output), *options]) == 0
    config = SpatialBceConfig(trunk="test_resnet", num_labels=2, image_std=[0.5, 0.5, 0.5])
    model = SpatialBceForImageClassification(config)
    load_trunk_weights(model, str(output))
    # What the config says already, wins.
    assert (config.image_mean, config.image_std) == ([0.1, 0.2, 0.3], [0.5, 0.5, 0.5])
    assert config.interpolation == "bicubic"


@pytest.mark.parametrize(
    "record",
    [
        "no JSON",
        '{"image_mean": [0.5, 0.5, 0.5]}',
        "[1]",
        '{"image_mean": [0.5], "image_std": [0.5, 0.5, 0.5], "interpolation": "bicubic"}',
        '{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "interpolation": "../x"}',
        '{"image_mean": "/etc", "image_std": [0.5, 0.5, 0.5], "interpolation": "bicubic"}',
    ],
)
def test_a_damaged_record_is_an_error(tmp_path, record):
    path = tmp_path / "trunk.safetensors"
    save_file(timm.create_model("test_resnet").state_dict(), path, metadata={"preprocessing": record})
    model = SpatialBceForImageClassification(SpatialBceConfig(trunk="test_resnet", num_labels=2))
    with pytest.raises(ValueError, match="trunk.safetensors: damaged record 'preprocessing'"):
        load_trunk_weights(model, str(path))


def test_a_trunk_file_holds_what_was_read(tmp_path):
    state = timm.create_model("test_resnet").state_dict()
    save_file(state, tmp_path / "plain.safetensors")
    output = tmp_path / "trunk.safetensors"
    assert (
        main(["import", str(tmp_path / "plain.safetensors"), "--trunk", "test_resnet", "--output", str(output)]) == 0
    )
    written = load_file(output)
    assert written.keys() == state.keys() and all(torch.equal(written[name], state[name]) for name in state)
