"""Every source becomes one schema: see [`schema.TaggedImages`]."""

import importlib

from ..config import DataConfig
from .schema import IGNORE_INDEX, SkippedImage, TaggedImages, decode_image, features, palette

__all__ = ["IGNORE_INDEX", "SkippedImage", "TaggedImages", "decode_image", "features", "load_images", "palette"]


def load_images(config: DataConfig, split: str) -> TaggedImages:
    """Read and check one split of a source.

    Args:
        config: which source, and its options.
        split: name of the split.

    Raises:
        FileNotFoundError: something the source needs is missing.
        ValueError: something is wrong with it; the message names file, field and remedy.
    """
    # Readers are modules of this room, named like the sources, each with load(config, split).
    reader = importlib.import_module(f".{config.source}", __name__)
    return reader.load(config, split)
