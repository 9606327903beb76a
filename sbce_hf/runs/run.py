"""A whole run over one run directory: the stages of `stages.py`, one after the other, then what they are worth.

Every stage finds out by itself what it has already done, so a run that was killed at any moment continues when the
same command is given again and ends with the same label maps.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml
from accelerate import PartialState

from ..config import RunConfig, to_mapping
from ..data import TaggedImages
from ..evaluation.quality import StageQuality
from ..evaluation.scores import ScoreRow, SegmenterRow
from ..files import remove_leftovers, write_atomic, write_json
from ..labels.store import LabelStore
from ..processes import alone_in
from ..progress import Itinerary
from ..training.classifier import create_classifier
from ..training.device import use_cpu
from ..training.optimization import alternation
from ..training.sampler import count_iterations
from ..training.segmenter import create_segmenter
from .bench import Bench
from .layout import CONFIG, IMAGES, OVERLAYS, PAGE, RESULTS, require_own_files
from .overlays import draw_overlays
from .provenance import hardware, versions
from .rehearsal import rehearse
from .report import find_concerns, write_report
from .scoring import LABELLED, measure, read_quality, score_rows
from .stage import is_finished, keys_of, require_same, write_record
from .stages import REFINEMENTS, check_refinements, classifier_of, labels_of, outside_of, segmenter_of, stages_of
from .timing import stage_seconds


@dataclass(frozen=True)
class RunSummary:
    """What a finished run leaves.

    Args:
        report: its report, a page; `report.md` beside it says the same.
        label_maps: the label store to use: the last round's, or refined, after the CRF if there is one.
        model_dir: the last round's classifier.
        num_images: labelled.
        num_skipped: images that were left out.
        scores: rows of the report's table; empty without ground truth.
        segmenter_dir: the segmenter trained on these label maps; `None` without that stage.
        segmenter_scores: rows of its table.
        concerns: what to know before anything else, in sentences.
        qualities: of each stage's label maps, by its name.
    """

    report: Path
    label_maps: Path
    model_dir: Path
    num_images: int
    num_skipped: int
    scores: list[ScoreRow]
    segmenter_dir: Path | None
    segmenter_scores: list[SegmenterRow]
    concerns: list[str]
    qualities: dict[str, StageQuality]


def open_bench(config: RunConfig, run_dir: str | Path, command: str = "") -> Bench:
    """Check everything that a run needs, then make its directory or take it up again.

    Args:
        config: everything that decides the result.
        run_dir: made if needed.
        command: what reproduces the run, for the report.

    Raises:
        ValueError: the directory holds a run with another config, or data, weights and settings do not fit.
        FileNotFoundError: data or weights are missing.
    """
    # Data and models first: a wrong path must not leave a run directory behind.
    bench = Bench(config, run_dir)
    names = bench.images.class_names
    classifier = create_classifier(config.model, names, config.trunk_weights, config.seed)
    alternation(count_iterations(len(bench.images), config.spatial), config.spatial)
    refining = {
        name: refinement.network(config, section)
        for name, refinement in REFINEMENTS.items()
        if (section := getattr(config, name)) is not None and refinement.network is not None
    }
    bench.outside = outside_of(config, bench.images)
    segmenter = None
    if config.segmenter is not None:
        segmenter = create_segmenter(config.segmenter, names, classifier=classifier, seed=config.seed)
    by_kind = {"classifier": classifier, "segmenter": segmenter}
    stages = stages_of(config, bench.outside)
    models = {one.name: refining.get(one.name, by_kind.get(one.kind)) for one in stages}
    rehearse(config, stages, models, bench.images)
    check_refinements(config, classifier)
    if bench.process.is_main_process:
        require_own_files(bench.run_dir)
        require_same(bench.run_dir, stages, bench.manifest_hash)
        bench.run_dir.mkdir(parents=True, exist_ok=True)
        write_json(
            bench.run_dir / IMAGES, {"manifest_hash": bench.manifest_hash, "images": dict(bench.images.digests)}
        )
        remove_leftovers(bench.run_dir)
        write_atomic(bench.run_dir / CONFIG, yaml.safe_dump(to_mapping(config), sort_keys=False))
        start = {"command": command, "versions": versions(), "hardware": hardware()}
        # What has made a stage may be another version than what makes the next one.
        starts = bench.notes().get("starts", [])
        bench.note(**start, starts=starts if start in starts else [*starts, start], manifest_hash=bench.manifest_hash)
        keys = keys_of(stages, bench.manifest_hash)
        if not all(is_finished(bench.run_dir, stage, keys[stage.name]) for stage in stages):
            counts = (len(bench.scored or ()), len(bench.segmenter_data.scored or ()))
            # A forecast only: what is wrong is told where it happens.
            with contextlib.suppress(ValueError, OSError):
                bench.expected = stage_seconds(
                    config, stages, bench.images, models, counts, bench.process.num_processes
                )
    bench.process.wait_for_everyone()
    return bench


def run(
    config: RunConfig,
    run_dir: str | Path,
    command: str = "",
    started: Callable[[TaggedImages], None] | None = None,
) -> RunSummary:
    """Do what is left to do of a run's stages, scores and report.

    Args:
        config: everything that decides the result.
        run_dir: made if needed.
        command: what reproduces the run, for the report.
        started: called by the main process with the training images, once everything has been checked.

    Raises:
        ValueError: see [`open_bench`]; or another process is at work in the directory.
        FileNotFoundError: see [`open_bench`].
        TrainingHealthError: training has failed.

    Examples:
        >>> import tempfile
        >>> from sbce_hf import LabelStore, load_recipe, run
        >>> stage = {"epochs": 3, "batch_size": 4, "image_size": 48}  # far too short for label maps that are any good
        >>> overrides = {"data": {"shapes_images": 8, "shapes_size": 48}, "bce": stage, "spatial": stage, "rounds": 1}
        >>> config = load_recipe("quickstart", overrides)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     summary = run(config, folder)
        ...     print(summary.report.name, LabelStore(summary.label_maps).complete, summary.num_images)
        report.html True 8
    """
    with alone_in(Path(run_dir), PartialState(cpu=use_cpu())):
        return _run(open_bench(config, run_dir, command), started)


def _run(bench: Bench, started: Callable[[TaggedImages], None] | None) -> RunSummary:
    config = bench.config
    if started is not None and bench.process.is_main_process:
        started(bench.images)
    stages = stages_of(config, bench.outside)
    keys = keys_of(stages, bench.manifest_hash)
    rounds = [stage for stage in stages if stage.kind == "classifier"]
    itinerary = Itinerary([stage.name for stage in stages], bench.expected, shown=bench.process.is_main_process)
    for number, stage in enumerate(stages):
        folder = bench.run_dir / stage.name
        finished = is_finished(bench.run_dir, stage, keys[stage.name])
        if not bench.decided(finished and not stage.is_outdated(bench, stage)):
            if bench.process.is_main_process:
                write_record(bench.run_dir, stage, keys, bench.manifest_hash, finished=False)
            with itinerary.stage(stage.name):
                stage.make(bench, stage)
            if bench.process.is_main_process:
                write_record(bench.run_dir, stage, keys, bench.manifest_hash, finished=True)
        else:
            itinerary.passed(stage.name)
            if stage.kind in LABELLED:
                bench.leave_out(LabelStore(folder / stage.stores[0]).unreadable)
        measure(bench, stage, keys[stage.name])
        # From the last round on after each stage: one that fails must not cost what is known before it.
        if number >= len(rounds) - 1 and bench.process.is_main_process:
            write_report(bench, stages[: number + 1], keys)
        bench.process.wait_for_everyone()
    if config.overlays:
        labelled = LabelStore(labels_of(stages).final_store(bench.run_dir))
        draw_overlays(bench.images, labelled, bench.run_dir / OVERLAYS)
    summary = _summary(bench)
    results = {"label_maps": summary.label_maps, "classifier": summary.model_dir, "segmenter": summary.segmenter_dir}
    where = {name: path.relative_to(bench.run_dir).as_posix() for name, path in results.items() if path is not None}
    bench.note(**{RESULTS: where})
    return summary


def _summary(bench: Bench) -> RunSummary:
    stages, run_dir = stages_of(bench.config), bench.run_dir
    labelled, segmenter = labels_of(stages), segmenter_of(stages)
    store = LabelStore(labelled.final_store(run_dir))
    skipped = {
        name
        for stage in stages
        if stage.kind in LABELLED
        for name in LabelStore(run_dir / stage.name / stage.stores[0]).skipped
    }
    scores, segmenter_scores = score_rows(run_dir, stages)
    found = {stage.name: read_quality(run_dir / stage.name) for stage in stages if stage.kind in LABELLED}
    return RunSummary(
        report=run_dir / PAGE,
        label_maps=store.directory,
        model_dir=run_dir / classifier_of(stages).name / "model",
        num_images=len(store.done_ids()),
        num_skipped=len(bench.images.skipped) + len(skipped),
        scores=scores,
        segmenter_dir=None if segmenter is None else run_dir / segmenter.name / "model",
        segmenter_scores=segmenter_scores,
        concerns=find_concerns(bench, stages),
        qualities={name: quality[0] for name, quality in found.items() if quality is not None},
    )
