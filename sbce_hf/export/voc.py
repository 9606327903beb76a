"""A VOC devkit folder: palette masks, lists, a file of classes and colours, and boxes. Nothing is lost."""

from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import numpy as np

from ..data.schema import palette
from ..errors import UserError
from ..files import write_atomic
from .masks import write_mask
from .source import Exported, ExportSource, flat_names


def write(source: ExportSource, folder: Path) -> list[str]:
    """Write `SegmentationClass/`, `Annotations/`, `ImageSets/Segmentation/train.txt` and `labelmap.txt`.

    Ids lose their folders and blanks: VOC has one folder, and lists of names that are cut at blanks.

    Raises:
        UserError: a class with a colon, or two ids that would be one name.
    """
    if odd := [name for name in source.class_names if ":" in name]:
        raise UserError(f"class {odd[0]!r}: VOC's labelmap.txt ends a name at a colon; use another format")
    names = flat_names(source.image_ids)
    for photo in source:
        name = names[photo.image_id]
        write_mask(folder / "SegmentationClass" / f"{name}.png", photo.label_map)
        xml = ElementTree.tostring(_annotation(photo, source.class_names), encoding="unicode")
        write_atomic(folder / "Annotations" / f"{name}.xml", f"{xml}\n")
    write_atomic(folder / "ImageSets" / "Segmentation" / "train.txt", "".join(f"{name}\n" for name in names.values()))
    colours = np.array(palette()).reshape(256, 3)
    classes = ("background", *source.class_names)
    lines = [f"{name}:{','.join(map(str, colours[value]))}::" for value, name in enumerate(classes)]
    write_atomic(folder / "labelmap.txt", "\n".join(["# label:color_rgb:parts:actions", *lines, ""]))
    renamed = sum(name != image_id for image_id, name in names.items())
    notes = ["put the photos into JPEGImages/, named like their masks"]
    return [*notes, f"{renamed} ids lost their folders or blanks: <filename> has the photo's"] if renamed else notes


def _annotation(photo: Exported, class_names: tuple[str, ...]) -> Element:
    root = Element("annotation")
    _add(root, "filename", photo.file)
    size = ElementTree.SubElement(root, "size")
    for key, number in zip(("width", "height", "depth"), (*photo.size, 3), strict=True):
        _add(size, key, number)
    _add(root, "segmented", 1)
    for index, mask in photo.masks():
        item = ElementTree.SubElement(root, "object")
        _add(item, "name", class_names[index])
        box = ElementTree.SubElement(item, "bndbox")
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        # VOC counts from 1, both ends included.
        corners = (columns[0] + 1, rows[0] + 1, columns[-1] + 1, rows[-1] + 1)
        for key, number in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True):
            _add(box, key, number)
    return root


def _add(parent: Element, name: str, value: object) -> None:
    ElementTree.SubElement(parent, name).text = str(value)
