"""A label store as parquet files for the Hub: one shard at a time, one group of rows in memory."""

import hashlib
import io
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ..data.decoding import decode_labels, reading
from ..data.schema import TaggedImages, decode_indices, label_features
from ..labels.label_maps import check_values
from ..labels.store import LabelStore
from ..progress import Bar

SHARD_ROWS, SHARD_BYTES = 10_000, 256_000_000
# Rows that are in memory at a time; readers seek to these groups.
ROW_GROUP = 50

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _PALETTE = 0, 3


def grey_png(data: bytes) -> bytes:
    """A palette PNG as a grey one with the same values.

    The pixels of an 8-bit palette PNG are its indices, so only the header and the palette change; nothing is decoded.

    Args:
        data: a palette or grey PNG.

    Returns:
        an 8-bit grey PNG, which every reader decodes to the very values.

    Raises:
        ValueError: damaged, or more than one channel.
    """
    # Its header alone: nothing is published that no reader would open.
    with reading("label map"):
        Image.open(io.BytesIO(data), formats=("PNG",)).close()
    kept, position = [_SIGNATURE], len(_SIGNATURE)
    while position + 12 <= len(data) and data.startswith(_SIGNATURE):
        length, name = struct.unpack_from(">I4s", data, position)
        body, checksum = (
            data[position + 8 : position + 8 + length],
            data[position + 8 + length : position + 12 + length],
        )
        if struct.pack(">I", zlib.crc32(name + body)) != checksum:
            raise ValueError(f"damaged PNG: chunk {name!r} has another checksum")
        if name == b"IHDR":
            if body[8] != 8 or body[9] not in (_GREY, _PALETTE):
                break
            body = body[:9] + bytes([_GREY]) + body[10:]
        if name in (b"IHDR", b"IDAT", b"IEND"):
            kept.append(struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)))
        if name == b"IEND":
            return b"".join(kept)
        position += 12 + length
    # Other depths, and whatever other programs have put into the store.
    stream = io.BytesIO()
    Image.fromarray(decode_labels(data)).save(stream, format="PNG")
    return stream.getvalue()


def write_shards(
    store: LabelStore, image_ids: Sequence[str], folder: Path, images: TaggedImages | None = None, first: int = 0
) -> dict[str, str]:
    """Write `train-<number>.parquet` with the columns of [`schema.label_features`]; equal rows give equal bytes.

    Args:
        store: of the label maps.
        image_ids: of the rows, in their order.
        folder: gets the files; made if needed.
        images: photos of the rows, for a column `image`; `None` writes none.
        first: number of the first shard.

    Returns:
        SHA-256 of every file, by its name.

    Raises:
        ValueError: a damaged label map, one with a value that is no class, or an image that is not among `images`;
            names the image.
        OSError: a file cannot be read or written.
    """
    photos = {} if images is None else {image_id: row for row, image_id in enumerate(images.image_ids)}
    missing = [image_id for image_id in image_ids if images is not None and image_id not in photos]
    if missing:
        raise ValueError(
            f"image {missing[0]!r}: labelled, but not in the recipe's split ({len(missing)} such images); name the "
            "split that was labelled, or leave the images out"
        )

    def read(image_id: str) -> dict[str, Any]:
        name = f"label map of image {image_id!r} in {store.directory}"
        try:
            label_map = grey_png(store.file(image_id).read_bytes())
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        check_values(store.read(image_id), len(store.class_names), name)
        row = {**store.row(image_id), "label_map": {"bytes": label_map, "path": None}}
        return row if images is None else {**row, "image": _photo(images, photos[image_id])}

    folder.mkdir(parents=True, exist_ok=True)
    schema = label_features(store.class_names, with_image=images is not None).arrow_schema
    shards: dict[str, str] = {}
    with (
        ThreadPoolExecutor(os.cpu_count() or 1) as pool,
        Bar("writing label maps", len(image_ids)) as bar,
    ):
        groups = (image_ids[start : start + ROW_GROUP] for start in range(0, len(image_ids), ROW_GROUP))
        tables = (pa.Table.from_pylist(list(pool.map(read, group)), schema) for group in groups)
        for table in tables:
            path = folder / f"train-{first + len(shards):05d}.parquet"
            _write_shard(path, table, tables, bar)
            with open(path, "rb") as file:
                shards[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return shards


def _write_shard(path: Path, table: pa.Table, tables: Iterator[pa.Table], bar: Bar) -> None:
    """Write a table and those that follow, until the shard is full."""
    rows = size = 0
    with pq.ParquetWriter(path, table.schema) as writer:
        while True:
            writer.write_table(table)
            bar.update(table.num_rows)
            rows, size = rows + table.num_rows, size + table.nbytes
            following = next(tables, None) if rows < SHARD_ROWS and size < SHARD_BYTES else None
            if following is None:
                return
            table = following


def _photo(images: TaggedImages, row: int) -> dict[str, Any]:
    source = images.dataset["image"][row]
    data = Path(source["path"]).read_bytes() if source["bytes"] is None else source["bytes"]
    return {"bytes": data, "path": None if source["path"] is None else Path(source["path"]).name}


def known_ids(store: LabelStore, files: Sequence[Path], where: str) -> tuple[set[str], set[str]]:
    """Image ids in published shards.

    Args:
        store: its label maps must be those of the shards, where both have one.
        files: the shards.
        where: they are, for messages.

    Returns:
        all ids in the shards, and those of them that the store has as well.

    Raises:
        ValueError: another label map of the same image; names the image.
    """
    published, common = set(), set()
    for path in files:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(ROW_GROUP, columns=["image_id", "label_map"]):
                for row in batch.to_pylist():
                    published.add(row["image_id"])
                    if row["image_id"] not in store:
                        continue
                    common.add(row["image_id"])
                    if row["label_map"] is None or row["label_map"]["bytes"] is None:
                        raise ValueError(f"image {row['image_id']!r}: {where} names a file instead of its label map")
                    if not np.array_equal(decode_indices(row["label_map"]), store.read(row["image_id"])):
                        raise ValueError(
                            f"image {row['image_id']!r}: {where} has another label map of it than {store.directory}, "
                            "and --append replaces nothing; push into another --config, or without --append to "
                            "replace the whole configuration"
                        )
    return published, common
