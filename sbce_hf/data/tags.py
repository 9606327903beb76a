"""Tags as people write them, and the classes they become: the one cleaning step of every reader.

What a class is is never guessed silently: a tag is made NFC and its blanks are collapsed; whatever else is odd about
it stops with the place and the remedy, before two spellings become two classes or a printed list becomes one.
"""

import ast
import io
import json
import re
import tokenize
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import pairwise

from ..errors import UserError
from ..text import is_control, visible

SEPARATOR = ";"
# Label maps are uint8, 0 is background, and 255 stays free for "ignore".
MAX_CLASSES = 254
# Label 0 of every label map and segmentation network; a class of that name would be there twice.
RESERVED = "background"
_QUOTES = frozenset('"\u201c\u201d\u201e\u201f\u00ab\u00bb`')
# Apostrophes belong into names, as in jack-o'-lantern, but neither start nor end them.
_APOSTROPHES = "'\u2018\u2019"
_BRACKETS = frozenset("[]{}")
# As a printed list has it, or the half of one that a separator has left.
_QUOTED = re.compile(r"""\(['"]|['"],?\s*\)""")
# Joiners are part of words of some scripts, and of no Latin one.
_JOINERS = "\u200c\u200d"
# Letters that look like Latin ones as printed: of the whole list (confusables.txt of Unicode's UTS 39) only those of
# the two scripts that keyboards and copied texts mix with Latin, each in the case in which it looks so.
_LOOK_ALIKE = str.maketrans(
    # Cyrillic.
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0458\u0455\u04bb\u0501\u051b\u051d"
    "\u0410\u0412\u0415\u041a\u041c\u041d\u041e\u0420\u0421\u0422\u0423\u0425\u0406\u0408\u0405"
    # Greek.
    "\u03b1\u03b9\u03bd\u03bf\u03c1\u03c5"
    "\u0391\u0392\u0395\u0396\u0397\u0399\u039a\u039c\u039d\u039f\u03a1\u03a4\u03a5\u03a7",
    "aeopcyxijshdqwABEKMHOPCTYXIJSaivopuABEZHIKMNOPTYX",
)
# Signs at which people separate tags, and that nobody writes into a name by the way; and those at which only what is
# made of other tags is taken for more than one.
_RARELY_PART = (";", ",", "|", "\u3001", "\uff64", "\uff0c", "\uff1b", "\uff5c", "\u060c", "\u061b")
_SEPARATORS = (*_RARELY_PART, "/", "+", "&", " and ", " ")
# A name longer than a line is a mistake, and would make every picture as wide.
MAX_NAME = 200
# Letters and marks that show nothing, beside those that Unicode calls formats.
_BLANK = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0d\uffa0\U000e0100-\U000e01ef]"
)
# Whether a sign is shown as text or as a picture: keyboards of phones add it unasked.
_PRESENTATION = re.compile("[\ufe0e\ufe0f]")


def clean_tag(text: object, where: str) -> str:
    """A tag in its one form: NFC, blanks collapsed, emoji as they are by themselves; empty if there is nothing to see.

    Args:
        text: as it was written.
        where: file and line, for the message.

    Raises:
        UserError: no text, or quotes, brackets, line ends, control characters or zero-width signs in it, a word of
            letters of two scripts, or more than [`MAX_NAME`] characters.
    """
    if not isinstance(text, str):
        raise UserError(f"{where}: tag: got {visible(repr(text))[:80]}, expected text")
    tag = _PRESENTATION.sub("", unicodedata.normalize("NFC", text)).strip()
    if problem := _problem(tag):
        raise UserError(
            f"{where}: tag {visible(repr(tag))[:120]}: has {problem}; expected a plain name. Correct the tag, or the "
            "sign that separates tags (data.separator)"
        )
    return " ".join(tag.split())


def _problem(tag: str) -> str:
    if tag.startswith("(") and tag.endswith(")") and _QUOTED.search(tag):
        return "quotes in parentheses"
    if blank := _BLANK.search(tag):
        return f"the sign U+{ord(blank[0]):04X}, which shows nothing"
    for index, character in enumerate(tag):
        if character in "\r\n\u2028\u2029\x0b\x0c\x85":
            return "a line end; is a quote missing?"
        if character in _QUOTES or (character in _APOSTROPHES and index in (0, len(tag) - 1)):
            return f"the quote {character}"
        if character in _BRACKETS:
            return f"the bracket {character}"
        around = tag[max(index - 1, 0) : index] + tag[index + 1 : index + 2]
        joins = character in _JOINERS and len(around) == 2 and not around.isascii()
        if unicodedata.category(character) == "Cf" and not joins:
            return f"the sign U+{ord(character):04X}, which has no width"
        if is_control(character) and character != "\t":
            return f"the control character U+{ord(character):04X}"
    if len(tag) > MAX_NAME:
        return f"{len(tag):,} characters, more than {MAX_NAME}"
    return "" if tag.isascii() else _mixed(tag)


def _mixed(tag: str) -> str:
    """The first word with Latin letters and Cyrillic ones, or Greek ones that look Latin, as words.

    Words in two languages are left alone, and so are signs such as `\u03b2-cell` and `\u03bcm`.
    """
    for word in re.findall(r"[^\W\d_]+", tag):
        scripts = {unicodedata.name(letter, "?").split()[0]: letter for letter in reversed(word)}
        latin, cyrillic = scripts.get("LATIN"), scripts.get("CYRILLIC")
        greek = next((letter for letter in word if letter != letter.translate(_LOOK_ALIKE)), None)
        other = cyrillic or greek
        if latin and other:
            return " and ".join(map(_told, (latin, other))) + " in one word"
    return ""


def _told(letter: str) -> str:
    return f"{letter} (U+{ord(letter):04X} {unicodedata.name(letter, 'unnamed')})"


def split_cell(cell: str, separator: str | None, where: str) -> list[str]:
    """The tags in one cell of a table: separated, a list such as `['cat', 'dog']`, or Label Studio's choices.

    Args:
        cell: its text.
        separator: `None` stands for `;`.
        where: file and line, for the message.

    Returns:
        cleaned tags, without empty ones.

    Raises:
        UserError: see [`clean_tag`].
    """
    parts: Sequence[object] = cell.split(separator or SEPARATOR)
    text = cell.strip()
    if choices := re.fullmatch(r'\{\s*"choices"\s*:(.*)\}', text, re.DOTALL):
        text = choices[1].strip()
    if text.startswith("["):
        parts = _printed_list(text, where)
    elif text in ("", "{}"):
        parts = ()
    return clean_all((str(part) if type(part) is int else part for part in parts), where)


def clean_all(tags: Iterable[object], where: str) -> list[str]:
    """See [`clean_tag`]; empty tags are dropped."""
    return [tag for tag in (clean_tag(text, where) for text in tags) if tag]


def _printed_list(text: str, where: str) -> list[object]:
    for parse in (json.loads, _literal):
        try:
            values = parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(values, list):
            return values
    raise UserError(
        f"{where}: tags {visible(text)[:120]!r}: starts like a list and is none; expected ['cat', 'dog'] or cat;dog"
    )


def _literal(text: str) -> object:
    """A list as Python or NumPy print it; Python itself would join the strings of an array, `['cat' 'dog']`, to one.

    Raises:
        ValueError: no such list.
        SyntaxError: no such list.
    """
    try:
        tokens = [token for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.string.strip()]
    except tokenize.TokenError as error:
        raise SyntaxError(str(error)) from error
    strings = [token.type == tokenize.STRING for token in tokens]
    if any(first and second for first, second in pairwise(strings)):
        if tokens[-1].string != "]" or not all(strings[1:-1]):
            raise ValueError("strings side by side")
        return [ast.literal_eval(token.string) for token in tokens[1:-1]]
    return ast.literal_eval(text)


def check_spelling(found: Mapping[str, str]) -> None:
    """Stop at two tags that are one word to a reader, by their spelling or by their looks, and at the reserved one.

    Args:
        found: where each cleaned tag was seen first.

    Raises:
        UserError: names both spellings and their places.
    """
    forms: dict[str, str] = {}
    looks: dict[str, str] = {}
    for tag, where in found.items():
        form = _form(tag)
        if form == RESERVED:
            raise UserError(
                f"{where}: tag {tag!r}: is the name of label 0, which every photo has; leave the tag out, or give the "
                "class another name"
            )
        other = forms.setdefault(form, tag)
        if other != tag:
            raise UserError(
                f"{where}: tag {tag!r} is also written {other!r} ({found[other]}); write it one way everywhere"
            )
        other = looks.setdefault(_form(unicodedata.normalize("NFKC", tag).translate(_LOOK_ALIKE)), tag)
        if other != tag:
            mine, theirs = next(pair for pair in zip(tag, other, strict=False) if pair[0] != pair[1])
            raise UserError(
                f"{where}: tag {tag!r} looks like {other!r} ({found[other]}), but for {_told(mine)} instead of "
                f"{_told(theirs)}; write it one way everywhere"
            )


def _form(tag: str) -> str:
    """What a reader takes a tag for: `Big_Cat` for `big cat`, and `01` and `1.0` for `1`."""
    form = " ".join(unicodedata.normalize("NFKC", tag).casefold().replace("_", " ").split()) or tag
    return f"{float(form):.17g}" if re.fullmatch(r"[+-]?\d{1,15}(\.\d{1,15})?", form, re.ASCII) else form


def check_separators(found: Mapping[str, str], allowed: Collection[str] = ()) -> None:
    """Stop at a tag that looks like several.

    Args:
        found: where each cleaned tag was seen first.
        allowed: tags that the user has confirmed, as `data.classes` does.

    Raises:
        UserError: names the tag, its place and the separator it may need.
    """
    parts_of = {
        (tag, sign): [part for part in (piece.strip() for piece in tag.split(sign)) if part]
        for tag in found
        for sign in _SEPARATORS
        if sign in tag and tag not in allowed
    }
    uses: dict[str, int] = dict.fromkeys(found, 1)
    for parts in parts_of.values():
        for part in set(parts):
            uses[part] = uses.get(part, 0) + 1
    for (tag, sign), parts in parts_of.items():
        # Its own use is one; a part that occurs elsewhere, too, has two.
        elsewhere = [part for part in parts if part in found or (sign != " " and uses[part] > 1)]
        if len(parts) > 1 and (elsewhere if sign in _RARELY_PART else len(elsewhere) == len(parts)):
            raise UserError(
                f"{found[tag]}: tag {tag!r}: {elsewhere[0]!r} is a tag elsewhere; did you mean the separator {sign!r}"
                f"? Then set data.separator to it: --set 'data.separator=\"{sign}\"'. If it is one tag, name the sign "
                f"that does separate tags, as in --set 'data.separator=\"{SEPARATOR}\"', or list it in data.classes"
            )


def sorted_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Tags in the order in which they become classes: numbers as numbers, then words."""
    return tuple(sorted(set(tags), key=lambda tag: (0, int(tag), tag) if is_number(tag) else (1, 0, tag)))


def is_number(tag: str) -> bool:
    """Whether a tag is a plain whole number."""
    return tag.isascii() and tag.isdigit() and len(tag) < 19


def check_class_list(names: Sequence[str], where: str) -> None:
    """Look at a class list before anything is made of it.

    Args:
        names: of the classes, in their order.
        where: it comes from, for the message.

    Raises:
        UserError: too many, the reserved name, two spellings of one word, or a name that [`clean_tag`] refuses or
            would change.
    """
    if len(names) > MAX_CLASSES:
        raise UserError(
            f"{where}: got {len(names)} classes, expected at most {MAX_CLASSES}, because label maps are images of 8 "
            "bits; list those that matter in data.classes"
        )
    for name in names:
        if (cleaned := clean_tag(name, where)) != name:
            raise UserError(
                f"{where}: class {visible(repr(name))[:120]}: expected {visible(repr(cleaned))[:120]} (NFC, single "
                "blanks)"
            )
    check_spelling(dict.fromkeys(names, where))
