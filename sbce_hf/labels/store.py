"""Label maps on disk: written whole or not at all, resumable, readable by any image viewer and as a `Dataset`.

A store's folder holds:

- `meta.json`: what the maps were made from, and whether they are complete;
- `label_maps/<image_id>.png`: palette PNG, 0 background, `c + 1` class `c`;
- `records-<rank>.jsonl`: one line per image, in order, written after its label map.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from datasets import Dataset
from PIL import Image

from ..data.decoding import decode_labels, encode_png, named
from ..data.schema import label_features, palette
from ..files import explained, is_inside
from .disk import Journal, replace, require_own, whole_lines
from .records import Records, checked_meta, checked_record, label_row

META, MAPS = "meta.json", "label_maps"
NOTHING_SURE = "nothing is sure"  # Why an image is skipped whose label map would say 255 everywhere.
# Label maps are uint8 and 255 stays free for "ignore".
MAX_CLASSES = 254
GROUP = 32  # Label maps that are brought to the disk together where many are made.
_PALETTE = palette()


class LabelStore:
    """One folder of label maps; opens an existing one for reading, see [`LabelStore.create`] for writing.

    Args:
        directory: the folder.
        class_names: if given, must be the store's.

    Raises:
        FileNotFoundError: there is no store.
        ValueError: its description is damaged, or it has other classes.

    Examples:
        >>> import tempfile
        >>> import numpy as np
        >>> from sbce_hf import LabelStore
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = LabelStore.create(folder, ("cup",), key="drawn by hand", num_images=1)
        ...     store.write("kitchen/01", np.eye(4, dtype=np.uint8), {"classes": [0], "proportions": [0.25]})
        ...     print(store.mark_complete(), LabelStore(folder).read("kitchen/01")[0].tolist())
        True [1, 0, 0, 0]
    """

    def __init__(self, directory: str | os.PathLike[str], class_names: tuple[str, ...] | None = None) -> None:
        self.directory = Path(directory)
        for path in (self.directory / META, *sorted(self.directory.glob("records-*.jsonl"))):
            require_own(path, self.directory)
        try:
            text = (self.directory / META).read_bytes().decode(errors="replace")
        except FileNotFoundError as error:
            what = f"no label store in {self.directory}: {META} is missing; make one with label_images"
            raise FileNotFoundError(what) from error
        self.meta: dict[str, Any] = checked_meta(text, str(self.directory / META))
        self.class_names: tuple[str, ...] = tuple(self.meta["class_names"])
        if class_names is not None and tuple(class_names) != self.class_names:
            raise ValueError(
                f"label store {self.directory}: has classes {list(self.class_names)}, expected {list(class_names)}"
            )
        self._journal: Journal | None = None
        self._rank = 0
        self._records = Records()
        for path in sorted(self.directory.glob("records-*.jsonl")):
            lines = whole_lines(path.read_bytes()).decode(errors="replace").split("\n")[:-1]
            for number, line in enumerate(lines, start=1):
                self._records.remember(checked_record(line, len(self.class_names), f"{path}, line {number}"))

    @classmethod
    def create(
        cls,
        directory: str | os.PathLike[str],
        class_names: tuple[str, ...],
        *,
        key: str,
        num_images: int,
        details: Mapping[str, Any] | None = None,
        rank: int = 0,
        group: int = 1,
    ) -> "LabelStore":
        """Start a store, or continue one that was interrupted.

        Args:
            directory: the folder; made if needed.
            class_names: foreground classes.
            key: of everything the label maps depend on: checkpoint, options and images.
            num_images: how many label maps a complete store has, skipped images included.
            details: more to keep in `meta.json`, such as method and options.
            rank: of this process; each process appends to its own records.
            group: label maps that are brought to the disk together; [`flush`] brings what is left.

        Raises:
            ValueError: the folder's label maps were made from something else, or there are too many classes.
            OSError: it cannot be written.
        """
        directory = Path(directory)
        if len(class_names) > MAX_CLASSES:
            raise ValueError(f"got {len(class_names)} classes, expected at most {MAX_CLASSES}: label maps are 8 bit")
        wanted = {"key": key, "class_names": list(class_names), "num_images": num_images}
        try:
            if not os.path.lexists(directory / META):
                directory.mkdir(parents=True, exist_ok=True)
                meta = {**wanted, **(details or {}), "complete": False, "skipped": []}
                replace(directory / META, json.dumps(meta, indent=2).encode(), rank)
            store = cls(directory)
            for name, value in wanted.items():
                if store.meta.get(name) != value:
                    raise ValueError(
                        f"label store {directory}: was made with {name} {store.meta.get(name)!r}, expected {value!r}. "
                        "Its label maps come from another checkpoint, other options or other images: delete the "
                        "folder or choose another one"
                    )
            # Cuts what a killed process left unfinished, so only now.
            store._journal, store._rank = Journal(directory / f"records-{rank:05d}.jsonl", group), rank
        except OSError as error:
            raise explained(error, f"label store {directory}") from error
        return store

    @property
    def complete(self) -> bool:
        """Whether every image is labelled or skipped, as far as this store was told."""
        return bool(self.meta["complete"])

    @property
    def skipped(self) -> dict[str, str]:
        """Why each skipped image has no label map."""
        return dict(self._records.skipped)

    @property
    def note(self) -> str:
        """What was done to the label maps besides, in words; networks that are trained on them keep it."""
        return str((self.meta.get("config") or {}).get("note", ""))

    @property
    def undecided(self) -> set[str]:
        """Skipped images whose label map would say 255 everywhere."""
        return {name for name, reason in self.skipped.items() if reason == NOTHING_SURE}

    @property
    def unreadable(self) -> set[str]:
        """Images that were skipped for what is wrong with them."""
        return self.skipped.keys() - self.undecided

    @property
    def gone(self) -> list[str]:
        """Images whose record is there and whose label map is not."""
        return sorted(image_id for image_id in self._records.labelled if image_id not in self)

    def done_ids(self) -> set[str]:
        """Images with a label map and a record."""
        return {image_id for image_id in self._records.labelled if image_id in self}

    def __contains__(self, image_id: str) -> bool:
        return image_id in self._records.labelled and self.path(image_id).is_file()

    def record(self, image_id: str) -> dict[str, Any]:
        """The record that was written with a label map.

        Raises:
            KeyError: there is none.
        """
        try:
            return self._records[image_id]
        except KeyError as error:
            raise KeyError(f"label store {self.directory}: no image {image_id!r}") from error

    def path(self, image_id: str) -> Path:
        """Where an image's label map is or would be; slashes in the name make folders.

        Raises:
            ValueError: the name would leave the store.
        """
        if any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in image_id.split("/")):
            raise ValueError(
                f"label store {self.directory}: image id {image_id!r}: expected a relative name without '.', '..' or "
                "backslashes"
            )
        return self.directory / MAPS / PurePosixPath(f"{image_id}.png")

    def file(self, image_id: str) -> Path:
        """The file of an image's label map, to be read.

        Raises:
            ValueError: it is a link to a file outside of the store.
        """
        path = self.path(image_id)
        if not is_inside(path, self.directory):
            raise ValueError(
                f"label store {self.directory}: label map of image {image_id!r}: is a link to "
                f"{os.path.realpath(path)}, expected a file in the store; put a copy of it there"
            )
        return path

    def write(self, image_id: str, label_map: np.ndarray, record: Mapping[str, Any]) -> None:
        """Write a label map, then its record; whatever happens in between, the image is done or it is not.

        Args:
            image_id: name of the image.
            label_map: `(H, W)` uint8.
            record: plain values that describe it.

        Raises:
            OSError: the disk is full or the folder cannot be written; nothing half written counts as a label map.
        """
        image = Image.fromarray(label_map.astype(np.uint8, casting="safe"))
        image.putpalette(_PALETTE)
        path = self.path(image_id)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace(path, encode_png(image), self._rank, flushed=False)
        except OSError as error:
            raise explained(error, f"label map of image {image_id!r} in {self.directory}") from error
        self._append({"image_id": image_id, **record}, path)

    def skip(self, image_id: str, reason: str) -> None:
        """Note that an image gets no label map, and why."""
        if self._records.skipped.get(image_id) != reason:
            self._append({"image_id": image_id, "skipped": reason})

    def _append(self, record: dict[str, Any], path: Path | None = None) -> None:
        if self._journal is None:
            raise ValueError(f"label store {self.directory}: open for reading; use LabelStore.create to write")
        if self._journal.add(record, path):
            self.flush()

    def flush(self) -> None:
        """Bring what was written to the disk itself; see [`write`] for errors."""
        try:
            for record in self._journal.flush() if self._journal else []:
                self._records.remember(record)
        except OSError as error:
            raise explained(error, f"label maps and records of {self.directory}") from error

    def mark_complete(self) -> bool:
        """Note in `meta.json` that every image is labelled or skipped, if so on disk.

        Returns:
            whether it is; with several processes only the last to finish sees it.
        """
        self.flush()
        fresh = LabelStore(self.directory)
        if len(fresh.done_ids()) + len(fresh.skipped) < self.meta["num_images"]:
            return False
        self._records = fresh._records
        skipped = [{"file": name, "reason": reason} for name, reason in sorted(fresh.skipped.items())]
        self.meta = {**fresh.meta, "complete": True, "skipped": skipped}
        try:
            replace(self.directory / META, json.dumps(self.meta, indent=2).encode(), self._rank)
        except OSError as error:
            raise explained(error, f"{META} of {self.directory}") from error
        return True

    def read(self, image_id: str) -> np.ndarray:
        """The label map of an image, `(H, W)` uint8.

        Raises:
            KeyError: it has none.
            UserError: its file is no picture, or has not one channel of 8 bits.
        """
        if "skipped" in self.record(image_id):
            raise KeyError(f"label store {self.directory}: image {image_id!r} was skipped")
        with named(f"label map {self.file(image_id)}"):
            return decode_labels(self.file(image_id))

    def proportions(self) -> tuple[list[str], np.ndarray]:
        """Share of each image's pixels that each class got.

        Returns:
            sorted image ids, and `(n, C)` float64; 0 for classes that are not known to be in an image.
        """
        ids = sorted(self.done_ids())
        table = np.zeros((len(ids), len(self.class_names)))
        for row, image_id in zip(table, ids, strict=True):
            record = self._records[image_id]
            row[record["classes"]] = record["proportions"]
        return ids, table

    def row(self, image_id: str) -> dict[str, Any]:
        """An image's columns of [`label_features`]; the label map is its file's path.

        Raises:
            KeyError: there is no record of it.
        """
        return label_row(self.record(image_id), self.file(image_id))

    def to_dataset(self) -> Dataset:
        """Columns of [`label_features`], sorted by image id."""
        features = label_features(self.class_names)
        rows = [self.row(image_id) for image_id in sorted(self.done_ids())]
        return Dataset.from_dict({name: [row[name] for row in rows] for name in features}, features=features)
