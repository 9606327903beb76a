import numpy as np

from sbce_hf.evaluation.quality import stage_quality
from sbce_hf.evaluation.scores import ScoreRow
from sbce_hf.evaluation.seeds import seeds_table

NAMES = ("cat", "dog")


def row(stage, mean, cat, dog, crf=False, leak=False):
    return ScoreRow(stage, "fixed 0.3", crf, mean, {"background": 0.9, "cat": cat, "dog": dog}, 10, leak)


def quality(stage, lost):
    records = [{"image_id": f"i{n}", "classes": [0, 1], "proportions": [0.2, float(n >= lost)]} for n in range(10)]
    return stage_quality(stage, NAMES, records)


def cells(table):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.markdown().splitlines()[2:]]


def test_mean_range_worst_class_and_lost_tags():
    scores = {
        0: [row("bce", 0.30, 0.4, 0.2), row("bce", 0.35, 0.5, 0.2, crf=True), row("bce", 0.9, 1, 1, leak=True)],
        1: [row("bce", 0.40, 0.1, 0.2), row("bce", 0.45, 0.5, 0.3, crf=True)],
    }
    found = cells(seeds_table(scores, {0: {"bce": quality("bce", 1)}, 1: {"bce": quality("bce", 3)}}))
    assert found == [
        ["bce", "fixed 0.3", "no", "35.0", "30.0 to 40.0", "dog 20.0", "10.0"],
        ["bce", "fixed 0.3", "yes", "40.0", "35.0 to 45.0", "dog 25.0", "10.0"],
    ]


def test_without_masks_lost_tags_are_all_there_is():
    found = cells(seeds_table({0: [], 1: []}, {0: {"bce": quality("bce", 0)}, 1: {"bce": quality("bce", 4)}}))
    assert [line[3] for line in found] == ["-", "-"] and {line[-1] for line in found} == {"10.0"}


def test_a_class_that_no_mask_shows_is_not_the_worst():
    scores = {0: [row("bce", 0.3, np.nan, 0.2)]}
    assert cells(seeds_table(scores, {0: {"bce": quality("bce", 0)}}))[0][5] == "dog 20.0"
