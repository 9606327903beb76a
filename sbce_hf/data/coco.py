"""Reader of COCO's folders: `train2014/`, `annotations/instances_train2014.json` and their like, `stuffthingmaps/`."""

import logging
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import DataConfig
from ..errors import UserError
from .coco_instances import InstancePainter, read_json
from .schema import IGNORE_INDEX, TaggedImages
from .validation import Listing, checked_images, class_indices, listing, present_files, require_folder

logger = logging.getLogger(__name__)

# In the order of their ids, which leave out 12, 26, 29, 30, 45, 66, 68, 69, 71 and 83.
COCO_CLASSES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
    "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple",
    "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
    "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone",
    "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear",
    "hair drier", "toothbrush",
)  # fmt: skip
COCO_IDS = tuple(i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83))
NAMES = dict(zip(COCO_IDS, COCO_CLASSES, strict=True))
# Values of label maps: 1 to 80.
VALUES = {category: value for value, category in enumerate(COCO_IDS, start=1)}

STUFF_FOLDER = "stuffthingmaps"
# Of COCO-Stuff's files: 0 to 90 are category ids less one, 91 to 181 stuff.
STUFF_VALUES, FIRST_STUFF = frozenset(range(182)), 91
ANNOTATIONS = "annotations"
ANNOTATIONS_ARCHIVE = "annotations_trainval2014.zip of COCO 2014 (cocodataset.org)"
IMAGES_ARCHIVE = "train2014.zip and val2014.zip of COCO 2014 (cocodataset.org)"


@dataclass(frozen=True)
class _Row:
    number: int
    file: str
    categories: frozenset[int]

    @property
    def image_id(self) -> str:
        return Path(self.file).stem


def load(config: DataConfig, split: str) -> TaggedImages:
    """Read the images of `annotations/instances_<split>.json` that have a tag.

    Tags are the categories of an image's annotations, crowd regions included; an image without any of the classes is
    left out (82 081 images of `train2014` and 40 137 of `val2014` remain). Images are in the folder that holds most
    of the listed names, `<split>` if it does. Masks come from COCO-Stuff's PNGs if `stuffthingmaps/` is there, in any
    subfolder; else they are painted from the annotations, without crowd regions, later ones over earlier ones.

    Args:
        config: `data_dir`, `tags_file` (another instances file), `classes`, `partial`, `unlabelled` and the limits are
            used.
        split: for example `"train2014"`.

    Raises:
        FileNotFoundError: a folder, the annotations or images are missing.
        ValueError: annotations that cannot be read or are not COCO's, or what [`checked_images`] rejects.
    """
    class_names = config.classes or COCO_CLASSES
    found, rows = _read(config, split)
    stuff = any(found.masks)
    painter = None
    if not stuff:
        kept = dict(zip(found.image_ids[: config.max_images], rows[: config.max_images], strict=True))
        painter = InstancePainter(
            _annotation_file(config, split), {image_id: row.number for image_id, row in kept.items()}, VALUES
        )
        if split == config.score_split:
            # The check of the masks that follows runs in threads.
            painter.read()
    values = [VALUES[COCO_IDS[COCO_CLASSES.index(name)]] for name in class_names]
    categories = [COCO_IDS[value - 1] for value in values]
    return checked_images(
        found.to_dataset(class_names),
        class_names,
        config,
        split,
        root=Path(config.data_dir or ""),
        mask_values=(FIRST_STUFF, *(category - 1 for category in categories)) if stuff else (0, *values),
        mask_known=STUFF_VALUES if stuff else frozenset({0, *VALUES.values()}),
        painter=painter,
        unlabelled=0 if config.unlabelled == "background" else IGNORE_INDEX,
        fixed_classes=config.classes is None,
    )


def list_split(config: DataConfig, split: str) -> Listing:
    """What [`load`] reads, before any image is opened; raises what it does."""
    return _read(config, split)[0]


def _read(config: DataConfig, split: str) -> tuple[Listing, list[_Row]]:
    root = require_folder(Path(config.data_dir or ""), "a folder with COCO's train2014/, val2014/ and annotations/")
    class_names = config.classes or COCO_CLASSES
    class_indices(class_names, COCO_CLASSES, "data.classes")
    path = _annotation_file(config, split)
    rows = [row for row in _read_rows(path) if any(NAMES[c] in class_names for c in row.categories)]
    if not rows:
        raise UserError(f"{path}: no image has an annotation of the classes {listing(class_names)}")
    folder = _image_folder(root, split, [row.file for row in rows])
    there = present_files(
        [folder / row.file for row in rows], f"images of split {split!r}", config.partial, f"fetch {IMAGES_ARCHIVE}"
    )
    num_listed, rows = len(rows), [rows[index] for index in there]
    stuff = _stuff_masks(root)
    found = Listing(
        image_ids=[row.image_id for row in rows],
        files=[folder / row.file for row in rows],
        labels=[
            sorted(class_names.index(n) for c in row.categories if (n := NAMES[c]) in class_names) for row in rows
        ],
        masks=[stuff.get(row.number) for row in rows],
        num_listed=num_listed,
    )
    return found, rows


def _annotation_file(config: DataConfig, split: str) -> Path:
    root = Path(config.data_dir or "")
    path = root / (config.tags_file or f"{ANNOTATIONS}/instances_{split}.json")
    if not path.is_file():
        found = sorted(file.stem.removeprefix("instances_") for file in path.parent.glob("instances_*.json"))
        raise FileNotFoundError(
            f"{path}: no annotations of split {split!r}; splits in that folder: {listing(found) or 'none'}; fetch "
            f"{ANNOTATIONS_ARCHIVE}"
        )
    return path


def _read_rows(path: Path) -> Iterable[_Row]:
    data = read_json(path)
    for index, category in enumerate(data["categories"]):
        number, name = _fields(path, f"categories[{index}]", category, {"id": int, "name": str})
        if NAMES.get(number) != name:
            raise UserError(
                f"{path}, categories[{index}]: got {name!r} with id {number}, expected COCO's {NAMES.get(number)!r}; "
                "this source reads COCO's 80 categories. Turn other data into a folder with tags.csv (source folder)"
            )
    images: dict[int, tuple[str, set[int]]] = {}
    for index, image in enumerate(data["images"]):
        number, file = _fields(path, f"images[{index}]", image, {"id": int, "file_name": str})
        if Path(file).name != file or number in images:
            raise UserError(
                f"{path}, images[{index}]: got id {number} and file_name {file!r}, expected an id of its own and a "
                "name without folders"
            )
        images[number] = file, set()
    if not data["annotations"]:
        raise UserError(f"{path}: no annotations; COCO's test splits have none, train2014 and val2014 do")
    for index, annotation in enumerate(data["annotations"]):
        where = f"annotations[{index}]"
        number, category = _fields(path, where, annotation, {"image_id": int, "category_id": int})
        if number not in images or category not in NAMES:
            wrong = f"image_id {number}" if number not in images else f"category_id {category}"
            raise UserError(f"{path}, {where}: unknown {wrong}; is the file damaged? Fetch {ANNOTATIONS_ARCHIVE}")
        images[number][1].add(category)
    return (_Row(number, file, frozenset(categories)) for number, (file, categories) in images.items())


def _fields(path: Path, where: str, entry: Any, kinds: Mapping[str, type]) -> list[Any]:
    values = [entry.get(name) if isinstance(entry, Mapping) else None for name in kinds]
    if any(type(value) is not kind for value, kind in zip(values, kinds.values(), strict=True)):
        expected = ", ".join(f"{name} ({kind.__name__})" for name, kind in kinds.items())
        raise UserError(f"{path}, {where}: got {str(entry)[:200]}, expected an object with {expected}")
    return values


def _image_folder(root: Path, split: str, names: Collection[str]) -> Path:
    wanted = root / split
    places = [wanted, root / "images" / split, *sorted(root.iterdir()), *sorted((root / "images").glob("*"))]
    listed = set(names)
    counts = {place: len(listed.intersection(os.listdir(place))) for place in places if place.is_dir()}
    # The first of the best: <split> itself where several folders hold the same files.
    folder = max(counts, key=lambda place: counts[place], default=wanted)
    if not counts.get(folder):
        raise FileNotFoundError(
            f"{wanted}: no images of split {split!r} here or in another folder of {root}, for example "
            f"{listing(list(names)[:1])}; fetch {IMAGES_ARCHIVE}"
        )
    return folder


def _stuff_masks(root: Path) -> dict[int, Path]:
    """COCO-Stuff's masks by image number: its 2017 names lack the prefix of the images of 2014."""
    numbers = ((path.stem.rpartition("_")[2], path) for path in sorted((root / STUFF_FOLDER).rglob("*.png")))
    return {int(number): path for number, path in numbers if number.isdecimal()}
