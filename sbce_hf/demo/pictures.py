"""Pictures of the page, and the files in which they are served."""

import base64
import hashlib
import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageFilter

from ..data.decoding import encode_png
from ..data.schema import palette
from ..data.shapes import THINGS, draw_scene
from ..evaluation.contact_sheet import heat_map
from ..files import write_atomic
from .explain import ClassReading

EXAMPLE_SIZE, EXAMPLE_SEED = 320, 5


def encode_label_map(label_map: np.ndarray, size: tuple[int, int]) -> bytes:
    """A `(H, W)` uint8 label map as a palette PNG that stores exactly its indices, at the photo's width and height."""
    image = Image.fromarray(label_map)
    if image.size != size:
        image = image.resize(size, Image.Resampling.NEAREST)
    image.putpalette(palette())
    return encode_png(image)


def example(names: Sequence[str]) -> tuple[Image.Image, list[str]]:
    """A drawn scene of two of the library's invented things, and those of its tags that are among `names`."""
    shown = [name for name in THINGS if name in names] or list(THINGS)
    things = [(c, THINGS[name]) for c, name in enumerate(shown[:2])]
    pixels, _ = draw_scene(EXAMPLE_SIZE, things, np.random.default_rng(EXAMPLE_SEED))
    return Image.fromarray(pixels), [name for name in shown[:2] if name in names]


def picture_address(picture: Image.Image, side: int = 160) -> str:
    """A small copy of a picture as an address that is the picture, so that no file is needed."""
    small, stream = picture.copy(), io.BytesIO()
    small.thumbnail((side, side))
    small.save(stream, format="JPEG")
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


def served_file(content: bytes, name: str, cache: str) -> str:
    """Put a file into gradio's cache, whole at any moment.

    Equal results of two visitors are one file. Gradio's own writer empties it and writes it again, under the hands of
    the visitor who is just fetching it.

    Args:
        content: of the file.
        name: with which it is downloaded.
        cache: folder of gradio's cache.
    """
    # Not the bare hash: a client on this machine keeps what it downloads under that name, in the same folder.
    path = Path(cache) / f"sbce-{hashlib.sha256(content).hexdigest()}" / name
    if path.is_file():
        # Not to be deleted as old while this visitor looks at it.
        os.utime(path)
    else:
        write_atomic(path, content)
    return str(path.resolve())


def annotated(photo: Image.Image, label_map: np.ndarray, names: Sequence[str]) -> tuple[Image.Image, list]:
    """The value of `gradio.AnnotatedImage`: every label that occurs, background excepted."""
    values = [value for value in np.unique(label_map).tolist() if names[value] != "background"]
    return photo, [((label_map == value) * 0.6, names[value]) for value in values]


def outlined_heat_map(photo: Image.Image, reading: ClassReading) -> Image.Image:
    """The class map over the grey photo; a white line where it crosses its threshold."""
    above = Image.fromarray(reading.above.astype(np.uint8) * 255)
    line = ImageChops.difference(above.filter(ImageFilter.MaxFilter(3)), above.filter(ImageFilter.MinFilter(3)))
    painted = heat_map(photo, reading.probabilities)
    painted.paste("white", mask=line)
    return painted
