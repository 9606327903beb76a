"""What is exported: label maps one by one, with the names of their photos' files."""

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..data.decoding import named, upright_size
from ..data.photo_files import walk
from ..data.schema import IGNORE_INDEX
from ..errors import UserError
from ..files import digest
from ..labels.hub_store import HubLabelMaps
from ..labels.label_maps import check_values, require_all
from ..labels.store import LabelStore
from ..progress import tracked
from ..text import is_writable, visible

Format = Literal["coco", "yolo", "voc", "labelstudio", "cvat", "masks"]

# What a photo's file is called where nobody says it.
_SUFFIX = ".jpg"


@dataclass(frozen=True)
class Exported:
    """A photo and its label map.

    Args:
        number: from 1 on, in the order of the names.
        image_id: its name in the store.
        file: name of the photo's file, with folders.
        label_map: `(H, W)` uint8, 0 background, ``c + 1`` class ``c``, 255 where it says nothing.
    """

    number: int
    image_id: str
    file: str
    label_map: NDArray[np.uint8]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.label_map.shape[1], self.label_map.shape[0]

    def masks(self) -> Iterator[tuple[int, NDArray[np.bool_]]]:
        """The classes that have a pixel, ascending, and where, `(H, W)`."""
        for value in np.unique(self.label_map).tolist():
            if value not in (0, IGNORE_INDEX):
                yield value - 1, self.label_map == value


class ExportSource:
    """Iterates over all label maps of a store.

    Args:
        label_maps: the store.
        photos: the folder of the photos, in which their files' names are looked up; without it they are the images'
            ids with `.jpg`.

    Raises:
        UserError: no label maps, photos that are not there or of which two may be meant, or a name that would break
            the files of a format.
    """

    def __init__(self, label_maps: LabelStore | HubLabelMaps, photos: Path | None = None) -> None:
        self.class_names = label_maps.class_names
        self._label_maps = label_maps
        self.image_ids = label_maps.proportions()[0]
        self._guessed, self._undecided = photos is None, 0
        if isinstance(label_maps, LabelStore):
            require_all(label_maps)
        if not self.image_ids:
            raise UserError(f"label maps {label_maps.directory}: there are none to export; is the labelling finished?")
        self._photos: Path | None = None
        self._files = {image_id: f"{image_id}{_SUFFIX}" for image_id in self.image_ids}
        if photos is not None:
            self._photos = photos / "images" if (photos / "images").is_dir() else photos
            self._files = _find_files(self.image_ids, photos, self._photos)
        for what, names in (("image", self.image_ids), ("class", self.class_names), ("photo", self._files.values())):
            if odd := next((name for name in names if not is_writable(name)), None):
                raise UserError(
                    f"{what} {visible(repr(odd))[:120]}: has control characters, or what is no character; rename it, "
                    "and label again"
                )

    @property
    def key(self) -> str:
        """Of the names of all files and classes: what two exports to the same files have in common."""
        return digest({"classes": self.class_names, "files": self._files})

    def __len__(self) -> int:
        return len(self.image_ids)

    def __iter__(self) -> Iterator[Exported]:
        self._undecided = 0
        for number, image_id in enumerate(tracked(self.image_ids, "export", len(self)), start=1):
            label_map = self._label_maps.read(image_id)
            check_values(label_map, len(self.class_names), f"label map of image {image_id!r}")
            self._check_size(image_id, label_map)
            self._undecided += bool((label_map == IGNORE_INDEX).any())
            yield Exported(number, image_id, self._files[image_id], label_map)

    def _check_size(self, image_id: str, label_map: NDArray[np.uint8]) -> None:
        if self._photos is None:
            return
        photo = self._photos / self._files[image_id]
        with named(str(photo)):
            width, height = upright_size(photo)
        if label_map.shape != (height, width):
            raise UserError(
                f"{photo}: has {width} x {height} pixels, expected {label_map.shape[1]} x {label_map.shape[0]} like "
                "its label map; name the folder that was labelled"
            )

    def notes(self) -> list[str]:
        """What holds for every format, after the iteration."""
        notes = []
        if not self._label_maps.complete:
            notes.append("the label maps are not complete: their run is not finished, or was cut off")
        if self._guessed:
            notes.append(f"the photos' files are called after their ids, with {_SUFFIX}; --photos DIR looks them up")
        return notes

    def undecided_note(self) -> list[str]:
        """For formats without such a value: how many label maps have pixels that say nothing."""
        if not self._undecided:
            return []
        return [f"{self._undecided} label maps have pixels of 255 (undecided), which this format has no way to say"]


def _find_files(ids: list[str], photos: Path, base: Path) -> dict[str, str]:
    if not photos.is_dir():
        raise UserError(f"--photos {photos}: no such folder")
    names = [file.relative_to(base) for file in walk(base)[0]]
    known, wanted = dict[str, str](), {_form(image_id) for image_id in ids}
    for name in names:
        form = _form(name.with_suffix("").as_posix())
        if known.setdefault(form, name.as_posix()) != name.as_posix() and form in wanted:
            raise UserError(
                f"--photos {photos}: image {form!r} may be {known[form]} or {name.as_posix()}; take one of them away"
            )
    missing = [image_id for image_id in ids if _form(image_id) not in known]
    if missing:
        raise UserError(
            f"--photos {photos}: {len(missing)} of {len(ids)} photos are not there, the first is {missing[0]!r}; name "
            "the folder that was labelled"
        )
    return {image_id: known[_form(image_id)] for image_id in ids}


def _form(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def flat_names(image_ids: Sequence[str]) -> dict[str, str]:
    """Names without folders and blanks, for formats that have one folder and lists of names.

    Args:
        image_ids: of the photos.

    Returns:
        the name of each.

    Raises:
        UserError: two ids with one such name.
    """
    names, taken = dict[str, str](), dict[str, str]()
    for image_id in image_ids:
        name = names[image_id] = "_".join(image_id.replace("/", " ").split())
        if taken.setdefault(name, image_id) != image_id:
            raise UserError(f"images {taken[name]!r} and {image_id!r} would both be {name!r} here; rename one")
    return names
