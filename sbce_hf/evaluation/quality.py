"""Label-free quality of label maps: what can be known about a run when nobody has drawn a mask.

A healthy stage keeps every tagged class somewhere in its image, covers a moderate part of it, and has probabilities
that are not all saturated.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sbce_hf.evaluation.curves import plot_histograms
from sbce_hf.evaluation.report import markdown_table, percent

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
# A tagged class without a pixel is expected in a few images (tiny or hidden objects), not in every fifth.
MAX_LOST_SHARE = 0.2
# The median object of VOC and COCO classes covers a few to some tens of percent of its image.
MIN_MEDIAN_COVERAGE, MAX_MEDIAN_COVERAGE = 0.01, 0.9
# Fewer pixels with 0.02 < p < 0.98 than this, and neither loss term has a gradient left to move p with.
MIN_SOFT_SHARE = 0.02
FIELDS = ("thresholds", "proportions", "soft_share", "mean_probability")


@dataclass(frozen=True)
class ClassQuality:
    """One class in one stage, over the images that are known to show it. Shares are in 0-1, NaN when unknown.

    Args:
        name: of the class.
        images: number of images known to show it.
        empty_share: share of them where no pixel passed the threshold (or another class won everywhere), before CRF.
        lost_share: share of them without a pixel in the final label map; equals `empty_share` without CRF.
        threshold_quantiles: of the adaptive threshold at [`QUANTILES`]; NaN for a rule without.
        coverage_mean: mean share of the image in the final label map.
        coverage_median: its median.
        soft_share: mean share of pixels whose probability is between 0.02 and 0.98.
        mean_probability: mean over pixels and images.
        thresholds (`np.ndarray` of shape `(n,)`, float64): the adaptive thresholds themselves.
        warnings: in words, without stage and class.
    """

    name: str
    images: int
    empty_share: float
    lost_share: float
    threshold_quantiles: tuple[float, ...]
    coverage_mean: float
    coverage_median: float
    soft_share: float
    mean_probability: float
    thresholds: np.ndarray
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class StageQuality:
    """All classes of one stage.

    Args:
        stage: its name.
        num_images: label maps, those without any class included.
        classes: in class order.
    """

    stage: str
    num_images: int
    classes: tuple[ClassQuality, ...]

    @property
    def warnings(self) -> list[str]:
        """Every class's warnings as full sentences."""
        return [f"{self.stage}, {c.name}: {warning}" for c in self.classes for warning in c.warnings]


@dataclass(frozen=True)
class Agreement:
    """How far two sets of label maps of the same images agree; symmetric, and no measure of correctness.

    Args:
        mean_iou: mean of `per_class_iou` without NaN.
        per_class_iou (`np.ndarray` of shape `(num_classes + 1,)`, float64): background first; NaN where both lack it.
        pixels: share of pixels with the same label.
        num_images: images compared.
    """

    mean_iou: float
    per_class_iou: np.ndarray
    pixels: float
    num_images: int


def stage_quality(
    stage: str,
    class_names: Sequence[str],
    records: Iterable[Mapping[str, Any]],
    crf_records: Iterable[Mapping[str, Any]] | None = None,
) -> StageQuality:
    """Sum up the records of a label store.

    Args:
        stage: name for tables and warnings.
        class_names: the C foreground classes.
        records: one per image before the CRF: `image_id`, `classes` (known class indices), and in the same order
            `proportions` (share of the image), `thresholds`, `soft_share`, `mean_probability`; values of the
            last three may be `None`, or the lists be left out. The last record of an image counts.
        crf_records: the same after the CRF, of which only `proportions` is read.

    Raises:
        ValueError: a list that has not one value per class, a class index out of range, or images before and after the
            CRF that differ.
    """
    before = _columns(stage, len(class_names), records)
    after = before if crf_records is None else _columns(f"{stage} after CRF", len(class_names), crf_records)
    if before.keys() != after.keys():
        odd = min(before.keys() ^ after.keys())
        raise ValueError(
            f"{stage}: image {odd!r} has a record only before or only after the CRF; label the stage again"
        )
    classes = []
    for index, name in enumerate(class_names):
        values = (
            np.array([row[index] for row in images.values() if index in row], dtype=float).reshape(-1, len(FIELDS))
            for images in (before, after)
        )
        classes.append(_class_quality(name, *values))
    return StageQuality(stage, len(before), tuple(classes))


def _columns(
    stage: str, num_classes: int, records: Iterable[Mapping[str, Any]]
) -> dict[str, dict[int, tuple[float, ...]]]:
    """Image id to class index to the values of `FIELDS`, NaN where unknown."""
    images = {}
    for record in records:
        classes, where = record["classes"], f"{stage}, image {record['image_id']!r}"
        for index in classes:
            if not 0 <= index < num_classes:
                raise ValueError(f"{where}: classes holds {index}, expected 0 to {num_classes - 1}")
        columns = []
        for name in FIELDS:
            optional = name != "proportions"
            values = [None] * len(classes) if optional and record.get(name) is None else record[name]
            if len(values) != len(classes):
                raise ValueError(f"{where}: {name} has {len(values)} values, expected one per class, {len(classes)}")
            columns.append([math.nan if value is None else float(value) for value in values])
        images[record["image_id"]] = dict(zip(classes, zip(*columns, strict=True), strict=True))
    return images


def _class_quality(name: str, before: np.ndarray, after: np.ndarray) -> ClassQuality:
    thresholds, _, soft, probability = (column[~np.isnan(column)] for column in before.T)
    proportions = before[:, FIELDS.index("proportions")]
    coverage = after[:, FIELDS.index("proportions")]
    quantiles = np.quantile(thresholds, QUANTILES) if thresholds.size else [math.nan] * len(QUANTILES)
    empty, lost = _mean(proportions == 0), _mean(coverage == 0)
    median = float(np.median(coverage)) if coverage.size else math.nan
    warnings = []
    if not len(before):
        warnings.append("in no image's known classes")
    if lost > MAX_LOST_SHARE:
        warnings.append(f"collapse: without a pixel in {percent(lost)} % of its images (of {len(before)})")
    if median < MIN_MEDIAN_COVERAGE:
        warnings.append(f"collapse: covers {percent(median, 2)} % of its median image")
    if median > MAX_MEDIAN_COVERAGE:
        warnings.append(f"flood: covers {percent(median)} % of its median image")
    if _mean(soft) < MIN_SOFT_SHARE:
        warnings.append(f"saturated: only {percent(_mean(soft))} % of its pixels have 0.02 < p < 0.98")
    return ClassQuality(
        name=name,
        images=len(before),
        empty_share=empty,
        lost_share=lost,
        threshold_quantiles=tuple(float(value) for value in quantiles),
        coverage_mean=_mean(coverage),
        coverage_median=median,
        soft_share=_mean(soft),
        mean_probability=_mean(probability),
        thresholds=thresholds,
        warnings=tuple(warnings),
    )


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else math.nan


def agreement(maps_a: Iterable[np.ndarray], maps_b: Iterable[np.ndarray], num_classes: int) -> Agreement:
    """Compare two stages' label maps of the same images, one pair in memory at a time.

    Args:
        maps_a: label maps, integer arrays of shape `(H, W)` with values 0 (background) to `num_classes`.
        maps_b: those of the other stage, in the same order.
        num_classes: number of foreground classes C.

    Raises:
        ValueError: pairs of unequal shape, a value above `num_classes`, or unequal numbers of maps.
    """
    size = num_classes + 1
    counts = np.zeros((size, size), dtype=np.int64)
    num_images = 0
    for a, b in zip(maps_a, maps_b, strict=True):
        if a.shape != b.shape:
            raise ValueError(f"agreement, pair {num_images}: got shapes {a.shape} and {b.shape}, expected equal ones")
        highest = max(a.max(initial=0), b.max(initial=0))
        if highest > num_classes:
            raise ValueError(f"agreement, pair {num_images}: got label {highest}, expected 0 to {num_classes}")
        counts += np.bincount(a.astype(np.int64).ravel() * size + b.ravel(), minlength=size**2).reshape(size, size)
        num_images += 1
    same = np.diag(counts).astype(float)
    union = counts.sum(0) + counts.sum(1) - same
    iou = np.divide(same, union, out=np.full(size, math.nan), where=union > 0)
    total = counts.sum()
    return Agreement(
        mean_iou=_mean(iou[~np.isnan(iou)]),
        per_class_iou=iou,
        pixels=float(same.sum() / total) if total else math.nan,
        num_images=num_images,
    )


def summary_table(stages: Sequence[StageQuality]) -> str:
    """One line per stage, class means: the label-free numbers for the report."""
    rows = []
    for stage in stages:
        shown = [c for c in stage.classes if c.images]
        means = [
            percent(_mean(np.array([v for c in shown if not math.isnan(v := getattr(c, name))])))
            for name in ("lost_share", "coverage_median", "soft_share", "mean_probability")
        ]
        rows.append((stage.stage, stage.num_images, *means, len(stage.warnings)))
    header = ("Stage", "Images", "Lost (%)", "Median coverage (%)", "Soft pixels (%)", "Mean p (%)", "Warnings")
    return markdown_table(header, rows)


def render_quality(
    stages: Sequence[StageQuality],
    agreements: Mapping[tuple[str, str], Agreement] | None = None,
    histogram: str | None = None,
) -> str:
    """The quality report as Markdown.

    Args:
        stages: in order.
        agreements: pairs of stages to the agreement of their label maps.
        histogram: the figure of [`plot_thresholds`], relative to the report.
    """
    warnings = [f"- {warning}" for stage in stages for warning in stage.warnings]
    parts = [
        "# Quality without ground truth",
        "No mask was read for this page. *Empty*: images of a class where no pixel passed its threshold or another "
        "class won everywhere. *Lost*: images without a pixel of it in the final label map, after the CRF if it ran. "
        "*Coverage*: its share of the image. *Soft*: share of pixels with 0.02 < p < 0.98.",
        f"A warning is given for a class lost in more than {percent(MAX_LOST_SHARE, 0)} % of its images, for a median "
        f"coverage below {percent(MIN_MEDIAN_COVERAGE, 0)} % or above {percent(MAX_MEDIAN_COVERAGE, 0)} %, and for "
        f"fewer than {percent(MIN_SOFT_SHARE, 0)} % soft pixels.",
        "## Warnings",
        "\n".join(warnings) or "None.",
        "## Stages",
        summary_table(stages),
    ]
    if agreements:
        rows = [(*pair, percent(a.mean_iou), percent(a.pixels), a.num_images) for pair, a in agreements.items()]
        header = ("Label maps of", "against", "Mean IoU (%)", "Equal pixels (%)", "Images")
        parts += [
            "## Agreement between stages",
            "Both sides are label maps of this run: this is how much they changed, not whether they are right.",
            markdown_table(header, rows, text_columns=2),
        ]
    parts += [text for stage in stages for text in (f"## {stage.stage}", _class_table(stage))]
    if histogram:
        parts += ["## Adaptive thresholds", f"![Histogram of the adaptive thresholds per class]({histogram})"]
    return "\n\n".join(parts) + "\n"


def _class_table(stage: StageQuality) -> str:
    header = ["Class", "Images", "Empty (%)", "Lost (%)", "Coverage mean (%)", "median (%)", "Soft (%)", "Mean p (%)"]
    header += [f"Threshold {percent(q, 0)} %" for q in QUANTILES]
    rows = []
    for c in stage.classes:
        shares = (c.empty_share, c.lost_share, c.coverage_mean, c.coverage_median, c.soft_share, c.mean_probability)
        quantiles = ("-" if math.isnan(q) else f"{q:.2f}" for q in c.threshold_quantiles)
        rows.append((c.name, c.images, *map(percent, shares), *quantiles))
    return markdown_table(header, rows)


def plot_thresholds(stages: Sequence[StageQuality], path: Path) -> bool:
    """Draw a histogram of the adaptive thresholds, one panel per class, one line per stage.

    Returns:
        Whether there was a threshold to draw; without one no file is written.
    """
    adaptive = [stage for stage in stages if any(c.thresholds.size for c in stage.classes)]
    if adaptive:
        plot_histograms({stage.stage: {c.name: c.thresholds for c in stage.classes} for stage in adaptive}, path)
    return bool(adaptive)
