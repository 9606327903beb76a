"""The embedded example: small textured scenes of four invented things, drawn in memory, with exact masks.

Each thing is a large body, plain and only weakly textured, with one small part that is loud: saturated and patterned.
An image classifier looks at the loud part first, so its class activation map is strongest there; the body is what has
to be won. Some hide their loud part, so that the body counts. Some are small, so that no constant fits all, and one
class is rare. Pebbles and flowers (blobs, loud spots) mean nothing.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from datasets import Dataset
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageFilter

from ..config import DataConfig
from .decoding import encode_png
from .schema import TaggedImages, features
from .validation import checked_images, class_indices

FloatMap = NDArray[np.floating]
# A region or pattern of thing coordinates: x to the right, y down, the body within about [-1, 1].
Field = Callable[[FloatMap, FloatMap], FloatMap]


@dataclass(frozen=True)
class Thing:
    """How one class looks.

    Args:
        body: positive inside the whole thing, about its distance to the border.
        part: the same for the loud part; it is cut to the body.
        part_colours: two RGB colours of the loud part.
        part_pattern: above 0 where the second colour shows.
        tint: muted RGB colour of the body, the weak cue together with its texture.
        texture: the body's faint pattern, in [-1, 1].
        frequency: share of the images in which it may be, drawn for each; 1 for a common thing.
    """

    body: Field
    part: Field
    part_colours: tuple[tuple[int, int, int], tuple[int, int, int]]
    part_pattern: Field
    tint: tuple[int, int, int]
    texture: Field
    frequency: float = 1.0


def _ellipse(x0: float, y0: float, width: float, height: float) -> Field:
    return lambda x, y: (1 - np.hypot((x - x0) / width, (y - y0) / height)) * min(width, height)


def _box(x0: float, y0: float, width: float, height: float, corner: float) -> Field:
    def field(x: FloatMap, y: FloatMap) -> FloatMap:
        dx, dy = np.abs(x - x0) - (width - corner), np.abs(y - y0) - (height - corner)
        return corner - np.hypot(np.maximum(dx, 0), np.maximum(dy, 0)) - np.minimum(np.maximum(dx, dy), 0)

    return field


def _union(*fields: Field) -> Field:
    return lambda x, y: np.maximum.reduce([field(x, y) for field in fields])


THINGS = {
    # A diamond with a striped red tip.
    "kite": Thing(
        body=lambda x, y: 0.75 * (1 - np.abs(x) / 0.78 - np.abs(y)),
        part=lambda x, y: -0.34 - y,
        part_colours=((214, 30, 38), (250, 238, 224)),
        part_pattern=lambda x, y: np.sin(26 * y),
        tint=(186, 88, 66),
        texture=lambda x, y: np.sin(15 * (x + y)),
    ),
    # A tall rounded box with a yellow window.
    "lantern": Thing(
        body=_box(0, 0, 0.56, 0.95, 0.25),
        part=_box(0, -0.2, 0.34, 0.34, 0.1),
        part_colours=((255, 205, 20), (120, 60, 0)),
        part_pattern=lambda x, y: 0.25 - np.minimum(np.abs(np.sin(9 * x)), np.abs(np.sin(9 * (y + 0.2)))),
        tint=(88, 116, 148),
        texture=lambda x, y: np.sin(17 * y),
    ),
    # A flat oval with a chequered blue head.
    "beetle": Thing(
        body=_union(_ellipse(0.12, 0, 0.86, 0.62), _ellipse(-0.68, 0, 0.4, 0.4)),
        part=_ellipse(-0.7, 0, 0.36, 0.36),
        part_colours=((18, 74, 226), (110, 226, 246)),
        part_pattern=lambda x, y: np.sin(15 * x) * np.sin(15 * y),
        tint=(96, 142, 92),
        texture=lambda x, y: np.cos(18 * np.hypot(x - 0.12, 1.3 * y)),
    ),
    # A blossom on a broad pot: a magenta disc with white dots.
    "cactus": Thing(
        body=_union(
            _box(0, 0.25, 0.36, 0.7, 0.3), _box(-0.52, 0.12, 0.2, 0.42, 0.18), _box(0.05, 0.35, 0.7, 0.2, 0.15)
        ),
        part=_ellipse(0, -0.42, 0.4, 0.4),
        part_colours=((216, 24, 168), (255, 236, 250)),
        part_pattern=lambda x, y: np.sin(16 * x) + np.sin(16 * y) - 1.0,
        tint=(152, 98, 142),
        texture=lambda x, y: np.sin(17 * x),
        frequency=0.33,
    ),
}
SPLITS = ("train", "val")
# Share of things that do not show their loud part, as animals hide their heads: the rest counts for something, too.
HIDDEN_PART = 0.4
# Share of things that are small, and their radii as shares of the image: a tenth to a third of a common thing's area.
SMALL, SMALL_RADII = 0.3, (0.1, 0.14)
# Validation images per training image.
VAL_SHARE = 0.25


def load(config: DataConfig, split: str) -> TaggedImages:
    """Draw the embedded example.

    Args:
        config: `shapes_images`, `shapes_size`, `shapes_seed`, `classes` and the limits are used. Image ``i`` of a
            split is the same however many there are.
        split: `"train"`, or `"val"` with a quarter as many images.

    Raises:
        ValueError: another split or class, or what [`checked_images`] rejects.
    """
    if split not in SPLITS:
        raise ValueError(f"data: source 'shapes' has no split {split!r}; splits: {', '.join(SPLITS)}")
    class_names = config.classes or tuple(THINGS)
    class_indices(class_names, tuple(THINGS), "data.classes")
    count = config.shapes_images if split == "train" else max(round(config.shapes_images * VAL_SHARE), 1)
    columns: dict[str, list] = {"image_id": [], "image": [], "labels": [], "mask": []}
    for index in range(count):
        generator = np.random.default_rng([config.shapes_seed, zlib.crc32(split.encode()), index])
        present = _draw_classes(index, [THINGS[name].frequency for name in class_names], generator)
        image, mask = draw_scene(config.shapes_size, [(c, THINGS[class_names[c]]) for c in present], generator)
        columns["image_id"].append(f"{split}_{index:05d}")
        columns["image"].append({"bytes": encode_png(Image.fromarray(image)), "path": None})
        columns["labels"].append(sorted(present))
        columns["mask"].append({"bytes": encode_png(Image.fromarray(mask)), "path": None})
    return checked_images(
        Dataset.from_dict(columns, features=features(class_names, with_mask=True)),
        class_names,
        config,
        split,
        mask_values=tuple(range(1 + len(class_names))),
        mask_known=frozenset(range(1 + len(class_names))),
    )


def _draw_classes(index: int, frequencies: Sequence[float], generator: Generator) -> list[int]:
    """One to three classes; the first by turns. The first images show them all, whatever their frequencies."""
    turns = [(index + turn) % len(frequencies) for turn in range(len(frequencies))]
    kept = [c for c in turns if index < len(turns) or generator.random() < frequencies[c]] or turns[:1]
    others = generator.permutation(kept[1:])
    return [kept[0], *others[: generator.choice(3, p=[0.5, 0.35, 0.15])].tolist()]


def draw_scene(
    size: int, things: Sequence[tuple[int, Thing]], generator: Generator
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw things without overlap on a textured ground, between distractors.

    Args:
        size: height and width in pixels.
        things: class indices and looks.
        generator: the only source of randomness.

    Returns:
        RGB image `(size, size, 3)` and label map `(size, size)`.
    """
    canvas = _background(size, generator)
    mask = np.zeros((size, size), dtype=np.uint8)
    places = _places(len(things), generator)
    for _ in range(generator.integers(2, 5)):
        _draw_pebble(canvas, generator)
    for _ in range(generator.integers(1, 4)):
        _draw_flower(canvas, generator)
    for (label, thing), (x, y, radius) in zip(things, places, strict=True):
        mask[_draw_thing(canvas, thing, x, y, radius, generator) > 0.5] = label + 1
    return _photograph(canvas, generator), mask


def _places(count: int, generator: Generator) -> list[tuple[float, float, float]]:
    """Centres and radii, as shares of the image, of discs that do not overlap."""
    common = {1: (0.3, 0.42), 2: (0.23, 0.29), 3: (0.19, 0.23)}[count]
    radii = [generator.uniform(*(SMALL_RADII if generator.random() < SMALL else common)) for _ in range(count)]
    while True:
        places: list[tuple[float, float, float]] = []
        for radius in radii:
            x, y = generator.uniform(0.85 * radius, 1 - 0.85 * radius, size=2)
            places.append((x, y, radius))
        if all(np.hypot(a[0] - b[0], a[1] - b[1]) > a[2] + b[2] for i, a in enumerate(places) for b in places[:i]):
            return places


def _noise(size: int, generator: Generator, coarsest: int, persistence: float = 0.55) -> FloatMap:
    """Multi-octave value noise of mean about 0 and deviation 1, `(size, size)`."""
    total = np.zeros((size, size), dtype=np.float32)
    cells, weight = coarsest, 1.0
    while cells < size:
        grid = Image.fromarray(generator.standard_normal((cells, cells), dtype=np.float32))
        total += weight * np.asarray(grid.resize((size, size), Image.Resampling.BICUBIC))
        cells, weight = cells * 2, weight * persistence
    return total / max(float(total.std()), 1e-6)


def _background(size: int, generator: Generator) -> FloatMap:
    """Ground of two blended natural colours under a gradient of light, `(size, size, 3)` in 0-255."""
    colours = ["#607842", "#968c60", "#b0a080", "#688a9c", "#58544e", "#826850", "#a8b2b6"]
    natural = np.array([ImageColor.getrgb(colour) for colour in colours], dtype=np.float32)
    first, second = natural[generator.choice(len(natural), size=2, replace=False)]
    blend = 1 / (1 + np.exp(-2 * _noise(size, generator, coarsest=2)))[..., None]
    ground = first * blend + second * (1 - blend) + generator.normal(0, 8, size=3)
    ground += 5 * _noise(size, generator, coarsest=12, persistence=0.8)[..., None]
    ground += 2 * np.stack([_noise(size, generator, coarsest=4) for _ in range(3)], axis=-1)
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    angle = generator.uniform(0, 2 * np.pi)
    light = 1 + 0.16 * (np.cos(angle) * axis[None, :] + np.sin(angle) * axis[:, None])
    return (ground * light[..., None]).astype(np.float32)


def _coordinates(size: int, x: float, y: float, radius: float, generator: Generator) -> tuple[FloatMap, FloatMap]:
    """Thing coordinates of every pixel: moved, turned by up to 25 degrees, mirrored, slightly stretched."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    angle = generator.uniform(-0.44, 0.44)
    stretch = generator.uniform(0.9, 1.1)
    dx, dy = (axis[None, :] - x) / radius, (axis[:, None] - y) / radius
    turned_x = (np.cos(angle) * dx + np.sin(angle) * dy) * generator.choice([-1, 1]) * stretch
    return turned_x.astype(np.float32), ((np.cos(angle) * dy - np.sin(angle) * dx) / stretch).astype(np.float32)


def _cover(field: FloatMap, size: int, radius: float) -> FloatMap:
    """Opacity in [0, 1], with a border about a pixel wide."""
    return np.clip(0.5 + field * radius * size, 0, 1)


def _paint(canvas: FloatMap, colour: FloatMap, opacity: FloatMap) -> None:
    canvas += opacity[..., None] * (colour - canvas)


def _draw_thing(canvas: FloatMap, thing: Thing, x: float, y: float, radius: float, generator: Generator) -> FloatMap:
    size = len(canvas)
    u, v = _coordinates(size, x, y, radius, generator)
    body = _cover(thing.body(u, v), size, radius)
    part = np.minimum(_cover(thing.part(u, v), size, radius), body)
    canvas *= 1 - 0.35 * (_cover(0.12 + thing.body(u - 0.1, v - 0.12), size, radius / 4) * (1 - body))[..., None]
    tint = np.array(thing.tint, dtype=np.float32) * generator.uniform(0.8, 1.2) + generator.normal(0, 6, size=3)
    shade = 1 - 0.04 * (u * generator.uniform(-1, 1) + v) + 0.02 * thing.texture(u, v)
    shade = shade + 0.01 * _noise(size, generator, coarsest=8, persistence=0.8)
    # Darker towards the border, as round things are.
    shade = shade * (0.95 + 0.05 * np.clip(thing.body(u, v) / 0.15, 0, 1))
    _paint(canvas, (tint * shade[..., None]).astype(np.float32), body)
    first, second = (np.array(c, dtype=np.float32) + generator.normal(0, 8, size=3) for c in thing.part_colours)
    second_shows = np.clip(0.5 + 4 * thing.part_pattern(u, v), 0, 1)[..., None]
    loud = (first * (1 - second_shows) + second * second_shows) * np.clip(shade, 0.85, 1.15)[..., None]
    if generator.random() >= HIDDEN_PART:
        _paint(canvas, loud.astype(np.float32), part)
    return body


def _draw_pebble(canvas: FloatMap, generator: Generator) -> None:
    """A muted blob like the bodies, of any grey, without a loud part."""
    x, y = generator.uniform(0, 1, size=2)
    radius = generator.uniform(0.06, 0.16)
    u, v = _coordinates(len(canvas), x, y, radius, generator)
    field = _ellipse(0, 0, 1, generator.uniform(0.5, 0.9))(u, v)
    grey = generator.uniform(80, 165) + generator.normal(0, 12, size=3)
    shade = 1 - 0.15 * v + 0.07 * _noise(len(canvas), generator, coarsest=12, persistence=0.9)
    canvas *= 1 - 0.3 * (_cover(field + 0.2, len(canvas), radius / 3) * (v > 0))[..., None]
    _paint(canvas, (grey * shade[..., None]).astype(np.float32), _cover(field, len(canvas), radius))


def _draw_flower(canvas: FloatMap, generator: Generator) -> None:
    """A small loud spot in colours that no class has."""
    colours = np.array([(240, 120, 30), (40, 170, 70), (150, 90, 220), (250, 250, 250)], dtype=np.float32)
    x, y = generator.uniform(0, 1, size=2)
    radius = generator.uniform(0.03, 0.06)
    u, v = _coordinates(len(canvas), x, y, radius, generator)
    field = 0.75 + 0.25 * np.cos(5 * np.arctan2(v, u)) - np.hypot(u, v)
    colour = colours[generator.integers(len(colours))] * generator.uniform(0.8, 1.0)
    _paint(canvas, np.broadcast_to(colour, canvas.shape), _cover(field, len(canvas), radius))


def _photograph(canvas: FloatMap, generator: Generator) -> NDArray[np.uint8]:
    """Exposure, a soft lens and sensor noise."""
    exposed = canvas * generator.uniform(0.85, 1.12)
    soft = Image.fromarray(np.clip(exposed, 0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(0.5))
    noisy = np.asarray(soft, dtype=np.float32) + generator.normal(0, 1.5, size=canvas.shape)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
