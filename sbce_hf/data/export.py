"""A checked split as parquet files of the same schema, which source `hub` and plain `datasets` read back."""

import itertools
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ..errors import UserError
from ..files import read_bytes, replacing
from ..progress import Bar
from .decoding import encode_png
from .schema import TaggedImages, features

# The size that `datasets` gives its own shards.
SHARD_BYTES = 500_000_000
# Images that are in memory at a time; readers seek to these groups.
ROW_GROUP = 100


def export_parquet(
    images: TaggedImages, directory: str | os.PathLike[str], split: str, num_shards: int | None = None
) -> list[Path]:
    """Write `data/<split>-<number>-of-<shards>.parquet`, each whole or not at all.

    Columns are those of [`schema.features`]: the encoded images byte by byte as they were, labels with the names of
    all classes, masks (if there are any) as 8-bit grey PNGs with 0 background, ``c + 1`` class ``c``, 255 ignore.

    Args:
        images: of one split.
        directory: of the data set; may hold other splits.
        split: its name: letters, digits, `_`.
        num_shards: number of files; by default they have about 500 MB.

    Returns:
        the files.

    Raises:
        ValueError: a name that `datasets` does not take for a split's, shards of another export in the way, or a mask
            that cannot be read.
        OSError: an image cannot be read, or a file not be written.
    """
    if not re.fullmatch(r"\w+", split):
        raise UserError(f"split {split!r}: expected a name of letters, digits and _, as datasets requires")
    folder = Path(directory) / "data"
    if num_shards is None:
        num_shards = 1 + sum(_size(source) for source in images.dataset["image"]) // SHARD_BYTES
    if not 1 <= num_shards <= max(len(images), 1):
        raise UserError(f"num_shards: got {num_shards}, expected 1 to {len(images)} (images)")
    paths = [folder / f"{split}-{number:05d}-of-{num_shards:05d}.parquet" for number in range(num_shards)]
    others = sorted(set(folder.glob(f"{split}-?????-of-?????.parquet")) - set(paths))
    if others:
        raise UserError(
            f"{others[0]}: from an export with another number of shards, which would be read with this one; delete "
            f"the {len(others)} files"
        )
    masked = set(images.with_masks().image_ids)
    schema = features(images.class_names, bool(masked), decode=True).arrow_schema
    starts = [len(images) * number // num_shards for number in range(num_shards + 1)]
    with Bar(f"writing {split}", len(images)) as bar:
        for path, start, stop in zip(paths, starts, starts[1:], strict=False):
            _write(path, schema, (_row(images, index, masked) for index in range(start, stop)), bar)
    return paths


def _write(path: Path, schema: pa.Schema, rows: Iterator[dict[str, Any]], bar: Bar) -> None:
    with replacing(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        while group := list(itertools.islice(rows, ROW_GROUP)):
            writer.write_table(pa.Table.from_pylist(group, schema))
            bar.update(len(group))


def _row(images: TaggedImages, index: int, masked: set[str]) -> dict[str, Any]:
    row = images.dataset[index]
    source = row["image"]
    data = read_bytes(Path(source["path"])) if source["bytes"] is None else source["bytes"]
    name = None if source["path"] is None else Path(source["path"]).name
    mask = encode_png(Image.fromarray(images.mask(index))) if row["image_id"] in masked else None
    return {
        "image_id": row["image_id"],
        "image": {"bytes": data, "path": name},
        "labels": row["labels"],
        "mask": None if mask is None else {"bytes": mask, "path": None},
    }


def _size(source: Mapping[str, Any]) -> int:
    return os.stat(source["path"]).st_size if source["bytes"] is None else len(source["bytes"])
