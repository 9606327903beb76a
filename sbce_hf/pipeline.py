"""A whole run, stage by stage, over one run directory: the only file that knows the order.

    bce/       train on image tags alone -> labels/fixed, labels/fixed_crf -> proportions.parquet
    round_1/   train with Spatial-BCE and those proportions -> labels/<rule>, labels/<rule>_crf -> proportions.parquet
    ...        each round starts from the weights of the one before
    irn/       the last label maps refined, if the recipe has that section -> labels/irn, labels/irn_crf
    segmenter/ a segmentation network trained on the last label maps, if the recipe has that section
    report.md  quality.md  scores.json  figures/

Every stage finds out by itself what it has already done, so a run that was killed at any moment continues when the
same command is given again and ends with the same label maps. Ground truth enters in `run_report.py` and, as scores
and as a yardstick that trains apart, in `segmenters.py`.
"""

import json
import time
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml
from accelerate import PartialState

from .config import LabellingConfig, RunConfig, from_mapping, to_mapping
from .data import TaggedImages, load_images
from .data.proportions import ProportionTable
from .evaluation.curves import write_atomic
from .evaluation.report import ScoreRow, SegmenterRow
from .labelling.store import META, LabelStore
from .models.modeling_spatial_bce import SpatialBceForImageClassification
from .provenance import flat, hardware, versions
from .refinement import IRN, create_network, refine
from .run_report import write_report, write_scores
from .segmenters import FOLDER as SEGMENTERS
from .segmenters import check_same_classes, load_segmenter_data, score_segmenters, train_segmenters
from .steps import estimate_proportions, label_with_checkpoint
from .training.classifier import create_classifier, train_classifier
from .training.device import use_cpu
from .training.loop import FREE_SETTINGS

BCE = "bce"
PROPORTIONS = "proportions.parquet"


@dataclass(frozen=True)
class RunSummary:
    """What a finished run leaves.

    Args:
        report: its report.
        label_maps: the label store to use: the last round's, or refined, after the CRF if there is one.
        model_dir: the last round's classifier.
        num_images: labelled.
        num_skipped: images that were left out.
        scores: rows of the report's table; empty without ground truth.
        segmenter_dir: the segmenter trained on these label maps; `None` without that stage.
        segmenter_scores: rows of its table.
    """

    report: Path
    label_maps: Path
    model_dir: Path
    num_images: int
    num_skipped: int
    scores: list[ScoreRow]
    segmenter_dir: Path | None
    segmenter_scores: list[SegmenterRow]


class Run:
    """One run directory.

    Args:
        config: everything that decides the result.
        run_dir: made if needed.
        command: what reproduces the run, for the report.

    Raises:
        ValueError: the directory holds a run with another config, or the data cannot be used.
        FileNotFoundError: data or weights are missing.
    """

    def __init__(self, config: RunConfig, run_dir: str | Path, command: str = "") -> None:
        self.config, self.run_dir = config, Path(run_dir)
        self.process = PartialState(cpu=use_cpu())
        self.stages = [BCE, *(f"round_{number}" for number in range(1, config.rounds + 1))]
        # Those that the report shows: the refinement's label maps only when they are all there.
        self.labelled = list(self.stages)
        self.with_crf = config.labelling.crf is not None
        # Data and model first: a wrong path must not leave a run directory behind.
        self.images = load_images(config.data, config.data.train_split)
        self.scored = load_scored(config, self.images)
        self.segmenter_data = None if config.segmenter is None else load_segmenter_data(config, self.images)
        create_classifier(config.model, self.images.class_names, config.trunk_weights, config.seed)
        if config.irn is not None:
            create_network(config, config.irn)
        self._claim(command)
        if config.irn is not None and self._refined():
            self.labelled.append(IRN)

    def _refined(self) -> bool:
        return (self._store_folder(IRN, self.with_crf) / META).is_file() and self.store(IRN, self.with_crf).complete

    def _claim(self, command: str) -> None:
        if self.process.is_main_process:
            path = self.run_dir / "config.yaml"
            if path.is_file():
                require_same(self.config, path)
            self.run_dir.mkdir(parents=True, exist_ok=True)
            write_atomic(path, yaml.safe_dump(to_mapping(self.config), sort_keys=False))
            self._note(
                command=command, versions=versions(), hardware=hardware(), manifest_hash=self.images.manifest_hash
            )
        self.process.wait_for_everyone()

    def finish(self) -> RunSummary:
        """Do what is left to do: stage 0, the rounds, the refinement, the segmenter, the scores and the report.

        Raises:
            TrainingHealthError: training has failed.
        """
        for previous, stage in zip([None, *self.stages], self.stages, strict=False):
            self._train(stage, previous)
            self._label_stage(stage)
            if self.process.is_main_process:
                self._estimate_proportions(stage, previous)
            self.process.wait_for_everyone()
        scores = self._report()
        segmenter_scores: list[SegmenterRow] = []
        if self.config.irn is not None and IRN not in self.labelled:
            # After the report, like the segmenter: a stage that fails must not cost what is known before it.
            refine(self, self.config.irn)
            self.leave_out(self.store(IRN, crf=False).skipped)
            self.labelled.append(IRN)
            scores = self._report()
        segmenter_dir = None
        if self.config.segmenter is not None:
            segmenter_dir = train_segmenters(self)
            if self.process.is_main_process:
                segmenter_scores = score_segmenters(self)
                write_report(self, scores, segmenter_scores)
            self.process.wait_for_everyone()
        last = self.store(self.labelled[-1], self.with_crf)
        skipped = {name for stage in self.labelled for name in self.store(stage, crf=False).skipped}
        return RunSummary(
            report=self.run_dir / "report.md",
            label_maps=last.directory,
            model_dir=self.run_dir / self.stages[-1] / "model",
            num_images=len(last.done_ids()),
            num_skipped=len(self.images.skipped) + len(skipped),
            scores=scores,
            segmenter_dir=segmenter_dir,
            segmenter_scores=segmenter_scores,
        )

    def _report(self) -> list[ScoreRow]:
        scores: list[ScoreRow] = []
        if self.process.is_main_process:
            scores = write_scores(self)
            write_report(self, scores, [])
        self.process.wait_for_everyone()
        return scores

    def _train(self, stage: str, previous: str | None) -> None:
        config = self.config
        if previous is None:
            kind: Literal["bce", "spatial"] = "bce"
            training, proportions = config.bce, None
            model = create_classifier(config.model, self.images.class_names, config.trunk_weights, config.seed)
        else:
            kind, training = "spatial", config.spatial
            proportions = ProportionTable.load(self.run_dir / previous / PROPORTIONS).join(self.images)
            model = SpatialBceForImageClassification.from_pretrained(self.run_dir / previous / "model")
        # Each round draws another order and other augmentations.
        seed = config.seed + 1000 * self.stages.index(stage)
        folder = self.run_dir / stage
        fitted = train_classifier(model, self.images, training, kind, proportions, output_dir=folder, seed=seed)
        self.note_duration(f"{stage}: training", fitted.seconds)

    def _label_stage(self, stage: str) -> None:
        started = time.perf_counter()
        folder = self.run_dir / stage
        summary = label_with_checkpoint(
            folder / "model", self.images, self.labelling(stage), folder / "labels", strict=self.config.data.strict
        )
        self.process.wait_for_everyone()
        if summary.num_labelled:
            self.note_duration(f"{stage}: labelling", time.perf_counter() - started)
        # From disk: a process's summary may miss what another one skipped last.
        self.leave_out(self.store(stage, crf=False).skipped)

    def leave_out(self, skipped: Collection[str]) -> None:
        """Go on without images that could be read at the start and no longer can."""
        if skipped:
            self.images = _without(self.images, skipped)
            self.scored = None if self.scored is None else _without(self.scored, skipped)
            if self.segmenter_data is not None and self.segmenter_data.masked is not None:
                masked = _without(self.segmenter_data.masked, skipped)
                self.segmenter_data = replace(self.segmenter_data, masked=masked)

    def _estimate_proportions(self, stage: str, previous: str | None) -> None:
        before = None if previous is None else ProportionTable.load(self.run_dir / previous / PROPORTIONS)
        table = estimate_proportions(self.store(stage, self.with_crf), self.images, self.config, before)
        table.save(self.run_dir / stage / PROPORTIONS)

    def labelling(self, stage: str) -> LabellingConfig:
        """How a stage's checkpoint is turned into label maps; stage 0 has no trained thresholds."""
        if stage == BCE:
            return replace(self.config.labelling, rule="fixed")
        if stage in (self.stages[-1], IRN) and self.config.final_scales is not None:
            return replace(self.config.labelling, scales=self.config.final_scales)
        return self.config.labelling

    def store(self, stage: str, crf: bool) -> LabelStore:
        """A stage's label maps, before or after the CRF."""
        return LabelStore(self._store_folder(stage, crf))

    def _store_folder(self, stage: str, crf: bool) -> Path:
        rule = IRN if stage == IRN else self.labelling(stage).rule
        return self.run_dir / stage / "labels" / (f"{rule}_crf" if crf else rule)

    def notes(self) -> dict[str, Any]:
        """What `run.json` says: command, versions, hardware, durations."""
        path = self.run_dir / "run.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    def _note(self, **values: Any) -> None:
        if self.process.is_main_process:
            write_atomic(self.run_dir / "run.json", json.dumps(self.notes() | values, indent=1))

    def note_duration(self, what: str, seconds: float) -> None:
        """Add to the durations in `run.json`."""
        self._note(durations=self.notes().get("durations", {}) | {what: seconds})


def run(config: RunConfig, run_dir: str | Path, command: str = "") -> RunSummary:
    """Run all stages in a directory; see [`Run`]."""
    return Run(config, run_dir, command).finish()


def _without(images: TaggedImages, skipped: Collection[str]) -> TaggedImages:
    return images.select([index for index, name in enumerate(images.image_ids) if name not in skipped])


def load_scored(config: RunConfig, images: TaggedImages) -> TaggedImages | None:
    """The labelled images that have a mask, for the scores.

    Raises:
        ValueError: the score split has none of the labelled images.
    """
    data = config.data
    if data.score_split is None:
        return None
    scored = images if data.score_split == data.train_split else load_images(data, data.score_split)
    check_same_classes(images, scored, data.score_split)
    scored = scored.with_masks()
    known = set(images.image_ids)
    inside = [index for index, image_id in enumerate(scored.image_ids) if image_id in known]
    if not inside:
        raise ValueError(
            f"data.score_split {data.score_split!r}: none of its {len(scored)} images with a mask is in the train "
            f"split {data.train_split!r}; label maps are scored where they are made. Set it to null to score nothing"
        )
    return scored.select(inside)


def require_same(config: RunConfig, path: Path) -> None:
    """Raise a `ValueError` that names the differences if the config saved at `path` is another one.

    What changes no result may differ, and so may the segmenter's section, as each segmenter's folder guards its own;
    and the refinement's, as long as nothing has been made with it or after it.
    """
    later = [name for name in (IRN, SEGMENTERS) if (path.parent / name).exists()]
    free = ("segmenter",) if later else ("irn", "segmenter")
    stored = flat(to_mapping(from_mapping(RunConfig, yaml.safe_load(path.read_text()), str(path))))
    wanted = flat(to_mapping(config))
    changed = [
        key
        for key in wanted | stored
        if stored.get(key) != wanted.get(key)
        and key.split(".")[0] not in free
        and key.split(".")[-1] not in (*FREE_SETTINGS, "crf_workers", "contact_images")
    ]
    if changed:
        shown = ", ".join(f"{key} was {stored.get(key)!r}, is {wanted.get(key)!r}" for key in changed[:5])
        raise ValueError(
            f"{path.parent}: holds a run with another config: {shown}. Give the same settings to continue it, or "
            f"another --output-dir to start a new one{_remedy(changed, later)}"
        )


def _remedy(changed: list[str], later: list[str]) -> str:
    if not later or any(key.split(".")[0] != "irn" for key in changed):
        return ""
    return f"; or remove {' and '.join(later)} from it: that part is made again"
