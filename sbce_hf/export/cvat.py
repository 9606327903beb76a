"""CVAT's XML ("CVAT for images 1.1"): one run-length encoded mask per class and photo, nothing of it lost."""

from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

import numpy as np
from numpy.typing import NDArray

from ..data.schema import palette
from ..files import write_atomic
from .source import ExportSource


def write(source: ExportSource, folder: Path) -> list[str]:
    """Write `annotations.xml`, and `labels.json` for the raw editor of a project's labels."""
    colours = np.array(palette()).reshape(256, 3)
    root = Element("annotations")
    SubElement(root, "version").text = "1.1"
    labels = SubElement(SubElement(SubElement(root, "meta"), "task"), "labels")
    for value, name in enumerate(source.class_names, start=1):
        label = SubElement(labels, "label")
        SubElement(label, "name").text = name
        SubElement(label, "color").text = "#" + bytes(colours[value].tolist()).hex()
        SubElement(label, "type").text = "mask"
        SubElement(label, "attributes")
    for photo in source:
        width, height = photo.size
        image = SubElement(
            root, "image", id=str(photo.number - 1), name=photo.file, width=str(width), height=str(height)
        )
        for index, mask in photo.masks():
            runs, left, top, across, down = encode(mask)
            SubElement(
                image,
                "mask",
                label=source.class_names[index],
                source="auto",
                occluded="0",
                rle=", ".join(map(str, runs)),
                left=str(left),
                top=str(top),
                width=str(across),
                height=str(down),
                z_order="0",
            )
    ElementTree.indent(root)
    xml = ElementTree.tostring(root, encoding="unicode", xml_declaration=False)
    write_atomic(folder / "annotations.xml", f'<?xml version="1.0" encoding="utf-8"?>\n{xml}\n')
    return [*source.undecided_note(), "make a task with these labels and photos, then upload 'CVAT 1.1' annotations"]


def encode(mask: NDArray[np.bool_]) -> tuple[list[int], int, int, int, int]:
    """Lengths of runs in the mask's box, row by row, the first of them outside of the mask; and left, top, size."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left, bottom, right = rows[0], columns[0], rows[-1] + 1, columns[-1] + 1
    flat = mask[top:bottom, left:right].ravel()
    ends = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *ends, flat.size]).tolist()
    return ([0, *runs] if flat[0] else runs), int(left), int(top), int(right - left), int(bottom - top)
