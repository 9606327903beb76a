"""Reads MXNet's NDArray lists (`.params` files), such as the ImageNet weights of ResNet-38, without MXNet.

The format is that of `NDArray::Save` in MXNet's `src/ndarray/ndarray.cc`; all numbers are little-endian.
"""

import math
import re
import struct
from pathlib import Path

import numpy as np

from ..files import require_regular
from .report import COUNTER

LIST_MAGIC = struct.pack("<QQ", 0x112, 0)
# Of an array: with a storage type and 64-bit sides; with 64-bit sides; any other number is the count of 32-bit sides.
MAGIC_V2, MAGIC_V1 = 0xF993FAC9, 0xF993FAC8
DENSE = 0
DTYPES = ("<f4", "<f8", "<f2", "u1", "<i4", "i1", "<i8")
# Bounds of what networks have; they keep a hostile file from taking long.
MAX_ARRAYS, MAX_DIMENSIONS, MAX_NAME = 100_000, 8, 1024


def is_params(path: Path) -> bool:
    """Whether a file starts like an NDArray list.

    Raises:
        UserError: it is no plain file.
        OSError: it cannot be read.
    """
    require_regular(path)
    with open(path, "rb") as file:
        return file.read(len(LIST_MAGIC)) == LIST_MAGIC


def read_params(path: Path) -> dict[str, np.ndarray]:
    """Read an NDArray list.

    Args:
        path: the file.

    Returns:
        read-only arrays by name, such as `arg:conv1a_weight`; they are views of the memory-mapped file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is cut off or damaged; the message names the byte.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    reader = _Reader(path)
    reader.expect(reader.bytes(len(LIST_MAGIC), "start") == LIST_MAGIC, "start", "other bytes", LIST_MAGIC.hex())
    arrays = [_read_array(reader) for _ in range(reader.count("arrays"))]
    count = reader.count("names")
    reader.expect(count == len(arrays), "count of names", count, f"{len(arrays)}, one per array")
    named: dict[str, np.ndarray] = {}
    for array in arrays:
        name = _read_name(reader)
        reader.expect(name not in named, "name", f"{name!r} again", "one of each")
        named[name] = array
    reader.expect(reader.remaining == 0, "end", f"{reader.remaining} more bytes", "the end of the file")
    return named


class _Reader:
    """A position in a memory-mapped file; nothing is read beyond its end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # An empty file cannot be mapped.
        self.data = np.memmap(path, mode="r") if path.stat().st_size else np.empty(0, dtype=np.uint8)
        # Where the next read starts, and where the last one did.
        self.offset = self.last = 0

    @property
    def remaining(self) -> int:
        return len(self.data) - self.offset

    def expect(self, good: bool, what: str, got: object, expected: object) -> None:
        if not good:
            raise ValueError(
                f"{self.path}: byte {self.last}: {what}: got {got}, expected {expected}. The file is cut off, damaged "
                "or no MXNet NDArray list; fetch it again"
            )

    def take(self, size: int, what: str) -> np.ndarray:
        self.last = self.offset
        self.expect(size <= self.remaining, what, f"{self.remaining} bytes until the end", f"{size} bytes")
        self.offset += size
        return self.data[self.last : self.offset]

    def bytes(self, size: int, what: str) -> bytes:
        return self.take(size, what).tobytes()

    def number(self, layout: str, what: str) -> int:
        return struct.unpack(layout, self.bytes(struct.calcsize(layout), what))[0]

    def count(self, what: str) -> int:
        count = self.number("<Q", f"count of {what}")
        self.expect(0 < count <= MAX_ARRAYS, f"count of {what}", count, f"1 to {MAX_ARRAYS}")
        return count


def _read_array(reader: _Reader) -> np.ndarray:
    number = reader.number("<I", "array's magic")
    if number == MAGIC_V2:
        storage = reader.number("<i", "storage type")
        reader.expect(storage == DENSE, "storage type", storage, f"{DENSE}, dense")
    side = "<q" if number in (MAGIC_V2, MAGIC_V1) else "<I"
    dimensions = reader.number("<I", "count of dimensions") if side == "<q" else number
    expected = f"1 to {MAX_DIMENSIONS}" + (f", {MAGIC_V1:#x} or {MAGIC_V2:#x}" if side == "<I" else "")
    reader.expect(0 < dimensions <= MAX_DIMENSIONS, "count of dimensions", dimensions, expected)
    shape = []
    for _ in range(dimensions):
        shape.append(reader.number(side, "dimension"))
        reader.expect(shape[-1] > 0, "dimension", shape[-1], "at least 1")
    reader.number("<i", "device type")
    reader.number("<i", "device id")
    flag = reader.number("<i", "type flag")
    reader.expect(0 <= flag < len(DTYPES), "type flag", flag, f"0 to {len(DTYPES) - 1}")
    dtype = np.dtype(DTYPES[flag])
    # In Python's integers, which do not overflow.
    data = reader.take(math.prod(shape) * dtype.itemsize, f"data of shape {tuple(shape)}")
    return data.view(dtype).reshape(shape)


def _read_name(reader: _Reader) -> str:
    length = reader.number("<Q", "length of a name")
    reader.expect(0 < length <= MAX_NAME, "length of a name", length, f"1 to {MAX_NAME}")
    raw = reader.bytes(length, "name")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        reader.expect(False, "name", repr(raw[:40]), "UTF-8")
        raise


def resnet38_name(name: str) -> str:
    """What a weight of our ResNet-38 is called in MXNet.

    Args:
        name: for example `b2_1.conv_branch2a.weight` or `bn7.running_mean`.

    Returns:
        for example `arg:res2b1_branch2a_weight` or `aux:bn7_moving_mean`; for counters, which MXNet lacks, `name`.
    """
    module, _, field = name.rpartition(".")
    if field == COUNTER:
        return name
    if module == "conv1a":
        return "arg:conv1a_weight"
    block = re.fullmatch(r"b(\d)(?:_(\d))?\.(conv|bn)_(branch\w+)", module)
    if block is not None and block[3] == "conv":
        return f"arg:res{_unit(block)}_{block[4]}_weight"
    norm = f"bn{_unit(block)}_{block[4]}" if block is not None else module
    fields = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_var"}
    return f"{'aux' if field.startswith('running') else 'arg'}:{norm}_{fields[field]}"


def _unit(block: "re.Match[str]") -> str:
    """A stage's first block is called `2a`, the following `2b1`, `2b2`, ..."""
    return f"{block[1]}a" if block[2] is None else f"{block[1]}b{block[2]}"
