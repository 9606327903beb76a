"""Files of other programs, good ones and bad ones, as bytes."""

import io
import os
import pickle
import struct
import zipfile

import numpy as np
import torch
from torch import nn

V2, V1 = 0xF993FAC9, 0xF993FAC8
FLAGS = {"float32": 0, "float64": 1, "float16": 2, "uint8": 3, "int32": 4, "int8": 5, "int64": 6}


def head(shape, version=V2, flag=0, storage=0):
    """An array up to its data, as MXNet's `NDArray::Save` of each version writes it."""
    sides = {V2: f"<Iii{'I'}{len(shape)}q", V1: f"<II{len(shape)}q"}
    if version == V2:
        start = struct.pack(f"<IiI{len(shape)}q", V2, storage, len(shape), *shape)
    elif version == V1:
        start = struct.pack(sides[V1], V1, len(shape), *shape)
    else:
        start = struct.pack(f"<I{len(shape)}I", len(shape), *shape)
    return start + struct.pack("<iii", 1, 0, flag)


def array(values, version=V2):
    return head(values.shape, version, FLAGS[values.dtype.name]) + values.tobytes()


def params(arrays, names):
    names = [name if isinstance(name, bytes) else name.encode() for name in names]
    return b"".join(
        [
            struct.pack("<QQQ", 0x112, 0, len(arrays)),
            *arrays,
            struct.pack("<Q", len(names)),
            *(struct.pack("<Q", len(name)) + name for name in names),
        ]
    )


GOOD_PARAMS = params([array(np.ones((2, 3), dtype=np.float32))] * 2, ["arg:a", "arg:b"])
ONE = array(np.ones(3, dtype=np.float32))
HOSTILE_PARAMS = {
    "empty": b"",
    "other start": b"\x13" + GOOD_PARAMS[1:],
    "cut in the magic": GOOD_PARAMS[:9],
    "cut in the count": GOOD_PARAMS[:20],
    "cut in a head": GOOD_PARAMS[:40],
    "cut in the data": GOOD_PARAMS[:70],
    "cut in the names": GOOD_PARAMS[:-3],
    "one byte too many": GOOD_PARAMS + b"x",
    "count 0": struct.pack("<QQQQ", 0x112, 0, 0, 0),
    "count too high": struct.pack("<QQQ", 0x112, 0, 3) + GOOD_PARAMS[24:],
    "huge count": struct.pack("<QQQ", 0x112, 0, 2**63) + GOOD_PARAMS[24:],
    "no names": params([ONE], []),
    "too many names": params([ONE], ["arg:a", "arg:b"]),
    "huge count of names": params([ONE], [])[:-8] + struct.pack("<Q", 2**64 - 1),
    "huge name": params([ONE], ["arg:a"])[:-13] + struct.pack("<Q", 2**62) + b"arg:a",
    "name not UTF-8": params([ONE], [b"\xff\xfe"]),
    "name twice": params([ONE, ONE], ["arg:a", "arg:a"]),
    "empty name": params([ONE], [""]),
    "negative side": params([head((-4, 3)) + bytes(64)], ["arg:a"]),
    "side 0": params([head((0, 3))], ["arg:a"]),
    "sides that overflow 64 bits": params([head((2**32, 2**32, 4)) + bytes(64)], ["arg:a"]),
    "sides beyond the end": params([head((10**6, 10**6)) + bytes(64)], ["arg:a"]),
    "many dimensions": params([struct.pack("<IiI", V2, 0, 2**31) + bytes(64)], ["arg:a"]),
    "wrong magic": params([struct.pack("<I", 0xF993FACA) + ONE[4:]], ["arg:a"]),
    "no dimensions": params([head(())], ["arg:a"]),
    "sparse": params([head((3,), storage=1) + bytes(12)], ["arg:a"]),
    "wrong type": params([head((3,), flag=7) + bytes(24)], ["arg:a"]),
    "negative type": params([head((3,), flag=-1) + bytes(24)], ["arg:a"]),
}


# --- what torch.save writes -----------------------------------------------------------------------------------------


def saved(content, **options):
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def repacked(data, change=lambda name, content: content, compression=zipfile.ZIP_STORED):
    """The same zip file with entries changed."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return file.getvalue()


def with_pickle(data, content):
    return repacked(data, lambda name, old: content(old) if name.endswith("data.pkl") else old)


class Call:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


TOUCHED = "sbce-code-ran"
CODE = {"conv1.weight": torch.zeros(2), "evil": Call(os.system, f"touch {TOUCHED}")}
STATE = {"module.conv1.weight": torch.arange(6.0).reshape(2, 3), "module.bn1.num_batches_tracked": torch.tensor(4)}
GOOD = saved(STATE)
THREE = saved({"a": torch.arange(3.0)})
HUGE = b"J\x00\x00\x00\x10"

# Per file a part of the error.
HOSTILE_TORCH = {
    "empty": (b"", "byte 0"),
    "text": (b"404: not found", "byte 0"),
    "cut in the middle": (GOOD[: len(GOOD) // 2], "cut off zip"),
    "cut at the end": (GOOD[:-10], "cut off zip"),
    "cut after the magic": (GOOD[:6], "cut off zip"),
    "legacy, cut": (saved(STATE, _use_new_zipfile_serialization=False)[:-8], "damaged"),
    "legacy, cut in the pickle": (saved(STATE, _use_new_zipfile_serialization=False)[:90], "damaged"),
    "code": (saved(CODE), r"holds Python code or objects \(\w+.system\)"),
    "legacy code": (saved(CODE, _use_new_zipfile_serialization=False), "holds Python code or objects"),
    "newer pickle with code": (pickle.dumps(CODE["evil"]), "not written by torch.save"),
    "plain pickle with code": (pickle.dumps(CODE["evil"], protocol=2), "holds Python code or objects"),
    "a whole module": (saved(nn.Linear(2, 2)), r"holds Python code or objects \(torch.nn.*Linear\)"),
    "a numpy array": (saved({"a": np.zeros(3)}), "holds Python code or objects"),
    "memory": (with_pickle(THREE, lambda _: pickle.dumps(Call(bytearray, 2**40), protocol=2)), "weights|damaged|code"),
    "a tensor": (saved(torch.zeros(3)), "got a Tensor"),
    "a list": (saved([torch.zeros(3)]), "got a list"),
    "nothing": (saved({}), "dict of 0 entries"),
    "a number": (saved({"a": torch.zeros(3), "epoch": 3}), "entry 'epoch': got a int"),
    "numbered": (saved({3: torch.zeros(3)}), "entry 3: got a Tensor, expected a tensor with a name"),
    "sparse": (saved({"a": torch.eye(3).to_sparse()}), "'a': got torch.sparse_coo"),
    "repeated": (saved({"a": torch.zeros(1).expand(10**5, 10**5)}), "tensors have 40000000000 bytes"),
    "shared": (saved(dict.fromkeys((str(i) for i in range(50)), torch.zeros(1000))), "tensors have 200000 bytes"),
    "huge sides": (with_pickle(THREE, lambda old: old.replace(b"K\x03", HUGE)), "damaged"),
    "huge side": (with_pickle(THREE, lambda old: old.replace(b"K\x03\x85", HUGE + b"\x85")), "damaged"),
    "zip bomb": (
        repacked(GOOD, lambda name, old: old + bytes(50_000_000 * name.endswith("data.pkl")), zipfile.ZIP_DEFLATED),
        "is compressed",
    ),
    "other zip": (repacked(GOOD, lambda name, old: old).replace(b"data.pkl", b"data.txt"), "data.pkl of"),
    "no pickle": (with_pickle(THREE, lambda _: b"\x80\x02garbage"), "damaged"),
    "storage missing": (THREE.replace(b"/data/0", b"/data/9"), "damaged"),
    "prefix twice": (saved({"a": torch.zeros(3), "module.a": torch.zeros(3)}), "differ only in the prefix"),
    "safetensors, huge header": (struct.pack("<Q", 2**60) + b'{"a": 1}' + bytes(64), "damaged safetensors"),
    "safetensors, no header": (struct.pack("<Q", 40) + b"{" + bytes(39), "damaged safetensors"),
}
