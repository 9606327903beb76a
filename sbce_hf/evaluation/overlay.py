"""A label map drawn over its photo, with the names of the classes it shows."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..data.schema import palette
from ..models.configuration_deeplab import voc_palette

# In pixels. Larger photos are drawn smaller: an overlay is for looking at.
MAX_SIDE, GAP, LINE_HEIGHT, SWATCH, FONT_SIZE = 2048, 12, 24, 16, 15
# Share of the class colour; the rest is the photo.
COLOUR_SHARE = 0.5


def overlay(photo: Image.Image, label_map: np.ndarray, class_names: Sequence[str]) -> Image.Image:
    """Blend a photo with the palette's colours of its classes, above a legend of those that occur.

    Background stays as it is in the photo.

    Args:
        photo: of any mode.
        label_map: `(H, W)` uint8, of the photo's size; 0 background, `c + 1` class `c`.
        class_names: the foreground classes.

    Returns:
        RGB image of the photo's size, or with a long side of 2048 pixels if that is smaller, with the legend below.

    Raises:
        ValueError: a label map of another size or with a value that is no class.
    """
    if label_map.shape != (photo.height, photo.width):
        raise ValueError(f"overlay: label map is {label_map.shape}, its photo {(photo.height, photo.width)}")
    present = [value for value in np.unique(label_map).tolist() if value]
    if present and present[-1] > len(class_names):
        raise ValueError(f"overlay: label map has value {present[-1]}, expected 0 to {len(class_names)}")
    labels = Image.fromarray(label_map)
    labels.putpalette(palette())
    photo = photo.convert("RGB")
    factor = MAX_SIDE / max(photo.size)
    if factor < 1:
        size = (max(1, round(photo.width * factor)), max(1, round(photo.height * factor)))
        photo, labels = photo.resize(size), labels.resize(size, Image.Resampling.NEAREST)
    blended = Image.blend(photo, labels.convert("RGB"), COLOUR_SHARE)
    # Index 0 is False; the palette plays no part.
    foreground = Image.fromarray(np.asarray(labels) > 0)
    drawn = Image.composite(blended, photo, foreground)
    colours = np.array(voc_palette(len(class_names) + 1), np.uint8)
    entries = [(class_names[value - 1], colours[value]) for value in present]
    names = legend(entries or [("background only", np.array([255] * 3))], drawn.width)
    sheet = Image.new("RGB", (names.width, drawn.height + names.height), "white")
    sheet.paste(drawn, (0, 0))
    sheet.paste(names, (0, drawn.height))
    return sheet


def legend(entries: Sequence[tuple[str, np.ndarray]], width: int) -> Image.Image:
    """Names beside their colours, wrapped to the width, which grows if a single name does not fit.

    Args:
        entries: names with swatches, uint8 of shape `(SWATCH, SWATCH, 3)` or a colour that fills one.
        width: in pixels.
    """
    lengths = [LINE_HEIGHT + round(font().getlength(name)) + 2 * GAP for name, _ in entries]
    width = max(width, GAP + max(lengths))
    places, left, top = [], GAP, 0
    for length in lengths:
        if left + length > width:
            left, top = GAP, top + LINE_HEIGHT
        places.append((left, top))
        left += length
    sheet = Image.new("RGB", (width, top + LINE_HEIGHT + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for (name, colour), (x, y) in zip(entries, places, strict=True):
        swatch = np.broadcast_to(np.asarray(colour, np.uint8), (SWATCH, SWATCH, 3))
        sheet.paste(Image.fromarray(swatch.copy()), (x, y + 2))
        draw.rectangle((x, y + 2, x + SWATCH - 1, y + 1 + SWATCH), outline="#888888")
        draw.text((x + LINE_HEIGHT, y + 1), name, fill="black", font=font())
    return sheet


def font(bold: bool = False) -> ImageFont.FreeTypeFont:
    """The one of all drawings; matplotlib brings it."""
    file = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / file, FONT_SIZE)
