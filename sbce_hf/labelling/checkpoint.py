"""Segmentation networks on disk: ours, or any that transformers can load."""

import math
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    PreTrainedConfig,
    PreTrainedModel,
)

from ..models.configuration_spatial_bce import SpatialBceConfig
from ..training.device import use_cpu


def read_segmenter(checkpoint: Path) -> tuple[PreTrainedConfig, Any]:
    """The configuration of a segmentation network and its image processor, without the weights.

    Raises:
        FileNotFoundError: the folder holds no checkpoint, or no image processor.
        ValueError: not a segmentation network, or one whose images are not normalised by mean and deviation.
    """
    if not list(checkpoint.glob("*.safetensors")) or not (checkpoint / "config.json").is_file():
        raise FileNotFoundError(
            f"{checkpoint}: no config.json with *.safetensors; expected the model/ folder of a finished training"
        )
    config = AutoConfig.from_pretrained(checkpoint)
    if config.model_type == SpatialBceConfig.model_type:
        raise ValueError(
            f"{checkpoint}: is a classifier, expected a segmentation network; a classifier's label maps are made by "
            "sbce label"
        )
    settings = checkpoint / "preprocessor_config.json"
    if not settings.is_file():
        raise FileNotFoundError(f"{settings}: missing; save the image processor of the training there")
    processor: Any = AutoImageProcessor.from_pretrained(checkpoint)
    scaled = processor.do_rescale and processor.do_normalize and math.isclose(processor.rescale_factor, 1 / 255)
    if not scaled or getattr(processor, "do_flip_channel_order", False):
        raise ValueError(
            f"{settings}: expected RGB that is rescaled by 1/255, then normalised by image_mean and image_std"
        )
    return config, processor


def load_segmenter(checkpoint: Path) -> tuple[PreTrainedModel, Any]:
    """Load a segmentation network for inference, on this process's device, and its image processor.

    Raises:
        FileNotFoundError: see [`read_segmenter`].
        ValueError: see [`read_segmenter`].
    """
    config, processor = read_segmenter(checkpoint)
    # Never a pickle.
    model = AutoModelForSemanticSegmentation.from_pretrained(checkpoint, config=config, use_safetensors=True)
    return model.eval().to(PartialState(cpu=use_cpu()).device), processor


def trained_side(processor: Any) -> int | None:
    """Long side to which an image processor resizes, if that is what it does."""
    size = dict(processor.size or {}) if processor.do_resize else {}
    return size.get("longest_edge") or (size.get("max_height") if len(set(size.values())) == 1 else None)
