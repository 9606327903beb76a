"""Index PNGs and a list of the classes: the label maps themselves, nothing lost."""

import csv
import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..data.decoding import encode_png
from ..data.schema import IGNORE_INDEX, palette
from ..files import write_atomic
from .source import ExportSource


def write(source: ExportSource, folder: Path) -> list[str]:
    """Write `masks/<id>.png` and `classes.csv`, the folder layout that source `folder` scores on."""
    for photo in source:
        write_mask(folder / "masks" / f"{photo.image_id}.png", photo.label_map)
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["value", "class"])
    writer.writerow([0, "background"])
    writer.writerows(enumerate(source.class_names, start=1))
    writer.writerow([IGNORE_INDEX, "undecided"])
    write_atomic(folder / "classes.csv", text.getvalue())
    return []


def write_mask(path: Path, label_map: NDArray[np.uint8]) -> None:
    """Write a label map as a palette PNG in VOC's colours."""
    image = Image.fromarray(label_map)
    image.putpalette(palette())
    write_atomic(path, encode_png(image))
