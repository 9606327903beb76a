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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from PIL.ExifTags import Base

from ..errors import UserError
from ..files import require_regular

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

# A TIFF's tag that names the value of "no data", the values that mean it without one, and beyond which none is meant.
_GDAL_NODATA = 42_113
_FILLERS, _LARGEST = (-9999.0, -32_768.0, -99_999.0), 1e30
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
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else os.fspath(source), formats=open_formats())


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
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        fillers = [value for value in (_filler(image),) if value is not None]
        values, stretched = scaled_to_8_bits(np.asarray(image), fillers)
        image = Image.fromarray(values).convert("RGB")
        if stretched:
            image.info[OWN_RANGE] = True
        return image
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode == "RGB":
        # Converting would copy it.
        image.load()
        return image
    return image.convert("RGB")


def _filler(image: Image.Image) -> float | None:
    """The value that a TIFF says stands for no data."""
    text = getattr(image, "tag_v2", {}).get(_GDAL_NODATA)
    try:
        return float(str(text).strip("\0 "))
    except ValueError:
        return None


def scaled_to_8_bits(values: NDArray, fillers: Sequence[float] = ()) -> tuple[NDArray[np.uint8], bool]:
    """Grey of more than 8 bits, as a screen shows it: neither black nor white.

    16-bit grey that uses at least a quarter of its range is scaled by 1/257, so that photos of one camera keep their
    exposures. Everything else, 10 to 14 bits in 16, 32 bits, floating point, is scaled from its own range, a
    thousandth of the pixels at either end left out, so that one hot pixel changes nothing. What is not finite, or
    stands for "no data", is black.

    Args:
        values: `(H, W)` of any number type.
        fillers: values that stand for no data; the usual ones are known.

    Returns:
        `(H, W)` uint8, and whether its own range was used.
    """
    wide = values.astype(np.float64)
    known = np.isfinite(wide) & (np.abs(wide) < _LARGEST)
    whole = values.dtype.kind == "u"
    for filler in (*fillers, *(() if whole else _FILLERS)):
        known &= wide != filler
    if not known.any():
        return np.zeros(values.shape, np.uint8), True
    inside = wide[known]
    low, high = inside.min(), inside.max()
    if (whole or values.dtype == np.int32) and low >= 0 and high <= 65_535 and (high - low >= 2**14 or low == high):
        return np.rint(np.where(known, wide, 0) / 257).astype(np.uint8), False
    cut_low, cut_high = np.percentile(inside, (0.1, 99.9))
    if cut_high > cut_low:
        low, high = cut_low, cut_high
    if high == low:
        return np.where(known, 128, 0).astype(np.uint8), True
    grey = (np.clip(np.where(known, wide, low), low, high) - low) * (255 / (high - low))
    return np.where(known, np.rint(grey), 0).astype(np.uint8), True


def decode_image(source: ImageSource, min_side: int | None = None) -> Image.Image:
    """Decode any image to upright 8-bit RGB.

    Rotated as EXIF says. Transparent pixels are blended onto white, as most viewers show cut-outs. Grey of more than 8
    bits is scaled, not clipped; see [`scaled_to_8_bits`]. Of what moves, the first picture is taken. The image's
    `info[OWN_RANGE]` is set where its own range was used.

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


def decode_labels(source: ImageSource) -> NDArray[np.uint8]:
    """Decode a label map; see [`decode_indices`].

    Raises:
        UserError: unreadable, or not one channel of at most 8 bits.
    """
    values = decode_indices(source)
    if values.dtype != np.uint8:
        raise UserError(f"label map of {values.dtype}: expected 8-bit values, as a palette or grey PNG has")
    return values.astype(np.uint8, copy=False)
