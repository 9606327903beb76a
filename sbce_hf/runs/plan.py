"""What a run would do, and everything that keeps it from starting: `sbce run --dry-run`. Nothing is written."""

import contextlib
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from accelerate import PartialState
from transformers import PreTrainedModel

from ..config import LoopConfig, RunConfig, SegmenterConfig
from ..data import TaggedImages, load_images
from ..training.classifier import FEATURES, create_classifier
from ..training.device import resolved, use_cpu
from ..training.features import features_size
from ..training.memory import estimate_memory
from ..training.optimization import alternation
from ..training.sampler import BatchOrder
from ..training.segmenter import create_segmenter
from .bench import load_scored, load_training_images
from .needs import Needs
from .planned import Plan, StagePlan
from .rehearsal import rehearse
from .stage import RECORD, Stage, read_record, require_same
from .stages import REFINEMENTS, check_refinements, outside_of, stages_of
from .timing import sample_size, stage_seconds, training_of

T = TypeVar("T")


def make_plan(config: RunConfig, run_dir: str | Path, images: TaggedImages | None = None) -> Plan:
    """Look at everything a run needs, as far as the run itself does before it starts.

    Images are opened as at the start of a run, and weights are loaded; only what would be downloaded is not.

    Args:
        config: of the run.
        run_dir: where it would write.
        images: the training set, if it has been read; its images are not opened again then.
    """
    return _Planner(config, Path(run_dir), images).plan()


class _Planner:
    """Collects what [`make_plan`] finds."""

    def __init__(self, config: RunConfig, run_dir: Path, images: TaggedImages | None) -> None:
        self.config, self.run_dir, self.images = config, run_dir, images
        self.processes = PartialState(cpu=use_cpu()).num_processes
        self.problems: list[str] = []
        self.splits: list[str] = []
        self.needs = Needs(self.problems)
        self.stages: list[StagePlan] = []
        self.outside: dict[str, str] = {}
        self.seconds: dict[str, float] = {}
        self.scored: TaggedImages | None = None
        self.predicted: TaggedImages | None = None

    def plan(self) -> Plan:
        data = self.config.data
        if data.data_dir is not None:
            self.needs.folder("data folder", data.data_dir)
        images = self._read_splits()
        names = images.class_names if images else data.classes or ("class",)
        classifier = self._classifier(names)
        segmenter = None
        if (section := self.config.segmenter) is not None:
            segmenter = self._segmenter(section, names, classifier)
        if images is not None:
            self.outside = self._attempt(lambda: outside_of(self.config, images)) or {}
        stages = stages_of(self.config)
        models = {stage.name: self._model(stage, classifier, segmenter) for stage in stages}
        if images is not None and not self.problems:
            self._attempt(lambda: rehearse(self.config, stages, models, images))
        if classifier is not None and not self.problems:
            self._attempt(lambda: check_refinements(self.config, classifier))
        if images is not None and classifier is not None and not cast(Any, classifier.config).train_trunk:
            size = features_size(classifier, len(images), [self.config.bce, self.config.spatial])
            self.needs.space("features of the frozen trunk", size, self.run_dir / FEATURES)
        if images is not None and classifier is not None and not self.problems:
            # Before the estimates of memory, which take the models' weights.
            counts = (len(self.scored or ()), len(self.predicted or ()))
            timed = partial(stage_seconds, self.config, stages, images, models, counts, self.processes)
            parts = self._attempt(timed) or {}
            self.seconds = {name: sum(seconds for _, seconds in found) for name, found in parts.items()}
        for stage in stages:
            if training := training_of(self.config, stage):
                self._add_stage(stage, images, training, models[stage.name])
        return Plan(
            config=self.config,
            run_dir=self.run_dir,
            images=images,
            splits=tuple(self.splits),
            needs=tuple(self.needs.lines),
            stages=tuple(self.stages),
            others={key: value for key, value in self.seconds.items() if key not in {s.name for s in self.stages}},
            state=self._state(images),
            processes=self.processes,
            problems=tuple(self.problems),
        )

    def _attempt(self, function: Callable[[], T]) -> T | None:
        try:
            return function()
        except (ValueError, OSError, yaml.YAMLError) as error:
            # One cause, such as a missing folder, is met more than once.
            if str(error) not in self.problems:
                self.problems.append(str(error))
            return None

    def _read_splits(self) -> TaggedImages | None:
        config, data, section = self.config, self.config.data, self.config.segmenter
        begun = lambda: self.images or load_training_images(config, self.run_dir)  # noqa: E731
        images = self._read(data.train_split, "to train on and to label", begun)
        if (split := data.score_split) is not None:
            scored = (lambda: load_scored(config, images)) if images else (lambda: load_images(data, split))
            self.scored = self._read(split, "with masks, to score label maps on", scored)
        if section is not None and (last := section.score_split) is not None:
            # As the score split, so that its masks are opened.
            load = lambda: load_images(replace(data, score_split=last), last).with_masks()  # noqa: E731
            self.predicted = self._read(last, "with masks, to score segmenters on", load)
        return images

    def _read(self, split: str, use: str, load: Callable[[], TaggedImages | None]) -> TaggedImages | None:
        images = self._attempt(load)
        if images is not None:
            skipped = f", {len(images.skipped)} skipped" if images.skipped else ""
            self.splits.append(f"{split}: {len(images)} images {use}{skipped}")
        return images

    def _classifier(self, names: tuple[str, ...]) -> PreTrainedModel | None:
        config = self.config
        weights = self.needs.weights("trunk weights", config.trunk_weights, config.model.get("trunk", "resnet50"))
        model = self._attempt(lambda: create_classifier(config.model, names, weights, config.seed))
        if model is None and weights != "random":
            # For the counts, which do not depend on the weights.
            model = self._attempt(lambda: create_classifier(config.model, names, "random", config.seed))
        return model

    def _segmenter(
        self, section: SegmenterConfig, names: tuple[str, ...], classifier: PreTrainedModel | None
    ) -> PreTrainedModel | None:
        own, checkpoint = section.architecture == "deeplab", section.checkpoint
        if section.starts_from_classifier and classifier is None:
            return None
        if own and not section.starts_from_classifier:
            weights = self.needs.weights("segmenter weights", section.weights, section.model.get("trunk", "resnet101"))
            section = replace(section, weights=weights)
        missing = checkpoint is not None and not Path(checkpoint).exists()
        if missing and not self.needs.downloaded("segmenter checkpoint", str(checkpoint), "config.json"):
            return None
        return self._attempt(lambda: create_segmenter(section, names, classifier=classifier, seed=self.config.seed))

    def _model(
        self, stage: Stage, classifier: PreTrainedModel | None, segmenter: PreTrainedModel | None
    ) -> PreTrainedModel | None:
        """What a stage trains; `None` for nothing, or where it cannot be built."""
        if stage.kind == "refinement":
            return self._refinement(stage.name)
        return {"classifier": classifier, "segmenter": segmenter}.get(stage.kind)

    def _refinement(self, name: str) -> PreTrainedModel | None:
        network, section = REFINEMENTS[name].network, getattr(self.config, name)
        if network is None:
            return None
        config, own = self.config, section.trunk_weights is not None
        trunk = section.model.get("trunk", "resnet50" if own else config.model.get("trunk", "resnet50"))
        weights = self.needs.weights(f"{name} trunk weights", section.trunk_weights or config.trunk_weights, trunk)
        if own:
            section = replace(section, trunk_weights=weights)
        else:
            config = replace(config, trunk_weights=weights)
        return self._attempt(lambda: network(config, section))

    def _add_stage(
        self, stage: Stage, images: TaggedImages | None, training: LoopConfig, model: PreTrainedModel | None
    ) -> None:
        if stage.uses_masks and images:
            images = images.with_masks()
            if not images:
                self.problems.append("segmenter.compare: mask is asked for, but the train split has no masks")
        shown, size = resolved(training), sample_size(training)
        steps, count = training.gradient_accumulation_steps, None if images is None else len(images)
        options = {"epochs": training.epochs, "min_iterations": training.min_iterations, "seed": 0}
        options |= {"processes": self.processes, "accumulation": steps}
        order = self._attempt(lambda: BatchOrder(count or 0, training.batch_size, **options)) if images else None
        trained = frozen = memory = None
        if model is not None:
            sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.train().parameters()]
            trained = sum(size for size, moves in sizes if moves)
            frozen = sum(size for size, moves in sizes if not moves)
            batch = order.batch_size if order else training.batch_size
            # Of transformers' models some use operations that cannot be traced without numbers.
            with contextlib.suppress(RuntimeError):
                memory = estimate_memory(model, max(batch // (self.processes * steps), 1), size, shown)
        iterations = None if order is None else order.iterations
        if iterations is not None and training is self.config.spatial:
            self._attempt(lambda: alternation(iterations, self.config.spatial))
        epochs = None if order is None else order.epochs
        seconds = self.seconds.get(stage.name)
        plan = StagePlan(stage.name, count, iterations, epochs, shown, size, trained, frozen, memory, seconds)
        self.stages.append(plan)

    def _state(self, images: TaggedImages | None) -> str:
        stages = stages_of(self.config, self.outside)
        begun = [stage.name for stage in stages if (self.run_dir / stage.name / RECORD).is_file()]
        if begun:
            known = len(self.problems)
            if images is not None:
                self._attempt(lambda: require_same(self.run_dir, stages, images.manifest_hash))
            if len(self.problems) > known:
                return "holds another run"
            done = [name for name in begun if read_record(self.run_dir / name).get("finished")]
            return f"continues a run; finished so far: {', '.join(done) or 'nothing'}"
        there = next(parent for parent in (self.run_dir, *self.run_dir.absolute().parents) if parent.exists())
        if not there.is_dir() or not os.access(there, os.W_OK):
            self.problems.append(f"--output-dir {self.run_dir}: {there} is not a folder that can be written to")
        return "new"
