"""COCO's instances file: one run-length encoded region per class and photo. Holes and single pixels are kept."""

from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from ..files import write_json
from .source import ExportSource


def write(source: ExportSource, folder: Path) -> list[str]:
    """Write `annotations/instances_train.json`; category ids are the label maps' values."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for photo in source:
        width, height = photo.size
        images.append({"id": photo.number, "file_name": photo.file, "width": width, "height": height})
        for index, mask in photo.masks():
            region = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": photo.number,
                    "category_id": index + 1,
                    "segmentation": {"size": [height, width], "counts": region["counts"].decode()},
                    "area": int(coco_mask.area(region)),
                    "bbox": [float(number) for number in coco_mask.toBbox(region)],
                    # A crowd's region would not be painted.
                    "iscrowd": 0,
                }
            )
    categories = [{"id": value, "name": name} for value, name in enumerate(source.class_names, start=1)]
    values = {"images": images, "annotations": annotations, "categories": categories}
    write_json(folder / "annotations" / "instances_train.json", values)
    return source.undecided_note()
