"""Checks a copy of VOC 2012 or COCO 2014: what is missing, where to get it, and whether the counts are right."""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from ..config import DataConfig
from . import coco, voc
from .validation import Listing

STUFF_ARCHIVE = "stuffthingmaps_trainval2017.zip of COCO-Stuff (github.com/nightrome/cocostuff)"

# Images per split, those without foreground left out.
EXPECTED = {
    "voc": {"trainaug": 10_582, "train": 1464, "val": 1449},
    "coco": {"train2014": 82_081, "val2014": 40_137},
}


@dataclass(frozen=True)
class Part:
    """A part of a data set.

    Args:
        paths: where it may be, relative to the folder; one of them is enough.
        what: it is.
        archive: where it comes from.
        splits: that need it; all if empty.
        optional: the data set is complete without it.
    """

    paths: tuple[str, ...]
    what: str
    archive: str
    splits: tuple[str, ...] = ()
    optional: bool = False


PARTS = {
    "voc": (
        Part(("JPEGImages",), "images", voc.ARCHIVE),
        Part(("Annotations", voc.TAGS_FILE), "tags", voc.ARCHIVE),
        Part((f"{voc.LISTS}/train.txt",), "list of the split", voc.ARCHIVE, ("train",)),
        Part((f"{voc.LISTS}/val.txt",), "list of the split", voc.ARCHIVE, ("val",)),
        Part(voc.MASK_FOLDERS[::-1], "masks, for scores", voc.ARCHIVE, ("train", "val")),
        Part((f"{voc.LISTS}/trainaug.txt",), "list of the split", voc.AUGMENTED_ARCHIVE, ("trainaug",)),
        Part(("SegmentationClassAug",), "masks, for scores", voc.AUGMENTED_ARCHIVE, ("trainaug",), optional=True),
    ),
    "coco": (
        *(
            Part((split, f"images/{split}"), "images", f"{split}.zip of COCO 2014 (cocodataset.org)", (split,))
            for split in EXPECTED["coco"]
        ),
        *(
            Part((f"{coco.ANNOTATIONS}/instances_{split}.json",), "annotations", coco.ANNOTATIONS_ARCHIVE, (split,))
            for split in EXPECTED["coco"]
        ),
        Part((coco.STUFF_FOLDER,), "masks instead of painted ones", STUFF_ARCHIVE, optional=True),
    ),
}


@dataclass(frozen=True)
class SplitCheck:
    """What was found of one split.

    Args:
        split: its name.
        expected: images of the original; `None` for a split that the original does not have.
        listed: images that its list or annotations name.
        found: of them, with image and tags.
        masks: of these, with a mask.
        painted: masks are painted from annotations.
        class_images: images with each class, in the order of the classes.
        problem: why nothing was found; `None` otherwise.
    """

    split: str
    expected: int | None
    listed: int = 0
    found: int = 0
    masks: int = 0
    painted: bool = False
    class_images: tuple[int, ...] = ()
    problem: str | None = None

    @property
    def complete(self) -> bool:
        """Whether all images are there, and as many as the original has."""
        return self.found > 0 and self.found == self.listed and self.expected in (None, self.found)


@dataclass(frozen=True)
class SourceCheck:
    """What was found of a data set.

    Args:
        missing: parts that are not there.
        splits: in the order they were asked for.
        class_names: of `class_images`.
    """

    missing: tuple[Part, ...]
    splits: tuple[SplitCheck, ...]
    class_names: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether nothing but optional parts is missing."""
        return all(part.optional for part in self.missing) and all(split.complete for split in self.splits)

    @property
    def usable(self) -> bool:
        """Whether `data.partial` can use something of it."""
        return any(split.found for split in self.splits)


def check_source(source: Literal["voc", "coco"], root: Path, splits: Sequence[str] = ()) -> SourceCheck:
    """Check a folder without opening an image.

    Args:
        source: which data set.
        root: VOC's `VOCdevkit/VOC2012`, or the folder with COCO's `train2014/` and `annotations/`.
        splits: the splits that matter; by default all that the original has.

    Raises:
        FileNotFoundError: no such folder.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder; expected one to unpack the archives into")
    splits = tuple(splits) or tuple(EXPECTED[source])
    missing = [
        part
        for part in PARTS[source]
        if (not part.splits or set(part.splits) & set(splits))
        and not any((root / path).exists() for path in part.paths)
    ]
    names = voc.VOC_CLASSES if source == "voc" else coco.COCO_CLASSES
    return SourceCheck(tuple(missing), tuple(_check_split(source, root, split, len(names)) for split in splits), names)


def _check_split(source: Literal["voc", "coco"], root: Path, split: str, num_classes: int) -> SplitCheck:
    reader = importlib.import_module(f".{source}", __package__)
    expected = EXPECTED[source].get(split)
    try:
        found: Listing = reader.list_split(DataConfig(source=source, data_dir=str(root), partial=True), split)
    except (OSError, ValueError) as error:
        return SplitCheck(split, expected, problem=str(error))
    present = [index for labels in found.labels for index in labels]
    painted = source == "coco" and not any(found.masks)
    return SplitCheck(
        split=split,
        expected=expected,
        listed=found.num_listed,
        found=len(found.image_ids),
        masks=len(found.image_ids) if painted else sum(mask is not None for mask in found.masks),
        painted=painted,
        class_images=tuple(np.bincount(present, minlength=num_classes).tolist()),
    )


def export_source(source: Literal["voc", "coco"], root: Path, check: SourceCheck, directory: Path) -> list[Path]:
    """Write every split of which something was found as parquet files; see [`export.export_parquet`].

    Raises:
        ValueError: an image or mask is damaged beyond skipping.
        OSError: a file cannot be written.
    """
    from . import load_images
    from .export import export_parquet

    config = DataConfig(source=source, data_dir=str(root), partial=True)
    paths = []
    for split in check.splits:
        if split.found:
            scored = replace(config, score_split=split.split if split.masks else None)
            paths += export_parquet(load_images(scored, split.split), directory, split.split)
    return paths
