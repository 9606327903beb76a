"""The quality report: what [`quality`] found, as Markdown and as a figure."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..postprocess.rules import SOFT_RANGE
from ..text import markdown
from .curves import plot_histograms
from .quality import (
    MAX_LOST_SHARE,
    MAX_MEDIAN_COVERAGE,
    MIN_MEDIAN_COVERAGE,
    MIN_SOFT_SHARE,
    QUANTILES,
    Agreement,
    StageQuality,
    mean,
)
from .tables import Table, markdown_table, percent


def summary_table(stages: Sequence[StageQuality]) -> Table:
    """One line per stage, class means: the label-free numbers for the report."""
    rows = []
    for stage in stages:
        shown = [c for c in stage.classes if c.images]
        means = [
            percent(mean(np.array([v for c in shown if not math.isnan(v := getattr(c, name))])))
            for name in ("lost_share", "coverage_median", "soft_share", "mean_probability")
        ]
        rows.append((stage.stage, stage.num_images, *means, len(stage.warnings)))
    header = ("Stage", "Images", "Lost (%)", "Median coverage (%)", "Soft pixels (%)", "Mean p (%)", "Warnings")
    return Table(header, rows)


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
    warnings = [f"- {markdown(warning)}" for stage in stages for warning in stage.warnings]
    parts = [
        "# Quality without ground truth",
        "No mask was read for this page. *Empty*: images of a class where no pixel passed its threshold or another "
        "class won everywhere. *Lost*: images without a pixel of it in the final label map, after the CRF if it ran. "
        f"*Coverage*: its share of the image. *Soft*: share of pixels with {SOFT_RANGE[0]} < p < {SOFT_RANGE[1]}.",
        f"A warning is given for a class lost in more than {percent(MAX_LOST_SHARE, 0)} % of its images, for a median "
        f"coverage below {percent(MIN_MEDIAN_COVERAGE, 0)} % or above {percent(MAX_MEDIAN_COVERAGE, 0)} %, and for "
        f"fewer than {percent(MIN_SOFT_SHARE, 0)} % soft pixels.",
        "## Warnings",
        "\n".join(warnings) or "None.",
        "## Stages",
        summary_table(stages).markdown(),
    ]
    if agreements:
        rows = [
            (*map(markdown, pair), percent(a.mean_iou), percent(a.pixels), a.num_images)
            for pair, a in agreements.items()
        ]
        header = ("Label maps of", "against", "Mean IoU (%)", "Equal pixels (%)", "Images")
        parts += [
            "## Agreement between stages",
            "Both sides are label maps of this run: this is how much they changed, not whether they are right.",
            markdown_table(header, rows, text_columns=2),
        ]
    parts += [text for stage in stages for text in (f"## {markdown(stage.stage)}", _class_table(stage))]
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
        rows.append((markdown(c.name), c.images, *map(percent, shares), *quantiles))
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
