"""The font of a drawing: the one that matplotlib brings, or one of this machine that has the signs it lacks."""

import functools
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.font_manager import findSystemFonts
from matplotlib.ft2font import FT2Font
from PIL import ImageFont

FONT_SIZE = 15
# Has a sign for everything: a box.
_BOXES = "lastresort"


def font(text: str = "", bold: bool = False) -> ImageFont.FreeTypeFont:
    """The font in which a text is drawn; that of all others, if no font has its signs."""
    return ImageFont.truetype(font_file(text, bold) or _own(bold), FONT_SIZE)


def drawable(text: str, instead: object) -> str:
    """A text, or what is drawn instead of it, where no font has its signs and boxes would be seen."""
    return text if font_file(text) else str(instead)


def numbered(class_names: Sequence[str]) -> list[str]:
    """Class names as they are in pictures: where no font has a name's signs, the class's value in label maps."""
    return [drawable(name, value) for value, name in enumerate(class_names, start=1)]


def meanings(class_names: Sequence[str]) -> str:
    """What the numbers of [`numbered`] stand for, to go on with a sentence; empty where there are none."""
    pairs = zip(class_names, numbered(class_names), strict=True)
    return "".join(f"; {shown} is {name}" for name, shown in pairs if shown != name)


@functools.lru_cache(maxsize=4096)
def font_file(text: str, bold: bool = False) -> Path | None:
    """The file of a font that has all signs of a text; `None` if there is none."""
    needed = {ord(sign) for sign in text if not sign.isspace() and unicodedata.category(sign) != "Cf"}
    if needed <= _signs(_own(bold)):
        return _own(bold)
    return next((file for file in _others() if needed <= _signs(file)), None)


def _own(bold: bool) -> Path:
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"DejaVuSans{'-Bold' if bold else ''}.ttf"


@functools.cache
def _others() -> list[Path]:
    found = (Path(file) for file in findSystemFonts())
    files = (file for file in found if _BOXES not in file.name.casefold())
    return sorted(files, key=lambda file: ("regular" not in file.name.casefold(), file))


@functools.cache
def _signs(file: Path) -> frozenset[int]:
    try:
        face = FT2Font(str(file))
    # Not every file with a font's name is one.
    except (RuntimeError, OSError):
        return frozenset()
    return frozenset(face.get_charmap()) if face.scalable else frozenset()
