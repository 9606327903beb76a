"""What every source has to pass before anything long starts; the last step of each reader."""

import difflib
import hashlib
import json
import logging
import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from datasets import Dataset

from ..config import DataConfig
from ..config.ranges import shortened
from ..errors import UserError
from ..text import check_names
from .image_ids import check_ids
from .known_photos import look_at_images
from .mask_checks import check_masks
from .own_files import require_own_files
from .schema import IGNORE_INDEX, Painter, SkippedImage, TaggedImages, features
from .tags import check_class_list

logger = logging.getLogger(__name__)

# How many names an error message lists, and how many characters of each.
SHOWN = 5
_SHOWN_NAME = 200


@dataclass(frozen=True)
class Listing:
    """A split as its source lists it, before any image is opened.

    Args:
        image_ids: of the images that are there.
        files: their paths.
        labels: their class indices, ascending.
        masks: their mask files; `None` where there is none.
        num_listed: images the split has, those included that a partial copy lacks.
    """

    image_ids: list[str]
    files: list[Path]
    labels: list[list[int]]
    masks: list[Path | None]
    num_listed: int

    def to_dataset(self, class_names: Sequence[str]) -> Dataset:
        """Columns of [`schema.features`], with masks if any image has one."""
        columns: dict[str, list] = {
            "image_id": self.image_ids,
            "image": [str(file) for file in self.files],
            "labels": self.labels,
        }
        with_mask = any(self.masks)
        if with_mask:
            columns["mask"] = [str(mask) if mask else None for mask in self.masks]
        return Dataset.from_dict(columns, features=features(class_names, with_mask))


def listing(names: Collection[str]) -> str:
    """The first few names and how many more there are."""
    shown = ", ".join(shortened(name, _SHOWN_NAME) for name in list(names)[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"


def require_folder(path: Path, expected: str) -> Path:
    """Return `path`.

    Raises:
        FileNotFoundError: it is not a folder; says what was `expected`.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such folder; expected {expected}")
    return path


def require_files(paths: Iterable[Path], what: str) -> None:
    """Check that every file is there.

    Raises:
        FileNotFoundError: names the first few missing ones.
    """
    missing = [str(path) for path in paths if not os.path.isfile(path)]
    if missing:
        raise FileNotFoundError(f"{len(missing)} {what} missing: {listing(missing)}")


def present_files(paths: Sequence[Path], what: str, partial: bool, remedy: str) -> list[int]:
    """Indices of the files that are there: all of them, unless the copy may be `partial`.

    Args:
        paths: expected files.
        what: they are, for messages.
        partial: warn about missing ones instead of stopping.
        remedy: how to get them.

    Raises:
        FileNotFoundError: some are missing and the copy may not be partial, or all are; says how many, names the first
            few and the remedy.
    """
    there = [index for index, path in enumerate(paths) if os.path.isfile(path)]
    if len(there) == len(paths):
        return there
    found = set(there)
    missing = [str(path) for index, path in enumerate(paths) if index not in found]
    message = f"{len(missing)} {what} missing: {listing(missing)}"
    if not there or not partial:
        use = f", or set data.partial to true to use the {len(there)} that are there" if there else ""
        raise FileNotFoundError(f"{message}; {remedy}{use}")
    logger.warning("%s; using the %d that are there", message, len(there))
    return there


def class_indices(tags: Iterable[str], class_names: Sequence[str], where: str) -> list[int]:
    """Indices of an image's tags, ascending, each once.

    Raises:
        ValueError: a tag that is no class; names it, where it was found, and the nearest class.
    """
    known = {name: index for index, name in enumerate(class_names)}
    indices = set()
    for tag in tags:
        if tag not in known:
            near = difflib.get_close_matches(tag, class_names, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"classes: {', '.join(class_names)}"
            raise UserError(f"{where}: tag {tag!r} is no class; {hint} Correct the tag or add it to data.classes")
        indices.add(known[tag])
    return sorted(indices)


def checked_images(
    dataset: Dataset,
    class_names: Sequence[str],
    config: DataConfig,
    split: str,
    *,
    mask_values: tuple[int, ...] | None = None,
    mask_known: frozenset[int] | None = None,
    skipped: Sequence[SkippedImage] = (),
    root: Path | None = None,
    painter: Painter | None = None,
    unlabelled: int = IGNORE_INDEX,
    fixed_classes: bool = False,
    notes: Sequence[str] = (),
) -> TaggedImages:
    """Leave out the images that cannot be read, and check what training and scoring rely on.

    Images that are new or have changed are decoded once. Masks are opened for the score split only, to find a bad one
    now and not after the training.

    Args:
        dataset: columns of [`schema.features`].
        class_names: the foreground classes.
        config: `max_images`, `strict`, `train_split` and `score_split` are used.
        split: the split that `dataset` is.
        mask_values: see [`TaggedImages`].
        mask_known: see [`TaggedImages`].
        skipped: images a reader has already left out.
        root: the data set's own folder, outside of which no file may lie unless `config.outside_files`; `None` if the
            user has named each file.
        painter: see [`TaggedImages`].
        unlabelled: see [`TaggedImages`].
        fixed_classes: the class list is the data set's own, not chosen by the user or read off these images' tags. A
            class without images is a warning then, not an error: a part of the data set keeps its label values.
        notes: what a reader has decided for the user, in sentences.

    Raises:
        UserError: a file outside of the data set's folder.
        ValueError: no images, a duplicate or unusable image id, an unreadable image when `config.strict`, a class that
            no image of the training split has, or a bad mask or none at all in the score split.
    """
    if not class_names:
        raise UserError(f"data: split {split!r} has no tags at all; tag at least some images or set data.classes")
    check_names(class_names, f"data, split {split!r}: class")
    check_class_list(class_names, "classes")
    check_ids(dataset["image_id"][:], split)
    if config.max_images is not None:
        dataset = dataset.select(range(min(config.max_images, len(dataset))))
    if root is not None and not config.outside_files:
        require_own_files(dataset, root)
    identities, unreadable, stretched = look_at_images(dataset)
    notes = list(notes)
    if stretched:
        notes.append(
            f"{len(stretched)} images have more than 8 bits of grey and were scaled by their own range: "
            f"{listing(stretched)}"
        )
    if unreadable:
        first = next(iter(unreadable.values()))
        if config.strict:
            raise UserError(f"{first.file}: {first.reason} (data.strict stops at the first one)")
        if len(unreadable) == len(dataset):
            raise UserError(f"data: none of the {len(dataset)} images of split {split!r} is readable; {first}")
        logger.warning(
            "skipping %d unreadable images: %s", len(unreadable), listing([s.file for s in unreadable.values()])
        )

    # Before the unreadable ones are left out: of a run that has begun with them, they are part.
    listed = dataset
    if unreadable:
        dataset = dataset.select([index for index in range(len(dataset)) if index not in unreadable])
    manifest = hashlib.sha256(json.dumps(list(class_names)).encode())
    digests = {}
    # As lists: iterating over a column takes twenty times as long.
    names, tags = dataset["image_id"][:], dataset["labels"][:]
    for image_id, index, present in zip(names, sorted(identities), tags, strict=True):
        entry = json.dumps([identities[index], present]).encode()
        manifest.update(entry)
        digests[image_id] = hashlib.sha256(entry).hexdigest()[:16]
    images = TaggedImages(
        dataset=dataset,
        class_names=tuple(class_names),
        mask_values=mask_values,
        mask_known=mask_known,
        skipped=(*skipped, *unreadable.values()),
        manifest_hash=manifest.hexdigest(),
        painter=painter,
        unlabelled=unlabelled,
        notes=tuple(notes),
        listed=listed,
        digests=digests,
    )
    if split == config.train_split:
        _check_every_class_occurs(images, split, fixed_classes)
    if split == config.score_split:
        images = replace(images, notes=(*images.notes, *check_masks(images)))
    # Of a split that is only scored, the reader repeats what it has said of the training split.
    known = len(notes) if split == config.score_split != config.train_split else 0
    for note in images.notes[known:]:
        logger.warning("%s", note)
    return images


def _check_every_class_occurs(images: TaggedImages, split: str, fixed_classes: bool) -> None:
    counts = images.label_matrix().sum(axis=0)
    absent = [name for name, count in zip(images.class_names, counts, strict=True) if count == 0]
    if len(absent) == images.num_classes:
        raise UserError(f"data: none of the {len(images)} images of split {split!r} has a tag; tag at least some")
    if absent and fixed_classes:
        logger.warning(
            "%d of %d classes have no image in split %r and cannot be learned: %s",
            len(absent),
            images.num_classes,
            split,
            listing(absent),
        )
    else:
        require_every_class(absent, images.class_names, split, len(images))


def require_every_class(absent: Collection[str], class_names: Sequence[str], split: str, count: int) -> None:
    """Raise a `UserError` for classes that no image of a training split has.

    Args:
        absent: these classes.
        class_names: all.
        split: the training split.
        count: its images.
    """
    if absent:
        present = [name for name in class_names if name not in absent]
        raise UserError(
            f"data: no image of split {split!r} ({count} images) has the tag {listing(absent)}; a class without "
            f"images cannot be learned. Add images, raise data.max_images, or set data.classes to {present}"
        )
