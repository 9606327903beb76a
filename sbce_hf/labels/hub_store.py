"""Label maps on the Hub, and one way to open these and the label stores of this machine."""

import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Value
from datasets import Image as ImageFeature
from datasets.data_files import sanitize_patterns

from ..data.decoding import decode_labels, is_of_the_file, named
from ..data.image_ids import check_ids
from ..data.own_files import card_configs
from ..errors import UserError
from ..files import is_inside, parse_json, read_text
from ..references import download, repository_folder
from .store import LabelStore

SPLIT = "train"
# What a published configuration says of itself, in its folder.
INFO = "info.json"
_READ = ("image_id", "label_map", "labels", "proportions")


class HubLabelMaps:
    """Label maps in a dataset on the Hub, downloaded once and read from disk one by one.

    Args:
        reference: `user/name`, `user/name@revision`, `user/name:config` or `user/name@revision:config`. The
            configuration may be left out if there is one only. When the Hub cannot be asked, the cache answers.
        class_names: if given, must be the label maps'.

    Raises:
        OSError: see [`download`].
        ValueError: an unknown configuration, none where there are several, a dataset without the columns of
            [`schema.label_features`], or other classes.
    """

    def __init__(self, reference: str, class_names: tuple[str, ...] | None = None) -> None:
        self.directory = reference
        files, info = _download(reference)
        try:
            dataset = Dataset.from_parquet([str(file) for file in files])
        except Exception as error:
            if not is_of_the_file(error):
                raise
            raise UserError(f"label maps {reference}: no parquet files: {error}; push them again") from error
        missing = [name for name in _READ if name not in dataset.column_names]
        kinds = (("image_id", Value), ("label_map", ImageFeature), ("labels", ClassLabel), ("proportions", Value))
        # Reading a column of pictures would open what they name.
        wrong = [name for name, kind in kinds if name not in missing and not _holds(dataset.features[name], kind)]
        if missing or wrong:
            raise ValueError(
                f"label maps {reference}: columns {', '.join(dataset.column_names)}, expected {', '.join(_READ)} "
                "with labels as a list of ClassLabel, as sbce push labels writes them"
            )
        self.class_names: tuple[str, ...] = tuple(dataset.features["labels"].feature.names)
        if class_names is not None and tuple(class_names) != self.class_names:
            raise ValueError(
                f"label maps {reference}: have classes {list(self.class_names)}, expected {list(class_names)}"
            )
        self.complete: bool = info.get("complete", True)
        self.skipped: dict[str, str] = dict.fromkeys(info.get("skipped", ()), "skipped when it was labelled")
        self.undecided: set[str] = set()
        self._dataset = dataset.select_columns(list(_READ)).cast_column("label_map", ImageFeature(decode=False))
        self._rows = {image_id: row for row, image_id in enumerate(_checked(dataset, reference))}

    def __contains__(self, image_id: str) -> bool:
        return image_id in self._rows

    def read(self, image_id: str) -> np.ndarray:
        """The label map of an image, `(H, W)` uint8.

        Raises:
            KeyError: it has none.
            ValueError: it cannot be decoded.
        """
        if image_id not in self._rows:
            raise KeyError(f"label maps {self.directory}: no image {image_id!r}")
        label_map = self._dataset[self._rows[image_id]]["label_map"]
        if label_map is None or label_map["bytes"] is None:
            # What it names instead would be a file of this machine.
            raise ValueError(
                f"label maps {self.directory}: image {image_id!r}: got {str(label_map)[:200]}, expected the bytes of "
                "a PNG, as sbce push labels writes them"
            )
        with named(f"label maps {self.directory}: image {image_id!r}"):
            return decode_labels(label_map)

    def proportions(self) -> tuple[list[str], np.ndarray]:
        """Share of each image's pixels that each class got; see [`LabelStore.proportions`]."""
        ids = sorted(self._rows)
        order = [self._rows[image_id] for image_id in ids]
        labels, shares = self._dataset["labels"][:], self._dataset["proportions"][:]
        table = np.zeros((len(ids), len(self.class_names)))
        for row, index in zip(table, order, strict=True):
            row[labels[index]] = shares[index]
        return ids, table


def _checked(dataset: Dataset, reference: str) -> list[str]:
    """The ids of label maps, which become names of files, once they, labels and proportions fit together."""
    ids, where = dataset["image_id"][:], f"label maps {reference}"
    if not all(isinstance(image_id, str) for image_id in ids):
        raise UserError(f"{where}: image_id: got a row without a name; push them again")
    if ids:
        check_ids(ids, SPLIT, where)
    count = len(dataset.features["labels"].feature.names)
    for image_id, labels, shares in zip(ids, dataset["labels"][:], dataset["proportions"][:], strict=True):
        if labels is None or shares is None or len(labels) != len(shares):
            raise UserError(f"{where}: image {image_id!r}: got another number of proportions than of labels")
        if not all(label is not None and 0 <= label < count for label in labels):
            raise UserError(f"{where}: image {image_id!r}: got labels {labels}, expected 0 to {count - 1}")
    return list(ids)


def _holds(feature: Any, kind: type) -> bool:
    return isinstance(getattr(feature, "feature", feature), kind)


def open_label_maps(
    reference: str | os.PathLike[str], class_names: tuple[str, ...] | None = None
) -> LabelStore | HubLabelMaps:
    """Label maps in a folder of this machine or on the Hub; a folder wins.

    Args:
        reference: a label store, or see [`HubLabelMaps`].
        class_names: if given, must be the label maps'.

    Raises:
        OSError: there are none.
        ValueError: they are damaged, or have other classes.
    """
    name = os.fspath(reference)
    # A missing folder with more than one slash is no Hub id: what is missing is the store.
    if os.path.exists(name) or name.partition(":")[0].partition("@")[0].count("/") != 1:
        return LabelStore(name, class_names)
    return HubLabelMaps(name, class_names)


def _download(reference: str) -> tuple[list[Path], dict[str, Any]]:
    """Parquet files of one configuration, and what it says of itself."""
    name, _, wanted = reference.partition(":")
    folder = download(name, "dataset", ["README.md"])
    patterns = _patterns(folder / "README.md", reference)
    config = wanted or (next(iter(patterns)) if len(patterns) == 1 else "")
    if not patterns.get(config):
        what = f"got configuration {config!r}" if config else "no configuration is named"
        raise ValueError(
            f"label maps {reference}: {what}, expected one of {sorted(patterns)} with a split {SPLIT!r}; name it as "
            f"in {name}:{next(iter(patterns), 'CONFIG')}"
        )
    for part in (*patterns[config], config):
        if PurePosixPath(part).is_absolute() or ".." in PurePosixPath(part).parts:
            raise ValueError(f"label maps {reference}: got {part[:200]!r}, expected files of the dataset itself")
    # This very commit, whatever happens to the branch meanwhile.
    pinned = f"{name.partition('@')[0]}@{folder.name}"
    folder = download(pinned, "dataset", [*patterns[config], f"{config}/{INFO}"])
    try:
        files = sorted(file for pattern in patterns[config] for file in folder.glob(pattern))
    # A pattern too long for a name, with `**` inside of one, or from the root.
    except (OSError, ValueError, NotImplementedError) as error:
        raise UserError(f"label maps {reference}: README.md: data_files: {str(error)[:200]}") from error
    if not all(is_inside(file, repository_folder(folder)) for file in (*files, folder / config / INFO)):
        raise UserError(f"label maps {reference}: has links to files of others; expected files of the dataset itself")
    if not files or any(file.suffix != ".parquet" for file in files):
        raise ValueError(
            f"label maps {reference}: {len(files)} files match {patterns[config]}, expected parquet files"
        )
    return files, _read_info(folder / config / INFO, reference)


def _patterns(card: Path, reference: str) -> dict[str, list[str]]:
    """Files of the split by configuration."""
    found = {}
    for config in card_configs(card):
        try:
            patterns = sanitize_patterns(config.get("data_files", ())).get(SPLIT)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"label maps {reference}: {card.name}: data_files: {error}") from error
        found[str(config.get("config_name"))] = [str(pattern) for pattern in patterns or ()]
    return found


def _read_info(path: Path, reference: str) -> dict[str, Any]:
    info = parse_json(read_text(path), f"label maps {reference}: {path.name}") if os.path.isfile(path) else {}
    complete, skipped = map(info.get, ("complete", "skipped"), (True, [])) if isinstance(info, Mapping) else [None] * 2
    if not isinstance(complete, bool) or not isinstance(skipped, list) or not all(map(_is_text, skipped)):
        raise UserError(f"label maps {reference}: {path.name}: expected complete (true or false) and a list skipped")
    return dict(info)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)
