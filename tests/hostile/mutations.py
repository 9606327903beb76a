"""What a stranger may make of a valid file: bytes changed, cut, lines twice, values of other types, other headers.

Every choice is a `random.Random`'s, so that hypothesis can choose and shrink, and `scripts/fuzz.py` can repeat a case
by its number.
"""

import json
import struct
import zlib
from random import Random
from typing import Any

# What is no name, no number, no date, or too much of it.
TEXTS = (
    *(
        "",
        " ",
        "a",
        "cat",
        "cup",
        "nan",
        "1e999",
        "true",
        "null",
        "~",
        "0",
        "-1",
        "2026-13-45",
        "=1+1",
        "a,b",
        "a;b",
        '"',
    ),
    *(
        ".",
        "..",
        "../x",
        "/etc/passwd",
        "a/",
        "a//b",
        "a/../b",
        "a.png/b",
        "\\",
        "a\\b",
        "C:\\a",
        "file:///a",
        "http://a/b",
    ),
    *(
        "\0",
        "\n",
        "\r\n",
        "\x1b[31m",
        "\u202eabc",
        "\u2028",
        "\ud800",
        "e\u0301",
        "\ufeff",
        "<script>",
        "[a](b)",
        "![a](b)",
    ),
    *("{}", "[]", "{{a}}", "%s", "${a}", "!!python/object:os.system {}", "&a [*a]", "- a\n- b", "<!ENTITY a 'b'>"),
    *("a" * 255, "\u4e00" * 85, "a" * 10_000, "[" * 3000, "{'a':" * 3000, "9" * 5000),
)
NUMBERS = (
    *(
        0,
        1,
        2,
        3,
        7,
        16,
        20,
        254,
        255,
        256,
        1000,
        40_000,
        65_537,
        2**31,
        2**32,
        2**63,
        2**64,
        10**30,
        -1,
        -2,
        -(2**63),
    ),
    *(0.5, 1.0, 1.5, -0.0, -1.5, 1e-320, 1e30, 1e308, float("nan"), float("inf"), float("-inf")),
)
# Of a spoiled file: how long it takes to read one says nothing about a reader.
MAX_BYTES = 2**20


def odd_value(random: Random, depth: int = 0) -> Any:
    """Any value of JSON, but seldom the one that is expected."""
    kind = random.randrange(10 if depth < 3 else 6)
    if kind < 2:
        return random.choice(TEXTS)
    if kind < 4:
        return random.choice(NUMBERS)
    if kind < 6:
        return random.choice((None, True, False, [], {}))
    if kind < 8:
        return [odd_value(random, depth + 1) for _ in range(random.randrange(4))]
    return {random.choice(TEXTS): odd_value(random, depth + 1) for _ in range(random.randrange(4))}


def odd_json(values: Any, random: Random) -> Any:
    """The same value with one part replaced, removed, doubled, wrapped or renamed."""
    places = list(_places(values))
    if not places or random.randrange(20) == 0:
        return odd_value(random)
    holder, key = random.choice(places)
    way = random.randrange(6)
    if way < 3:
        holder[key] = odd_value(random)
    elif way == 3:
        del holder[key]
    elif way == 4:
        holder[key] = random.choice(([holder[key]], {"a": holder[key]}, str(holder[key]), [holder[key]] * 300))
    elif isinstance(holder, dict):
        holder[random.choice(TEXTS)] = holder.pop(key)
    else:
        holder.append(holder[key])
    return values


def _places(values: Any) -> Any:
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in items:
        yield values, key
        yield from _places(value)


def written(values: Any, random: Random) -> bytes:
    """JSON, with what Python's writer allows beyond it: NaN, and halves of surrogate pairs."""
    return json.dumps(values, ensure_ascii=random.randrange(8) > 0).encode(errors="surrogatepass")


def mutated(data: bytes, name: str, random: Random) -> bytes:
    """A valid file's bytes, changed the way its name suggests, or any way."""
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        ways = [_odd_bytes, _cut, _odd_lines]
        own = _WAYS.get(name.rpartition(".")[2])
        data = random.choice([own] * 6 + ways if own else ways)(data, random)[:MAX_BYTES]
    return data


def _odd_bytes(data: bytes, random: Random) -> bytes:
    changed = bytearray(data)
    for _ in range(random.choice((1, 2, 8))):
        if changed:
            changed[random.randrange(len(changed))] = random.choice((0, 10, 34, 127, 128, 255, random.randrange(256)))
    return bytes(changed)


def _cut(data: bytes, random: Random) -> bytes:
    start = random.choice((0, 0, random.randrange(len(data) + 1)))
    return data[start : start + random.randrange(len(data) + 1)]


def _odd_lines(data: bytes, random: Random) -> bytes:
    lines = data.split(b"\n")
    index = random.randrange(len(lines))
    way = random.randrange(5)
    if way == 0:
        lines.insert(random.randrange(len(lines) + 1), lines[index])
    elif way == 1:
        del lines[index]
    elif way == 2:
        lines[index] = random.choice(TEXTS).encode(errors="surrogatepass")
    elif way == 3:
        times = random.choice((2, 1000))
        # No more than is kept: a line that was made long before would take a gigabyte.
        lines[index] = lines[index][: MAX_BYTES // times + 1] * times
    else:
        lines.insert(index, random.choice((b"\xff\xfe", b"\xef\xbb\xbf", b"\0" * 100, b"\r", b"\xe2\x80\xa8")))
    return b"\n".join(lines)


def _odd_json_file(data: bytes, random: Random) -> bytes:
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        return _odd_bytes(data, random)
    return written(odd_json(values, random), random)


def _odd_json_lines(data: bytes, random: Random) -> bytes:
    lines = data.split(b"\n")
    index = random.randrange(len(lines))
    lines[index] = _odd_json_file(lines[index], random)
    return b"\n".join(lines)


def _odd_cells(data: bytes, random: Random) -> bytes:
    """One word of text between the separators of tables, markup and YAML is another one."""
    text = data.decode(errors="replace")
    ends = [index for index, character in enumerate(text) if character in ",;:{}[]<>=\n "] or [0]
    start = random.choice(ends)
    end = min((index for index in ends if index > start), default=len(text))
    word = random.choice((random.choice(TEXTS), str(random.choice(NUMBERS)), json.dumps(odd_value(random))))
    return (text[: start + 1] + word + text[end:]).encode(errors="surrogatepass")


def _odd_png(data: bytes, random: Random) -> bytes:
    """A field of the header is another one, and its checksum right."""
    if len(data) < 33 or data[12:16] != b"IHDR":
        return _odd_bytes(data, random)
    width, height, *rest = struct.unpack(">IIBBBBB", data[16:29])
    sizes = (0, 1, 7, 20, 40_000, 2**31 - 1, 2**31, 2**32 - 1)
    way = random.randrange(6)
    if way < 3:
        width = random.choice(sizes) if way != 1 else width
        height = random.choice(sizes) if way != 0 else height
    else:
        rest[random.randrange(5)] = random.choice((0, 1, 2, 3, 4, 6, 8, 16, 255))
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, *rest)
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


def _odd_safetensors(data: bytes, random: Random) -> bytes:
    """The header says something else, and its length is right, or the other way round."""
    size = int.from_bytes(data[:8], "little")
    header, body = data[8 : 8 + size], data[8 + size :]
    if random.randrange(4) == 0:
        return (
            struct.pack("<Q", random.choice((0, 1, size - 1, size + 1, 2**20, 2**40, 2**63, 2**64 - 1)) % 2**64)
            + data[8:]
        )
    header = _odd_json_file(header, random)
    return struct.pack("<Q", len(header)) + header + body


_WAYS = {
    "json": _odd_json_file,
    "jsonl": _odd_json_lines,
    "csv": _odd_cells,
    "txt": _odd_cells,
    "xml": _odd_cells,
    "yaml": _odd_cells,
    "md": _odd_cells,
    "png": _odd_png,
    "safetensors": _odd_safetensors,
}
