"""Training curves and threshold histograms."""

import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..files import write_atomic
from .fonts import drawable, font_file

PANELS_IN_A_ROW = 4
# Fewer logged values of a stage are points, in which nobody should read a course; fewer thresholds no distribution.
LEAST_POINTS, LEAST_VALUES = 4, 5


def save_figure(figure: Figure, path: Path) -> None:
    """Save a figure as PNG, atomically and without a version stamp, so that equal values give equal files."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    write_atomic(path, buffer.getvalue())


# Names of classes are text, and a dollar sign in them opens no formula.
@matplotlib.rc_context({"text.parse_math": False})
def plot_curves(metrics: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Draw what was logged during training, all stages one after the other on one axis.

    Panels: loss terms, learning rate, logit scale and mean threshold; then one per class with mean probability, mean
    proportion, mean threshold and the share of soft pixels. A value that was not logged is left out; without classes,
    as of a boundary network, so is an empty panel.

    Args:
        metrics: stage to the lines of its `metrics.jsonl`: `iteration` and any of `loss`, `spatial_loss`,
            `proportion_loss`, `same_loss`, `different_loss`, `lr`, `logit_scale`, `threshold`, and `mean_p/<class>`,
            `mean_q/<class>`, `threshold/<class>`, `soft_share/<class>`.
        path: PNG file to write.
    """
    curves = _Curves({stage: lines for stage, lines in metrics.items() if lines})
    names = curves.class_names()
    rows = 1 + math.ceil(len(names) / PANELS_IN_A_ROW)
    figure = Figure(figsize=(4 * PANELS_IN_A_ROW, 2.8 * rows), layout="constrained")
    axes = figure.subplots(rows, PANELS_IN_A_ROW, squeeze=False).flat

    for key, label, colour in (
        ("loss", "total", "black"),
        ("spatial_loss", "spatial", "tab:blue"),
        ("proportion_loss", "proportion", "tab:orange"),
        ("same_loss", "pairs with equal labels", "tab:green"),
        ("different_loss", "pairs with different labels", "tab:red"),
    ):
        curves.draw(axes[0], key, label, smooth=True, color=colour)
    curves.draw(axes[1], "lr", None, color="black")
    curves.draw(axes[2], "logit_scale", None, color="black")
    curves.draw(axes[3], "threshold", None, color="tab:red")
    for panel, title in zip(axes, ("loss", "learning rate", "logit scale", "mean threshold"), strict=False):
        curves.finish(panel, title)
        panel.set_visible(bool(names) or panel.has_data() or title == "loss")
    axes[3].set_ylim(0, 1)
    for panel, name in zip(axes[PANELS_IN_A_ROW:], names, strict=False):
        curves.draw(panel, f"soft_share/{name}", "soft pixels", fill=True, color="0.85")
        curves.draw(panel, f"mean_p/{name}", "mean p", color="tab:blue")
        curves.draw(panel, f"mean_q/{name}", "proportion q", color="black", linestyle="--", linewidth=1)
        curves.draw(panel, f"threshold/{name}", "threshold", color="tab:red", linewidth=1)
        curves.finish(panel, name, legend=name == names[0])
        panel.set_ylim(0, 1)
    for panel in axes[PANELS_IN_A_ROW + len(names) :]:
        panel.set_visible(False)
    figure.supxlabel("iteration", fontsize=9)
    save_figure(figure, path)


class _Curves:
    """Logged values of several stages, shifted so that one stage begins where the one before it ended."""

    def __init__(self, metrics: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        self.metrics = metrics
        self.spans: dict[str, tuple[float, float]] = {}
        self.end = 0.0
        # The most values of a stage that a panel shows.
        self._most: dict[Axes, int] = {}
        for stage, lines in metrics.items():
            start, self.end = self.end, self.end + max(line["iteration"] for line in lines)
            self.spans[stage] = (start, self.end)

    def class_names(self) -> list[str]:
        kinds = ("mean_p", "mean_q", "threshold", "soft_share")
        keys = dict.fromkeys(key for lines in self.metrics.values() for line in lines for key in line)
        parts = (key.partition("/") for key in keys)
        return list(dict.fromkeys(name for kind, _, name in parts if kind in kinds and name))

    def draw(
        self, axes: Axes, key: str, label: str | None, smooth: bool = False, fill: bool = False, **style: Any
    ) -> None:
        for stage, lines in self.metrics.items():
            points = [(line["iteration"], line[key]) for line in lines if line.get(key) is not None]
            if not points:
                continue
            x, y = np.asarray(points, dtype=float).T
            x += self.spans[stage][0]
            self._most[axes] = max(self._most.get(axes, 0), len(x))
            marker = "." if len(x) < LEAST_POINTS else None
            if fill:
                axes.fill_between(x, 0, y, label=label, linewidth=0, **style)
            elif smooth:
                # The two training phases have losses of their own, so the raw line is a comb.
                axes.plot(x, y, alpha=0.25, linewidth=0.8, **style)
                axes.plot(x, _moving_mean(y, max(1, len(y) // 8)), label=label, marker=marker, **style)
            else:
                axes.plot(x, y, label=label, marker=marker, **style)
            label = None  # one legend entry for all stages

    def finish(self, axes: Axes, title: str, legend: bool = True) -> None:
        count, words = self._most.get(axes, 0), ""
        if not count:
            words = "not logged"
        elif count < LEAST_POINTS:
            words = f"too little to draw: logged {count} time{'s' * (count > 1)} a stage"
        axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center", color="0.5", fontsize=8)
        axes.set_title(title, fontsize=10, fontweight="bold", pad=16)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.93", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.set_xlim(0, max(self.end, 1))
        for stage, (start, end) in self.spans.items():
            if start > 0:
                axes.axvline(start, color="0.6", linewidth=0.8, linestyle=":")
            place: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "ha": "center", "va": "bottom"}
            axes.text((start + end) / 2, 1.01, stage, fontsize=7, color="0.4", **place)
        if legend and axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7, framealpha=0.7, edgecolor="none")


def _moving_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Centred mean over `window` points, over fewer at the ends."""
    weights = np.ones(window)
    return np.convolve(values, weights, "same") / np.convolve(np.ones_like(values), weights, "same")


# Names of classes are text, and a dollar sign in them opens no formula.
@matplotlib.rc_context({"text.parse_math": False})
def plot_histograms(values: Mapping[str, Mapping[str, np.ndarray]], path: Path) -> None:
    """Draw histograms of values in 0-1, one panel per class, one line per stage.

    Args:
        values: stage to class to values (`np.ndarray` of shape `(n,)`); the stages have the same classes.
        path: PNG file to write.
    """
    names = list(dict.fromkeys(name for classes in values.values() for name in classes))
    columns = min(PANELS_IN_A_ROW, len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(3.4 * columns, 2.4 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for index, name in enumerate(names):
        panel = panels[index]
        for order, (stage, classes) in enumerate(values.items()):
            found = classes.get(name, np.empty(0))
            # In percent of the class's images; a class without images keeps its place in the legend.
            weights = np.full(found.size, 100 / max(found.size, 1))
            panel.hist(
                found, np.linspace(0, 1, 41), weights=weights, histtype="step", color=f"C{order % 10}", label=stage
            )
        most = max(classes.get(name, np.empty(0)).size for classes in values.values())
        if most < LEAST_VALUES:
            words = f"too little to draw: {most} photo{'s' * (most != 1)}"
            panel.text(0.5, 0.5, words, transform=panel.transAxes, ha="center", va="center", color="0.5", fontsize=8)
        title = drawable(name, index + 1)
        panel.set_title(title, font=font_file(title, bold=True), fontsize=10)
        panel.set_xlim(0, 1)
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
        if index == 0:
            panel.legend(fontsize=7, framealpha=0.7, edgecolor="none")
    for panel in panels[len(names) :]:
        panel.set_visible(False)
    figure.supxlabel("threshold", fontsize=9)
    figure.supylabel("images of the class (%)", fontsize=9)
    save_figure(figure, path)
