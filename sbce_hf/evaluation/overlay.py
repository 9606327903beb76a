"""A label map drawn over its photo, with the names of the classes it shows."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..data.schema import palette
from ..models.configuration_deeplab import voc_palette

# In pixels. Larger photos are drawn smaller: an overlay is for looking at.
MAX_SIDE, GAP, LINE_HEIGHT, FONT_SIZE = 2048, 8, 24, 15
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
    colours = voc_palette(len(class_names) + 1)
    legend = _legend({class_names[value - 1]: colours[value] for value in present}, drawn.width)
    sheet = Image.new("RGB", (legend.width, drawn.height + legend.height), "white")
    sheet.paste(drawn, (0, 0))
    sheet.paste(legend, (0, drawn.height))
    return sheet


def _legend(colours: dict[str, list[int]], width: int) -> Image.Image:
    """Names beside their colours, wrapped to the width, which grows if a single name does not fit."""
    font = ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", FONT_SIZE)
    lengths = {name: LINE_HEIGHT + round(font.getlength(name)) + 2 * GAP for name in colours or ["background only"]}
    width = max(width, GAP + max(lengths.values()))
    places, left, top = {}, GAP, GAP // 2
    for name, length in lengths.items():
        if left + length > width:
            left, top = GAP, top + LINE_HEIGHT
        places[name] = (left, top)
        left += length
    legend = Image.new("RGB", (width, top + LINE_HEIGHT), "white")
    draw = ImageDraw.Draw(legend)
    for name, (x, y) in places.items():
        colour = tuple(colours.get(name, (255, 255, 255)))
        draw.rectangle((x, y + 2, x + FONT_SIZE, y + 2 + FONT_SIZE), fill=colour, outline="#888888")
        draw.text((x + LINE_HEIGHT, y + 1), name, fill="black", font=font)
    return legend
