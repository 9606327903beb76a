"""The one schema every source becomes: `image_id`, `image`, `labels` and, for scoring only, `mask`.

Index spaces: ``C`` foreground classes; label vectors are `float32` of shape `(C,)`; label maps are `uint8` of shape
`(H, W)` with 0 background, ``c + 1`` class ``c`` and [`IGNORE_INDEX`] where the ground truth says nothing.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from datasets import ClassLabel, Dataset, Features, List, Value
from datasets import Image as ImageFeature
from numpy.typing import NDArray
from PIL import Image

from ..errors import UserError
from .decoding import decode_image, decode_indices, named, upright_size

__all__ = [
    "IGNORE_INDEX",
    "SkippedImage",
    "TaggedImages",
    "decode_image",
    "decode_indices",
    "features",
    "label_features",
    "palette",
]

IGNORE_INDEX = 255


def palette() -> list[int]:
    """The colour map of PASCAL VOC: bits of the index, three at a time, become high bits of red, green and blue.

    The models' own [`voc_palette`] are the same colours; a checkpoint carries its code, which imports nothing of ours,
    and nothing here loads models.

    Returns:
        256 x 3 numbers, flat, as `PIL.Image.putpalette` takes them.
    """
    return [
        sum(((entry >> (3 * bit + channel)) & 1) << (7 - bit) for bit in range(8))
        for entry in range(256)
        for channel in range(3)
    ]


def features(class_names: Sequence[str], with_mask: bool, decode: bool = False) -> Features:
    """Columns of a [`TaggedImages`] dataset; unless readers are to decode them, images stay paths or encoded bytes."""
    columns: dict[str, Any] = {"image_id": Value("string"), "image": ImageFeature(decode=decode)}
    columns["labels"] = List(ClassLabel(names=list(class_names)))
    return Features(columns | ({"mask": ImageFeature(decode=decode)} if with_mask else {}))


def label_features(class_names: Sequence[str], with_image: bool = False) -> Features:
    """Columns of a dataset of label maps, on this machine and on the Hub.

    - `image_id`: of the image.
    - `image`: the photo, if asked for.
    - `label_map`: one channel of 8 bits; 0 background, ``c + 1`` class ``c``, 255 where it says nothing.
    - `labels`: classes known to be on the image. The three other lists have one entry for each of them.
    - `thresholds`: in (0, 1); `None` where there is none.
    - `proportions`: share of the label map's pixels, in [0, 1].
    - `uncertainty`: share of pixels whose probability of the class, before any CRF, lies strictly between 0.02 and
      0.98, in [0, 1]; it needs no ground truth. `None` where the label maps come without class maps.
    """
    columns: dict[str, Any] = {"image_id": Value("string")} | ({"image": ImageFeature()} if with_image else {})
    columns |= {"label_map": ImageFeature(), "labels": List(ClassLabel(names=list(class_names)))}
    return Features(columns | {name: List(Value("float64")) for name in ("thresholds", "proportions", "uncertainty")})


class Painter(Protocol):
    """Ground truth that is no image file: paints what the mask file of an image id would hold."""

    def shape(self, image_id: str) -> tuple[int, int]:
        """Height and width of what would be painted."""

    def state(self) -> list[int]:
        """Size and modification time of what is painted from."""

    def __call__(self, image_id: str) -> NDArray[np.uint8]: ...


@dataclass(frozen=True)
class SkippedImage:
    """An image that is left out, and why."""

    file: str
    reason: str
    image_id: str | None = None


@dataclass(frozen=True, eq=False)
class TaggedImages:
    """Images with image-level tags and, where a source has them, masks that are for scoring only.

    Args:
        dataset: columns of [`features`].
        class_names: the ``C`` foreground classes.
        mask_values: value in the mask *files* of background, class 0, class 1, ...; `None` without masks.
        mask_known: every value a mask file may hold besides 255. Known values that are not in `mask_values` become
            background; any other value is an error.
        skipped: images that are left out.
        notes: what was decided for the user while they were read, in sentences.
        manifest_hash: of the classes and of every image's name, size, modification time (or bytes) and tags; belongs
            into the key of everything computed from them. Masks are not part of it: nothing is learned from them.
        painter: for sources whose ground truth is no image file.
            All images have a mask then, and none is painted before it is asked for.
        unlabelled: what 255 in a mask file becomes: [`IGNORE_INDEX`], or 0 to count it as background.
        listed: like `dataset`, with the images that cannot be read; `None` where nobody has looked.
        digests: of each readable image's part of the manifest, by image id, in the order of the split.

    Examples:
        >>> from sbce_hf import DataConfig, TaggedImages, load_images
        >>> images: TaggedImages = load_images(DataConfig(source="shapes", shapes_images=6, shapes_size=48), "train")
        >>> found = images.select([index for index, tags in enumerate(images.label_matrix()) if tags[2]])
        >>> images.class_names[2], found.image_ids
        ('beetle', ['train_00002'])
        >>> found.image(0).size, found.mask(0).shape
        ((48, 48), (48, 48))
    """

    dataset: Dataset
    class_names: tuple[str, ...]
    mask_values: tuple[int, ...] | None
    mask_known: frozenset[int] | None
    skipped: tuple[SkippedImage, ...]
    manifest_hash: str
    painter: Painter | None = None
    unlabelled: int = IGNORE_INDEX
    notes: tuple[str, ...] = ()
    listed: Dataset | None = None
    digests: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def num_classes(self) -> int:
        """``C``, without background."""
        return len(self.class_names)

    @property
    def image_ids(self) -> list[str]:
        """Unique names, usable as relative file paths without suffix."""
        return self.dataset["image_id"][:]

    def _row(self, index: int) -> dict[str, Any]:
        """All columns of an image: seven times as fast as one of them, for which the features are copied."""
        return self.dataset[int(index)]

    def image(self, index: int, min_side: int | None = None) -> Image.Image:
        """Decode image `index`; see [`decode_image`].

        Raises:
            UnreadableError: see [`decode_image`]; names the image.
        """
        row = self._row(index)
        with named(f"image {row['image_id']!r}"):
            return decode_image(row["image"], min_side)

    def upright_size(self, index: int) -> tuple[int, int]:
        """Width and height of image `index`; see [`upright_size`].

        Raises:
            UnreadableError: see [`decode_image`]; names the image.
        """
        row = self._row(index)
        with named(f"image {row['image_id']!r}"):
            return upright_size(row["image"])

    def labels(self, index: int) -> NDArray[np.float32]:
        """Label vector of shape `(C,)`, 1 for a present class."""
        vector = np.zeros(self.num_classes, dtype=np.float32)
        vector[self._row(index)["labels"]] = 1
        return vector

    def label_matrix(self) -> NDArray[np.float32]:
        """All label vectors, of shape `(n, C)`."""
        matrix = np.zeros((len(self), self.num_classes), dtype=np.float32)
        for row, present in zip(matrix, self.dataset["labels"][:], strict=True):
            row[present] = 1
        return matrix

    def mask(self, index: int) -> NDArray[np.uint8]:
        """Ground-truth label map of image `index`, `uint8` of shape `(H, W)`.

        Raises:
            UserError: no mask, an unknown value in it, or a size that is not the upright image's; names the image.
        """
        name = f"mask of image {self._row(index)['image_id']!r}"
        values = self._stored_values(index, name)
        if values is None or self.mask_values is None or self.mask_known is None:
            raise UserError(f"{name}: there is none; use with_masks() to select the images that have one")
        unknown = sorted(set(np.unique(values).tolist()) - self.mask_known - {IGNORE_INDEX})
        if unknown:
            raise UserError(
                f"{name}: got value {unknown[0]}, expected one of {sorted(self.mask_known)} or {IGNORE_INDEX} (ignore)"
            )
        self.require_size(index, values, name)
        table = np.zeros(256, dtype=np.uint8)
        table[list(self.mask_values)] = np.arange(len(self.mask_values), dtype=np.uint8)
        table[IGNORE_INDEX] = self.unlabelled
        return table[values]

    def require_size(self, index: int, values: NDArray, name: str) -> None:
        """Raise a `UserError` if a mask or label map `(H, W)` has not the size of image `index`."""
        self._require_shape(index, values.shape, name)

    def _require_shape(self, index: int, shape: tuple[int, ...], name: str) -> None:
        require_upright(shape, self.upright_size(index), name)

    def _stored_values(self, index: int, name: str) -> NDArray[np.integer] | None:
        if self.painter is not None:
            image_id = self._row(index)["image_id"]
            # Before anything of that size is made.
            self._require_shape(index, self.painter.shape(image_id), name)
            return self.painter(image_id)
        source = self._row(index).get("mask")
        if source is None or not _is_given(source):
            return None
        with named(name):
            return decode_indices(source)

    def select(self, indices: Sequence[int]) -> "TaggedImages":
        """The images at `indices`, in that order."""
        indices = [int(index) for index in indices]
        digest = hashlib.sha256(f"{self.manifest_hash} {indices}".encode()).hexdigest()
        return replace(self, dataset=self.dataset.select(indices), manifest_hash=digest)

    def as_before(self, manifest_hash: str, digests: Mapping[str, str]) -> "TaggedImages":
        """The images of an earlier start, of which some can no longer be read; these are among them again.

        Args:
            manifest_hash: of the start.
            digests: of the start.

        Returns:
            the images of the start, or these where anything else has changed.
        """
        lost = digests.keys() - self.digests.keys()
        rows = {} if self.listed is None else {name: row for row, name in enumerate(self.listed["image_id"])}
        if (
            self.listed is None
            or not lost
            or {**digests, **self.digests} != digests
            or not digests.keys() <= rows.keys()
        ):
            return self
        kept = self.listed.select([rows[name] for name in digests])
        reasons = [skipped for skipped in self.skipped if skipped.image_id not in lost]
        return replace(self, dataset=kept, manifest_hash=manifest_hash, digests=digests, skipped=tuple(reasons))

    def with_masks(self) -> "TaggedImages":
        """The images that have a mask."""
        if self.painter is not None:
            return self
        if "mask" not in self.dataset.column_names:
            return self.select([])
        return self.select([index for index, mask in enumerate(self.dataset["mask"]) if _is_given(mask)])


def require_upright(shape: tuple[int, ...], size: tuple[int, int], name: str) -> None:
    """Raise a `UserError` if a mask of shape `(H, W)` has not the size of its upright image, width first."""
    width, height = size
    if shape != (height, width):
        raise UserError(
            f"{name}: got {shape[1]} x {shape[0]} pixels, expected {width} x {height} like its "
            "image (after the rotation its EXIF data ask for); make it from this image"
        )


def _is_given(source: Mapping[str, Any] | None) -> bool:
    return source is not None and (source.get("bytes") is not None or source.get("path") is not None)
