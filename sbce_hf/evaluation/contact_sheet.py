"""A contact sheet: photos beside their activations, label maps and masks."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw

from ..data.schema import IGNORE_INDEX
from ..files import write_atomic
from .fonts import drawable, font, numbered
from .overlay import GAP, LINE_HEIGHT, SWATCH, legend, shown_colours

# In pixels.
CELL_WIDTH, CELL_HEIGHT_LIMIT = 280, 330
# Share of the class colour in a drawn label map; the rest is the grey photo, so that outlines can be judged.
COLOUR_SHARE = 0.7
# Titles of the columns with label maps, and the fields of [`ContactRow`] they show.
_MAPS = {
    "label map": "label_map",
    "after CRF": "crf_label_map",
    "refined": "refined_label_map",
    "truth": "truth",
}


@dataclass(frozen=True)
class ContactRow:
    """One image on the contact sheet.

    Args:
        image_id: its name.
        image: RGB photo of height H and width W.
        activation (`np.ndarray` of shape `(H, W)`, floating): strongest class activation per pixel, 0-1.
        label_map (`np.ndarray` of shape `(H, W)`, uint8): 0 background, c + 1 class c, 255 ignore.
        crf_label_map: the same after the dense CRF, or `None`.
        refined_label_map: the same after every refinement, or `None`.
        truth: the same from the mask, or `None`.
    """

    image_id: str
    image: Image.Image
    activation: np.ndarray
    label_map: np.ndarray
    crf_label_map: np.ndarray | None = None
    refined_label_map: np.ndarray | None = None
    truth: np.ndarray | None = None


def contact_sheet(rows: Sequence[ContactRow], class_names: Sequence[str], path: Path) -> None:
    """Draw photo, activation, label map, label map after CRF and refinement, and truth of several images.

    The last three columns are left out when no row has them; ignored pixels are white and hatched. A legend follows.

    Args:
        rows: the images, top to bottom.
        class_names: the C foreground classes.
        path: PNG file to write.

    Raises:
        ValueError: no rows, a map that has not its image's size, or a label that is no class.
    """
    if not rows:
        raise ValueError("contact sheet: got no rows, expected at least one image")
    for row in rows:
        _check(row, len(class_names))
    colours = shown_colours(len(class_names))
    drawn = [title for title, name in _MAPS.items() if any(getattr(row, name) is not None for row in rows)]
    columns = ["photo", "activation", *drawn]
    strips = [_strip(row, columns, colours) for row in rows]
    width = len(columns) * (CELL_WIDTH + GAP) + GAP
    names = _legend(rows, class_names, colours, width)
    height = LINE_HEIGHT + 2 * GAP + sum(strip.height for strip in strips) + names.height
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(columns):
        middle = GAP + column * (CELL_WIDTH + GAP) + CELL_WIDTH // 2
        draw.text((middle, GAP), title, fill="black", font=font(bold=True), anchor="ma")
    top = LINE_HEIGHT + GAP
    for part in [*strips, names]:
        sheet.paste(part, (0, top))
        top += part.height
    buffer = BytesIO()
    sheet.save(buffer, format="PNG")
    write_atomic(path, buffer.getvalue())


def _check(row: ContactRow, num_classes: int) -> None:
    size = (row.image.height, row.image.width)
    for name in ("activation", *_MAPS.values()):
        values = getattr(row, name)
        if values is None:
            continue
        if values.shape != size:
            raise ValueError(
                f"contact sheet, image {row.image_id!r}: {name} has shape {values.shape}, expected {size}"
            )
        if name == "activation":
            continue
        foreign = values[(values > num_classes) & (values != IGNORE_INDEX)]
        if foreign.size:
            raise ValueError(
                f"contact sheet, image {row.image_id!r}: {name} holds {foreign[0]}, expected 0 to {num_classes} "
                f"or {IGNORE_INDEX}; are these the right class names?"
            )


def _strip(row: ContactRow, columns: Sequence[str], colours: np.ndarray) -> Image.Image:
    """One image's cells side by side, its id underneath."""
    factor = min(CELL_WIDTH / row.image.width, CELL_HEIGHT_LIMIT / row.image.height)
    size = (max(1, round(row.image.width * factor)), max(1, round(row.image.height * factor)))
    photo = row.image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    strip = Image.new("RGB", (len(columns) * (CELL_WIDTH + GAP) + GAP, size[1] + LINE_HEIGHT + GAP), "white")
    draw = ImageDraw.Draw(strip)
    for column, title in enumerate(columns):
        left = GAP + column * (CELL_WIDTH + GAP) + (CELL_WIDTH - size[0]) // 2
        if title == "photo":
            cell = photo
        elif title == "activation":
            cell = heat_map(photo, row.activation)
        elif (label_map := getattr(row, _MAPS[title])) is not None:
            cell = _painted(photo, label_map, colours)
        else:
            draw.text((left + size[0] // 2, size[1] // 2), "none", fill="#888888", font=font(), anchor="mm")
            continue
        strip.paste(cell, (left, 0))
    name = row.image_id if len(row.image_id) <= 100 else f"...{row.image_id[-97:]}"
    name = drawable(name, ascii(name)[1:-1])
    draw.text((GAP + (CELL_WIDTH - size[0]) // 2, size[1] + 3), name, fill="#444444", font=font(name))
    return strip


def heat_map(photo: Image.Image, activation: np.ndarray) -> Image.Image:
    """The activation as a heat map over the grey photo: dark where it is 0, yellow where it is 1.

    Args:
        photo: of the size of the result.
        activation: `(H, W)` of any size, floating, 0-1.
    """
    values = np.clip(np.nan_to_num(np.asarray(activation, dtype=np.float32)), 0, 1)
    values = np.asarray(Image.fromarray(values).resize(photo.size, Image.Resampling.BILINEAR))
    heat = matplotlib.colormaps["inferno"](values)[..., :3] * 255
    grey = np.asarray(photo.convert("L"), dtype=np.float32)[..., None]
    return Image.fromarray((0.65 * heat + 0.35 * grey).astype(np.uint8))


def _painted(photo: Image.Image, label_map: np.ndarray, colours: np.ndarray) -> Image.Image:
    labels = np.asarray(Image.fromarray(label_map.astype(np.uint8)).resize(photo.size, Image.Resampling.NEAREST))
    grey = np.asarray(photo.convert("L"), dtype=np.float32)[..., None]
    flat = colours[np.where(labels == IGNORE_INDEX, 0, labels)]
    painted = (COLOUR_SHARE * flat + (1 - COLOUR_SHARE) * grey).astype(np.uint8)
    return Image.fromarray(np.where((labels == IGNORE_INDEX)[..., None], _hatch(photo.size), painted))


def _hatch(size: tuple[int, int]) -> np.ndarray:
    """White with grey diagonals, uint8 of shape `(height, width, 3)`."""
    y, x = np.indices((size[1], size[0]))
    return np.repeat(np.where((x + y) % 8 < 2, 170, 245)[..., None], 3, axis=2).astype(np.uint8)


def _legend(rows: Sequence[ContactRow], class_names: Sequence[str], colours: np.ndarray, width: int) -> Image.Image:
    """Swatches of the labels that occur on the sheet, wrapped to its width."""
    maps = (m for row in rows for name in _MAPS.values() if (m := getattr(row, name)) is not None)
    present = sorted(set().union(*(np.unique(m).tolist() for m in maps)))
    names = ["background", *numbered(class_names)]
    # Mixed with mid grey like the maps, so that the swatch has the colour the eye sees there.
    mixed = (COLOUR_SHARE * colours + 35).astype(np.uint8)
    hatched = ("ignore", _hatch((SWATCH, SWATCH)))
    return legend([hatched if value == IGNORE_INDEX else (names[value], mixed[value]) for value in present], width)
