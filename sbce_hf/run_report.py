"""What a finished run shows: scores, report, label-free quality report and figures.

Only the scores, and the truth column of the contact sheet, read ground truth; nothing in `pipeline.py` does.
"""

import itertools
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .config import RunConfig
from .data import TaggedImages
from .evaluation.confusion import score_store
from .evaluation.contact_sheet import ContactRow, contact_sheet
from .evaluation.curves import plot_curves, write_atomic
from .evaluation.quality import (
    Agreement,
    StageQuality,
    agreement,
    plot_thresholds,
    render_quality,
    stage_quality,
    summary_table,
)
from .evaluation.report import ReportContext, ScoreRow, SegmenterRow, render_report
from .labelling.checkpoint import load_classifier
from .labelling.store import LabelStore
from .labelling.thresholds import ClassMaps, scan_fixed_threshold_on_ground_truth
from .labelling.views import class_maps
from .refinement import IRN
from .steps import label_with_checkpoint

if TYPE_CHECKING:
    from .pipeline import Run

RANDOM_WALK = "IRN random walk"


def write_scores(run: "Run") -> list[ScoreRow]:
    """Score every stage's label maps, and write `scores.json`; empty without ground truth."""
    if run.scored is None:
        return []
    rows = []
    for stage in run.labelled:
        labelling = run.labelling(stage)
        # The walk starts from the adaptive thresholds, whatever the rule.
        rule = "adaptive (paper)" if stage == IRN else f"adaptive ({labelling.rule})"
        if labelling.rule == "fixed" and stage != IRN:
            rule = f"fixed {labelling.background_threshold:g}"
        if labelling.scales != run.config.labelling.scales:
            rule += f", scales {' '.join(f'{scale:g}' for scale in labelling.scales)}"
        for crf in (False, True) if run.with_crf else (False,):
            row = _score(run.store(stage, crf), run.scored, stage, rule, crf)
            rows.append(replace(row, note=RANDOM_WALK) if stage == IRN else row)
    rows += _leaking_scores(run, run.scored)
    write_atomic(run.run_dir / "scores.json", json.dumps([asdict(row) for row in rows], indent=1))
    return rows


def _score(
    store: LabelStore, scored: TaggedImages, stage: str, rule: str, crf: bool, uses_ground_truth: bool = False
) -> ScoreRow:
    result = score_store(store, scored)
    per_class = result["per_class_iou"]
    return ScoreRow(stage, rule, crf, result["mean_iou"], per_class, result["num_images"], uses_ground_truth)


def _leaking_scores(run: "Run", scored: TaggedImages) -> list[ScoreRow]:
    """What the BCE maps would reach at the constant that is best on ground truth: a yardstick, not a result."""
    folder = run.run_dir / "leak_best_constant"
    stage = run.stages[0]
    model_dir, labelling = run.run_dir / stage / "model", run.labelling(stage)
    path = folder / "scan.json"
    if path.is_file():
        constant = json.loads(path.read_text())["best"]
    else:
        truths = (scored.mask(index) for index in range(len(scored)))
        scan = scan_fixed_threshold_on_ground_truth(_class_maps(run, stage, scored), truths, scored.num_classes)
        constant = scan.best[0]
        values = {"constants": scan.constants.tolist(), "mean_iou": scan.mean_iou.tolist()}
        write_atomic(path, json.dumps({"note": scan.note, "best": constant, **values}, indent=1))
    labelling = replace(labelling, background_threshold=constant)
    # Only the main process is here.
    summary = label_with_checkpoint(model_dir, scored, labelling, folder / "labels", sharded=False)
    rule = f"best constant {constant:g}"
    rows = [_score(LabelStore(summary.directory), scored, stage, rule, False, uses_ground_truth=True)]
    if summary.crf_directory is not None:
        rows.append(_score(LabelStore(summary.crf_directory), scored, stage, rule, True, uses_ground_truth=True))
    return rows


def _class_maps(run: "Run", stage: str, images: TaggedImages) -> Iterator[ClassMaps]:
    config = run.labelling(stage)
    model = load_classifier(run.run_dir / stage / "model")
    labels, ids = images.label_matrix(), images.image_ids
    for start in range(0, len(images), config.batch_size):
        group = range(start, min(start + config.batch_size, len(images)))
        photos = [images.image(index) for index in group]
        yield from class_maps(model, photos, labels[list(group)], config, image_ids=[ids[index] for index in group])


def write_report(run: "Run", scores: list[ScoreRow], segmenters: list[SegmenterRow]) -> Path:
    """Write `report.md`, `quality.md` and their figures; returns the report's path."""
    qualities = [_quality(run, stage) for stage in run.labelled]
    figures = {"Training curves": "figures/curves.png"}
    metrics = {stage: _read_lines(run.run_dir / stage / "metrics.jsonl") for stage in run.labelled}
    boundary = metrics.pop(IRN, None)
    plot_curves(metrics, run.run_dir / "figures" / "curves.png")
    if boundary is not None:
        # Its own: another network, with another learning rate.
        figures["Training curves of the boundary network"] = "figures/curves_irn.png"
        plot_curves({IRN: boundary}, run.run_dir / "figures" / "curves_irn.png")
    rows = list(_contact_rows(run))
    if rows:
        refined = ", refined" if IRN in run.labelled else ""
        truth = "" if run.scored is None else ", truth"
        caption = f"Photo, activation map of the last round, its label map, after the CRF{refined}{truth}"
        figures[caption] = "figures/sheet.png"
        contact_sheet(rows, run.images.class_names, run.run_dir / "figures" / "sheet.png")
    histogram = "figures/thresholds.png"
    drawn = plot_thresholds(qualities, run.run_dir / histogram)
    quality = render_quality(qualities, _agreements(run), histogram if drawn else None)
    write_atomic(run.run_dir / "quality.md", quality)
    notes = run.notes()
    context = ReportContext(
        title="Label maps from image tags",
        command=notes["command"],
        seed=run.config.seed,
        data=_describe(run.config),
        num_images=len(run.images),
        class_names=run.images.class_names,
        versions=notes["versions"],
        hardware=notes["hardware"],
        durations=notes.get("durations", {}),
        scores=scores,
        score_split=run.config.data.score_split,
        known_classes=run.config.labelling.known_classes,
        segmenters=segmenters,
        segmenter_split=None if run.config.segmenter is None else run.config.segmenter.score_split,
        label_free=summary_table(qualities),
        figures=figures,
        skipped=run.images.skipped,
        warnings=[warning for quality in qualities for warning in quality.warnings],
    )
    report = run.run_dir / "report.md"
    write_atomic(report, render_report(context))
    return report


def _quality(run: "Run", stage: str) -> StageQuality:
    before = _records(run.store(stage, crf=False))
    after = _records(run.store(stage, crf=True)) if run.with_crf else None
    return stage_quality(stage, run.images.class_names, before, after)


def _records(store: LabelStore) -> list[dict[str, Any]]:
    return [store.record(image_id) for image_id in sorted(store.done_ids())]


def _agreements(run: "Run") -> dict[tuple[str, str], Agreement]:
    found = {}
    stores = {stage: run.store(stage, run.with_crf) for stage in run.labelled}
    for first, second in itertools.pairwise(run.labelled):
        a, b = stores[first], stores[second]
        ids = [image_id for image_id in run.images.image_ids if image_id in a and image_id in b]
        found[first, second] = agreement(map(a.read, ids), map(b.read, ids), run.images.num_classes)
    return found


def _contact_rows(run: "Run") -> Iterator[ContactRow]:
    last = run.stages[-1]
    store, crf_store = run.store(last, crf=False), run.store(last, crf=True) if run.with_crf else None
    refined = run.store(IRN, run.with_crf) if IRN in run.labelled else None
    images = run.images if run.scored is None else run.scored
    images = images.select([index for index, image_id in enumerate(images.image_ids) if image_id in store])
    images = images.select(_spread(images.label_matrix(), run.config.contact_images))
    for index, maps in enumerate(_class_maps(run, last, images)):
        photo = images.image(index)
        blank = np.zeros((photo.height, photo.width), np.float32)
        yield ContactRow(
            image_id=maps.image_id,
            image=photo,
            activation=maps.probabilities.max(axis=0) if len(maps.classes) else blank,
            label_map=store.read(maps.image_id),
            crf_label_map=None if crf_store is None else crf_store.read(maps.image_id),
            refined_label_map=refined.read(maps.image_id) if refined and maps.image_id in refined else None,
            truth=None if run.scored is None else images.mask(index),
        )


def _read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _describe(config: RunConfig) -> str:
    data = config.data
    where = data.dataset if data.source == "hub" else Path(data.data_dir).name if data.data_dir else "embedded"
    return f"{data.source} ({where}), split {data.train_split}"


def _spread(labels: np.ndarray, count: int) -> list[int]:
    """Up to `count` images, the classes in turn, so that each is seen."""
    queues = [np.flatnonzero(column).tolist() for column in labels.T]
    chosen: list[int] = []
    while len(chosen) < min(count, len(labels)) and any(queues):
        for queue in queues:
            while queue and queue[0] in chosen:
                queue.pop(0)
            if queue and len(chosen) < count:
                chosen.append(queue.pop(0))
    return chosen
