"""Foreground proportions ``q``: the share of an image's pixels that a label map gives to each class."""

import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..config import ProportionConfig
from ..data.decoding import is_of_the_file
from ..data.schema import TaggedImages
from ..errors import UserError
from ..files import replacing
from ..text import check_names

_SCHEMA = pa.schema({"image_id": pa.string(), "proportions": pa.list_(pa.float64()), "lost": pa.list_(pa.bool_())})
# A hundred times COCO's; a small file may claim any number.
_MAX_VALUES = 10**9


def clamp_proportions(
    proportions: NDArray[np.float64], labels: NDArray[np.float32], config: ProportionConfig, num_pixels: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Keep the proportions of present classes away from 0 and 1, where they would extinguish or flood a class.

    Args:
        proportions: of shape `(n, C)`, in [0, 1].
        labels: of shape `(n, C)`, 1 for a present class.
        config: the limits.
        num_pixels: pixels of the class map they are used on; a present class keeps at least one.

    Returns:
        the clamped proportions, 0 for absent classes, and which present classes were lost (proportion 0), both of
        shape `(n, C)`.

    Raises:
        ValueError: shapes differ, or a proportion is NaN or outside [0, 1].
    """
    if proportions.shape != labels.shape:
        raise ValueError(
            f"proportions of shape {proportions.shape}, labels of shape {labels.shape}: expected the same"
        )
    bad = ~((proportions >= 0) & (proportions <= 1))
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise ValueError(f"proportions[{row}, {column}]: got {proportions[row, column]}, expected 0 to 1")
    present = labels > 0
    clamped = np.clip(proportions, max(config.minimum, 1 / num_pixels), config.maximum)
    return np.where(present, clamped, 0.0), present & (proportions == 0)


def check_trainable(proportions: NDArray[np.float64] | None, images: TaggedImages) -> None:
    """Raise for proportions that no classifier can be trained with.

    Args:
        proportions: of shape `(n, C)`; those of absent classes are not read.
        images: that they are of.

    Raises:
        ValueError: another shape, or a present class's proportion outside (0, 1]; names the image.
    """
    labels = images.label_matrix()
    if proportions is None or proportions.shape != labels.shape:
        got = None if proportions is None else f"an array of shape {proportions.shape}"
        raise ValueError(f"proportions: got {got}, expected an array of shape {labels.shape}, one row per image")
    bad = (labels > 0) & ~((proportions > 0) & (proportions <= 1))
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise ValueError(
            f"proportions of image {images.image_ids[row]!r}, class {images.class_names[column]!r}: got "
            f"{proportions[row, column]}, expected above 0 and at most 1; shares of pixels, not percent; "
            "clamp_proportions lifts lost classes"
        )


@dataclass(frozen=True, eq=False)
class ProportionTable:
    """Proportions of a data set, as one parquet file.

    Args:
        class_names: the ``C`` foreground classes.
        image_ids: names of the ``n`` images.
        proportions: `float64` of shape `(n, C)`.
        lost: `bool` of shape `(n, C)`, present classes that the label map had lost.
        from_masks: they were read off masks: whatever is trained with them has seen ground truth.

    Raises:
        ValueError: shapes that do not fit, or an image id that is empty or occurs twice.
    """

    class_names: tuple[str, ...]
    image_ids: tuple[str, ...]
    proportions: NDArray[np.float64]
    lost: NDArray[np.bool_]
    from_masks: bool = False

    def __post_init__(self) -> None:
        expected = (len(self.image_ids), len(self.class_names))
        if self.proportions.shape != expected or self.lost.shape != expected:
            raise ValueError(
                f"proportions of shape {self.proportions.shape}, lost of shape {self.lost.shape}: expected "
                f"{expected}, images times classes"
            )
        if len(set(self.image_ids)) != len(self.image_ids):
            raise ValueError("image_ids: an image id occurs twice; expected unique ids")
        if "" in self.image_ids:
            raise ValueError("image_ids: an empty image id")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table, whole or not at all."""
        columns = {
            "image_id": pa.array(self.image_ids, pa.string()),
            "proportions": _lists(self.proportions, pa.float64()),
            "lost": _lists(self.lost, pa.bool_()),
        }
        metadata = {"class_names": json.dumps(self.class_names), "from_masks": json.dumps(self.from_masks)}
        table = pa.table(columns).replace_schema_metadata(metadata)
        with replacing(Path(path)) as temporary:
            pq.write_table(table, temporary)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "ProportionTable":
        """Read a table that [`save`] wrote.

        Raises:
            FileNotFoundError: no such file.
            ValueError: some other or a damaged file.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path}: no table of proportions; label the images first")
        try:
            table, names, from_masks = _read(path)
            ids = tuple(table["image_id"].to_pylist())
            proportions, lost = (_array(table[name], len(names)) for name in ("proportions", "lost"))
            return cls(names, ids, proportions, lost, from_masks)
        except Exception as error:
            # Arrow reports damage through errors of many types.
            if not is_of_the_file(error):
                raise
            raise UserError(
                f"{path}: not a table of proportions ({error}); delete it and label the images again"
            ) from error

    def join(self, images: TaggedImages) -> NDArray[np.float64]:
        """Proportions in the order of `images`, of shape `(n, C)`.

        Raises:
            ValueError: other classes, an image that is not in the table, or a value that is no proportion; names the
                image, before any training starts.
        """
        if self.class_names != images.class_names:
            raise UserError(
                f"proportions are of classes {_names(self.class_names)}, the images' are {_names(images.class_names)}"
            )
        rows = {image_id: row for row, image_id in enumerate(self.image_ids)}
        ids = images.image_ids
        if missing := next((image_id for image_id in ids if image_id not in rows), None):
            raise UserError(f"image {missing!r} has no proportions; label the whole data set again")
        joined = self.proportions[[rows[image_id] for image_id in ids]]
        bad = ~((joined >= 0) & (joined <= 1))
        if bad.any():
            index, column = np.argwhere(bad)[0]
            raise UserError(
                f"image {ids[index]!r}, class {self.class_names[column]!r}: got proportion {joined[index, column]}, "
                "expected 0 to 1"
            )
        return joined


def _lists(values: NDArray, kind: pa.DataType) -> pa.ListArray:
    """Rows of `(n, C)` as a column of lists, without a Python object for each number."""
    ends = np.arange(len(values) + 1, dtype=np.int64) * values.shape[1]
    if ends[-1] > np.iinfo(np.int32).max:
        raise ValueError(f"proportions: got {ends[-1]} values, expected at most {np.iinfo(np.int32).max}")
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(values.ravel(), kind))


def _array(column: pa.ChunkedArray, classes: int) -> NDArray:
    """A column of lists as rows of `(n, classes)`.

    Raises:
        ValueError: a list of another length, or an empty entry of one.
    """
    rows = column.combine_chunks()
    if np.any(rows.value_lengths().to_numpy(zero_copy_only=False) != classes):
        raise ValueError(f"a row of another length than the {classes} classes")
    values = rows.flatten()
    if values.null_count:
        raise ValueError("an empty entry in a row")
    return values.to_numpy(zero_copy_only=False).reshape(len(rows), classes)


def _read(path: str | os.PathLike[str]) -> tuple[pa.Table, tuple[str, ...], bool]:
    """A table's columns, classes, and whether it is from masks; nothing is read of a file that claims too much."""
    with pq.ParquetFile(path) as file:
        if (values := _count_values(file)) > _MAX_VALUES:
            raise ValueError(f"{values} values, expected at most {_MAX_VALUES}")
        table = file.read(list(_SCHEMA.names)).select(_SCHEMA.names).cast(_SCHEMA)
        description = file.schema_arrow.metadata or {}
    table.validate(full=True)
    if any(table[name].null_count for name in _SCHEMA.names):
        raise ValueError("an empty field")
    names = json.loads(description.get(b"class_names", b"null"))
    if not isinstance(names, list):
        raise ValueError(f"class_names: got {str(names)[:80]}, expected a list of names")
    check_names(names, "class_names")
    from_masks = json.loads(description.get(b"from_masks", b"false"))
    if not isinstance(from_masks, bool):
        raise ValueError(f"from_masks: got {str(from_masks)[:80]}, expected true or false")
    return table, tuple(names), from_masks


class _Reached(Exception):
    """Somebody wanted to read values."""


class _NoValues(io.RawIOBase):
    """In the place of a file: as large as any, and nothing can be read of it."""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self.tell()

    def tell(self) -> int:
        return 2**62

    def read(self, size: int = -1) -> bytes:
        raise _Reached


def _count_values(file: pq.ParquetFile) -> int:
    """How many values the columns that [`_read`] reads claim to have, of all row groups.

    Arrow ends the process where a damaged description of a column is asked for, and raises where it is read: so each
    is read first, up to where its values would be.

    Raises:
        OSError: a damaged description.
    """
    metadata, values = file.metadata, 0
    paths = [file.schema.column(index).path for index in range(metadata.num_columns)]
    for index, path in enumerate(paths):
        if path.split(".")[0] not in _SCHEMA.names:
            continue
        for group in range(metadata.num_row_groups):
            try:
                pq.ParquetFile(pa.PythonFile(_NoValues(), "r"), metadata=metadata).read_row_group(group, [path])
            except _Reached:
                values += metadata.row_group(group).column(index).num_values
    return values


def _names(names: Sequence[str]) -> str:
    return ", ".join(names)
