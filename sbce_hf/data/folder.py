"""Reader of a user's folder: photos, what says what is on them (see `layout.py`), and optionally `masks/`.

Masks are index PNGs with the photos' relative paths: 0 background, ``c + 1`` class ``c``. Where all tags are whole
numbers from 1 on, a mask holds these numbers.
"""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from datasets import Dataset

from ..config import DataConfig
from ..errors import UserError
from .layout import Understood, understand
from .mask_checks import check_mask_sizes, no_masks
from .own_files import require_own_paths
from .rows import Row, first_uses
from .schema import IGNORE_INDEX, SkippedImage, TaggedImages, features
from .tags import check_class_list, check_separators, check_spelling, is_number, sorted_tags
from .validation import checked_images, class_indices, listing, require_every_class


def load(config: DataConfig, split: str) -> TaggedImages:
    """Read a folder of images and their tags.

    Args:
        config: `data_dir`, `tags_file`, `separator`, `classes` and the limits are used. Without `classes` they are the
            tags of the whole table, sorted, numbers as numbers, so that all splits agree.
        split: value of the table's split; `"train"` is everything where it has none.

    Raises:
        FileNotFoundError: a folder, the table, or images it lists are missing.
        ValueError: a row that cannot be read, a tag of the training split that is no class, one that may be several,
            an unknown split, or what [`checked_images`] rejects. Names the file and line.
    """
    root = Path(config.data_dir or "")
    found = understand(config)
    class_names = classes_of(found, config)
    found = without_other_tags(found, class_names, config.train_split)
    rows = rows_of(found, split)
    masks = _masks(root / "masks", rows)
    with_mask = any(masks)
    columns: dict[str, list] = {
        "image_id": [row.image_id for row in rows],
        "image": [str(found.photos / row.file) for row in rows],
        "labels": [_indices(row, class_names) for row in rows],
    }
    if with_mask:
        columns["mask"] = [None if mask is None else str(mask) for mask in masks]
    values, notes = _mask_values(class_names, config), list(found.notes)
    if with_mask and values[1:] != tuple(range(1, 1 + len(class_names))):
        notes.append("the tags are numbers, so masks are read as holding these numbers")
    undecided = [row for row in found.rows if row.split == ""]
    return checked_images(
        Dataset.from_dict(columns, features=features(class_names, with_mask)),
        class_names,
        config,
        split,
        root=root,
        mask_values=values if with_mask else None,
        mask_known=frozenset(values) if with_mask else None,
        # The first photos need not have every class of the folder, whose masks hold the values of all.
        fixed_classes=config.classes is None and config.max_images is not None,
        skipped=[
            *(SkippedImage(str(file), reason) for file, reason in found.left_out),
            *(SkippedImage(str(found.photos / row.file), f"its split is empty ({row.where})") for row in undecided),
        ],
        notes=notes,
    )


def classes_of(found: Understood, config: DataConfig) -> tuple[str, ...]:
    """The classes of a folder: those of the config, or all tags.

    Raises:
        UserError: tags that may mean each other, that may be several, or, in the training split, are no classes; names
            file and line.
    """
    tags = first_uses([*found.rows, *found.missing])
    check_spelling(tags)
    if config.separator is None:
        check_separators(tags, config.classes or ())
    class_names = config.classes or sorted_tags(tags)
    check_class_list(class_names, "data.classes" if config.classes else str(found.table))
    for row in found.rows:
        if _is_learned(row, config.train_split):
            _indices(row, class_names)
    return class_names


def without_other_tags(found: Understood, class_names: Sequence[str], train_split: str) -> Understood:
    """The folder without the tags that are no classes, where nothing is learned from them.

    Args:
        found: the folder.
        class_names: the classes.
        train_split: whose tags stay as they are; see [`classes_of`].

    Returns:
        the folder, with a note if a tag was left out.
    """
    known, rows, dropped = set(class_names), list[Row](), Counter[tuple[str, str]]()
    for row in found.rows:
        if not _is_learned(row, train_split) and not known.issuperset(row.tags):
            dropped.update((tag, row.split or "") for tag in row.tags if tag not in known)
            row = replace(row, tags=tuple(tag for tag in row.tags if tag in known))
        rows.append(row)
    if not dropped:
        return found
    told = listing([f"{tag!r} on {count} of split {split!r}" for (tag, split), count in dropped.items()])
    return replace(found, rows=rows, notes=[*found.notes, f"tags that are not in data.classes were left out: {told}"])


def _is_learned(row: Row, train_split: str) -> bool:
    """Whether a photo is in the training split, or in none."""
    return row.split in (None, "", train_split)


def check_split(found: Understood, config: DataConfig) -> None:
    """See, before any photo is decoded, what is wrong with the tags of a run's split, or with the sizes of its masks.

    Raises:
        FileNotFoundError: see [`rows_of`].
        UserError: see [`classes_of`], [`rows_of`] and [`checked_images`].
    """
    class_names = classes_of(found, config)
    rows = rows_of(found, config.train_split)
    tags = {tag for row in rows for tag in row.tags}
    absent = [name for name in class_names if name not in tags]
    require_every_class(absent, class_names, config.train_split, len(rows))
    if config.score_split is None:
        return
    scored = rows_of(found, config.score_split)
    masks = _masks(Path(config.data_dir or "") / "masks", scored)
    pairs = {row.image_id: (found.photos / row.file, mask) for row, mask in zip(scored, masks, strict=True) if mask}
    if not pairs:
        raise no_masks()
    if not config.outside_files:
        require_own_paths((file for pair in pairs.values() for file in pair), Path(config.data_dir or ""))
    check_mask_sizes(pairs)


def rows_of(found: Understood, split: str) -> list[Row]:
    """The rows of a split; see [`load`].

    Raises:
        FileNotFoundError: photos that it lists are not there.
        UserError: no such split.
    """
    splits = sorted({row.split for row in (*found.rows, *found.missing) if row.split})
    for name in splits:
        if name != split and name.casefold() == split.casefold():
            raise UserError(f"{found.table}: split {name!r} is also asked for as {split!r}; write it one way")
    whole = not splits and split == "train"
    chosen = [row for row in found.rows if whole or row.split == split]
    if missing := [str(found.photos / row.file) for row in found.missing if whole or row.split == split]:
        raise FileNotFoundError(
            f"{len(missing)} images listed in {found.table.name} missing: {listing(missing)}; correct their names, or "
            "remove their rows"
        )
    if not chosen:
        known = f"splits: {listing(splits)}" if splits else "it has no split column, so there is only 'train'"
        raise UserError(f"{found.table}: no rows of split {split!r}; {known}")
    return chosen


def _indices(row: Row, class_names: Sequence[str]) -> list[int]:
    return class_indices(row.tags, class_names, f"{row.where}: file {row.file!r}")


def _masks(folder: Path, rows: Sequence[Row]) -> list[Path | None]:
    """The mask of each photo; names may differ in their Unicode form, which depends on where they were made."""
    found = {_form(path.relative_to(folder).as_posix()): path for path in folder.rglob("*.png")}
    return [found.get(_form(f"{row.image_id}.png")) for row in rows]


def _form(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _mask_values(class_names: Sequence[str], config: DataConfig) -> tuple[int, ...]:
    """Values in the masks of background and the classes."""
    numbers = [int(name) for name in class_names if is_number(name)]
    if config.classes is None and len(numbers) == len(class_names) and all(0 < n < IGNORE_INDEX for n in numbers):
        return (0, *numbers)
    return tuple(range(1 + len(class_names)))
