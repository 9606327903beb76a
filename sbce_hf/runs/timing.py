"""How long a run will take: a few steps and photos of each kind, timed on this machine before anything starts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from transformers import PreTrainedModel

from ..config import AffinityConfig, LoopConfig, RunConfig, TrainingConfig
from ..data import TaggedImages
from ..inference.classifier import listens, positions_to_look_at
from ..progress import LABELLING, PREDICTION, TRAINING, announce
from ..training.features import View, training_views
from ..training.sampler import BatchOrder
from .clock import Clock
from .settings import labelling_of
from .stage import Stage


def training_of(config: RunConfig, stage: Stage) -> LoopConfig | None:
    """What a stage trains with; `None` if it trains nothing."""
    if stage.kind == "classifier":
        return config.spatial if stage.needs else config.bce
    return getattr(getattr(config, stage.name.partition("/")[0], None), "training", None)


def sample_size(training: LoopConfig) -> int:
    """Side of a training's samples in pixels."""
    return training.image_size if isinstance(training, TrainingConfig) else cast(Any, training).crop_size


def stage_seconds(
    config: RunConfig,
    stages: Sequence[Stage],
    images: TaggedImages,
    models: Mapping[str, PreTrainedModel | None],
    counts: tuple[int, int],
    processes: int,
) -> dict[str, list[tuple[str, float]]]:
    """How long the parts of each stage will take, scores and report excepted, in their order.

    Args:
        config: of the run.
        stages: of the run.
        images: the training set.
        models: what each stage trains.
        counts: of the images that label maps, and that segmenters are scored on.
        processes: that share the work.
    """
    announce("timing a few steps and photos, to tell how long it will take")
    clock, known = Clock(images), dict[Any, float]()
    found: dict[str, list[tuple[str, float]]] = {stage.name: [] for stage in stages}
    seen = set[View]()
    classifier = cast(Any, next(model for model in models.values() if model is not None))

    def once(what: Any, function: Callable[..., float], *arguments: Any) -> float:
        if what not in known:
            known[what] = function(*arguments)
        return known[what]

    rounds = [stage for stage in stages if stage.kind == "classifier"]
    for stage in stages:
        model, parts = cast(Any, models[stage.name]), found[stage.name]
        if (training := training_of(config, stage)) is not None and model is not None:
            steps = training.gradient_accumulation_steps
            lengths = {"epochs": training.epochs, "min_iterations": training.min_iterations}
            shared = {"processes": processes, "accumulation": steps}
            order = BatchOrder(len(images), training.batch_size, seed=0, **lengths, **shared)
            batch = max(order.batch_size // (processes * steps), 1)
            kind = (type(model), sample_size(training), batch, training.mixed_precision, training.num_workers)
            augmented = repr(getattr(training, "augmentation", None))
            step = once((kind, augmented), clock.training, model, training, sample_size(training), batch)
            seconds = order.iterations * batch * steps * step
            if stage.kind == "classifier" and not model.config.train_trunk:
                # Features that an earlier stage has looked at are kept.
                views = [view for view in training_views(cast(TrainingConfig, training)) if view not in seen]
                seen.update(views)
                seconds += (
                    len(images) / processes * sum(once(view.side, clock.looking, model, view.side) for view in views)
                )
            parts.append((TRAINING, seconds))
        if stage.kind == "classifier":
            labelling = labelling_of(config, rounds.index(stage))
            each = once(repr(labelling), clock.labelling, classifier, labelling)
            seconds = len(images) / processes * each
            if listens(labelling):
                looks = 2 if labelling.object_weight else 1
                seconds += looks * len(positions_to_look_at(images, labelling)) * clock.maps(classifier, labelling)[1]
            parts.append((LABELLING, seconds))
        elif stage.kind == "yardstick":
            each = clock.scanning(classifier, replace(labelling_of(config, 0), rule="fixed"))
            parts.append((LABELLING, counts[0] / processes * each))
        elif stage.kind == "refinement":
            labelling = labelling_of(config, config.rounds)
            section = getattr(config, stage.name)
            if isinstance(section, AffinityConfig):
                each = clock.spreading(classifier, labelling, section)
            elif model is None:
                each = once(repr(labelling), clock.labelling, classifier, labelling)
            else:
                # Seeds, each with CRFs of its own, then the network, then the walk.
                each = clock.labelling(classifier, labelling, crfs=2)
                parts.insert(0, (LABELLING, len(images) / processes * each))
                each = clock.walking(classifier, labelling, model, section)
            parts.append((LABELLING, len(images) / processes * each))
        elif stage.kind == "segmenter" and config.segmenter is not None and model is not None:
            each = once("predict", clock.predicting, model, config.segmenter)
            parts.append((PREDICTION, counts[1] / processes * each))
    return found
