"""From files and bytes to pixels, and which failures are the file's own.

A photo may be left out for what is wrong with its file: damaged, of an unknown kind, missing, not to be read by this
user. Where the machine is out of memory or of file handles, or a disk or a network drive does not answer, the file may
be sound: to leave it out would silently make the data set smaller, so such errors are passed on as they are.
"""

import errno
import functools
import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from PIL.ExifTags import Base

from ..errors import UserError

# EXIF orientations that exchange width and height.
_TURNED = (5, 6, 7, 8)

# What the operating system says about the file itself.
_OF_THE_FILE = (
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
)

ImageSource = str | os.PathLike[str] | bytes | Mapping[str, Any]


class UnreadableError(UserError):
    """The file is at fault, and may be left out."""


def is_of_the_file(error: Exception) -> bool:
    """Whether an error while a file is read comes from the file, and not from the machine."""
    if isinstance(error, MemoryError):
        return False
    # PIL's own OSErrors, about damage, have no number.
    return not isinstance(error, OSError) or error.errno is None or error.errno in _OF_THE_FILE


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turn the errors of a damaged, unknown or missing file into an [`UnreadableError`].

    Args:
        what: is read, for the message.
    """
    try:
        yield
    except Exception as error:
        # PIL reports damage through OSError, SyntaxError, ValueError, struct.error, zlib.error and its own types.
        if not is_of_the_file(error):
            raise
        raise UnreadableError(f"unreadable {what}: {type(error).__name__}: {error}") from error


@contextmanager
def named(name: str) -> Iterator[None]:
    """Name the image in the errors of its decoding; what is not the file's fault keeps its type and gets a note."""
    try:
        yield
    except UnreadableError as error:
        raise UnreadableError(f"{name}: {error}") from error
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    except (OSError, MemoryError) as error:
        error.add_note(f"while reading {name}")
        raise


def _open(source: ImageSource) -> Image.Image:
    if isinstance(source, Mapping):
        source = source["path"] if source.get("bytes") is None else bytes(source["bytes"])
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else os.fspath(source), formats=_formats())


@functools.cache
def _formats() -> tuple[str, ...]:
    """What PIL reads by itself: for EPS it starts another program, which runs what is in the file."""
    Image.init()
    return tuple(name for name in Image.ID if name != "EPS")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # PIL's own conversion clips at 255: every 16-bit photo would be white.
        image = Image.fromarray(np.rint(np.asarray(image).astype(np.float32) / 257).astype(np.uint8))
    elif image.mode in ("I", "F"):
        values = np.asarray(image, dtype=np.float64)
        low, high = values.min(), values.max()
        image = Image.fromarray(np.rint((values - low) * (255 / max(high - low, 1e-12))).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def decode_image(source: ImageSource, min_side: int | None = None) -> Image.Image:
    """Decode any image to upright 8-bit RGB.

    Rotated as EXIF says. Transparent pixels are blended onto white, as most viewers show cut-outs. 16-bit grey is
    scaled by 1/257 and 32-bit grey from its own minimum and maximum, not clipped.

    Args:
        source: a path, encoded bytes, or the mapping with `bytes` and `path` of an undecoded `datasets.Image`.
        min_side: lets a JPEG be decoded at 1/2, 1/4 or 1/8 of its size, which is faster, as long as no side becomes
            shorter than this many pixels.

    Raises:
        UnreadableError: the image is missing, truncated or of a kind that PIL cannot read.
        OSError: the machine, not the file, is at fault, as with too many open files.
    """
    with reading("image"), _open(source) as image:
        if min_side is not None:
            image.draft(None, (min_side, min_side))
        ImageOps.exif_transpose(image, in_place=True)
        return _to_rgb(image)


def upright_size(source: ImageSource) -> tuple[int, int]:
    """Width and height of an image as [`decode_image`] returns it; a JPEG's header suffices for that.

    Raises:
        UnreadableError: see [`decode_image`].
    """
    with reading("image"), _open(source) as image:
        if image.format in ("JPEG", "MPO"):
            turned = image.getexif().get(Base.Orientation) in _TURNED
            return (image.height, image.width) if turned else image.size
    return decode_image(source).size


def encode_png(image: Image.Image) -> bytes:
    """An image as a PNG."""
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    return stream.getvalue()


def decode_indices(source: ImageSource) -> NDArray[np.integer]:
    """Decode a single-channel index image, palette or grey, to its stored values, never to its luminance.

    Returns:
        array of shape `(H, W)` as stored: EXIF is not applied, a mask has to be upright like the image on screen.

    Raises:
        UserError: unreadable, or more than one channel.
    """
    with reading("mask"), _open(source) as image:
        values = np.asarray(image)
        mode = image.mode
    if values.ndim != 2 or mode == "F":
        raise UserError(f"mask of mode {mode}: expected one channel of class indices (a palette or 8-bit grey PNG)")
    return values.astype(np.uint8) if mode == "1" else values
