"""Reader of COCO's folders: `train2014/`, `annotations/instances_train2014.json` and their like, `stuffthingmaps/`.

Other programs write the same files with categories of their own, which are read as they are.
"""

import logging
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..config import DataConfig
from ..errors import UserError
from .coco_instances import InstancePainter, ListedImage, read_listing
from .own_files import require_own_table
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

STUFF_FOLDER = "stuffthingmaps"
# Of COCO-Stuff's files: 0 to 90 are category ids less one, 91 to 181 stuff.
STUFF_VALUES, FIRST_STUFF = frozenset(range(182)), 91
ANNOTATIONS = "annotations"
ANNOTATIONS_ARCHIVE = "annotations_trainval2014.zip of COCO 2014 (cocodataset.org)"
IMAGES_ARCHIVE = "train2014.zip and val2014.zip of COCO 2014 (cocodataset.org)"


@dataclass(frozen=True)
class _Split:
    """A split as its instances file lists it.

    Args:
        found: its images.
        rows: of the file, in the same order.
        names: of the file's categories by their ids; all 80 of COCO if they are COCO's own.
    """

    found: Listing
    rows: list[ListedImage]
    names: Mapping[int, str]

    @property
    def values(self) -> dict[int, int]:
        """Values of label maps that are painted: 1 to the number of categories, in the order of their ids."""
        return {category: value for value, category in enumerate(sorted(self.names), start=1)}


def load(config: DataConfig, split: str) -> TaggedImages:
    """Read the images of `annotations/instances_<split>.json` that have a tag.

    Tags are the categories of an image's annotations, crowd regions included; an image without any of the classes is
    left out (82 081 images of `train2014` and 40 137 of `val2014` remain). Images are in the folder that holds most
    of the listed names, `<split>` if it does. Masks come from COCO-Stuff's PNGs if `stuffthingmaps/` is there, in any
    subfolder; else they are painted from the annotations, without crowd regions, later ones over earlier ones.
    Categories that are not COCO's are the classes, in the order of their ids.

    Args:
        config: `data_dir`, `tags_file` (another instances file), `classes`, `partial`, `unlabelled` and the limits are
            used.
        split: for example `"train2014"`.

    Raises:
        FileNotFoundError: a folder, the annotations or images are missing.
        ValueError: annotations that cannot be read or are not COCO's, or what [`checked_images`] rejects.
    """
    read = _read(config, split)
    found, values = read.found, read.values
    class_names = config.classes or tuple(read.names[category] for category in sorted(read.names))
    stuff = any(found.masks)
    painter = None
    if not stuff:
        kept = dict(zip(found.image_ids[: config.max_images], read.rows[: config.max_images], strict=True))
        painter = InstancePainter(
            _annotation_file(config, split), {image_id: row.number for image_id, row in kept.items()}, values
        )
        if split == config.score_split:
            # The check of the masks that follows runs in threads.
            painter.read()
    numbers = {name: category for category, name in read.names.items()}
    categories = [numbers[name] for name in class_names]
    official = read.names is NAMES
    return checked_images(
        found.to_dataset(class_names),
        class_names,
        config,
        split,
        root=Path(config.data_dir or ""),
        mask_values=(FIRST_STUFF, *(c - 1 for c in categories)) if stuff else (0, *(values[c] for c in categories)),
        mask_known=STUFF_VALUES if stuff else frozenset({0, *values.values()}),
        painter=painter,
        unlabelled=0 if config.unlabelled == "background" else IGNORE_INDEX,
        fixed_classes=official and config.classes is None,
        notes=() if official else [f"categories are the file's own, not COCO's: {listing(class_names)}"],
    )


def list_split(config: DataConfig, split: str) -> Listing:
    """What [`load`] reads, before any image is opened; raises what it does."""
    return _read(config, split).found


def _read(config: DataConfig, split: str) -> _Split:
    root = require_folder(Path(config.data_dir or ""), "a folder with COCO's train2014/, val2014/ and annotations/")
    if not config.outside_files:
        require_own_table(_annotations(config, split), root)
    path = _annotation_file(config, split)
    rows, names = read_listing(path)
    official = names.items() <= NAMES.items()
    if official:
        names = NAMES
    class_names = config.classes or tuple(names[category] for category in sorted(names))
    class_indices(class_names, tuple(names.values()), "data.classes")
    rows = [row for row in rows if any(names[c] in class_names for c in row.categories)]
    if not rows:
        raise UserError(f"{path}: no image has an annotation of the classes {listing(class_names)}")
    folder = _image_folder(root, split, [row.file for row in rows])
    remedy = f"fetch {IMAGES_ARCHIVE}" if official else f"put them into {folder}"
    there = present_files([folder / row.file for row in rows], f"images of split {split!r}", config.partial, remedy)
    num_listed, rows = len(rows), [rows[index] for index in there]
    stuff = _stuff_masks(root) if official else {}
    found = Listing(
        image_ids=[Path(row.file).with_suffix("").as_posix() for row in rows],
        files=[folder / row.file for row in rows],
        labels=[
            sorted(class_names.index(n) for c in row.categories if (n := names[c]) in class_names) for row in rows
        ],
        masks=[stuff.get(row.number) for row in rows],
        num_listed=num_listed,
    )
    return _Split(found, rows, names)


def _annotations(config: DataConfig, split: str) -> str:
    return config.tags_file or f"{ANNOTATIONS}/instances_{split}.json"


def _annotation_file(config: DataConfig, split: str) -> Path:
    path = Path(config.data_dir or "") / _annotations(config, split)
    if not path.is_file():
        found = sorted(file.stem.removeprefix("instances_") for file in path.parent.glob("instances_*.json"))
        raise FileNotFoundError(
            f"{path}: no annotations of split {split!r}; splits in that folder: {listing(found) or 'none'}; fetch "
            f"{ANNOTATIONS_ARCHIVE}"
        )
    return path


def _image_folder(root: Path, split: str, names: Collection[str]) -> Path:
    wanted = root / split
    inside = [*sorted(root.iterdir()), *sorted((root / "images").glob("*"))]
    places = [wanted, root / "images" / split, root, *inside]
    listed = set(names)
    nested = [name for name in listed if "/" in name]
    counts = {
        place: len(listed.intersection(os.listdir(place))) + sum((place / name).is_file() for name in nested)
        for place in places
        if place.is_dir()
    }
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
