"""Classes and files with names that would be markup, in everything that shows them."""

import json
from html.parser import HTMLParser

import pytest
import tiny_run
from markdown_it import MarkdownIt
from PIL import Image

from sbce_hf.cli import main
from sbce_hf.data.schema import SkippedImage
from sbce_hf.demo.page import _introduction
from sbce_hf.evaluation.quality import stage_quality
from sbce_hf.evaluation.quality_page import render_quality
from sbce_hf.evaluation.report import OddPicture, ReportContext, render_report
from sbce_hf.evaluation.report_page import render_page
from sbce_hf.evaluation.scores import ScoreRow, SegmenterRow
from sbce_hf.evaluation.tables import Table
from sbce_hf.hub.label_info import LabelSetInfo, read_info
from sbce_hf.hub.labels import _tables
from sbce_hf.hub.models import find_model, render_model_folder

NAMES = (
    "<script>alert(1)</script>",
    "[x](javascript:alert(1))",
    "![i](http://example.invalid/p.png) | <b>",
    "`a` *b* www.example.invalid",
)
PARSER = MarkdownIt("gfm-like", {"html": True})


def check(text, links=(), pictures=()):
    """No HTML at all, no link or picture beyond those of our own, and every name is there as text."""
    tokens = []
    for token in PARSER.parse(text.removeprefix("---\n").split("\n---\n")[-1]):
        tokens += [token, *(token.children or [])]
    assert not [t for t in tokens if t.type.startswith("html")]
    assert {t.attrs["href"] for t in tokens if t.type == "link_open"} <= set(links)
    assert {t.attrs["src"] for t in tokens if t.type == "image"} <= set(pictures)
    shown = [
        "".join(c.content for c in t.children if c.type in ("text", "text_special", "code_inline"))
        for t in tokens
        if t.type == "inline"
    ]
    for name in NAMES:
        assert any(name in line for line in shown), name
    return shown


def quality_of(names):
    record = {"image_id": "a", "classes": list(range(len(names))), "proportions": [0.0] * len(names)}
    return stage_quality("round_1", names, [record])


def test_report_and_quality_page():
    iou = dict.fromkeys(("background", *NAMES), 0.5)
    quality = quality_of(NAMES)
    context = ReportContext(
        title="A run",
        command="sbce run\n```\n# heading <script>",
        seed=0,
        data=f"folder ({NAMES[0]}), split train",
        num_images=1,
        class_names=NAMES,
        versions={},
        hardware="",
        durations={},
        scores=[ScoreRow("bce", "fixed", True, 0.5, iou, 1, False, f"{NAMES[1]} kept from bce")],
        score_split="`a` <b>",
        segmenters=[SegmenterRow("adaptive", False, 0.5, iou, 1, note=NAMES[2])],
        segmenter_split="val",
        skipped=[SkippedImage("`<script>`.jpg", "line\n# heading")],
        warnings=quality.warnings,
    )
    files = {"quality.md", "config.yaml"}
    shown = check(render_report(context), files)
    assert sum(NAMES[2] in line for line in shown) >= 4
    check(render_quality([quality]))


class Elements(HTMLParser):
    """Names and attributes of a page's elements, and its text."""

    def __init__(self, page):
        super().__init__()
        self.found, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_report_as_a_page(tmp_path):
    Image.new("RGB", (4, 3)).save(tmp_path / "odd.jpg")
    hostile = f'"><img src=x onerror=alert(1)> {NAMES[0]} \x1b[2J\u202e'
    context = ReportContext(
        title="A run",
        command=hostile,
        seed=0,
        data=hostile,
        num_images=1,
        class_names=NAMES,
        versions={},
        hardware="",
        durations={},
        verdict=[hostile],
        look_at=[hostile, *NAMES],
        odd=[OddPicture(hostile, [hostile], "odd.jpg")],
        scores=[ScoreRow("bce", "fixed", True, 0.5, dict.fromkeys(NAMES, 0.5), 1, False, hostile)],
        score_split=hostile,
        segmenters=[SegmenterRow("adaptive", False, 0.5, dict.fromkeys(NAMES, 0.5), 1, note=hostile)],
        segmenter_split=hostile,
        label_free=Table(("Class",), [(hostile,)]),
        skipped=[SkippedImage(hostile, hostile)],
        warnings=[hostile],
        overlays=hostile,
    )
    page = Elements(render_page(context, tmp_path))
    elements = {tag for tag, _ in page.found}
    assert not elements & {"script", "a", "link", "iframe", "object"}
    # One picture, and it is in the page; nothing comes from elsewhere.
    assert [attrs["src"][:23] for tag, attrs in page.found if tag == "img"] == ["data:image/jpeg;base64,"]
    assert not [name for _, attrs in page.found for name in attrs if name.startswith("on") or name == "href"]
    assert all(name in page.text for name in NAMES) and page.text.count("onerror=alert(1)") >= 10
    assert "\x1b" not in page.text and "\u202e" not in page.text and "\\x1b[2J\\u202e" in page.text


def test_model_card(tmp_path, monkeypatch):
    monkeypatch.setattr(tiny_run, "NAMES", NAMES)
    run_dir = tiny_run.write_run(tmp_path / "run")
    (tmp_path / "card").mkdir()
    render_model_folder(find_model(run_dir), "user/model", tmp_path / "card")
    check((tmp_path / "card" / "README.md").read_text(), {"quality.md", "run.json"}, set())


def test_label_card_and_page():
    info = LabelSetInfo(list(NAMES), 1, images_per_class=[1] * 4, lost_per_class=[0] * 4)
    check(_tables(info)["class_table"])
    loaded = type("Loaded", (), {"names": ("background", *NAMES), "name": "`x` <b>"})()
    check(_introduction(loaded, True))


def test_console(tmp_path, capsys):
    (tmp_path / "images").mkdir()
    (tmp_path / "tags.csv").write_text("file,tags\n\x1b[2J\u202e.jpg,cat\n")
    assert main(["run", "--recipe", "own-data", "--data-dir", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err and "\u202e" not in said.out + said.err


@pytest.mark.parametrize(
    "values",
    [
        {"class_names": "cat"},
        {"class_names": ["a\nb"]},
        {"class_names": ["cat"], "num_images": "1"},
        {"class_names": ["cat"], "sources": [3]},
        {"class_names": ["cat"], "sources": [{"options": None}]},
        {"class_names": ["cat"], "images_per_class": [1, 2]},
        {"class_names": ["cat"], "shards": {"a.parquet": 1}},
        {"class_names": ["cat"], "tag": ["v1"]},
        {"class_names": ["cat"], "more": 1},
        ["cat"],
        {},
    ],
)
def test_what_no_push_has_written(tmp_path, values):
    path = tmp_path / "labels" / "info.json"
    path.parent.mkdir()
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match="labels/info.json was not written by sbce push labels .*; push into another"):
        read_info(path, "user/name")
