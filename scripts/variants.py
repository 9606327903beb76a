"""What settings of rule, walk and CRF do to the label maps of a finished run: nothing is trained, nothing written.

python scripts/variants.py RUN [--stage round_2] [--every N] [--no-crf] --try KEY=VALUE [KEY=VALUE ...] [--try ...]

Each `--try` is a row of the table, below the run as it is. Class maps, boundaries and objects are those of the run's
own networks; every N-th photo of the split that the run scores, or else of its training split, is labelled in memory,
without the guard. Networks that have learned from other label maps may answer otherwise: what is better here has to be
shown by whole runs. Masks only score, and what was chosen with them is no result on the same photos.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sbce_hf.cli.common import say
from sbce_hf.cli.console import quiet_loading, set_up
from sbce_hf.errors import UserError

if TYPE_CHECKING:
    from sbce_hf.config import LabellingConfig, RunConfig
    from sbce_hf.data import TaggedImages
    from sbce_hf.evaluation.confusion import MeanIoU
    from sbce_hf.inference.irn import WalkMethod
    from sbce_hf.postprocess.rules import ClassMaps

AS_IT_IS = "as it is"
# What changes neither the views nor a network.
RULE = {"background_threshold", "object_threshold", "object_min_kept", "peak_share", "confidence_weight"}
ALLOWED = {f"labelling.{name}" for name in {*RULE, "rule", "object_weight", "crf"}}


@dataclass
class Variant:
    """One row of the table.

    Args:
        config: of the run, changed.
        label: from a photo `(H, W, 3)` uint8 and its class maps to a label map.
    """

    config: "LabellingConfig"
    label: "Callable[[np.ndarray, ClassMaps], np.ndarray]"
    scores: "dict[str, MeanIoU]" = field(default_factory=dict)
    lost: int = 0


def main() -> None:
    """Label, score, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", metavar="RUN", help="folder of a finished run")
    parser.add_argument("--stage", metavar="NAME", help="a round, or irn; by default the last of them")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="label only every N-th photo")
    parser.add_argument("--no-crf", action="store_true", help="no row after the CRF")
    parser.add_argument(
        "--try",
        dest="tries",
        nargs="+",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="as in labelling.peak_share=0.4 or irn.boundary_weight=0; several make one row",
    )
    options = parser.parse_args()
    set_up(verbose=False)
    quiet_loading()
    try:
        say(_table(Path(options.run), options.stage, options.every, not options.no_crf, options.tries))
    except UserError as error:
        parser.error(str(error))


def _table(run_dir: Path, stage_name: str | None, every: int, crf: bool, tries: list[list[str]]) -> str:
    from sbce_hf.data import load_images
    from sbce_hf.evaluation.confusion import MeanIoU
    from sbce_hf.inference.classifier import to_refine
    from sbce_hf.inference.views import class_maps
    from sbce_hf.postprocess.crf import dense_crf
    from sbce_hf.progress import tracked
    from sbce_hf.runs.stages import read_config

    config = read_config(run_dir)
    split = config.data.score_split or config.data.train_split
    images = load_images(config.data, split).with_masks()
    look = _Run(run_dir, config, load_images(config.data, config.data.train_split), stage_name)
    variants = {AS_IT_IS: look.variant(config)}
    variants |= {" ".join(texts): look.variant(_changed(config, texts)) for texts in tries}
    positions = range(0, len(images), every)
    if not positions:
        raise UserError(f"{run_dir}: no photo of split {split!r} has a mask to score on")
    labels, tags = images.label_matrix(), 0
    for index in tracked(positions, "labelling", len(positions), unit="images"):
        photo, truth = images.image(index), images.mask(index)
        image = np.asarray(photo)
        (maps,) = class_maps(look.model, [photo], labels[[index]], look.labelling, preprocessing=look.preprocessing)
        tags += len(maps.classes)
        for variant in variants.values():
            refined = to_refine(maps, variant.config, look.usual(variant.config))
            answers = {"before": variant.label(image, refined)}
            if crf and variant.config.crf is not None:
                answers["after"] = dense_crf(image, answers["before"], maps.classes.tolist(), variant.config.crf)
            for when, label_map in answers.items():
                metric = variant.scores.setdefault(when, MeanIoU(images.class_names))
                metric.add(prediction=label_map, reference=truth)
            variant.lost += sum(not (label_map == value + 1).any() for value in maps.classes)
    return _rows(variants, tags)


class _Run:
    """The networks of a stage, and what is usual for them.

    Args:
        run_dir: of the run.
        config: of it.
        images: the training split.
        stage_name: of the stage; `None` for the last one.
    """

    def __init__(self, run_dir: Path, config: "RunConfig", images: "TaggedImages", stage_name: str | None) -> None:
        from sbce_hf.data.preprocessing import Preprocessing
        from sbce_hf.inference.checkpoints import load_classifier
        from sbce_hf.inference.irn import ObjectMap
        from sbce_hf.runs.refine import IRN
        from sbce_hf.runs.settings import BCE, labelling_of
        from sbce_hf.runs.stages import classifier_of, stages_of

        stages = stages_of(config)
        rounds = [stage.name for stage in stages if stage.kind == "classifier"]
        known = rounds[1:] + [stage.name for stage in stages if stage.name == IRN]
        if not known or (stage_name is not None and stage_name not in known):
            raise UserError(f"--stage: got {stage_name}, expected one of {known} of {run_dir}")
        self.run_dir, self.images, self.stage = run_dir, images, stage_name or known[-1]
        self.walks, self.number = self.stage == IRN, config.rounds
        classifier = classifier_of(stages).name
        if not self.walks:
            classifier, self.number = self.stage, rounds.index(self.stage)
        self.model = load_classifier(run_dir / classifier / "model")
        self.preprocessing = Preprocessing.of(self.model.config)
        self.labelling = labelling_of(config, self.number)
        self.objects = _Once(ObjectMap(load_classifier(run_dir / BCE / "model"), self.labelling))
        self._usual: dict[float, Any] = {}

    def variant(self, config: "RunConfig") -> Variant:
        """A row of the table."""
        from sbce_hf.config import IrnRefinementConfig
        from sbce_hf.postprocess.rules import apply_rule
        from sbce_hf.runs.refine import load_walk
        from sbce_hf.runs.settings import labelling_of

        labelling = labelling_of(config, self.number)
        if not self.walks:
            return Variant(labelling, lambda image, maps: apply_rule(maps, labelling).label_map)
        walk: WalkMethod = load_walk(self.run_dir, config.irn or IrnRefinementConfig(), labelling)[0]
        if walk.objects is not None:
            walk.objects = self.objects
        return Variant(labelling, lambda image, maps: _called(walk(image, maps, None).label_maps[0]))

    def usual(self, labelling: "LabellingConfig") -> Any:
        """What is usual for the class maps; it depends on the constant alone."""
        from sbce_hf.inference.classifier import listens, look_for_usual

        if not listens(labelling):
            return None
        if labelling.peak_share not in self._usual:
            self._usual[labelling.peak_share] = look_for_usual(
                self.model, self.images, labelling, self.preprocessing, self.objects
            )
        return self._usual[labelling.peak_share]


class _Once:
    """Remembers the answer for the last photo: every variant asks for the same."""

    def __init__(self, function: Callable[[np.ndarray], np.ndarray]) -> None:
        self.function = function
        self.last: tuple[np.ndarray, np.ndarray] | None = None

    def __call__(self, image: np.ndarray) -> np.ndarray:
        if self.last is None or self.last[0] is not image:
            self.last = image, self.function(image)
        return self.last[1]


def _called(label_map: Callable[[], np.ndarray | None]) -> np.ndarray:
    found = label_map()
    assert found is not None
    return found


def _changed(config: "RunConfig", texts: list[str]) -> "RunConfig":
    from sbce_hf.config import RunConfig, from_mapping, merge, parse_override, to_mapping
    from sbce_hf.runs.refine import WALK

    values, allowed = to_mapping(config), ALLOWED | {f"irn.{name}" for name in WALK}
    for text in texts:
        key = text.partition("=")[0].strip()
        if not any(key == name or key.startswith(f"{name}.") for name in allowed):
            raise UserError(
                f"--try: got {key}, expected one of {sorted(allowed)}; anything else needs a run of its own"
            )
        values = merge(values, parse_override(text))
    return from_mapping(RunConfig, values, "--try")


def _rows(variants: Mapping[str, Variant], tags: int) -> str:
    from sbce_hf.evaluation.tables import markdown_table, percent

    rows = []
    for name, variant in variants.items():
        found = {when: metric.compute() for when, metric in variant.scores.items()}
        cells = [percent(found[when]["mean_iou"]) if when in found else "" for when in ("before", "after")]
        classes = list(found.values())[-1]["per_class_iou"]
        worst = min((key for key in classes if not np.isnan(classes[key])), key=lambda key: classes[key])
        rows.append((name, *cells, f"{worst} {percent(classes[worst])}", percent(variant.lost / max(tags, 1))))
    header = ("settings", "mIoU before the CRF (%)", "after it (%)", "worst class", "lost tags (%)")
    return markdown_table(header, rows, text_columns=1)


if __name__ == "__main__":
    main()
