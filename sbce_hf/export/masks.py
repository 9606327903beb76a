"""Index PNGs and a list of the classes: the label maps themselves, nothing lost."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..data.decoding import encode_png
from ..data.schema import IGNORE_INDEX, palette
from ..files import write_atomic
from ..text import csv_text
from .source import ExportSource


def write(source: ExportSource, folder: Path) -> list[str]:
    """Write `masks/<id>.png` and `classes.csv`, the folder layout that source `folder` scores on.

    A class whose name spreadsheets would take for a formula has an apostrophe before it; see [`csv_text`].
    """
    for photo in source:
        write_mask(folder / "masks" / f"{photo.image_id}.png", photo.label_map)
    classes = enumerate(("background", *source.class_names))
    write_atomic(folder / "classes.csv", csv_text([("value", "class"), *classes, (IGNORE_INDEX, "undecided")]))
    return []


def write_mask(path: Path, label_map: NDArray[np.uint8]) -> None:
    """Write a label map as a palette PNG in VOC's colours."""
    image = Image.fromarray(label_map)
    image.putpalette(palette())
    write_atomic(path, encode_png(image))
