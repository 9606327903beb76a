"""Label-free quality of label maps: what can be known about a run when nobody has drawn a mask.

A healthy stage keeps every tagged class somewhere in its image, covers a moderate part of it, and has probabilities
that are not all saturated.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..data.schema import IGNORE_INDEX
from ..postprocess.rules import SOFT_RANGE
from .iou import class_iou, count, runs
from .tables import percent

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
# A tagged class without a pixel is expected in a few images (tiny or hidden objects), not in every fifth.
MAX_LOST_SHARE = 0.2
# The median object of VOC and COCO classes covers a few to some tens of percent of its image.
MIN_MEDIAN_COVERAGE, MAX_MEDIAN_COVERAGE = 0.01, 0.9
# Fewer pixels in SOFT_RANGE than this, and neither loss term has a gradient left to move p with.
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
        soft_share: mean share of pixels whose probability is in [`SOFT_RANGE`].
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

    def to_plain(self) -> dict[str, Any]:
        """As JSON has it; see [`from_plain`](StageQuality.from_plain)."""
        classes = [{**asdict(c), "thresholds": c.thresholds.tolist()} for c in self.classes]
        return {**asdict(self), "classes": classes}

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> "StageQuality":
        """From what [`to_plain`](StageQuality.to_plain) gave; NaN may have become `None`."""
        classes = []
        for c in values["classes"]:
            numbers: dict[str, Any] = {key: math.nan if value is None else value for key, value in c.items()}
            numbers["thresholds"] = np.array(c["thresholds"], np.float64)
            numbers["threshold_quantiles"] = tuple(math.nan if q is None else q for q in c["threshold_quantiles"])
            classes.append(ClassQuality(**numbers | {"warnings": tuple(c["warnings"])}))
        return cls(values["stage"], values["num_images"], tuple(classes))


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

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> "Agreement":
        """From JSON, where NaN may have become `None`."""
        per_class = np.array([math.nan if iou is None else iou for iou in values["per_class_iou"]])
        numbers = {key: math.nan if values[key] is None else values[key] for key in ("mean_iou", "pixels")}
        return cls(per_class_iou=per_class, num_images=values["num_images"], **numbers)


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
    empty, lost = mean(proportions == 0), mean(coverage == 0)
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
    if mean(soft) < MIN_SOFT_SHARE:
        low, high = SOFT_RANGE
        warnings.append(f"saturated: only {percent(mean(soft))} % of its pixels have {low} < p < {high}")
    return ClassQuality(
        name=name,
        images=len(before),
        empty_share=empty,
        lost_share=lost,
        threshold_quantiles=tuple(float(value) for value in quantiles),
        coverage_mean=mean(coverage),
        coverage_median=median,
        soft_share=mean(soft),
        mean_probability=mean(probability),
        thresholds=thresholds,
        warnings=tuple(warnings),
    )


def mean(values: np.ndarray) -> float:
    """Of the values; NaN without any."""
    return float(values.mean()) if values.size else math.nan


def agreement(
    maps_a: Iterable[np.ndarray],
    maps_b: Iterable[np.ndarray],
    num_classes: int,
    total: Callable[[np.ndarray], np.ndarray] = lambda counts: counts,
) -> Agreement:
    """Compare two stages' label maps of the same images, one pair in memory at a time.

    Args:
        maps_a: label maps, integer arrays of shape `(H, W)` with values 0 (background) to `num_classes`, or 255
            where one says nothing: such pixels are not compared.
        maps_b: those of the other stage, in the same order.
        num_classes: number of foreground classes C.
        total: adds up the counts of several processes, each of which has its part of the images.

    Raises:
        ValueError: pairs of unequal shape, a value above `num_classes`, or unequal numbers of maps.
    """
    size = num_classes + 1
    counts = np.zeros((size, size), dtype=np.int64)
    num_images = 0
    for a, b in zip(maps_a, maps_b, strict=True):
        if a.shape != b.shape:
            raise ValueError(f"agreement, pair {num_images}: got shapes {a.shape} and {b.shape}, expected equal ones")
        a, b, lengths = runs(a, b)
        both = (a != IGNORE_INDEX) & (b != IGNORE_INDEX)
        a, b = a[both], b[both]
        highest = max(a.max(initial=0), b.max(initial=0))
        if highest > num_classes:
            raise ValueError(f"agreement, pair {num_images}: got label {highest}, expected 0 to {num_classes}")
        counts += count(a.astype(np.int64) * size + b, lengths[both], (size, size))
        num_images += 1
    counts, num_images = total(counts), int(total(np.array([num_images]))[0])
    iou, pixels = class_iou(counts), counts.sum()
    return Agreement(
        mean_iou=mean(iou[~np.isnan(iou)]),
        per_class_iou=iou,
        pixels=float(np.trace(counts) / pixels) if pixels else math.nan,
        num_images=num_images,
    )
