"""What label maps and segmentation networks reached on masks: rows of `scores.json`, and their tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .scan import LEAK_MARK
from .tables import Strong, Table, percent


@dataclass(frozen=True)
class ScoreRow:
    """Label maps of one stage under one rule, scored on masks.

    Args:
        stage: name of the training stage, for example `"round1"`.
        rule: how class maps became labels, for example `"paper"` or `"fixed 0.30"`.
        crf: whether the dense CRF ran on the label maps.
        mean_iou: in 0-1; NaN when nothing was scored.
        per_class_iou: class name, `"background"` included, to IoU in 0-1; NaN for a class in neither map nor mask.
        num_images: images that were scored.
        uses_ground_truth: the rule's constant was chosen on the masks it is scored on, or the network was trained with
            proportions of masks, so the number is a leak.
        note: what else was done to the label maps, in words.
    """

    stage: str
    rule: str
    crf: bool
    mean_iou: float
    per_class_iou: Mapping[str, float]
    num_images: int
    uses_ground_truth: bool
    note: str = ""


@dataclass(frozen=True)
class SegmenterRow:
    """A segmentation network, scored on masks of images it was not trained on.

    Args:
        labels: what it was trained on: `"adaptive"` (the run's last label maps), `"bce"` or `"mask"` (true masks).
        crf: whether the dense CRF ran on its predictions.
        mean_iou: in 0-1; NaN when nothing was scored.
        per_class_iou: class name, `"background"` included, to IoU in 0-1; NaN for a class in neither map nor mask.
        num_images: images that were scored.
        uses_ground_truth: its label maps come from a training with proportions of masks, so the number is a leak.
        note: what else was done to the label maps that it was trained on, in words.
    """

    labels: str
    crf: bool
    mean_iou: float
    per_class_iou: Mapping[str, float]
    num_images: int
    uses_ground_truth: bool = False
    note: str = ""


def score_table(rows: Sequence[ScoreRow]) -> Table:
    """One line per score, mIoU in percent; those that used ground truth come last and are marked as a leak."""
    cells = []
    for row in sorted(rows, key=lambda row: row.uses_ground_truth):
        note = Strong(LEAK_MARK) if row.uses_ground_truth else row.note
        crf = "yes" if row.crf else "no"
        cells.append((row.stage, row.rule, crf, note, percent(row.mean_iou), row.num_images))
    return Table(("Stage", "Rule", "Dense CRF", "Note", "mIoU (%)", "Images"), cells, text_columns=4)


def per_class_table(rows: Sequence[ScoreRow]) -> Table:
    """One line per class, one column per score, IoU in percent; rules are named where a stage has several."""
    ordered = sorted(rows, key=lambda row: row.uses_ground_truth)
    rules = {row.stage: {other.rule for other in rows if other.stage == row.stage} for row in rows}
    header = []
    for row in ordered:
        rule = f" {row.rule}" if len(rules[row.stage]) > 1 else ""
        header.append(
            f"{row.stage}{rule}{' + CRF' if row.crf else ''}{' ' + LEAK_MARK if row.uses_ground_truth else ''}"
        )
    means = (Strong("mean"), *(percent(row.mean_iou) for row in ordered))
    return Table(("Class", *header), [*_per_class(ordered), means])


def _per_class(rows: Sequence[ScoreRow | SegmenterRow]) -> list[tuple[str, ...]]:
    names = dict.fromkeys(name for row in rows for name in row.per_class_iou)
    return [(name, *(percent(row.per_class_iou.get(name)) for row in rows)) for name in names]


# What a segmenter's training labels are called in a table.
_TRAINED_ON = {
    "adaptive": "the run's label maps",
    "bce": "label maps of BCE",
    "mask": "true masks (a yardstick)",
}


def segmenter_table(rows: Sequence[SegmenterRow]) -> Table:
    """One line per segmenter, mIoU in percent, and its share of what the same network reaches on true masks."""
    full = {row.crf: row.mean_iou for row in rows if row.labels == "mask"}
    cells = [
        (
            _TRAINED_ON.get(row.labels, row.labels) + (f" ({row.note})" if row.note else ""),
            "yes" if row.crf else "no",
            "yes" if row.labels == "mask" or row.uses_ground_truth else "no",
            percent(row.mean_iou),
            percent(row.mean_iou / full[row.crf]) if full.get(row.crf) else "-",
            row.num_images,
        )
        for row in rows
    ]
    header = ("Trained on", "Dense CRF", "Ground truth used", "mIoU (%)", "Share of true masks' (%)", "Images")
    return Table(header, cells, text_columns=3)


def segmenter_class_table(rows: Sequence[SegmenterRow]) -> Table:
    """One line per class, one column per segmenter, IoU in percent."""
    columns = [f"{row.labels}{' + CRF' if row.crf else ''}" for row in rows]
    return Table(("Class", *columns), _per_class(rows))
