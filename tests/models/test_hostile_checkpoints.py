"""A checkpoint is data: what a stranger writes into it opens no connection, no other file, and takes no memory.

Each hostile configuration is tried as a recipe would (the config class), as a consumer would (`from_pretrained`), and
as `sbce label`, `predict` and the page do.
"""

import json
import resource
import socket
import time

import pytest
import torch
from hostile_models import LOADERS, MEMORY, MODELS, REFUSALS, copy_with, planted
from safetensors.torch import save_file
from transformers import AutoModelForSemanticSegmentation
from tripwire import tripwire

from sbce_hf.config import SegmenterConfig
from sbce_hf.demo.explain import load_checkpoint
from sbce_hf.importers.trunks import import_trunk
from sbce_hf.inference.checkpoints import load_segmenter
from sbce_hf.models.configuration_spatial_bce import SpatialBceConfig
from sbce_hf.models.modeling_irn import IrnModel
from sbce_hf.models.modeling_trunk import create_trunk
from sbce_hf.training.segmenter import create_segmenter

URL = "http://127.0.0.1:9/evil.pth"
# BAIT becomes the path of a file that nobody may open.
TRUNK_KWARGS = {
    "url": {
        "pretrained": True,
        "cache_dir": "BAIT",
        "pretrained_cfg": {"url": URL, "architecture": "test_resnet", "num_classes": 0},
    },
    "pretrained": {"pretrained": True},
    "pretrained null": {"pretrained": None},
    "pretrained_cfg": {"pretrained_cfg": {"file": "BAIT"}},
    "pretrained_cfg name": {"pretrained_cfg": "r160_in1k"},
    "overlay file": {"pretrained_cfg_overlay": {"file": "BAIT"}},
    "overlay url": {"pretrained": True, "pretrained_cfg_overlay": {"url": URL, "hf_hub_id": None}},
    "overlay hub": {"pretrained": True, "pretrained_cfg_overlay": {"hf_hub_id": "evil/model"}},
    "checkpoint_path": {"checkpoint_path": "BAIT"},
    "cache_dir": {"cache_dir": "BAIT"},
    "features_only false": {"features_only": False},
    "features_only true": {"features_only": True},
    "feature_cls": {"feature_cls": "getter"},
    "out_indices": {"out_indices": [0]},
    "output_stride": {"output_stride": 32},
    "num_classes": {"num_classes": 10**9},
    "in_chans": {"in_chans": 1},
    "scriptable": {"scriptable": True},
    "exportable": {"exportable": True},
    "no_jit": {"no_jit": True},
    "kwargs_filter": {"kwargs_filter": ["pad_type"]},
    "block_args": {"block_args": {"drop": 0.1}},
    "model_args": {"pretrained_model_args": {}},
    "device": {"device": "meta"},
    "weight_init": {"weight_init": "BAIT"},
    "unknown": {"no_such_argument": 1},
    "misspelt": {"pad_typ": "same"},
    "dotted": {"__class__": "x"},
    "number as a key": {"1": 1},
    "dict as a value": {"act_layer": {"name": "relu"}},
    "path as a word": {"act_layer": "BAIT"},
    "module as a word": {"norm_layer": "os.system"},
    "long word": {"pad_type": "same" * 100},
    "nested lists": {"layers": [[1], [1]]},
    "empty list": {"layers": []},
    "long list": {"layers": [1] * 10_000},
    "depth": {"depth": 10**9},
    "layers": {"layers": [10**6, 1, 1, 1]},
    "sum of layers": {"layers": [500, 500, 500, 500]},
    "channels": {"channels": [10**7] * 4},
    "all that is allowed": {"channels": [16384] * 4, "layers": [128] * 4},
    "infinite": {"drop_rate": float("inf")},
    "not a number": {"bn_eps": float("nan")},
    "negative": {"stem_width": -(10**9)},
    "not the trunk's": {"embed_dim": 64},
    "window": {"window_size": 128},
}
FIELDS = {
    "trunk in a folder": {"trunk": "local-dir:BAIT"},
    "trunk on the hub": {"trunk": "hf-hub:evil/model"},
    "trunk on the hub, old": {"trunk": "hf_hub:evil/model"},
    "trunk in capitals": {"trunk": "HF-HUB:evil/model"},
    "trunk as a path": {"trunk": "BAIT"},
    "trunk up": {"trunk": "../../evil"},
    "trunk with a line": {"trunk": "test_resnet\n"},
    "trunk empty": {"trunk": ""},
    "trunk unknown": {"trunk": "no_such_model"},
    "trunk with an unknown tag": {"trunk": "test_resnet.no_such_tag"},
    "trunk as a list": {"trunk": ["test_resnet"]},
    "trunk as null": {"trunk": None},
    "trunk long": {"trunk": "a" * 100_000},
    "trunk huge": {"trunk": "eva02_enormous_patch14_clip_224", "output_stride": None},
    "backbone on the hub": {"trunk": "hf:evil/model", "output_stride": None},
    "backbone in a folder": {"trunk": "hf:BAIT", "output_stride": None},
    "backbone of no kind": {"trunk": "hf:no-such-model", "output_stride": None},
    "backbone of timm's": {
        "trunk": "hf:timm_backbone",
        "output_stride": None,
        "backbone_config": {"backbone": "test_resnet", "use_pretrained_backbone": True},
    },
    "backbone within": {
        "trunk": "hf:dinov2",
        "output_stride": None,
        "backbone_config": {"backbone": "evil/model", "use_pretrained_backbone": True},
    },
    "backbone's kernel": {
        "trunk": "hf:dinov2",
        "output_stride": None,
        "backbone_config": {"attn_implementation": "evil/kernel"},
    },
    "backbone's weights": {
        "trunk": "hf:dinov2",
        "output_stride": None,
        "backbone_config": {"transformers_weights": "BAIT"},
    },
    "backbone of another kind": {
        "trunk": "hf:dinov2",
        "output_stride": None,
        "backbone_config": {"model_type": "swin"},
    },
    "backbone huge": {
        "trunk": "hf:dinov2",
        "output_stride": None,
        "backbone_config": {"hidden_size": 16384, "num_hidden_layers": 64, "num_attention_heads": 64},
    },
    "backbone of small patches": {
        "trunk": "hf:dinov2",
        "output_stride": None,
        "backbone_config": {"patch_size": 1, "hidden_size": 768, "num_hidden_layers": 1},
    },
    "backbone_config of a timm trunk": {"backbone_config": {"model_type": "dinov2"}},
    "backbone_config as text": {"trunk": "hf:dinov2", "output_stride": None, "backbone_config": "BAIT"},
    "trunk_kwargs as a list": {"trunk_kwargs": ["pad_type"]},
    "trunk_kwargs as text": {"trunk_kwargs": "pretrained=True"},
    "labels": {"num_labels": 10**8, "id2label": None, "label2id": None},
    "negative labels": {"num_labels": -1, "id2label": None, "label2id": None},
    "labels as text": {"num_labels": "BAIT", "id2label": None, "label2id": None},
    "id2label as a list": {"id2label": ["cat", "dog"]},
    "id2label as text": {"id2label": "cat"},
    "id2label with a gap": {"id2label": {"0": "cat", "7": "dog"}},
    "id2label of numbers": {"id2label": {"0": 1, "1": 2}},
    "id2label of words": {"id2label": {"cat": "cat"}},
    "id2label of 10 000 letters": {"id2label": {"0": "a" * 10_000}},
    "id2label of 10 000 entries": {"id2label": {str(index): "a" for index in range(10_000)}},
    "weights elsewhere": {"transformers_weights": "BAIT"},
    "weights up": {"transformers_weights": "../model.safetensors"},
    "weights in a pickle": {"transformers_weights": "adapter_model.bin"},
    "configuration elsewhere": {"configuration_files": ["BAIT"]},
    "quantised": {"quantization_config": {"quant_method": "finegrained_fp8"}},
    "quantised, unknown": {"quantization_config": {"quant_method": "BAIT"}},
    "kernel": {"attn_implementation": "evil/kernel"},
    "kernel of experts": {"experts_implementation": "evil/kernel"},
    "fusions": {"fusion_config": {"patch_embeddings": True}},
    "kernels": {"kernel_config": {"RMSNorm": "evil/kernel:Norm"}},
    "dtype of torch's": {"dtype": "load"},
    "dtype unknown": {"dtype": "BAIT"},
    "tables": {
        "trunk": "swin_tiny_patch4_window7_224",
        "output_stride": None,
        "trunk_kwargs": {"embed_dim": 16, "depths": [2, 2, 64, 2], "num_heads": [1] * 4}
        | {"window_size": 32, "img_size": 1024},
    },
    "a loop in a loop": {
        "trunk": "efficientvit_m0",
        "output_stride": None,
        "trunk_kwargs": {"img_size": 4096, "window_size": [80] * 3},
    },
    "features per pixel": {
        "trunk": "test_convnext",
        "output_stride": None,
        "trunk_kwargs": {"patch_size": 1, "dims": [1024, 8, 8, 8], "depths": [1] * 4},
    },
    "stride": {"output_stride": 7},
    "stride as text": {"output_stride": "8"},
}
OWN_FIELDS = {
    "classifier": {
        "embedding": {"embedding_dim": 10**9},
        "negative embedding": {"embedding_dim": -1},
        "embedding as text": {"embedding_dim": "abc"},
        "level": {"feature_index": 10**9},
        "frozen": {"frozen_reduction": -1},
        "mode": {"normalization": "balancd"},
        "palette": {"palette": [[0, 0, 0]] * 100_000},
        "scale": {"logit_scale_init": float("nan")},
    },
    "irn": {
        "side": {"side_channels": 10**9, "side_groups": 1},
        "groups": {"side_groups": 0},
        "radius": {"radius": 10**6},
    },
    "deeplab": {
        "width": {"head_channels": 10**9},
        "rates": {"head": "aspp", "atrous_rates": [1] * 1000},
        "rate": {"atrous_rates": [10**9]},
        "width times rates": {"head": "aspp", "head_channels": 4096, "atrous_rates": [1] * 16},
        "level": {"feature_index": 10**9},
        "ignored": {"semantic_loss_ignore_index": 1},
        "palette": {"palette": [[0, 0, 10**9]] * 2},
    },
}
CASES = [
    pytest.param(kind, {"trunk_kwargs": arguments}, id=f"{kind}: trunk_kwargs: {name}")
    for kind in MODELS
    for name, arguments in TRUNK_KWARGS.items()
] + [
    pytest.param(kind, fields, id=f"{kind}: {name}")
    for kind in MODELS
    for name, fields in (FIELDS | OWN_FIELDS[kind]).items()
]


@pytest.mark.parametrize(("kind", "fields"), CASES)
def test_hostile_configurations_are_refused(kind, fields, good, bait, tmp_path):
    fields = planted(fields, bait)
    folder = copy_with(good / kind, tmp_path / "evil", fields)
    ways = [lambda: MODELS[kind]().__class__(type(MODELS[kind]().config)(**own_fields(good / kind) | fields))]
    ways += [lambda: type(MODELS[kind]()).from_pretrained(folder)]
    if kind in LOADERS:
        ways += [lambda: LOADERS[kind](folder), lambda: load_checkpoint(str(folder))]
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with tripwire(bait.parent) as events:
        for way in ways:
            with pytest.raises(REFUSALS):
                way()
    assert not events
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MEMORY
    assert time.process_time() - started < 60


def own_fields(folder):
    """Of a good configuration, those that a recipe's author may give."""
    values = json.loads((folder / "config.json").read_text())
    return {key: values[key] for key in ("trunk", "id2label", "label2id") if key in values}


def test_the_cases_are_enough():
    counts = {kind: sum(case.values[0] == kind for case in CASES) for kind in MODELS}
    assert min(counts.values()) >= 40


@pytest.mark.parametrize("kind", MODELS)
def test_the_good_checkpoints_pass(kind, good):
    type(MODELS[kind]()).from_pretrained(good / kind)
    if kind in LOADERS:
        LOADERS[kind](good / kind)
        load_checkpoint(str(good / kind))


def test_the_tripwire_sees_connections_files_and_pickles(bait, tmp_path):
    with tripwire(bait.parent) as events:
        with socket.socket() as connection, pytest.raises(OSError):
            connection.connect(("127.0.0.1", 9))
        (tmp_path / "written").write_text("")
        bait.read_bytes()
        path = tmp_path / "a.pt"
        torch.save({"a": torch.zeros(1)}, path)
        torch.load(path, weights_only=False)  # noqa: TID251
    text = " ".join(events)
    assert all(word in text for word in ("socket.connect", "writes", "reads", "pickle.find_class"))


@pytest.mark.parametrize("kind", ["classifier", "deeplab"])
def test_a_giant_without_its_weights_is_refused(kind, good, tmp_path):
    fields = {"trunk": "vit_giant_patch14_dinov2", "output_stride": None}
    folder = copy_with(good / kind, tmp_path / "evil", fields)
    for way in (type(MODELS[kind]()).from_pretrained, LOADERS[kind]):
        with pytest.raises(ValueError, match="describes a model of 1.1e[+]09 weights"):
            way(folder)


def test_fields_that_are_set_later_are_checked_again():
    config = SpatialBceConfig(trunk="test_resnet")
    config.trunk_kwargs = {"pretrained": True}
    with pytest.raises(REFUSALS, match="no argument of an architecture"):
        create_trunk(config)


def test_importers_take_plain_names_only(tmp_path, bait):
    save_file({"a": torch.zeros(1)}, tmp_path / "weights.safetensors")
    with tripwire(bait.parent) as events, pytest.raises(REFUSALS, match="the name of a model of timm"):
        import_trunk(tmp_path / "weights.safetensors", f"local-dir:{bait.parent}")
    assert not events


def test_recipes_take_plain_names_only(bait):
    section = SegmenterConfig(weights="random", model={"trunk": f"local-dir:{bait.parent}"})
    with tripwire(bait.parent) as events, pytest.raises(REFUSALS, match="the name of a model of timm"):
        create_segmenter(section, ["cat"])
    assert not events


@pytest.mark.parametrize("kind", MODELS)
def test_own_code_of_a_known_kind_is_not_run(kind, good, tmp_path, monkeypatch):
    auto_map = {"AutoConfig": "evil.Config", "AutoModelForSemanticSegmentation": "evil.Model"}
    folder = copy_with(good / kind, tmp_path / "evil", {"auto_map": auto_map})
    (folder / "evil.py").write_text("raise SystemExit('run')\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    type(MODELS[kind]()).from_pretrained(folder)
    if kind in LOADERS:
        LOADERS[kind](folder)


def test_own_code_of_an_unknown_kind_is_not_run_and_nobody_is_asked(good, tmp_path, monkeypatch):
    auto_map = {"AutoConfig": "evil.Config", "AutoModelForSemanticSegmentation": "evil.Model"}
    folder = copy_with(good / "deeplab", tmp_path / "evil", {"auto_map": auto_map, "model_type": "evil"})
    (folder / "evil.py").write_text("raise SystemExit('run')\n")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    for load in (load_segmenter, lambda path: load_checkpoint(str(path))):
        with pytest.raises(ValueError, match="config.json"):
            load(folder)


@pytest.mark.parametrize("kind", MODELS)
def test_a_huge_configuration_is_not_read(kind, good, tmp_path):
    folder = copy_with(good / kind, tmp_path / "evil", {})
    with (folder / "config.json").open("a") as file:
        file.write(" " * 2**21)
    for way in (type(MODELS[kind]()).from_pretrained, LOADERS.get(kind, IrnModel.from_pretrained)):
        with pytest.raises(ValueError, match="expected at most 1048576"):
            way(folder)


def test_automatic_classes_refuse_alike(good, bait, tmp_path):
    folder = copy_with(good / "deeplab", tmp_path / "evil", {"trunk_kwargs": {"checkpoint_path": str(bait)}})
    with tripwire(bait.parent) as events, pytest.raises(REFUSALS):
        AutoModelForSemanticSegmentation.from_pretrained(folder)
    assert not events
