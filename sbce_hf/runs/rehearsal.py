"""Whether every network can look at images of every size that a run will show it; before the first stage."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from ..config import RunConfig
from ..data import TaggedImages
from ..data.decoding import UnreadableError
from ..errors import UserError
from ..inference.irn import boundary_size
from ..inference.segmenter import prediction_sizes
from ..inference.views import view_sizes
from ..models.modeling_irn import IrnModel
from ..models.modeling_trunk import HasTrunk
from .settings import labelling_of
from .stage import Stage
from .timing import sample_size, training_of

# Photos whose own sizes are tried, where a recipe does not resize them.
PHOTOS = 8

Size = tuple[int, int]


def rehearse(
    config: RunConfig, stages: Sequence[Stage], models: Mapping[str, PreTrainedModel | None], images: TaggedImages
) -> None:
    """Look at one image of every size with every network of this package, without its weights and without numbers.

    Args:
        config: of the run.
        stages: of the run.
        models: what each stage trains, by its name; `None` for nothing.
        images: the training set.

    Raises:
        UserError: a network cannot; says which, at what size, and what to do.
    """
    spread = np.linspace(0, len(images) - 1, min(PHOTOS, len(images))).round().astype(int).tolist()
    photos = []
    for index in spread:
        # What has become unreadable is skipped where it is labelled.
        with contextlib.suppress(UnreadableError):
            photos.append(images.upright_size(index)[::-1])
    classifier = next((model for model in models.values() if model is not None), None)
    tried, empties = set[tuple[int, Size]](), dict[int, Any]()
    for stage in stages:
        for model, use, size in _looks(config, stage, models[stage.name], classifier, photos):
            if (id(model), size) not in tried:
                tried.add((id(model), size))
                # Of transformers' models some use operations that need numbers.
                if isinstance(model.base_model, HasTrunk):
                    if id(model) not in empties:
                        empties[id(model)] = _without_weights(model)
                    _look(empties[id(model)], size, f"{stage.name}: {use}")


def _looks(
    config: RunConfig, stage: Stage, model: Any, classifier: Any, photos: Sequence[Size]
) -> Iterator[tuple[Any, str, Size]]:
    """Which network sees what size (height, width) for what."""
    training = training_of(config, stage)
    if training is not None and model is not None:
        yield model, "training", (sample_size(training),) * 2
    if stage.kind == "segmenter" and config.segmenter is not None and config.segmenter.score_split is not None:
        section = config.segmenter
        for photo in photos:
            for size in prediction_sizes(photo, section.prediction, section.training.image_size):
                yield model, "prediction", size
    if stage.kind in ("classifier", "refinement"):
        number = int(stage.name.rpartition("_")[2]) if stage.needs and stage.kind == "classifier" else 0
        labelling = labelling_of(config, config.rounds if stage.kind == "refinement" else number)
        for photo in photos:
            for size in view_sizes(*photo, labelling):
                yield classifier, "labelling", size
            if isinstance(model, IrnModel) and config.irn is not None:
                yield model, "the walk", boundary_size(photo, config.irn)


def _without_weights(model: Any) -> Any:
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return type(model)(model.config).eval()


def _look(empty: Any, size: Size, use: str) -> None:
    config: Any = empty.config
    try:
        # What a forward pass makes itself has no numbers either.
        with torch.device("meta"), torch.inference_mode():
            empty(torch.empty(1, 3, *size))
    # Anything can come of a size that does not fit.
    except Exception as error:
        height, width = size
        remedy = "choose another trunk, or resize the photos (image_size of the training and the labelling)"
        kwargs = dict(config.trunk_kwargs or {})
        if not kwargs.get("img_size"):
            remedy += f". Some trunks are built for one size: trunk_kwargs={{img_size: {height}}}, one scale"
        raise UserError(
            f"{use}: trunk {config.trunk!r} with {kwargs}: cannot look at images of {height} x {width}: "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}; {remedy}"
        ) from error
