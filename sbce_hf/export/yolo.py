"""YOLO's segmentation labels: polygons, one line each. What they lose is measured photo by photo.

A polygon runs through the centres of a region's outermost pixels, as YOLO's programs fill it, borders included. A hole
is joined to its outline by a line and back, which is how such files say holes.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from ..files import write_atomic
from ..text import csv_text
from .source import Exported, ExportSource

# Of coordinates relative to the photo's size: a hundredth of a pixel of 10 000.
_DIGITS = 6
# With fewer points a line is no polygon to YOLO.
_LEAST_POINTS = 3


def write(source: ExportSource, folder: Path) -> list[str]:
    """Write `labels/<id>.txt`, `data.yaml`, and `round_trip.csv`: each photo's IoU after reading the polygons back.

    Raises:
        OSError: OpenCV, which finds the outlines, is not installed.
    """
    cv2 = _opencv()
    rows, worst = [], 1.0
    for photo in source:
        lines = [(index, polygon) for index, mask in photo.masks() for polygon in outlines(mask, cv2)]
        text = "".join(f"{index} {_coordinates(polygon, photo.size)}\n" for index, polygon in lines)
        write_atomic(folder / "labels" / f"{photo.image_id}.txt", text)
        found = _ious(photo, text, cv2)
        least = min(found, key=lambda index: found[index], default=None)
        mean = float(np.mean(list(found.values()))) if found else 1.0
        name = "" if least is None else source.class_names[least]
        rows.append((photo.image_id, f"{mean:.4f}", name, "" if least is None else f"{found[least]:.4f}"))
        worst = min(worst, mean)
    write_atomic(folder / "round_trip.csv", csv_text([("image", "iou", "worst_class", "its_iou"), *rows]))
    data = {"path": ".", "train": "images", "val": "images", "names": dict(enumerate(source.class_names))}
    write_atomic(folder / "data.yaml", yaml.safe_dump(data, sort_keys=False, allow_unicode=True))
    mean = float(np.mean([float(row[1]) for row in rows]))
    return [
        *source.undecided_note(),
        f"polygons read back have a mean IoU of {100 * mean:.2f} %, {100 * worst:.2f} % on the worst photo; see "
        "round_trip.csv",
        "put the photos into images/, named like their labels",
    ]


def _opencv() -> Any:
    try:
        import cv2
    except ModuleNotFoundError as error:
        raise OSError("export to yolo needs OpenCV: pip install 'sbce-hf[export]'") from error
    return cv2


def outlines(mask: NDArray[np.bool_], cv2: Any) -> Iterator[NDArray[np.int64]]:
    """The polygons of a region's parts, in pixels, holes joined to them.

    Args:
        mask: `(H, W)`.
        cv2: OpenCV.

    Yields:
        `(n, 2)` of x and y, n at least 3.
    """
    contours, hierarchy = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    for number, contour in enumerate(contours):
        _, _, child, parent = hierarchy[0][number]
        if parent >= 0:
            continue
        polygon = contour[:, 0].astype(np.int64)
        while child >= 0:
            polygon = _joined(polygon, contours[child][:, 0].astype(np.int64))
            child = hierarchy[0][child][0]
        yield np.concatenate([polygon, *[polygon[-1:]] * max(0, _LEAST_POINTS - len(polygon))])


def _joined(outer: NDArray[np.int64], hole: NDArray[np.int64]) -> NDArray[np.int64]:
    """One polygon that goes around the outline, over to the hole, around it, and back."""
    away = np.abs(outer[:, None] - hole[None]).sum(axis=2)
    here, there = np.unravel_index(int(away.argmin()), away.shape)
    around = np.concatenate([hole[there:], hole[: there + 1]])
    return np.concatenate([outer[: here + 1], around, outer[here:]])


def _coordinates(polygon: NDArray[np.int64], size: Sequence[int]) -> str:
    # A pixel's centre: what reads it cuts off to whole pixels, and then has this one.
    relative = (polygon + 0.5) / np.asarray(size)
    return " ".join(f"{number:.{_DIGITS}f}" for number in relative.ravel())


def read_back(text: str, size: Sequence[int], cv2: Any) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """Each class of a label file and where its polygons are filled, `(H, W)`, as YOLO's programs fill them.

    Args:
        text: of the file.
        size: width and height.
        cv2: OpenCV.
    """
    filled: dict[int, NDArray[np.uint8]] = {}
    for line in text.splitlines():
        name, *numbers = line.split()
        points = np.array(numbers, dtype=np.float32).reshape(-1, 2) * np.asarray(size)
        mask = filled.setdefault(int(name), np.zeros((size[1], size[0]), np.uint8))
        part = np.zeros_like(mask)
        cv2.fillPoly(part, [points.astype(np.int32)], 1)
        mask |= part
    for index, mask in filled.items():
        yield index, mask.astype(bool)


def _ious(photo: Exported, text: str, cv2: Any) -> dict[int, float]:
    """IoU of each class on the photo after reading the polygons back."""
    back = dict(read_back(text, photo.size, cv2))
    return {
        index: float((mask & back[index]).sum() / (mask | back[index]).sum()) if index in back else 0.0
        for index, mask in photo.masks()
    }
