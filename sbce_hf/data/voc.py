"""Reader of a PASCAL VOC devkit folder (`VOCdevkit/VOC2012`) and of data sets with its layout."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..config import DataConfig
from ..errors import UserError
from ..files import parse_json, read_text
from .own_files import require_own_paths, require_own_table
from .schema import IGNORE_INDEX, TaggedImages, decode_indices
from .tags import check_spelling, clean_all, sorted_tags
from .validation import Listing, checked_images, class_indices, listing, present_files, require_files, require_folder
from .xml_text import read_xml

logger = logging.getLogger(__name__)

# In the order of their mask values 1 to 20.
VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
TAGS_FILE = "image_labels.json"
# The augmented masks (VOC + SBD) come first: they are complete where both folders exist.
MASK_FOLDERS = ("SegmentationClassAug", "SegmentationClass")
LISTS = Path("ImageSets", "Segmentation")
ARCHIVE = "VOCtrainval_11-May-2012.tar of PASCAL VOC 2012 (host.robots.ox.ac.uk/pascal/VOC/voc2012)"
# VOC's own images, with masks of the Semantic Boundaries Dataset for the 9118 that VOC did not segment.
AUGMENTED = "trainaug"
AUGMENTED_ARCHIVE = (
    "SegmentationClassAug and trainaug.txt, which do not come with VOC but are made from SBD (Semantic Boundaries "
    "Dataset, benchmark.tgz or benchmark_RELEASE)"
)


def load(config: DataConfig, split: str) -> TaggedImages:
    """Read the images listed in `ImageSets/Segmentation/<split>.txt`.

    Tags come from, in this order: `config.tags_file`, `Annotations/*.xml` (difficult and truncated objects included),
    `image_labels.json` (image id to list of names), the masks (with a warning). Where no tag is one of VOC's, or
    `classes` names one that is not, the classes are the data set's own, and masks hold their numbers from 1 on.

    Args:
        config: `data_dir`, `tags_file`, `classes`, `partial` and the limits are used.
        split: name of the list, for example `"trainaug"`.

    Raises:
        FileNotFoundError: a folder, the split's list, images or annotations are missing.
        ValueError: a class that VOC does not have, or what [`checked_images`] rejects.
    """
    found, known, notes = _read(config, split)
    class_names = config.classes or known
    dataset = found.to_dataset(class_names)
    with_mask = "mask" in dataset.column_names
    return checked_images(
        dataset,
        class_names,
        config,
        split,
        root=Path(config.data_dir or ""),
        mask_values=(0, *(1 + known.index(name) for name in class_names)) if with_mask else None,
        mask_known=frozenset(range(1 + len(known))) if with_mask else None,
        fixed_classes=config.classes is None and known is VOC_CLASSES,
        notes=notes,
    )


def list_split(config: DataConfig, split: str) -> Listing:
    """What [`load`] reads, before any image is opened; raises what it does."""
    return _read(config, split)[0]


def _read(config: DataConfig, split: str) -> tuple[Listing, tuple[str, ...], list[str]]:
    """A split, the classes in the order of their mask values, and what was decided for the user."""
    root = require_folder(Path(config.data_dir or ""), "a VOC devkit folder such as VOCdevkit/VOC2012")
    photos = require_folder(root / "JPEGImages", f"the images of a VOC devkit; does data.data_dir={root} hold them?")
    if not config.outside_files:
        require_own_paths([root / LISTS / f"{split}.txt"], root)
        require_own_table(config.tags_file or TAGS_FILE, root)
    image_ids = _read_split(root, split)
    num_listed = len(image_ids)
    needed = [(photos, ".jpg", f"images of split {split!r}")]
    if (root / "Annotations").is_dir() and _tags_file(root, config.tags_file) is None:
        needed.append((root / "Annotations", ".xml", "annotations"))
    for folder, suffix, what in needed:
        paths = [folder / f"{image_id}{suffix}" for image_id in image_ids]
        there = present_files(paths, what, config.partial, f"VOC's are in {ARCHIVE}")
        image_ids = [image_ids[index] for index in there]
        if not config.outside_files:
            # Their text becomes classes, or is shown in messages.
            require_own_paths((paths[index] for index in there), root)
    masks = [_find_mask(root, image_id) for image_id in image_ids]
    if not config.outside_files:
        # Tags may be read from them.
        require_own_paths(masks, root)
    tags = _read_tags(root, config, image_ids, masks)
    known, notes = _known_classes(tags, image_ids, config.classes)
    class_names = config.classes or known
    class_indices(class_names, known, "data.classes")
    labels = [sorted({class_names.index(tag) for tag in names if tag in class_names}) for names in tags]
    files = [photos / f"{image_id}.jpg" for image_id in image_ids]
    return Listing(image_ids, files, labels, masks, num_listed), known, notes


def _known_classes(
    tags: Sequence[Sequence[str]], image_ids: Sequence[str], classes: Sequence[str] | None
) -> tuple[tuple[str, ...], list[str]]:
    """VOC's classes, or the data set's own, and what was decided for the user.

    Raises:
        UserError: a tag that is neither VOC's nor listed in `classes`: a misspelt one is an error even when only some
            classes are used.
    """
    found: dict[str, str] = {}
    for image_id, names in zip(image_ids, tags, strict=True):
        for name in names:
            found.setdefault(name, f"tags of image {image_id!r}")
    check_spelling(found)
    foreign = [name for name in found if name not in VOC_CLASSES]
    if not foreign:
        return VOC_CLASSES, []
    if classes is not None and any(name in foreign for name in classes):
        others = [name for name in foreign if name not in classes]
        return tuple(classes), [f"tags that are not in data.classes are left out: {listing(others)}"] if others else []
    if classes is None and len(foreign) == len(found):
        own = sorted_tags(found)
        return own, [f"the classes are the data set's own, not VOC's; masks hold 1 for {own[0]} and so on"]
    try:
        class_indices(foreign, VOC_CLASSES, found[foreign[0]])
    except UserError as error:
        raise UserError(
            f"{error}; for classes of your own list all: --set 'data.classes=[{', '.join(sorted_tags(found))}]'"
        ) from error
    return VOC_CLASSES, []


def _tags_file(root: Path, tags_file: str | None) -> Path | None:
    found = tags_file is not None or (not (root / "Annotations").is_dir() and (root / TAGS_FILE).is_file())
    return root / (tags_file or TAGS_FILE) if found else None


def _read_split(root: Path, split: str) -> list[str]:
    path = root / LISTS / f"{split}.txt"
    if not path.is_file():
        found = sorted(file.stem for file in path.parent.glob("*.txt"))
        hint = ""
        if split == AUGMENTED:
            hint = f". Fetch {AUGMENTED_ARCHIVE}"
            if (root / MASK_FOLDERS[0]).is_dir():
                hint += f"; without the list: the names of the masks in {MASK_FOLDERS[0]} that val.txt does not have"
        raise FileNotFoundError(
            f"{path}: no list of split {split!r}; splits in that folder: {listing(found) or 'none'}{hint}"
        )
    lines = read_text(path).splitlines()
    # SBD's lists have "/JPEGImages/<id>.jpg /SegmentationClassAug/<id>.png" where VOC's have "<id>".
    return [Path(line.split()[0]).stem for line in lines if line.strip()]


def _find_mask(root: Path, image_id: str) -> Path | None:
    paths = [root / folder / f"{image_id}.png" for folder in MASK_FOLDERS]
    return next((path for path in paths if os.path.isfile(path)), None)


def _read_tags(
    root: Path, config: DataConfig, image_ids: Sequence[str], masks: Sequence[Path | None]
) -> list[list[str]]:
    table, annotations = _tags_file(root, config.tags_file), root / "Annotations"
    if table is not None:
        require_files([table], "tags file")
        return _read_tags_file(table, image_ids)
    if annotations.is_dir():
        return [_read_annotation(annotations / f"{image_id}.xml") for image_id in image_ids]
    require_files(
        [mask or root / MASK_FOLDERS[0] / f"{i}.png" for i, mask in zip(image_ids, masks, strict=True)], "masks"
    )
    logger.warning("%s has neither Annotations nor %s: tags are taken from the masks", root, TAGS_FILE)
    own = config.classes is not None and not set(config.classes) <= set(VOC_CLASSES)
    names = tuple(config.classes or ()) if own else VOC_CLASSES
    return [_tags_of_mask(mask, names) for mask in masks if mask]


def _read_tags_file(path: Path, image_ids: Sequence[str]) -> list[list[str]]:
    table = parse_json(read_text(path), str(path))
    if not isinstance(table, Mapping) or not all(map(_is_list_of_names, table.values())):
        raise UserError(f"{path}: expected a JSON object that maps image ids to lists of class names")
    missing = [image_id for image_id in image_ids if image_id not in table]
    if missing:
        raise UserError(f"{path}: no tags for {len(missing)} images: {listing(missing)}; an untagged image needs []")
    return [clean_all(table[image_id], f"{path}, image {image_id!r}") for image_id in image_ids]


def _is_list_of_names(tags: Any) -> bool:
    return isinstance(tags, list) and all(isinstance(tag, str) for tag in tags)


def _read_annotation(path: Path) -> list[str]:
    # Direct children only: a person's <part> has a <name> too.
    return clean_all((element.text or "" for element in read_xml(path).iterfind("object/name")), str(path))


def _tags_of_mask(path: Path, names: Sequence[str]) -> list[str]:
    try:
        values = set(np.unique(decode_indices(str(path))).tolist()) - {0, IGNORE_INDEX}
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    unknown = sorted(values - set(range(1, 1 + len(names))))
    if unknown:
        raise UserError(f"{path}: got value {unknown[0]}, expected 0 to {len(names)} or {IGNORE_INDEX}")
    return [names[value - 1] for value in sorted(values)]
