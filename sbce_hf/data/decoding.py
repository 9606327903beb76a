"""From files and bytes to pixels, and which failures are the file's own.

A photo may be left out for what is wrong with its file: damaged, of an unknown kind, missing, not to be read by this
user. Where the machine is out of memory or of file handles, or a disk or a network drive does not answer, the file may
be sound: to leave it out would silently make the data set smaller, so such errors are passed on as they are.
"""

import contextlib
import errno
import functools
import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from PIL.ExifTags import Base

from ..errors import UserError
from ..files import require_regular
from .grey import scaled_in_strips, strips

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

# A TIFF's tag that names the value of "no data".
_GDAL_NODATA = 42_113
# A TIFF's tag that says how its numbers are written; and what they are where Pillow reads them as of another sign.
_SAMPLE_FORMAT = 339
_TYPES: dict[tuple[str, int | None], Any] = {("I", 1): np.dtype(np.uint32), ("L", 2): np.dtype(np.int8)}
# Programs write about ten.
MAX_SCANS = 100
# Does not occur in the data of a JPEG, where a byte of 255 is followed by 0.
_START_OF_SCAN = b"\xff\xda"
# Of an image's `info`: its grey was scaled by its own range.
OWN_RANGE = "own_range"

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
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        raise UnreadableError(f"unreadable {what}: {kind}{error}") from error


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
    if not isinstance(source, bytes):
        require_regular(source)
    image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else os.fspath(source), formats=open_formats())
    if image.format == "TIFF" and image.getexif().get(Base.Orientation) in _TURNED:
        # Pillow maps uncompressed ones into memory with width and height exchanged, which scrambles their pixels.
        # What has no name is read instead.
        image.filename = ""
    if image.info.get("progressive"):
        # Every scan is a pass over all pixels, and may be a few bytes.
        scans = (source if isinstance(source, bytes) else Path(source).read_bytes()).count(_START_OF_SCAN)
        if scans > MAX_SCANS:
            image.close()
            raise UnreadableError(f"a progressive JPEG of {scans} scans, expected at most {MAX_SCANS}; save it again")
    return image


@functools.cache
def open_formats() -> tuple[str, ...]:
    """What PIL reads by itself, and with a plug-in that is installed for phones' HEIC.

    For EPS it starts another program, which runs what is in the file.
    """
    Image.init()
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    return tuple(name for name in Image.ID if name != "EPS")


def _to_rgb(image: Image.Image) -> Image.Image:
    kind = _TYPES.get((image.mode, _sample_format(image)))
    if image.mode.startswith("I;16") or image.mode in ("I", "F") or kind:
        fillers = [value for value in (_filler(image),) if value is not None]

        def read(rows: slice) -> NDArray:
            values = np.asarray(image.crop((0, rows.start, image.width, rows.stop)))
            return values if kind is None else values.view(kind)

        values, stretched = scaled_in_strips(read, (image.height, image.width), fillers)
        # Colours take four bytes a pixel, as this may have done.
        image.close()
        shown = Image.fromarray(values).convert("RGB")
        if stretched:
            shown.info[OWN_RANGE] = True
        return shown
    if image.has_transparency_data:
        return _on_white(image)
    if image.mode == "RGB":
        # Converting would copy it.
        image.load()
        return image
    return image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    image.load()
    shown = Image.new("RGB", image.size)
    for rows in strips(image.height, image.width):
        part = image.crop((0, rows.start, image.width, rows.stop)).convert("RGBA")
        shown.paste(Image.alpha_composite(Image.new("RGBA", part.size, "white"), part), (0, rows.start))
    return shown


def _sample_format(image: Image.Image) -> int | None:
    """Whether a TIFF's numbers are unsigned, 1, or signed, 2."""
    found = getattr(image, "tag_v2", {}).get(_SAMPLE_FORMAT, (1,)) if image.format == "TIFF" else None
    return found[0] if isinstance(found, tuple) else None


def _filler(image: Image.Image) -> float | None:
    """The value that a TIFF says stands for no data."""
    text = getattr(image, "tag_v2", {}).get(_GDAL_NODATA)
    try:
        return float(str(text).strip("\0 "))
    except ValueError:
        return None


def decode_image(source: ImageSource, min_side: int | None = None) -> Image.Image:
    """Decode any image to upright 8-bit RGB.

    Rotated as EXIF says. Transparent pixels are blended onto white, as most viewers show cut-outs. Grey of more than 8
    bits is scaled, not clipped; see [`grey.scaled_to_8_bits`]. Of what moves, the first picture is taken. The image's
    `info[OWN_RANGE]` is set where its own range was used.

    Args:
        source: a path, encoded bytes, or the mapping with `bytes` and `path` of an undecoded `datasets.Image`.
        min_side: lets a JPEG be decoded at 1/2, 1/4 or 1/8 of its size, which is faster, as long as no side becomes
            shorter than this many pixels.

    Raises:
        UnreadableError: the image is missing, truncated, of a kind that PIL cannot read, of more than twice
            `PIL.Image.MAX_IMAGE_PIXELS` (179 million), or a JPEG of more than [`MAX_SCANS`].
        OSError: the machine, not the file, is at fault, as with too many open files.
    """
    with reading("image"), _open(source) as image:
        if min_side is not None:
            image.draft(None, (min_side, min_side))
        ImageOps.exif_transpose(image, in_place=True)
        return _to_rgb(image)


def kind_and_size(source: ImageSource) -> tuple[str, int, int]:
    """What the beginning of an image says of it; no pixel is decoded.

    Returns:
        its format as PIL names it, width and height as they are stored, in pixels.

    Raises:
        UnreadableError: see [`decode_image`].
    """
    with reading("image"), _open(source) as image:
        return str(image.format), image.width, image.height


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


def decode_labels(source: ImageSource) -> NDArray[np.uint8]:
    """Decode a label map; see [`decode_indices`].

    Raises:
        UserError: unreadable, or not one channel of at most 8 bits.
    """
    values = decode_indices(source)
    if values.dtype != np.uint8:
        raise UserError(f"label map of {values.dtype}: expected 8-bit values, as a palette or grey PNG has")
    return values.astype(np.uint8, copy=False)
