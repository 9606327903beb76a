"""From files and bytes to pixels, and which failures are the file's own.

A photo may be left out for what is wrong with its file: damaged, of an unknown kind, missing, not to be read by this
user. Where the machine is out of memory or of file handles, or a disk or a network drive does not answer, the file may
be sound: to leave it out would silently make the data set smaller, so such errors are passed on as they are.
"""

import contextlib
import errno
import functools
import io
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
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
# Programs write about ten.
MAX_SCANS = 100
# Does not occur in the data of a JPEG, where a byte of 255 is followed by 0.
_START_OF_SCAN = b"\xff\xda"
# Pixels of a large picture that are worked on at a time.
_STRIP = 2**18
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
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        fillers = [value for value in (_filler(image),) if value is not None]
        values, stretched = scaled_to_8_bits(np.asarray(image), fillers)
        image = Image.fromarray(values).convert("RGB")
        if stretched:
            image.info[OWN_RANGE] = True
        return image
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
    for rows in _strips(image.height, image.width):
        part = image.crop((0, rows.start, image.width, rows.stop)).convert("RGBA")
        shown.paste(Image.alpha_composite(Image.new("RGBA", part.size, "white"), part), (0, rows.start))
    return shown


def _strips(height: int, width: int) -> Iterator[slice]:
    """Rows that are worked on at a time, so that a large picture takes no multiple of its memory meanwhile."""
    step = max(_STRIP // max(width, 1), 1)
    return (slice(start, min(start + step, height)) for start in range(0, height, step))


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
    stands for "no data", is black. Besides the values, a second copy of them and two bytes a pixel are in memory.

    Args:
        values: `(H, W)` of any number type.
        fillers: values that stand for no data; the usual ones are known.

    Returns:
        `(H, W)` uint8, and whether its own range was used.
    """
    known = np.empty(values.shape, bool)
    whole = values.dtype.kind == "u"
    strips = list(_strips(*values.shape))
    for rows in strips:
        wide = values[rows].astype(np.float64)
        known[rows] = np.isfinite(wide) & (np.abs(wide) < _LARGEST)
        for filler in (*fillers, *(() if whole else _FILLERS)):
            known[rows] &= wide != filler
    if not known.any():
        return np.zeros(values.shape, np.uint8), True
    inside = values[known]
    low, high = float(inside.min()), float(inside.max())
    own_range = not (
        (whole or values.dtype == np.int32) and low >= 0 and high <= 65_535 and (high - low >= 2**14 or low == high)
    )
    if own_range:
        cut_low, cut_high = _quantiles(inside, (0.001, 0.999))
        low, high = (cut_low, cut_high) if cut_high > cut_low else (low, high)
    del inside
    grey = np.zeros(values.shape, np.uint8)
    for rows in strips:
        wide = np.where(known[rows], values[rows], low).astype(np.float64)
        if not own_range:
            wide /= 257
        elif high == low:
            wide[:] = 128
        else:
            wide = (np.clip(wide, low, high) - low) * (255 / (high - low))
        grey[rows] = np.where(known[rows], np.rint(wide), 0)
    return grey, own_range


def _quantiles(values: NDArray, shares: Sequence[float]) -> list[float]:
    """Quantiles as `numpy.quantile` gives them, without its copy: `values`, of shape `(n,)`, are reordered."""
    places = [share * (len(values) - 1) for share in shares]
    values.partition(sorted({index for place in places for index in (int(place), math.ceil(place))}))
    found = []
    for place in places:
        below, above = float(values[int(place)]), float(values[math.ceil(place)])
        found.append(below + (above - below) * (place % 1))
    return found


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
        UnreadableError: the image is missing, truncated, of a kind that PIL cannot read, of more than twice
            `PIL.Image.MAX_IMAGE_PIXELS` (179 million), or a JPEG of more than [`MAX_SCANS`].
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
