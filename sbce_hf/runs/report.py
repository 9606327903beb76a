"""What a run shows: report, label-free quality page and figures, from what its stages have left on disk.

Nothing is scored here, and a figure is drawn again only when a stage that it shows has changed. Of ground truth only
the truth column of the contact sheet is read.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..config import RunConfig
from ..data.decoding import UnreadableError
from ..data.schema import SkippedImage
from ..evaluation.concerns import concerns
from ..evaluation.contact_sheet import ContactRow, contact_sheet
from ..evaluation.curves import plot_curves
from ..evaluation.fonts import meanings
from ..evaluation.overlay import beside
from ..evaluation.quality_page import plot_thresholds, render_quality, summary_table
from ..evaluation.report import OddPicture, Picture, ReportContext, render_report
from ..evaluation.report_page import render_page
from ..evaluation.verdict import verdict
from ..files import check_fields, digest, read_fields, write_atomic, write_json
from ..inference.writing import groups_of
from ..labels.store import LabelStore
from ..postprocess.saliency import NOTE
from ..training.folder import read_metrics
from .bench import Bench
from .guard import kept_together
from .layout import OVERLAYS, PAGE, QUALITY_PAGE, REMEDY, REPORT
from .overlays import jpeg
from .scoring import LABELLED, read_odd, read_quality, score_rows
from .settings import BCE, labelling_of
from .single import maps_of
from .stage import Stage
from .stages import classifier_of, labels_of

FIGURES, DRAWN = "figures", "drawn.json"
SHEET, CURVES, THRESHOLDS = "figures/sheet.png", "figures/curves.png", "figures/thresholds.png"


def write_report(bench: Bench, stages: Sequence[Stage], keys: Mapping[str, str]) -> None:
    """Write `report.md`, `report.html`, `quality.md` and their figures.

    Args:
        bench: of the run; only the main process calls.
        stages: those that are finished.
        keys: of the stages.
    """
    config, run_dir = bench.config, bench.run_dir
    found = {stage.name: read_quality(run_dir / stage.name) for stage in stages if stage.kind in LABELLED}
    qualities = [quality[0] for quality in found.values() if quality is not None]
    agreements = {
        (quality[1][0], name): quality[1][1] for name, quality in found.items() if quality and quality[1] is not None
    }
    pictures = _Pictures(run_dir)
    figures = _curves(bench, stages, keys, pictures)
    sheet = _sheet(bench, stages, keys, pictures)
    histogram = {stage.name: keys[stage.name] for stage in stages if stage.kind in LABELLED}
    drawn = pictures.draw(THRESHOLDS, histogram, lambda path: plot_thresholds(qualities, path))
    write_atomic(run_dir / QUALITY_PAGE, render_quality(qualities, agreements, THRESHOLDS if drawn else None))
    notes, (scores, segmenters) = bench.notes(), score_rows(run_dir, stages)
    skipped, look_at = [*bench.images.skipped, *_skipped_later(run_dir, stages)], find_concerns(bench, stages)
    context = ReportContext(
        title="Label maps from image tags",
        command=notes["command"],
        seed=config.seed,
        data=_describe(config),
        num_images=len(bench.images),
        class_names=bench.images.class_names,
        versions=notes["versions"],
        hardware=notes["hardware"],
        durations=notes.get("durations", {}),
        verdict=verdict(qualities[-1], scores, len(skipped)) if qualities else (),
        look_at=look_at,
        sheet=None if sheet is None else Picture(sheet, SHEET),
        odd=_odd(bench, labels_of(stages), keys, pictures),
        overlays=OVERLAYS if config.overlays else "",
        scores=scores,
        score_split=config.data.score_split,
        known_classes=config.labelling.known_classes,
        segmenters=segmenters,
        segmenter_split=None if config.segmenter is None else config.segmenter.score_split,
        label_free=summary_table(qualities),
        figures=figures,
        skipped=skipped,
        warnings=[
            *look_at,
            *bench.images.notes,
            *(warning for quality in qualities for warning in quality.warnings),
        ],
        saliency=_saliency(config),
    )
    write_atomic(run_dir / REPORT, render_report(context))
    write_atomic(run_dir / PAGE, render_page(context, run_dir))


def _skipped_later(run_dir: Path, stages: Sequence[Stage]) -> list[SkippedImage]:
    """Images that could be read when the run began, and not when they were to be labelled."""
    stores = [LabelStore(run_dir / stage.name / stage.stores[0]) for stage in stages if stage.kind in LABELLED]
    reasons = {name: store.skipped[name] for store in stores for name in sorted(store.unreadable)}
    return [SkippedImage(name, reason) for name, reason in reasons.items()]


def find_concerns(bench: Bench, stages: Sequence[Stage]) -> list[str]:
    """See [`concerns`]; of the stages that are there."""
    labelled = [stage for stage in stages if stage.kind in LABELLED]
    quality = read_quality(bench.run_dir / labelled[-1].name) if labelled else None
    lines = read_metrics(bench.run_dir / BCE / "metrics.jsonl")
    losses = [line["loss"] for line in lines if "loss" in line]
    kept = [
        f"{names}: {stage.name} keeps the label maps of {source} ({reason})"
        for stage in labelled
        for names, source, reason in kept_together(bench.run_dir / stage.name)
    ]
    return concerns(bench.images.label_matrix(), quality[0] if quality else None, losses, kept)


class _Pictures:
    """The figures of a run, each of which is drawn once for what it shows."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir, self._path = run_dir, run_dir / FIGURES / DRAWN

    def draw(self, name: str, shows: Mapping[str, Any], draw: Callable[[Path], bool | None]) -> bool:
        """Draw a figure unless it is there; returns whether there is anything to see."""
        known = read_fields(self._path, {}, REMEDY) or {}
        check_fields(known, dict.fromkeys(known, str), str(self._path), REMEDY)
        key, path = digest(shows), self.run_dir / name
        if known.get(name) != key or not path.is_file():
            path.unlink(missing_ok=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            draw(path)
            if path.is_file():
                write_json(self._path, known | {name: key})
        return path.is_file()


def _curves(bench: Bench, stages: Sequence[Stage], keys: Mapping[str, str], pictures: _Pictures) -> dict[str, str]:
    groups = {"Training curves": [stage for stage in stages if stage.kind == "classifier"]}
    # Each its own, if it trains anything: another network, with another learning rate.
    refinements = [stage for stage in stages if stage.kind == "refinement"]
    trained = [stage for stage in refinements if (bench.run_dir / stage.name / "metrics.jsonl").is_file()]
    groups |= {f"Training curves of {stage.name}": [stage] for stage in trained}
    figures = {}
    for caption, shown in groups.items():
        name = CURVES if shown[0].kind == "classifier" else f"figures/curves_{shown[0].name}.png"
        lines = {stage.name: read_metrics(bench.run_dir / stage.name / "metrics.jsonl") for stage in shown}
        pictures.draw(name, {stage.name: keys[stage.name] for stage in shown}, partial(plot_curves, lines))
        figures[caption] = name
    return figures


def _sheet(bench: Bench, stages: Sequence[Stage], keys: Mapping[str, str], pictures: _Pictures) -> str | None:
    """Draw the contact sheet; returns its caption, `None` without one."""
    if not bench.config.contact_images:
        return None
    classifier, labelled = classifier_of(stages), labels_of(stages)
    shown = {stage.name: keys[stage.name] for stage in (classifier, labelled)}
    shows = {**shown, "images": bench.config.contact_images, "masks": bench.masks_hash}

    def draw(path: Path) -> None:
        if rows := list(_contact_rows(bench, classifier, labelled)):
            contact_sheet(rows, bench.images.class_names, path)

    if not pictures.draw(SHEET, shows, draw):
        return None
    refined = ", refined" if labelled is not classifier else ""
    truth = "" if bench.scored is None else ", truth"
    numbers = meanings(bench.images.class_names)
    return f"Photo, activation map of the last round, its label map, after the CRF{refined}{truth}{numbers}"


def _contact_rows(bench: Bench, classifier: Stage, labelled: Stage) -> Iterator[ContactRow]:
    config, folder = bench.config, bench.run_dir / classifier.name
    stores = [LabelStore(folder / name) for name in classifier.stores]
    store, crf_store = stores[0], stores[1] if len(stores) > 1 else None
    refined = None
    if labelled is not classifier:
        refined = LabelStore(labelled.final_store(bench.run_dir))
    images = bench.images if bench.scored is None else bench.scored
    images = images.select([index for index, image_id in enumerate(images.image_ids) if image_id in store])
    images = images.select(_spread(images.label_matrix(), config.contact_images))
    labelling = labelling_of(config, config.rounds)
    maps_of_images = maps_of(folder / "model", images, labelling, groups_of(len(images), labelling.batch_size))
    for index, maps in enumerate(maps_of_images):
        photo = images.image(index)
        blank = np.zeros((photo.height, photo.width), np.float32)
        yield ContactRow(
            image_id=maps.image_id,
            image=photo,
            activation=maps.probabilities.max(axis=0) if len(maps.classes) else blank,
            label_map=store.read(maps.image_id),
            crf_label_map=None if crf_store is None else crf_store.read(maps.image_id),
            refined_label_map=refined.read(maps.image_id) if refined and maps.image_id in refined else None,
            truth=None if bench.scored is None else images.mask(index),
        )


def _odd(bench: Bench, labelled: Stage, keys: Mapping[str, str], pictures: _Pictures) -> list[OddPicture]:
    """Draw the photos to look at first, each beside its label map."""
    store = LabelStore(labelled.final_store(bench.run_dir))
    places = {name: index for index, name in enumerate(bench.images.image_ids)}
    found: list[OddPicture] = []
    for photo in read_odd(bench.run_dir / labelled.name)[: bench.config.odd_images]:
        name, index = photo.image_id, places.get(photo.image_id)
        file = f"{FIGURES}/odd/{len(found) + 1:02d}.jpg"

        def draw(path: Path, name: str = name, index: int = index or 0) -> None:
            # What can no longer be read has no picture.
            with contextlib.suppress(UnreadableError):
                drawn = beside(bench.images.image(index), store.read(name), store.class_names)
                write_atomic(path, jpeg(drawn))

        shows = {labelled.name: keys[labelled.name], "image": name}
        if index is not None and name in store and pictures.draw(file, shows, draw):
            found.append(OddPicture(name, photo.reasons, file))
    return found


def _describe(config: RunConfig) -> str:
    data = config.data
    where = data.dataset if data.source == "hub" else Path(data.data_dir).name if data.data_dir else "embedded"
    return f"{data.source} ({where}), split {data.train_split}"


def _saliency(config: RunConfig) -> str:
    section = config.saliency
    return "" if section is None else f"{section.origin}, rule {section.rule}: {NOTE}, which was trained on masks"


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
