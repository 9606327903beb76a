"""Label Studio: tasks with brush regions to correct, one per class and photo, nothing of them lost."""

from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray

from ..data.schema import palette
from ..files import write_atomic, write_json
from .source import ExportSource

# Bits of the run lengths to choose from, as Label Studio's own converter writes them.
_SIZES = (3, 4, 8, 16)
_WORD = 8
# A brush region is an image of four channels: the mask in each.
_CHANNELS = 4


def write(source: ExportSource, folder: Path) -> list[str]:
    """Write `tasks.json`, whose predictions can be edited, and `labeling_config.xml` with the classes."""
    tasks: list[dict[str, Any]] = []
    for photo in source:
        width, height = photo.size
        result = [
            {
                "id": f"{photo.number}-{index}",
                "type": "brushlabels",
                "from_name": "tag",
                "to_name": "image",
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "value": {"format": "rle", "rle": encode(mask), "brushlabels": [source.class_names[index]]},
            }
            for index, mask in photo.masks()
        ]
        image = f"/data/local-files/?d={quote(photo.file)}"
        tasks.append({"data": {"image": image}, "predictions": [{"model_version": "sbce_hf", "result": result}]})
    write_json(folder / "tasks.json", tasks)
    colours = np.array(palette()).reshape(256, 3).tolist()
    labels = "\n".join(
        f"    <Label value={quoteattr(name)} background={quoteattr('#' + bytes(colours[value]).hex())}/>"
        for value, name in enumerate(source.class_names, start=1)
    )
    write_atomic(
        folder / "labeling_config.xml",
        f'<View>\n  <Image name="image" value="$image"/>\n  <BrushLabels name="tag" toName="image">\n{labels}\n'
        "  </BrushLabels>\n</View>\n",
    )
    remedy = "serve the photos as local files, or change data.image in tasks.json to where they are"
    return [*source.undecided_note(), remedy]


def encode(mask: NDArray[np.bool_]) -> list[int]:
    """Label Studio's run-length encoding of a brush region.

    A stream of bits: the number of values (32), bits of a value less one (5), bits of the four run lengths less one
    (4 each); then for each run a 1, which of the four lengths (2), the length less one, and the value.

    Args:
        mask: `(H, W)`.

    Returns:
        the stream's bytes.
    """
    flat = mask.ravel()
    ends = np.flatnonzero(np.diff(flat)) + 1
    lengths = (np.diff([0, *ends, flat.size]) * _CHANNELS).tolist()
    parts = [f"{flat.size * _CHANNELS:032b}{_WORD - 1:05b}", *(f"{size - 1:04b}" for size in _SIZES)]
    inside = bool(flat[0])
    for length in lengths:
        value = f"{255 if inside else 0:0{_WORD}b}"
        while length:
            number, size = next(((n, s) for n, s in enumerate(_SIZES) if length <= 2**s), (3, _SIZES[-1]))
            now = min(length, 2**size)
            parts.append(f"1{number:02b}{now - 1:0{size}b}{value}")
            length -= now
        inside = not inside
    bits = "".join(parts)
    return list(int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big"))
