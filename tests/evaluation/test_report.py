import dataclasses
import math

import numpy as np
import pytest
from PIL import Image

from sbce_hf import files
from sbce_hf.data.schema import IGNORE_INDEX, SkippedImage
from sbce_hf.evaluation import contact_sheet as sheets
from sbce_hf.evaluation import curves
from sbce_hf.evaluation.contact_sheet import ContactRow, contact_sheet
from sbce_hf.evaluation.curves import plot_curves
from sbce_hf.evaluation.overlay import shown_colours
from sbce_hf.evaluation.report import ReportContext, render_report
from sbce_hf.evaluation.scan import LEAK_MARK
from sbce_hf.evaluation.scores import ScoreRow, per_class_table, score_table
from sbce_hf.evaluation.tables import Table, markdown_table, percent
from sbce_hf.files import write_atomic
from sbce_hf.text import duration

HONEST = ScoreRow(
    "round1", "paper", True, 0.6234, {"background": 0.9, "cat": 0.5, "dog": math.nan}, 370, False, "best"
)
LEAK = ScoreRow("round1", "fixed 0.42", False, 0.7, {"background": 0.8, "cat": 0.6, "dog": 0.7}, 370, True)
CONTEXT = ReportContext(
    title="A run",
    command="sbce run shapes --seed 3",
    seed=3,
    data="shapes, split train",
    num_images=320,
    class_names=("cat", "dog"),
    versions={"torch": "2.6.0", "timm": "1.0.15"},
    hardware="2 CPU cores",
    durations={"bce": 192.0, "round1": 3720.0},
    scores=(LEAK, HONEST),
    score_split="val",
    label_free=Table(("Stage", "label-free"), [("round1", "95.0")]),
    figures={"Training": "figures/curves.png"},
    skipped=(SkippedImage("a.jpg", "truncated"),),
    warnings=("round1, cat: collapse",),
)


def cells(table):
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()]


def test_numbers():
    assert [percent(v) for v in (0.6234, 0.6235, 1, 0, math.nan, None)] == ["62.3", "62.4", "100.0", "0.0", "-", "-"]
    assert [duration(s) for s in (0, 59.94, 59.96, 192, 3599.7, 3720)] == [
        "0.0 s",
        "59.9 s",
        "1 min 00 s",
        "3 min 12 s",
        "1 h 00 min",
        "1 h 02 min",
    ]


def test_a_cell_cannot_break_its_table():
    table = markdown_table(("a", "b"), [("x|y", "two\nlines")])
    assert table.splitlines() == ["| a | b |", "| --- | ---: |", "| x\\|y | two lines |"]


def test_a_table_for_a_terminal_is_aligned_without_empty_columns():
    table = Table(("Stage", "Note", "mIoU (%)"), [("bce", "", "9.5"), ("round_1", None, "55.0")], text_columns=2)
    assert table.lines() == [
        "Stage    mIoU (%)",
        "-------  --------",
        "bce           9.5",
        "round_1      55.0",
    ]


def test_names_in_a_table_are_no_markup():
    line = Table(("Class",), [("**b** [a](http://x)",)]).markdown().splitlines()[2]
    assert line == r"| \*\*b\*\* \[a\](http:\//x) |"


def test_score_table_marks_leaks_and_puts_them_last():
    header, _, first, second = cells(score_table([LEAK, HONEST]).markdown())
    assert header == ["Stage", "Rule", "Dense CRF", "Note", "mIoU (%)", "Images"]
    assert first == ["round1", "paper", "yes", "best", "62.3", "370"]
    assert second == ["round1", "fixed 0.42", "no", f"**{LEAK_MARK}**", "70.0", "370"]


def test_per_class_table_keeps_columns_apart():
    header, _, background, cat, dog, mean = cells(per_class_table([LEAK, HONEST]).markdown())
    assert header == ["Class", "round1 paper + CRF", f"round1 fixed 0.42 {LEAK_MARK}"]
    assert [background, cat, dog] == [["background", "90.0", "80.0"], ["cat", "50.0", "60.0"], ["dog", "-", "70.0"]]
    assert mean == ["**mean**", "62.3", "70.0"]


def test_per_class_table_names_rules_only_where_a_stage_has_several():
    plain = dataclasses.replace(HONEST, crf=False)
    assert cells(per_class_table([plain, HONEST]).markdown())[0] == ["Class", "round1", "round1 + CRF"]


def test_per_class_table_of_scores_with_different_classes():
    other = dataclasses.replace(HONEST, per_class_iou={"background": 0.1, "cow": 0.2})
    assert ["cow", "-", "20.0"] in cells(per_class_table([HONEST, other]).markdown())


def test_report_says_what_was_run():
    text = render_report(CONTEXT)
    for expected in (
        "# A run\n",
        "```bash\nsbce run shapes --seed 3\n```",
        "| Seed | 3 |",
        "torch 2.6.0, timm 1.0.15",
        "bce 3 min 12 s, round1 1 h 02 min",
        "320 trained on and labelled, 1 skipped",
        "`a.jpg`: truncated",
        "masks of split `val`",
        "![Training](figures/curves.png)",
        "[quality.md](quality.md)",
        "[config.yaml](config.yaml)",
        "- round1, cat: collapse",
        "| Stage | label-free |",
        score_table(CONTEXT.scores).markdown(),
    ):
        assert expected in text, expected
    assert text.endswith("\n")


def test_report_without_truth_says_so_and_shows_no_score():
    text = render_report(dataclasses.replace(CONTEXT, score_split=None))
    assert "No ground truth was given" in text and "| Stage | label-free |" in text
    assert "62.3" not in text and "mIoU (%)" not in text and LEAK_MARK not in text


def test_report_without_skipped_images_warnings_and_figures():
    text = render_report(dataclasses.replace(CONTEXT, skipped=(), warnings=(), figures={}))
    assert "## Warnings\n\nNone." in text and "## Skipped" not in text and "## Figures" not in text


def test_report_lists_only_the_first_skipped_images():
    text = render_report(dataclasses.replace(CONTEXT, skipped=[SkippedImage(f"{i}.jpg", "bad") for i in range(25)]))
    assert "## Skipped images: 25" in text and "`9.jpg`" in text and "`10.jpg`" not in text and "15 more" in text


def test_write_atomic_replaces_or_leaves_alone(tmp_path, monkeypatch):
    path = tmp_path / "new" / "report.md"
    write_atomic(path, "first")
    write_atomic(path, "zweite Fassung: größer")
    assert path.read_text(encoding="utf-8") == "zweite Fassung: größer"

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(files.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, "third")
    assert path.read_text(encoding="utf-8") == "zweite Fassung: größer"
    assert [p.name for p in path.parent.iterdir()] == ["report.md"]


def line(iteration, **values):
    return {"iteration": iteration, **values}


def test_stages_follow_each_other_on_the_axis(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(curves, "save_figure", lambda figure, path: figures.append(figure))
    plot_curves(
        {
            "bce": [line(10, lr=0.1, loss=1.0), line(20, lr=0.05, loss=0.5)],
            "round1": [line(10, lr=0.1, **{"mean_p/a/b": 0.3, "threshold/a/b": 0.5}), line(30, lr=0.2, loss=None)],
        },
        tmp_path / "curves.png",
    )
    panels = {axes.get_title(): axes for axes in figures[0].axes}
    assert {"loss", "learning rate", "logit scale", "mean threshold", "a/b"} <= panels.keys()
    rates = [
        curve for curve in panels["learning rate"].lines if len(curve.get_xdata()) == 2 and curve.get_alpha() is None
    ]
    drawn = [(list(c.get_xdata()), list(c.get_ydata())) for c in rates if c.get_linestyle() == "-"]
    assert drawn == [([10, 20], [0.1, 0.05]), ([30, 50], [0.1, 0.2])]
    assert [list(c.get_ydata()) for c in panels["a/b"].lines if len(c.get_ydata()) == 1] == [[0.3], [0.5]]
    assert "not logged" in [text.get_text() for text in panels["logit scale"].texts]
    assert "not logged" not in [text.get_text() for text in panels["loss"].texts]


@pytest.mark.parametrize("metrics", [{}, {"bce": []}, {"bce": [line(1, loss=math.nan)]}])
def test_curves_of_little(metrics, tmp_path):
    plot_curves(metrics, tmp_path / "curves.png")
    assert Image.open(tmp_path / "curves.png").format == "PNG"


def test_equal_values_give_equal_files(tmp_path):
    for name in ("a.png", "b.png"):
        plot_curves({"bce": [line(1, loss=0.5)]}, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_moving_mean_keeps_constants_and_length():
    assert curves._moving_mean(np.full(7, 2.0), 4) == pytest.approx(np.full(7, 2.0))
    assert curves._moving_mean(np.array([0.0, 3.0, 6.0, 3.0]), 3) == pytest.approx([1.5, 3.0, 4.0, 4.5])
    assert len(curves._moving_mean(np.array([1.0]), 1)) == 1


def contact_row(height=40, width=60, **changes):
    label_map = np.zeros((height, width), np.uint8)
    label_map[:, : width // 2] = 1
    values = {
        "image_id": "photo",
        "image": Image.new("RGB", (width, height), (128, 128, 128)),
        "activation": np.linspace(0, 1, height * width, dtype=np.float32).reshape(height, width),
        "label_map": label_map,
    }
    return ContactRow(**values | changes)


def sheet_pixels(path):
    image = Image.open(path)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def cell_middle(column, side):
    """Pixel in the left (0) or right (1) half of a column's cell in the first row."""
    x = sheets.GAP + column * (sheets.CELL_WIDTH + sheets.GAP) + sheets.CELL_WIDTH * (1 + 2 * side) // 4
    return sheets.LINE_HEIGHT + sheets.GAP + 90, x


def test_contact_sheet_paints_maps_in_the_colours_of_overlays(tmp_path):
    truth = np.full((40, 60), 2, np.uint8)
    truth[:, 30:] = IGNORE_INDEX
    contact_sheet([contact_row(truth=truth)], ("cat", "dog"), tmp_path / "sheet.png")
    pixels = sheet_pixels(tmp_path / "sheet.png")
    colours = shown_colours(2)
    grey = (1 - sheets.COLOUR_SHARE) * 128
    # No image has a map after the CRF: truth is the fourth column.
    for column, side, label in ((2, 0, 1), (2, 1, 0), (3, 0, 2)):
        assert np.abs(pixels[cell_middle(column, side)] - (sheets.COLOUR_SHARE * colours[label] + grey)).max() <= 1
    assert pixels[cell_middle(0, 0)].tolist() == [128, 128, 128]
    y, x = cell_middle(3, 1)
    ignored = pixels[y - 10 : y + 10, x - 10 : x + 10]
    assert ignored.mean() > 200 and len(np.unique(ignored)) == 2  # white with hatching
    assert (np.ptp(ignored, axis=2) == 0).all()
    assert pixels[cell_middle(1, 1)].sum() > 0


def test_contact_sheet_activation_is_brighter_where_higher(tmp_path):
    activation = np.zeros((40, 60))
    activation[:, 30:] = 1
    activation[0, 0] = np.nan
    contact_sheet([contact_row(activation=activation)], ("cat",), tmp_path / "sheet.png")
    pixels = sheet_pixels(tmp_path / "sheet.png")
    assert pixels[cell_middle(1, 1)].sum() > 2 * pixels[cell_middle(1, 0)].sum()


def test_contact_sheet_grows_by_rows_and_columns(tmp_path):
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    contact_sheet([contact_row()], ("cat",), one)
    tall = contact_row(400, 20, image_id="x" * 200)
    contact_sheet([contact_row(crf_label_map=np.zeros((40, 60), np.uint8)), tall], ("cat",), two)
    small, large = sheet_pixels(one).shape, sheet_pixels(two).shape
    assert large[1] - small[1] == sheets.CELL_WIDTH + sheets.GAP
    assert large[0] - small[0] == sheets.CELL_HEIGHT_LIMIT + sheets.LINE_HEIGHT + sheets.GAP


def test_legend_wraps_with_many_classes():
    names = [f"a long class name {i}" for i in range(80)]
    row = contact_row(80, 81, label_map=np.tile(np.arange(81, dtype=np.uint8), (80, 1)))
    legend = sheets._legend([row], names, shown_colours(80), 900)
    assert legend.width == 900 and legend.height > 10 * sheets.LINE_HEIGHT


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"truth": np.zeros((5, 5), np.uint8)}, r"'photo'.*truth has shape \(5, 5\), expected \(40, 60\)"),
        ({"label_map": np.full((40, 60), 2, np.uint8)}, "'photo'.*label_map holds 2, expected 0 to 1 or 255"),
        ({"activation": np.zeros((1, 40, 60))}, "activation has shape"),
    ],
)
def test_contact_sheet_errors(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        contact_sheet([contact_row(**changes)], ("cat",), tmp_path / "sheet.png")
    assert not list(tmp_path.iterdir())


def test_contact_sheet_without_rows(tmp_path):
    with pytest.raises(ValueError, match="no rows"):
        contact_sheet([], ("cat",), tmp_path / "sheet.png")
