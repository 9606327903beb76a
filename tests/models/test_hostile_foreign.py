"""Models of transformers and image processors that a stranger has written into a checkpoint are data, too."""

import json
import resource
import shutil

import pytest
from hostile_models import MEMORY, copy_with, planted
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor
from tripwire import tripwire

from sbce_hf.config import SegmenterConfig
from sbce_hf.demo.explain import load_checkpoint
from sbce_hf.inference.checkpoints import load_segmenter
from sbce_hf.training.segmenter import create_segmenter

TINY = {"depths": [1] * 4, "hidden_sizes": [8] * 4, "num_attention_heads": [1] * 4, "decoder_hidden_size": 16}
FOREIGN = {
    "layers": {"depths": [10**6] * 4},
    "layers in all": {"depths": [500] * 4},
    "blocks": {key: [1] * 400 for key in ("depths", "hidden_sizes", "num_attention_heads")},
    "names of stages": {
        "model_type": "upernet",
        "backbone_config": {"model_type": "convnext", "depths": [1] * 200_000},
    },
    "pools": {"model_type": "upernet", "pool_scales": [4096]},
    "convolutions": {"model_type": "upernet", "auxiliary_num_convs": 10**6},
    "tables": {
        "model_type": "upernet",
        "backbone_config": {"model_type": "swin", "embed_dim": 4, "depths": [1], "num_heads": [1], "window_size": 128}
        | {"image_size": 512, "out_features": ["stage1"]},
    },
    "width": {"hidden_sizes": [2**19] * 4, "num_attention_heads": [2**18] * 4},
    "more than there is": {"decoder_hidden_size": 2**15},
    "labels": {"num_labels": 10**8},
    "labels of one name": {"id2label": {"0": "background", "1": "cat", "2": "cat"}},
    "no strides": {"strides": [0, 0, 0, 0]},
    "no names of classes": {"architectures": [{"a": 1}]},
    "weights elsewhere": {"transformers_weights": "BAIT"},
    "configuration elsewhere": {"configuration_files": ["BAIT"]},
    "quantised": {"quantization_config": {"quant_method": "finegrained_fp8"}},
    "kernel": {"attn_implementation": "evil/kernel"},
    "kernel, inside": {"_attn_implementation": "evil/kernel"},
    "timm's url": {"model_type": "upernet", "backbone": "evil/model", "use_pretrained_backbone": True},
    "timm's file": {"model_type": "upernet", "backbone": "resnet18", "backbone_kwargs": {"checkpoint_path": "BAIT"}},
    "timm's folder": {
        "model_type": "upernet",
        "backbone_config": {"model_type": "timm_backbone", "backbone": "local-dir:BAIT"},
    },
    "a backbone on the hub": {"model_type": "dpt", "backbone": "evil/model", "backbone_config": None},
}


@pytest.mark.parametrize("name", FOREIGN)
def test_hostile_models_of_other_libraries_are_refused(name, bait, tmp_path):
    SegformerForSemanticSegmentation(SegformerConfig(**TINY, num_labels=2)).save_pretrained(tmp_path / "good")
    SegformerImageProcessor().save_pretrained(tmp_path / "good")
    load_segmenter(tmp_path / "good")
    folder = copy_with(tmp_path / "good", tmp_path / "evil", planted(FOREIGN[name], bait))
    section = {"architecture": "segformer", "checkpoint": str(folder), "weights": "random"}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tripwire(bait.parent) as events:
        for way in (load_segmenter, lambda path: load_checkpoint(str(path))):
            with pytest.raises((ValueError, FileNotFoundError)):
                way(folder)
        # There the classes come from the data.
        if not name.startswith("labels"):
            with pytest.raises((ValueError, FileNotFoundError)):
                create_segmenter(SegmenterConfig(**section), ["cat"])
    assert not events
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MEMORY


PROCESSORS = {
    "one that loads files": {"image_processor_type": "OneFormerImageProcessor"},
    "one by its old name": {"feature_extractor_type": "OneFormerFeatureExtractor"},
    "unknown": {"image_processor_type": "EvilImageProcessor"},
    "size": {"image_processor_type": "SegformerImageProcessor", "size": {"longest_edge": 10**6}},
}


@pytest.mark.parametrize("file", ["preprocessor_config.json", "processor_config.json"])
@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("kind", ["deeplab", "segformer"])
def test_hostile_image_processors_are_refused(kind, name, file, good, bait, tmp_path):
    folder = tmp_path / "evil"
    if kind == "segformer":
        SegformerForSemanticSegmentation(SegformerConfig(**TINY, num_labels=2)).save_pretrained(folder)
        SegformerImageProcessor().save_pretrained(folder)
    else:
        shutil.copytree(good / kind, folder)
    load_checkpoint(str(folder))
    values = PROCESSORS[name] | {"repo_path": str(bait.parent), "class_info_file": bait.name, "do_resize": True}
    nested = {"image_processor": values} if file == "processor_config.json" else values
    (folder / file).write_text(json.dumps(nested))
    with tripwire(bait.parent) as events, pytest.raises(ValueError):
        load_checkpoint(str(folder))
    assert not events
