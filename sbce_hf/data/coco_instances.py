"""COCO's instances files: reading them in bounded memory, and painting label maps from them."""

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from ..errors import UserError
from ..files import parse_json, read_text
from .tags import clean_tag

# How far outside of its image a polygon may reach, in the image's sides, and how often it may go through each pixel.
_BEYOND, _LENGTH = 10, 10

# Polygon parts as flat arrays x, y, x, y, ... in pixels, or a run-length encoding as in the file.
Outline = list[NDArray[np.float64]] | dict[str, Any]


def read_json(path: Path, outlines_of: Collection[int] = ()) -> dict[str, list[Any]]:
    """Read an instances file.

    Outlines are 95 % of the file; as lists of Python numbers those of `train2014` would take gigabytes.

    Args:
        path: the file.
        outlines_of: ids of the images whose annotations keep their `segmentation`, as an [`Outline`].

    Raises:
        ValueError: no JSON, without one of its lists, or an outline that is none; names the annotation.
    """

    def compact(entry: dict[str, Any]) -> dict[str, Any]:
        if "segmentation" in entry:
            outline = entry.pop("segmentation")
            if entry.get("image_id") in outlines_of and not entry.get("iscrowd"):
                entry["segmentation"] = _outline(outline, f"{path}, annotation {entry.get('id')}")
        return entry

    data = parse_json(read_text(path), str(path), object_hook=compact)
    for name in ("images", "annotations", "categories"):
        if not isinstance(data, Mapping) or not isinstance(data.get(name), list):
            raise UserError(f"{path}: no list {name!r}; expected a COCO instances file (not captions or keypoints)")
    return dict(data)


@dataclass(frozen=True)
class ListedImage:
    """An image of an instances file.

    Args:
        number: its id in the file.
        file: its name, maybe with folders.
        categories: ids of its annotations' categories.
    """

    number: int
    file: str
    categories: frozenset[int]


def read_listing(path: Path) -> tuple[list[ListedImage], dict[int, str]]:
    """The images of an instances file with the categories on them, and the cleaned names of all categories by id.

    Raises:
        UserError: see [`read_json`]; or an entry that is none, names that are one word, or an unknown id.
    """
    data = read_json(path)
    names: dict[int, str] = {}
    for index, category in enumerate(data["categories"]):
        where = f"{path}, categories[{index}]"
        number, name = _fields(where, category, {"id": int, "name": str})
        if number in names:
            raise UserError(f"{where}: id {number} is also that of {names[number]!r}; give each category its own")
        names[number] = clean_tag(name, where)
        if not names[number]:
            raise UserError(f"{where}: has no name; give it one")
    if len(set(names.values())) < len(names):
        doubled = next(name for name in names.values() if list(names.values()).count(name) > 1)
        raise UserError(f"{path}: more than one category is named {doubled!r}; join them, or name them apart")
    images: dict[int, tuple[str, set[int]]] = {}
    for index, image in enumerate(data["images"]):
        where = f"{path}, images[{index}]"
        number, file = _fields(where, image, {"id": int, "file_name": str})
        file = file.replace("\\", "/")
        if not file or ".." in file.split("/") or number in images:
            raise UserError(
                f"{where}: got id {number} and file_name {file!r}, expected an id of its own and a name without '..'"
            )
        images[number] = file, set()
    if not data["annotations"]:
        raise UserError(f"{path}: no annotations; COCO's test splits have none, train2014 and val2014 do")
    for index, annotation in enumerate(data["annotations"]):
        where = f"{path}, annotations[{index}]"
        number, category = _fields(where, annotation, {"image_id": int, "category_id": int})
        if number not in images or category not in names:
            wrong = f"image_id {number}" if number not in images else f"category_id {category}"
            raise UserError(f"{where}: unknown {wrong}; is the file damaged? Export or fetch it again")
        images[number][1].add(category)
    return [ListedImage(number, file, frozenset(found)) for number, (file, found) in images.items()], names


def _fields(where: str, entry: Any, kinds: Mapping[str, type]) -> list[Any]:
    values = [entry.get(name) if isinstance(entry, Mapping) else None for name in kinds]
    if any(type(value) is not kind for value, kind in zip(values, kinds.values(), strict=True)):
        expected = ", ".join(f"{name} ({kind.__name__})" for name, kind in kinds.items())
        raise UserError(f"{where}: got {str(entry)[:200]}, expected an object with {expected}")
    return values


def _outline(outline: Any, where: str) -> Outline:
    if isinstance(outline, dict) and isinstance(outline.get("counts"), (list, str)):
        return outline
    try:
        parts = [np.array(part, dtype=np.float64) for part in outline]
    except (TypeError, ValueError):
        parts = [np.array([np.nan])]
    if any(part.ndim != 1 or part.size % 2 or not np.isfinite(part).all() for part in parts):
        raise UserError(
            f"{where}: segmentation {str(outline)[:100]}, expected polygons [[x, y, x, y, ...], ...] or a run-length "
            'encoding {"size": [height, width], "counts": ...}'
        )
    # Fewer than three points have no area.
    return [part for part in parts if part.size >= 6]


@dataclass
class InstancePainter:
    """Paints label maps from an instances file, which is read when the first one is asked for.

    Crowd regions are not painted; later annotations go over earlier ones, as in COCO's own order.

    Args:
        path: the instances file.
        numbers: the file's image id of each image that may be asked for.
        values: label-map value of each category id.
    """

    path: Path
    numbers: Mapping[str, int]
    values: Mapping[int, int]
    _sizes: dict[int, tuple[int, int]] = field(default_factory=dict, init=False, repr=False)
    _outlines: dict[int, list[tuple[int, Outline]]] = field(default_factory=dict, init=False, repr=False)

    def read(self) -> None:
        """Read the outlines now.

        Raises:
            ValueError: see [`read_json`].
        """
        wanted = set(self.numbers.values())
        data = read_json(self.path, wanted)
        outlines: dict[int, list[tuple[int, Outline]]] = defaultdict(list)
        for annotation in data["annotations"]:
            if "segmentation" in annotation:
                value = self.values[annotation["category_id"]]
                outlines[annotation["image_id"]].append((value, annotation["segmentation"]))
        self._outlines = dict(outlines)
        try:
            self._sizes = {
                image["id"]: (int(image["height"]), int(image["width"]))
                for image in data["images"]
                if image["id"] in wanted
            }
        except (KeyError, OverflowError, TypeError, ValueError) as error:
            raise UserError(f"{self.path}: an image without height and width ({error!r})") from error

    def shape(self, image_id: str) -> tuple[int, int]:
        """Height and width of an image, as its annotation says."""
        if not self._sizes:
            self.read()
        return self._sizes[self.numbers[image_id]]

    def state(self) -> list[int]:
        """Size and modification time of the file, by which photos and masks are told from earlier states, too."""
        stat = self.path.stat()
        return [stat.st_size, stat.st_mtime_ns]

    def __call__(self, image_id: str) -> NDArray[np.uint8]:
        """Label map of an image, `uint8` of shape `(H, W)`.

        Raises:
            ValueError: a run-length encoding that does not fit the image.
        """
        height, width = self.shape(image_id)
        number = self.numbers[image_id]
        label_map = np.zeros((height, width), dtype=np.uint8)
        for value, outline in self._outlines.get(number, ()):
            try:
                label_map[_region(outline, height, width)] = value
            except (KeyError, OverflowError, TypeError, ValueError) as error:
                raise UserError(
                    f"{self.path}, image {image_id!r}: an outline that is damaged or of another size ({error})"
                ) from error
        return label_map


def _region(outline: Outline, height: int, width: int) -> NDArray[np.bool_]:
    if isinstance(outline, list):
        if not outline:
            return np.zeros((height, width), dtype=bool)
        _check_polygons(outline, height, width)
        return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(outline, height, width))).astype(bool)
    if list(outline["size"]) != [height, width]:
        raise ValueError(f"size {str(outline['size'])[:80]}, expected {[height, width]}")
    counts = outline["counts"]
    runs = np.array(_uncompressed(counts) if isinstance(counts, str) else counts)
    if runs.ndim != 1 or runs.dtype.kind != "i" or (runs < 0).any() or sum(runs.tolist()) != height * width:
        raise ValueError(f"runs {str(counts)[:80]}, expected whole numbers of {height * width} pixels in all")
    # Background and region in turn, column by column.
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def _check_polygons(parts: list[NDArray[np.float64]], height: int, width: int) -> None:
    # pycocotools takes memory for each step along the outline, and none of its sums may overflow.
    side = max(height, width)
    length = 0.0
    for part in parts:
        points = part.reshape(-1, 2)
        if (np.abs(points) > _BEYOND * side).any():
            raise ValueError(
                f"polygon with a point {np.abs(points).max():.0f} pixels away in an image of {width} x {height}"
            )
        length += float(np.abs(np.diff(points, axis=0, append=points[:1])).max(axis=1).sum())
    if length > _LENGTH * (height * width + side):
        raise ValueError(f"polygons of {length:.0f} pixels' length in an image of {width} x {height}")


def _uncompressed(text: str) -> list[int]:
    """Runs from COCO's text: five bits a character, then what the run has more than the one two before."""
    runs: list[int] = []
    value = shift = 0
    for character in text:
        part = ord(character) - 48
        if not 0 <= part < 64 or shift > 30:
            raise ValueError(f"compressed runs with {character!r}")
        value, shift = value | (part & 31) << shift, shift + 5
        if part & 32:
            continue
        value -= (part & 16) << (shift - 4)
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("compressed runs that are cut off")
    return runs
