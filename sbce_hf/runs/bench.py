"""What every stage of a run needs from outside its folder: settings, images, processes, notes. It holds no results."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from accelerate import PartialState

from ..config import RunConfig
from ..data import TaggedImages, load_images
from ..data.mask_checks import masks_hash
from ..files import read_fields, write_atomic
from ..processes import decided
from ..progress import Parts
from ..training.device import use_cpu
from .layout import IMAGES, NOTES, REMEDY, read_notes

T = TypeVar("T")


@dataclass(frozen=True)
class SegmenterData:
    """What segmenters need besides the run's images; loaded, and so checked, before anything is trained.

    Args:
        masked: training images with a true mask; `None` unless the yardstick is asked for.
        scored: images of the split that segmenters are scored on; `None` scores nothing.
    """

    masked: TaggedImages | None = None
    scored: TaggedImages | None = None


class Bench:
    """Where the stages of a run are made.

    Args:
        config: everything that decides the result.
        run_dir: its folder; nothing is written here.

    Attributes:
        outside: hashes of what refinements read from outside the run, by name; see `stages.outside_of`.
        expected: parts of the stages to come, with the seconds that they are expected to take.

    Raises:
        ValueError: the data cannot be used.
        FileNotFoundError: data are missing.
    """

    def __init__(self, config: RunConfig, run_dir: str | Path) -> None:
        self.config, self.run_dir = config, Path(run_dir)
        self.outside: Mapping[str, str] = {}
        self.expected: Mapping[str, Parts] = {}
        self.process = PartialState(cpu=use_cpu())
        self.images = load_training_images(config, self.run_dir)
        # Of the start: images that can no longer be read later do not make it another run.
        self.manifest_hash = self.images.manifest_hash
        self.scored = load_scored(config, self.images)
        self.masks_hash = None if self.scored is None else masks_hash(self.scored)
        self.segmenter_data = SegmenterData() if config.segmenter is None else load_segmenter_data(config, self.images)

    def leave_out(self, skipped: Collection[str]) -> None:
        """Go on without images that could be read at the start and no longer can."""
        if skipped:
            self.images = _without(self.images, skipped)
            self.scored = None if self.scored is None else _without(self.scored, skipped)
            if self.segmenter_data.masked is not None:
                masked = _without(self.segmenter_data.masked, skipped)
                self.segmenter_data = replace(self.segmenter_data, masked=masked)

    def decided(self, value: T) -> T:
        """The main process's answer, for all: others may see the folder later, or already what it writes."""
        return decided(lambda: value, self.process)

    def notes(self) -> dict[str, Any]:
        """What `run.json` says: command, versions, hardware, durations."""
        return read_notes(self.run_dir)

    def note(self, **values: Any) -> None:
        """Add to `run.json`."""
        if self.process.is_main_process:
            write_atomic(self.run_dir / NOTES, json.dumps(self.notes() | values, indent=1))

    def note_duration(self, what: str, seconds: float) -> None:
        """Add to the durations in `run.json`."""
        self.note(durations=self.notes().get("durations", {}) | {what: seconds})


def _without(images: TaggedImages, skipped: Collection[str]) -> TaggedImages:
    return images.select([index for index, name in enumerate(images.image_ids) if name not in skipped])


def load_training_images(config: RunConfig, run_dir: Path) -> TaggedImages:
    """Load the images that a run trains on and labels: those that it has begun with, if it has.

    A photo that could be read then and no longer can stays one of them, so that what is finished stays valid; it is
    skipped where it is labelled.

    Raises:
        ValueError: see [`load_images`].
    """
    images = load_images(config.data, config.data.train_split)
    begun = read_fields(run_dir / IMAGES, {"manifest_hash": str, "images": dict[str, str]}, REMEDY)
    return images if begun is None or config.data.strict else images.as_before(begun["manifest_hash"], begun["images"])


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


def load_segmenter_data(config: RunConfig, images: TaggedImages) -> SegmenterData:
    """Load the images that segmenters need.

    Raises:
        ValueError: no masks where they are needed.
    """
    segmenter = config.segmenter
    if segmenter is None:
        return SegmenterData()
    masked = None
    if "mask" in segmenter.compare:
        masked = images.with_masks()
        if len(masked) == 0:
            raise ValueError(
                f"segmenter.compare: mask is asked for, but split {config.data.train_split!r} has no masks; "
                "leave it out"
            )
    scored = None
    if segmenter.score_split is not None:
        # As the score split, so that its masks are opened now and not after the training.
        scored = load_images(replace(config.data, score_split=segmenter.score_split), segmenter.score_split)
        check_same_classes(images, scored, segmenter.score_split)
        scored = scored.with_masks()
    return SegmenterData(masked, scored)


def check_same_classes(images: TaggedImages, scored: TaggedImages, split: str) -> None:
    """Raise a `ValueError` if a split that is to be scored has other classes than the training images."""
    if scored.class_names != images.class_names:
        raise ValueError(
            f"split {split!r}: has the classes {list(scored.class_names)}, the training split "
            f"{list(images.class_names)}; set data.classes, so that all splits have the same"
        )
