"""Weights of a trunk within files of other programs: under prefixes, by torchvision's names, in folders of timm's."""

import argparse
import json

import pytest
import timm
import torch
import torchvision
from foreign_files import saved
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sbce_hf.cli import main
from sbce_hf.importers.trunks import import_trunk
from sbce_hf.models.configuration_spatial_bce import SpatialBceConfig
from sbce_hf.models.modeling_spatial_bce import SpatialBceForImageClassification
from sbce_hf.models.modeling_trunk_weights import load_trunk_weights, preprocessing_record

TRUNK = "test_vit"


@pytest.fixture(scope="module")
def plain():
    torch.manual_seed(1)
    return timm.create_model(TRUNK).eval().state_dict()


@pytest.fixture
def write(tmp_path):
    def write(content, name="weights.pth"):
        path = tmp_path / name
        path.write_bytes(saved(content))
        return path

    return write


def under(prefix, state):
    return {f"{prefix}{name}": value for name, value in state.items()}


def others(state):
    """The same network in another state."""
    return {name: value + 1 for name, value in state.items()}


FILES = {
    "Lightning": lambda s: {
        "epoch": 3,
        "state_dict": under("model.", s),
        "callbacks": {"a": 1},
        "optimizer_states": [],
    },
    "Lightning, compiled": lambda s: {"state_dict": under("model._orig_mod.", s)},
    "Lightning, with a loss": lambda s: {"state_dict": {**under("net.backbone.", s), "loss.weight": torch.ones(3)}},
    "DataParallel in Lightning": lambda s: {"state_dict": under("module.model.", s)},
    "deep": lambda s: {"model": under("a.b.c.d.", s)},
    "DINO": lambda s: {
        "student": under("module.backbone.", others(s)),
        "teacher": {**under("module.backbone.", s), "module.head.mlp.0.weight": torch.ones(3, 3)},
        "args": argparse.Namespace(arch="vit_tiny", lr=0.1),
        "epoch": 100,
    },
    "DINO, the teacher alone": lambda s: {"teacher": under("backbone.", s)},
    "a mean by name": lambda s: {**under("schema.net.", others(s)), **under("ema_model.net.", s)},
    "copies by name": lambda s: {**under("student.", others(s)), **under("teacher.", s)},
}


@pytest.mark.parametrize("make", FILES.values(), ids=FILES)
def test_a_trunk_is_found_wherever_it_is(make, plain, write, tmp_path):
    path, output = write(make(plain)), tmp_path / "trunk.safetensors"
    assert main(["import", str(path), "--trunk", TRUNK, "--output", str(output)]) == 0
    written = load_file(output)
    assert all(torch.equal(written[name], value) for name, value in plain.items())
    model = SpatialBceForImageClassification(SpatialBceConfig(trunk=TRUNK, output_stride=None, num_labels=2))
    load_trunk_weights(model, str(output))
    loaded = model.base_model.trunk.state_dict()
    assert torch.equal(loaded["model.blocks.0.attn.qkv.weight"], plain["blocks.0.attn.qkv.weight"])


def test_copies_whose_names_differ_in_a_wrapper_s_prefix_only_are_refused(plain, write):
    path = write({"teacher": {**plain, "module.norm.weight": plain["norm.weight"]}})
    with pytest.raises(ValueError, match="differ only in the prefix that DataParallel adds"):
        import_trunk(path, TRUNK)
    path = write({"teacher": {**plain, 3: plain["norm.weight"]}, "student": {**plain, "epoch": 3}})
    with pytest.raises(ValueError, match=r"entry 'student\.epoch': got a int"):
        import_trunk(path, TRUNK)


def test_what_was_taken_is_said(plain, write, capsys):
    path = write(FILES["DINO"](plain))
    _, report = import_trunk(path, TRUNK)
    assert f"took the {len(plain)} arrays of 'teacher.backbone.', without this prefix" in str(report)
    state, _ = import_trunk(path, TRUNK, "student.backbone.")
    assert torch.equal(state["norm.weight"], plain["norm.weight"] + 1)


def test_two_of_the_same_need_a_name(plain, write):
    path = write({**under("left.", plain), **under("right.", others(plain))})
    with pytest.raises(ValueError, match=r"more than once, as 'left\.', 'right\.'; say which one: --prefix"):
        import_trunk(path, TRUNK)
    state, _ = import_trunk(path, TRUNK, "right")
    assert torch.equal(state["norm.weight"], plain["norm.weight"] + 1)
    with pytest.raises(
        ValueError, match=r"--prefix: no tensor's name starts with 'up\.'; they start with left, right"
    ):
        import_trunk(path, TRUNK, "up.")


def test_a_namespace_is_all_that_is_let_in(write, plain):
    class Other(argparse.Namespace):
        pass

    Other.__qualname__ = Other.__name__ = "Other"
    globals()["Other"] = Other
    with pytest.raises(ValueError, match="holds Python code or objects"):
        import_trunk(write({"teacher": plain, "args": Other(a=1)}), TRUNK)
    with pytest.raises(ValueError, match="holds Python code or objects"):
        import_trunk(write({"teacher": plain, "args": argparse.Namespace(a=Other())}), TRUNK)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(bad, plain, write, tmp_path):
    state = {name: value.clone() for name, value in plain.items()}
    state["blocks.1.norm1.bias"][3] = bad
    with pytest.raises(ValueError, match=r"weights\.pth: tensor 'blocks\.1\.norm1\.bias': got NaN or infinity"):
        import_trunk(write(state), TRUNK)
    save_file(state, tmp_path / "trunk.safetensors")
    model = SpatialBceForImageClassification(SpatialBceConfig(trunk=TRUNK, output_stride=None, num_labels=2))
    with pytest.raises(ValueError, match=r"trunk\.safetensors: 'model\.blocks\.1\.norm1\.bias': got NaN or infinity"):
        load_trunk_weights(model, str(tmp_path / "trunk.safetensors"))


# torchvision's network, timm's, and what stands before the names.
TORCHVISION = [
    ("resnet18", "resnet18", ""),
    ("mobilenet_v2", "mobilenetv2_100", ""),
    ("mobilenet_v2", "mobilenetv2_100", "model."),
    ("efficientnet_b0", "efficientnet_b0", ""),
    ("convnext_tiny", "convnext_tiny", ""),
    ("swin_t", "swin_tiny_patch4_window7_224", ""),
    ("swin_t", "swin_tiny_patch4_window7_224", "model."),
    ("vit_b_16", "vit_base_patch16_224", ""),
]


@pytest.mark.parametrize(("theirs", "ours", "prefix"), TORCHVISION)
def test_torchvision_s_weights_compute_the_same_in_timm_s_network(theirs, ours, prefix, write):
    torch.manual_seed(0)
    network = getattr(torchvision.models, theirs)(num_classes=7).eval()
    for name, value in network.state_dict().items():
        # Fresh statistics, scales and positions are all alike, and would fit anywhere.
        if name.endswith(("running_mean", "running_var", "layer_scale", "pos_embedding", "bias")):
            value.copy_(torch.rand_like(value) + 0.5)
    state, report = import_trunk(write(under(prefix, network.state_dict())), ours)
    timm_s = timm.create_model(ours, num_classes=7).eval()
    left = timm_s.load_state_dict(state, strict=False)
    heads = ("head.", "fc.", "classifier.")
    assert all(name.startswith(heads) or name.endswith("num_batches_tracked") for name in left.missing_keys)
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        if theirs in ("mobilenet_v2", "efficientnet_b0"):
            expected, got = network.features(image), timm_s.forward_features(image)
        else:
            if theirs == "vit_b_16":
                # Fresh, it is 0 in torchvision.
                network.heads.head.weight.normal_()
                timm_s.head.load_state_dict(network.heads.head.state_dict())
            expected, got = network(image), timm_s(image)
    assert got.std() > 0
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    # timm's weights of some of these names want other means.
    if theirs != "resnet18":
        assert report.preprocessing["image_mean"] == [0.485, 0.456, 0.406]


def test_what_torchvision_s_weights_are_fed_with_is_written(write, tmp_path):
    network = torchvision.models.vit_b_16(num_classes=2)
    output = tmp_path / "trunk.safetensors"
    command = ["import", str(write(network.state_dict())), "--trunk", "vit_base_patch16_224", "--output", str(output)]
    assert main(command) == 0
    assert preprocessing_record("vit_base_patch16_224", "pretrained")["image_mean"] == [0.5, 0.5, 0.5]
    # ImageNet's, which an empty record stands for.
    assert preprocessing_record("vit_base_patch16_224", str(output)) == {}


def test_names_of_a_network_s_authors_go_through_timm_s_filter(write):
    torch.manual_seed(0)
    state = timm.create_model("vit_small_patch14_reg4_dinov2").state_dict()
    # As the authors save it: other names of registers, and a token that stands for hidden patches.
    theirs = {name: value for name, value in state.items() if name not in ("reg_token", "pos_embed")}
    theirs["register_tokens"] = state["reg_token"]
    theirs["mask_token"] = torch.zeros(1, 384)
    theirs["pos_embed"] = torch.cat([torch.zeros(1, 1, 384), state["pos_embed"]], dim=1)
    found, report = import_trunk(write(under("backbone.", theirs)), "vit_small_patch14_reg4_dinov2")
    assert "names are those of the network's authors" in str(report)
    assert torch.equal(found["reg_token"], state["reg_token"]) and torch.equal(found["pos_embed"], state["pos_embed"])


@pytest.fixture
def folder(plain, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    save_file(plain, folder / "model.safetensors")
    known = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bicubic", "license": "apache-2.0"}
    (folder / "config.json").write_text(json.dumps({"architecture": TRUNK, "pretrained_cfg": known}))
    return folder


def test_a_folder_of_timm_s_says_what_it_is(folder, plain, tmp_path):
    output = tmp_path / "trunk.safetensors"
    assert main(["import", str(folder), "--output", str(output)]) == 0
    assert all(torch.equal(value, plain[name]) for name, value in load_file(output).items())
    expected = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "interpolation": "bicubic"}
    assert preprocessing_record(TRUNK, str(output)) == expected
    # Its file is a trunk file as it is.
    assert preprocessing_record(TRUNK, str(folder / "model.safetensors")) == expected
    with safe_open(output, "pt") as file:
        assert "image_mean" in file.metadata()["preprocessing"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "has no config.json"),
        ("[1]", "expected an object"),
        ('{"model_type": "vit"}', "architecture: got 'None', expected a network of timm's"),
        ('{"architecture": "nothing"}', "architecture: got 'nothing'"),
        (
            '{"architecture": "test_vit", "pretrained_cfg": {"mean": [1], "std": [1, 1, 1]}}',
            "pretrained_cfg.image_mean",
        ),
    ],
)
def test_another_folder_is_an_error(folder, config, message, tmp_path, capsys):
    (folder / "config.json").unlink()
    if config is not None:
        (folder / "config.json").write_text(config)
    assert main(["import", str(folder), "--output", str(tmp_path / "x.safetensors")]) == 1
    printed = capsys.readouterr().err
    assert message in printed and printed.count("\n") == 1
    (folder / "model.safetensors").unlink()


def test_a_folder_without_weights_is_an_error(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"has none of model\.safetensors, pytorch_model\.bin"):
        import_trunk(folder)


def test_a_folder_as_trunk_weights_is_told_its_file(folder, tiny_recipe, tmp_path, capsys):
    command = ["run", "--recipe", str(tiny_recipe), "--output-dir", str(tmp_path / "run")]
    assert main([*command, "--trunk-weights", str(folder)]) == 1
    assert f"is a folder; name the file in it, {folder / 'model.safetensors'}" in capsys.readouterr().err


def test_a_prefix_is_for_a_trunk(write, tmp_path, plain, capsys):
    assert main(["import", str(write(plain)), "--output", str(tmp_path / "x"), "--prefix", "a."]) == 1
    assert "--prefix: is for a trunk" in capsys.readouterr().err
