"""Names that would be markup, links or control characters stay text."""

import csv
import io
import re

import pytest
from huggingface_hub import ModelCard
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from sbce_hf.cli.common import say
from sbce_hf.errors import UserError
from sbce_hf.models.configuration_checks import UNSEEN
from sbce_hf.text import (
    check_names,
    code_block,
    code_span,
    csv_cell,
    csv_text,
    is_control,
    is_writable,
    markdown,
    visible,
)

NAMES = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[x](javascript:alert(1))",
    "![i](http://example.invalid/pixel.png)",
    "<http://example.invalid>",
    "http://example.invalid/a",
    "www.example.invalid",
    "# heading",
    "- item",
    "1\n# heading\n\n- item",
    "a | b",
    "a\\| b",
    "`code`",
    "``a` b```",
    "**bold** _it_ __b__ ~~gone~~",
    "$x^2$ &amp; &#60;b&#62;",
    "\\",
    "potted_plant",
    "\x1b[31mred\x1b[0m\x07",
    "abc\u202edef\u2066",
    "a\u2028b\x85c",
    "x" * 10_000,
]
PARSER = MarkdownIt("gfm-like", {"html": True})


def tokens_of(text):
    found = []
    for token in PARSER.parse(text):
        found += [token, *(token.children or [])]
    return found


def plain(text):
    """What a browser shows of a name: one line, without control characters."""
    return visible(" ".join(text.splitlines()))


@pytest.mark.parametrize("name", NAMES, ids=lambda name: repr(name[:20]))
def test_a_name_in_markdown_is_nothing_but_text(name):
    for before, kinds in (("", {"paragraph"}), ("- ", {"bullet_list", "list_item", "paragraph"})):
        tokens = tokens_of(f"{before}{markdown(name)}\n")
        assert {re.sub("_(open|close)$", "", t.type) for t in tokens} <= kinds | {"inline", "text", "text_special"}
        assert "".join(t.content for t in tokens if t.type.startswith("text")) == plain(name).rstrip(" ")


@pytest.mark.parametrize("name", NAMES, ids=lambda name: repr(name[:20]))
def test_a_name_between_backticks_does_not_end_them(name):
    tokens = tokens_of(f"see {code_span(name)} here")
    assert [t.type for t in tokens[2:-1]] == ["text", "code_inline", "text"]
    assert tokens[3].content.strip() == plain(name).strip()


@pytest.mark.parametrize("text", ["sbce run", "a\n```\n# heading", "````\nx", "\x1b[31m"])
def test_a_block_ends_where_it_should(text):
    (fence,) = PARSER.parse(code_block(text, "bash"))
    assert (fence.type, fence.info, fence.content) == ("fence", "bash", visible(text, kept="\n") + "\n")


def test_text_for_a_terminal_controls_nothing():
    for name in NAMES:
        assert not any(map(is_control, visible(name)))
    assert visible("\x1b[31m\u202e\n") == "\\x1b[31m\\u202e\\x0a"
    assert visible("a\n\tb\r", kept="\n\t") == "a\n\tb\\x0d"
    # What is only seen stays: accents, other scripts, joined emoji.
    assert visible("café 猫 👩\u200d🌾 می\u200cخواهم") == "café 猫 👩\u200d🌾 می\u200cخواهم"


def test_usual_names_look_as_they_are():
    for name in ("tvmonitor", "potted_plant", "kite (red)", "DSC_0001.jpg", "a-b, c+d!", "50 %"):
        assert markdown(name) == name


def test_front_matter_is_the_card_librarys():
    assert ModelCard("---\nlicense: mit\n---\n# a\n").data.license == "mit"


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "\x1b[2J", "\u202etac", "a\u2029", "\ud800", 3, None, ["a"]])
def test_a_class_is_called_by_what_can_be_seen(name):
    with pytest.raises(UserError, match=r"classes: got .*; rename the class") as error:
        check_names(["cat", name], "classes")
    assert not any(map(is_control, str(error.value)))
    check_names(["cat", "<b>", "猫", "a|b", "👩\u200d🌾"], "classes")


def test_models_refuse_the_same_characters():
    # Their code imports nothing of ours, because checkpoints carry it.
    for code in range(0x110000):
        assert bool(UNSEEN.search(chr(code))) == is_control(chr(code)), hex(code)


@pytest.mark.parametrize(
    ("encoding", "shown"), [("ascii", r"\u732b \xfc"), ("latin-1", "\\u732b \xfc"), ("utf-8", "猫 ü")]
)
def test_a_terminal_of_few_letters_shows_all_names(encoding, shown):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    say("猫 ü", stream)
    stream.flush()
    assert stream.buffer.getvalue().decode(encoding) == f"{shown}\n"


def test_what_is_no_character_is_in_no_name():
    assert is_writable("Übung 1\u200f.png") and not any(
        map(is_writable, ("a\x1b", "a\n", "a\udcff", "a\ufffe", "\uffff"))
    )
    with pytest.raises(UserError, match=r"cat\\ufffe"):
        check_names(["cat\ufffe"], "classes")


FORMULAS = [
    "=1+1",
    "+1",
    "-",
    "-1",
    "@x",
    "\tx",
    "\r=x",
    " =1",
    "'=1",
    "''=1",
    "' -x",
    "\uff1d1",
    "='a'!b",
    '=cmd|"/c"!A1',
]
HARMLESS = ["cat", "a=b", "'", "'cat", "o'clock", "", "a;b", "a;=cmd()", "x\ty", "1", "a,b", 'a"b']


def test_names_in_tables_are_no_formulas():
    rows = list(csv.reader(io.StringIO(csv_text([[name] for name in FORMULAS]), newline="")))
    assert [row[0] for row in rows] == [f"'{name}" for name in FORMULAS]
    assert csv_text([["cat", -1, 0.5]]) == "cat,-1,0.5\r\n"
    # In countries with decimal commas a semicolon separates cells, unless it is quoted.
    assert csv_text([["a;=cmd()", 1]]) == '"a;=cmd()",1\r\n'


@given(st.lists(st.lists(st.text(st.sampled_from("'=+-@ab ,;\t\r\n\"\uff1d")) | st.text(), min_size=2, max_size=2)))
@example([[name, name] for name in (*FORMULAS, *HARMLESS)])
def test_names_come_back_from_tables(rows):
    read = csv.reader(io.StringIO(csv_text(rows), newline=""), strict=True)
    assert [[csv_cell(cell) for cell in row] for row in read] == rows
