"""Names are text: what users and strangers wrote is shown as it is, and does nothing.

A class, a file or a message from elsewhere may hold markup that makes links, pictures or headings of a report, and
characters that move a terminal's cursor or turn the direction of writing.
"""

import csv
import io
import re
import unicodedata
from collections.abc import Iterable, Sequence

from .errors import UserError

# Embedding, override and isolate marks: they change how what follows is read.
_DIRECTION = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
# Control characters, separators of lines and paragraphs, and halves of surrogate pairs.
_CONTROLS = frozenset({"Cc", "Zl", "Zp", "Cs"})
# No characters for good, and an error in XML.
_NONE = frozenset("\ufffe\uffff")
# Not the bar, which [`markdown_table`] escapes in its cells, and which does nothing elsewhere.
# Parentheses and exclamation marks do nothing without brackets, underscores nothing within a word, and some characters
# only where a line starts.
_MARKUP = re.compile(r"[\\`*\[\]<>~&$]|(?<![^\W_])_|_(?![^\W_])|^[#+=-]")

# Spreadsheets take a cell that starts so for a formula, which may run programs and fetch addresses; in some languages
# the wide signs count, too. Blanks before it are no protection.
_FORMULA = re.compile(r"[\s']*[=+\-@\uff1d\uff0b\uff0d\uff20\t\r]")


def is_control(character: str) -> bool:
    """Whether a character is not one to see but one that does something, or none at all as Unicode has it."""
    return character in _DIRECTION or _is_unwritable(character)


def is_writable(name: str) -> bool:
    """Whether a name can stand in any file, of XML as well: no control characters and nothing that is no character."""
    return not any(map(_is_unwritable, name))


def _is_unwritable(character: str) -> bool:
    return character in _NONE or unicodedata.category(character) in _CONTROLS


def check_names(names: Iterable[object], what: str) -> None:
    """Refuse names of classes that hold anything but characters to see.

    Args:
        names: of classes.
        what: they are, and where, for the message.

    Raises:
        UserError: one is no text, is empty, has a control character or a mark of direction, or is there twice.
    """
    seen: set[str] = set()
    for name in names:
        if not isinstance(name, str) or not name.strip() or any(map(is_control, name)):
            raise UserError(
                f"{what}: got {visible(repr(name))[:120]}, expected a name of characters to see, without line ends, "
                "control characters or marks of direction; rename the class"
            )
        if name in seen:
            raise UserError(f"{what}: got {name[:120]!r} twice, expected each name once")
        seen.add(name)


def visible(text: str, kept: str = "") -> str:
    r"""Text for a terminal: what would control it is shown as `\x1b` or `\u202e`.

    Args:
        text: of anybody.
        kept: controls to leave, such as line ends of a text of our own.
    """
    return "".join(
        character if character in kept or not is_control(character) else _escape(character) for character in text
    )


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def duration(seconds: float) -> str:
    """Seconds as `"4.2 s"`, `"3 min 12 s"` or `"1 h 02 min"`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def markdown(text: object) -> str:
    """Text within Markdown, on one line: no markup, no HTML, and no address becomes a link.

    Args:
        text: of anybody; anything else as `str` gives it.
    """
    line = visible(" ".join(str(text).splitlines()))
    escaped = _MARKUP.sub(lambda found: f"\\{found[0]}", line)
    # Addresses are made links even where nobody asked.
    return re.sub(r"(?i)\b(www)\.", r"\1\\.", escaped.replace("://", ":\\//"))


def code_span(text: object) -> str:
    """Text between backticks, on one line; it shows every character, and backticks within do not end it."""
    line = visible(" ".join(str(text).splitlines())) or " "
    longest = max((len(run) for run in re.findall(r"`+", line)), default=0)
    fence = "`" * (longest + 1)
    padding = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{padding}{line}{padding}{fence}"


def code_block(text: str, language: str = "") -> str:
    """Text as a fenced block; a fence within does not end it."""
    shown = visible(text, kept="\n")
    longest = max((len(run) for run in re.findall(r"`{3,}", shown)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}{language}\n{shown}\n{fence}"


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """A table for spreadsheets, in which names are no formulas.

    A text that would be one, such as `=1+1` or a class called `-`, gets an apostrophe before it, by which spreadsheets
    know text; numbers stay as they are. [`csv_cell`] takes it away again, whatever the text.

    Args:
        rows: of texts and numbers.
    """
    cells = [[f"'{cell}" if isinstance(cell, str) and _FORMULA.match(cell) else cell for cell in row] for row in rows]
    # Where commas are decimal, these separate cells, but not between quotes.
    odd = any(isinstance(cell, str) and (";" in cell or "\t" in cell) for row in cells for cell in row)
    stream = io.StringIO(newline="")
    csv.writer(stream, quoting=csv.QUOTE_NONNUMERIC if odd else csv.QUOTE_MINIMAL).writerows(cells)
    return stream.getvalue()


def csv_cell(text: str) -> str:
    """What a cell says that [`csv_text`], or whoever else keeps spreadsheets from computing it, has written."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text, 1) else text
