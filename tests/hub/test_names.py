"""Classes and files with names that would be markup, in everything that shows them."""

import json
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import tiny_run
import yaml
from huggingface_hub import DatasetCard
from markdown_it import MarkdownIt
from PIL import Image

from sbce_hf.cli import main
from sbce_hf.data.schema import SkippedImage
from sbce_hf.demo.page import _introduction
from sbce_hf.errors import UserError
from sbce_hf.evaluation.curves import plot_curves, plot_histograms
from sbce_hf.evaluation.quality import Agreement, stage_quality
from sbce_hf.evaluation.quality_page import render_quality
from sbce_hf.evaluation.report import OddPicture, ReportContext, render_report
from sbce_hf.evaluation.report_page import render_page
from sbce_hf.evaluation.scores import ScoreRow, SegmenterRow
from sbce_hf.evaluation.tables import Table
from sbce_hf.hub.label_info import LabelSetInfo, read_info
from sbce_hf.hub.labels import _card, _metadata, _tables
from sbce_hf.hub.models import find_model, render_model_folder
from sbce_hf.hub.ownership import split_card

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


HOSTILE = " ".join(NAMES)


def source_of(method, options=None, **values):
    options = {"in_words": HOSTILE, "note": HOSTILE, "known_classes": HOSTILE, **(options or {})}
    return {"options": options, "num_images": 1, "method": method, "stage": HOSTILE, "checkpoint": HOSTILE, **values}


@pytest.mark.parametrize(
    "source",
    [
        source_of(HOSTILE, key=HOSTILE),
        source_of("fixed", {"background_threshold": HOSTILE}),
        source_of("affinity"),
        source_of("seeds"),
        source_of("irn"),
        source_of("saliency", {"saliency": {"maps": HOSTILE}}),
        source_of("saliency", {"saliency": {"column": HOSTILE}}),
        source_of("saliency", {"saliency": HOSTILE}),
        source_of("saliency"),
        {"options": {}, "num_images": 1, "rule": HOSTILE, "stage": HOSTILE},
    ],
)
def test_label_card_of_a_foreign_store(source):
    info = LabelSetInfo(["cat"], 1, images_per_class=[1], lost_per_class=[0], sources=[source])
    card = _card("user/name", {"labels": info}, "labels", None, HOSTILE, [HOSTILE])
    check(split_card(card)[0], {"labels/info.json"})
    assert yaml.safe_load(card.split("---\n")[1])["license"] == HOSTILE


def test_model_card_of_a_foreign_run(tmp_path):
    run_dir = tiny_run.write_run(tmp_path / "run")
    notes = {"versions": {HOSTILE: HOSTILE}, "hardware": HOSTILE, "manifest_hash": HOSTILE, "command": "sbce run"}
    (run_dir / "run.json").write_text(json.dumps(notes))
    for stage, names in {"round_1": ("stage", "rule", "note"), "segmenter/adaptive": ("labels", "note")}.items():
        path = run_dir / stage / "scores.json"
        values = json.loads(path.read_text())
        values["rows"].append(values["rows"][0] | dict.fromkeys(names, HOSTILE))
        path.write_text(json.dumps(values))
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    config["data"]["score_split"] = config["segmenter"]["score_split"] = HOSTILE
    (run_dir / "config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "card").mkdir()
    render_model_folder(find_model(run_dir), "user/model", tmp_path / "card")
    shown = check((tmp_path / "card" / "README.md").read_text(), {"quality.md", "run.json"})
    # What looks like a path of this machine in it is gone.
    assert sum("alert(1)" in line for line in shown) >= 15


def test_quality_page_of_foreign_stages():
    quality = replace(quality_of(["cat"]), stage=HOSTILE)
    compared = Agreement(0.5, np.array([0.5]), 0.5, 1)
    check(render_quality([quality], {(HOSTILE, HOSTILE): compared}))


def test_names_in_figures_are_no_formulas(tmp_path):
    names = ("$\\frac$", "$x^2$", "cat")
    plot_histograms({"$\\frac$": dict.fromkeys(names, np.linspace(0, 1, 9))}, tmp_path / "a.png")
    line = {"iteration": 1, "loss": 1.0, **{f"mean_p/{name}": 0.5 for name in names}}
    plot_curves({"$\\frac$": [line, line | {"iteration": 2}]}, tmp_path / "b.png")
    assert (tmp_path / "a.png").is_file() and (tmp_path / "b.png").is_file()


PUSHED = {"class_names": ["cat"], "images_per_class": [1], "lost_per_class": [0], "num_images": 1}


def test_what_a_push_has_written(tmp_path):
    assert read_info(written(tmp_path, PUSHED | {"sources": [source_of("paper")], "tag": "labels-1"}), "user/name")


def written(folder, values, name="labels"):
    path = folder / name / "info.json"
    path.parent.mkdir()
    path.write_text(json.dumps(values))
    return path


@pytest.mark.parametrize(
    "values",
    [
        {"class_names": "cat"},
        {"class_names": ["a\nb"]},
        {"num_images": "1"},
        {"sources": [3]},
        {"sources": [{"options": None, "num_images": 1}]},
        {"sources": [{"options": {}, "num_images": "1"}]},
        {"sources": [{"options": {}, "num_images": 1, "ground_truth": []}]},
        {"sources": [source_of(["paper"])]},
        {"sources": [source_of("paper", stage=5)]},
        {"images_per_class": [1, 2]},
        {"images_per_class": []},
        {"shards": {"a.parquet": 1}},
        {"shards": {"../a.parquet": "x"}},
        {"tag": ["v1"]},
        {"tag": "`a` <b>"},
        {"tag": "a; rm x"},
        {"more": 1},
    ],
)
def test_what_no_push_has_written(tmp_path, values):
    refused(written(tmp_path, PUSHED | values))


@pytest.mark.parametrize("values", [["cat"], {}, {"class_names": ["cat"]}])
def test_what_is_something_else(tmp_path, values):
    refused(written(tmp_path, values))


@pytest.mark.parametrize("name", ["a|b", "<b>", "a b", "`a`", ".a"])
def test_configurations_of_odd_names(tmp_path, name):
    refused(written(tmp_path, PUSHED, name))


def refused(path):
    with pytest.raises(ValueError, match="info.json was not written by sbce push labels .*; push into another"):
        read_info(path, "user/name")


@pytest.mark.parametrize("values", ["tags: 5", "task_categories: 5", "self: 1", "card_data: 1", "1: 2", "[1]", "a: ["])
def test_metadata_that_are_no_cards(values):
    info = LabelSetInfo(["cat"], 1, images_per_class=[1], lost_per_class=[0])
    with (
        pytest.raises(UserError, match="user/name: README.md: its metadata are not") as caught,
        _metadata("user/name"),
    ):
        _card("user/name", {"labels": info}, "labels", DatasetCard(f"---\n{values}\n---\n"), None, [])
    assert "\n" not in str(caught.value)
