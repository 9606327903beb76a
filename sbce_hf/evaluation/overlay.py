"""A label map drawn over its photo, with the names of the classes it shows."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from ..data.schema import IGNORE_INDEX
from ..models.configuration_deeplab import voc_palette
from .fonts import font, numbered

# In pixels. Larger photos are drawn smaller: an overlay is for looking at.
MAX_SIDE, GAP, LINE_HEIGHT, SWATCH = 2048, 12, 24, 16
# Characters of a class's name; overlays are as wide as the longest.
LONGEST = 40
# Share of the class colour, and of white in it; the rest is the photo, and the palette's colour.
COLOUR_SHARE, LIGHT_SHARE = 0.5, 0.25


def overlay(photo: Image.Image, label_map: np.ndarray, class_names: Sequence[str]) -> Image.Image:
    """Blend a photo with the colours of its classes, outlined, above a legend of those that occur.

    Background stays as it is in the photo.

    Args:
        photo: of any mode.
        label_map: `(H, W)` uint8, of the photo's size; 0 background, `c + 1` class `c`, 255 undecided.
        class_names: the foreground classes.

    Returns:
        RGB image of the photo's size, or with a long side of 2048 pixels if that is smaller, with the legend below.

    Raises:
        ValueError: a label map of another size or with a value that is no class.
    """
    if label_map.shape != (photo.height, photo.width):
        raise ValueError(f"overlay: label map is {label_map.shape}, its photo {(photo.height, photo.width)}")
    present = [value for value in np.unique(label_map).tolist() if value]
    foreign = [value for value in present if len(class_names) < value < IGNORE_INDEX]
    if foreign:
        raise ValueError(f"overlay: label map has value {foreign[-1]}, expected 0 to {len(class_names)}")
    labels, photo = Image.fromarray(label_map), photo.convert("RGB")
    factor = MAX_SIDE / max(photo.size)
    if factor < 1:
        size = (max(1, round(photo.width * factor)), max(1, round(photo.height * factor)))
        photo, labels = photo.resize(size), labels.resize(size, Image.Resampling.NEAREST)
    colours = shown_colours(len(class_names))
    labels.putpalette(colours.tobytes())
    blended = Image.blend(photo, labels.convert("RGB"), COLOUR_SHARE)
    # Index 0 is False; the palette plays no part.
    drawn = Image.composite(blended, photo, Image.fromarray(np.asarray(labels) > 0))
    drawn.paste("white", mask=_outline(np.array(labels)))
    names = {**dict(enumerate(numbered(class_names), start=1)), IGNORE_INDEX: "undecided"}
    entries = [(names[value], colours[value]) for value in present]
    below = legend(entries or [("background only", np.array([255] * 3))], drawn.width)
    sheet = Image.new("RGB", (below.width, drawn.height + below.height), "white")
    sheet.paste(drawn, (0, 0))
    sheet.paste(below, (0, drawn.height))
    return sheet


def shown_colours(num_classes: int) -> np.ndarray:
    """The colours in which labels are drawn: those of the label maps' palette, lighter, to be seen on dark photos.

    Args:
        num_classes: foreground classes.

    Returns:
        uint8 of shape `(256, 3)`; 255, undecided, is white.
    """
    colours = np.zeros((256, 3))
    colours[1 : num_classes + 1] = np.array(voc_palette(num_classes + 1))[1:]
    colours[1:] = 255 * LIGHT_SHARE + (1 - LIGHT_SHARE) * colours[1:]
    colours[IGNORE_INDEX] = 255
    return colours.round().astype(np.uint8)


def _outline(labels: np.ndarray) -> Image.Image:
    """Where labels change, one pixel wide on photos of a few hundred pixels."""
    width = 1 + 2 * max(1, round(max(labels.shape) / 800))
    image = Image.fromarray(labels)
    edges = ImageChops.difference(image.filter(ImageFilter.MaxFilter(3)), image.filter(ImageFilter.MinFilter(3)))
    line = edges.point(lambda value: 255 if value else 0)
    return line.filter(ImageFilter.MaxFilter(width - 2)) if width > 3 else line


def beside(photo: Image.Image, label_map: np.ndarray, class_names: Sequence[str], width: int = 240) -> Image.Image:
    """A photo and its [`overlay`] side by side, for a report: all of one width, so that legends are of one size there.

    Args:
        photo: of any mode.
        label_map: see [`overlay`].
        class_names: see [`overlay`].
        width: of the photo in the picture, in pixels; narrower where it would be more than twice as high.
    """
    factor = min(width / photo.width, 2 * width / photo.height)
    size = (max(1, round(photo.width * factor)), max(1, round(photo.height * factor)))
    labels = np.asarray(Image.fromarray(label_map).resize(size, Image.Resampling.NEAREST))
    small = photo.convert("RGB").resize(size)
    drawn = overlay(small, labels, class_names)
    left = width + GAP // 2
    sheet = Image.new("RGB", (left + max(width, drawn.width), drawn.height), "white")
    sheet.paste(small, (width - size[0], 0))
    sheet.paste(drawn, (left, 0))
    return sheet


def legend(entries: Sequence[tuple[str, np.ndarray]], width: int) -> Image.Image:
    """Names beside their colours, wrapped to the width, which grows if a single name does not fit.

    Names of more than [`LONGEST`] characters are cut.

    Args:
        entries: names with swatches, uint8 of shape `(SWATCH, SWATCH, 3)` or a colour that fills one.
        width: in pixels.
    """
    entries = [(name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}\u2026", colour) for name, colour in entries]
    lengths = [LINE_HEIGHT + round(font(name).getlength(name)) + 2 * GAP for name, _ in entries]
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
        draw.text((x + LINE_HEIGHT, y + 1), name, fill="black", font=font(name))
    return sheet
