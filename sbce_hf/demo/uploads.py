"""What visitors of the page send: photos, looked at before they are decoded."""

import os
from typing import Any

import gradio as gr
from PIL import Image

from ..data.decoding import decode_image, kind_and_size, upright_size
from ..errors import UserError
from ..files import is_inside

# Longest side that is labelled, in pixels: a dense CRF over a whole camera photo takes minutes.
MAX_SIDE = 512
# Pixels of a photo that is decoded, which takes some bytes for each: the 48 megapixels of a phone fit. Any number of
# them may be in a file of kilobytes.
MAX_PIXELS = 50_000_000
# Of phones and browsers. In files of others, a picture or a tile may take more than their size says.
FORMATS = ("AVIF", "BMP", "GIF", "HEIF", "JPEG", "MPO", "PNG", "WEBP")


def read_photo(path: str | None) -> tuple[Image.Image, tuple[int, int]]:
    """A visitor's file as an upright RGB photo, made smaller until its longer side is at most [`MAX_SIDE`].

    Returns:
        the photo, and width and height that it had.

    Raises:
        gradio.Error: no file, one that is no photo or none of [`FORMATS`], or one of more than [`MAX_PIXELS`].
    """
    if path is None:
        raise mistake("There is no photo yet: upload one, paste one, or take the example.")
    try:
        kind, width, height = kind_and_size(path)
        if kind not in FORMATS:
            raise mistake(f"This file is of the format {kind}. Try a JPEG, PNG or WebP file.")
        if width * height > MAX_PIXELS:
            raise mistake(
                f"This photo has {width} x {height} pixels; expected at most {MAX_PIXELS // 10**6} megapixels. Make "
                "it smaller first."
            )
        size = upright_size(path)
        photo = decode_image(path, min_side=MAX_SIDE)
    except UserError as error:
        message = "This file is damaged, or no photo that can be read. Try a JPEG, PNG or WebP file."
        raise mistake(message) from error
    photo.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.BICUBIC)
    return photo, size


def uploaded(payload: Any, folder: str) -> str | None:
    """The file of an upload; whoever asks the page by a program could name any other of the server."""
    if not payload:
        return None
    if not (payload.path and is_inside(payload.path, folder) and os.path.isfile(payload.path)):
        raise mistake("Photo: expected an upload; send the file itself.")
    return str(payload.path)


def mistake(message: str) -> gr.Error:
    """What a visitor is told; their mistake is not the server's, and leaves no traceback in its log."""
    return gr.Error(message, duration=None, print_exception=False)
