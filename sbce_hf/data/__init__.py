"""Every source becomes one schema: see [`schema.TaggedImages`]."""

import importlib
from collections.abc import Callable

from ..config import DataConfig
from ..config.data import SOURCES
from ..errors import UserError
from .schema import IGNORE_INDEX, SkippedImage, TaggedImages, decode_image, features, palette

__all__ = [
    "IGNORE_INDEX",
    "SkippedImage",
    "TaggedImages",
    "decode_image",
    "features",
    "load_images",
    "palette",
    "register_source",
]


def load_images(config: DataConfig, split: str) -> TaggedImages:
    """Read and check one split of a source.

    Args:
        config: which source, and its options.
        split: name of the split.

    Raises:
        FileNotFoundError: something the source needs is missing.
        ValueError: something is wrong with it; the message names file, field and remedy.

    Examples:
        >>> from sbce_hf import DataConfig, load_images
        >>> images = load_images(DataConfig(source="shapes", shapes_images=6, shapes_size=48), "train")
        >>> len(images), images.class_names
        (6, ('kite', 'lantern', 'beetle', 'cactus'))
        >>> images.image(0).size, images.label_matrix().shape
        ((48, 48), (6, 4))
    """
    if config.source in _REGISTERED:
        return _REGISTERED[config.source](config, split)
    # Readers are modules of this room, named like the sources, each with load(config, split).
    reader = importlib.import_module(f".{config.source}", __name__)
    return reader.load(config, split)


# Readers of the program around this package, by name.
_REGISTERED: dict[str, Callable[[DataConfig, str], TaggedImages]] = {}


def register_source(name: str, load: Callable[[DataConfig, str], TaggedImages]) -> None:
    """Let recipes and configs name a reader of your own as `data.source`, in this process.

    Args:
        name: of the source; an earlier reader of that name is replaced.
        load: given the config and the name of a split, returns its images, as `images_from_lists` makes them.

    Raises:
        UserError: a name of a source of this package.

    Examples:
        >>> from PIL import Image
        >>> from sbce_hf import images_from_lists, load_images, load_recipe, register_source
        >>> photos = [Image.new("RGB", (32, 24), colour) for colour in ("red", "green")]
        >>> register_source("album", lambda config, split: images_from_lists(photos, [["cup"], []]))
        >>> config = load_recipe("own-data", {"data": {"source": "album"}})
        >>> len(load_images(config.data, config.data.train_split))
        2
    """
    if name in SOURCES and name not in _REGISTERED:
        raise UserError(f"register_source: {name!r} is a source of this package; choose another name")
    SOURCES.add(name)
    _REGISTERED[name] = load
