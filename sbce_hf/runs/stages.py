"""A run as a list of stages, made from its config: the only file that knows the order.

    bce                  a classifier on image tags alone, and its label maps
    round_1, round_2     Spatial-BCE with the proportions of the stage before
    leak_best_constant   a yardstick: stage 0 at the constant that is best on ground truth, where there are masks
    affinity             the last class maps spread over what is alike, if the recipe has that section
    irn                  the last label maps refined, if the recipe has that section
    saliency             the last label maps refined by saliency maps, if the recipe has that section
    segmenter/adaptive   a segmentation network on the last label maps, if the recipe has that section
    segmenter/bce        the same network on stage 0's label maps, if `segmenter.compare` asks for it
    segmenter/mask       the same on true masks: a yardstick

What may be left out, what a stage is made from, whether a folder can be continued: all of it follows from this list.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ..config import RunConfig, deciding, from_mapping
from ..config.yaml_text import read_yaml_file
from ..data import TaggedImages
from ..errors import UserError
from ..files import require_own
from ..inference.affinity import AFFINITY
from ..inference.segmenter import METHOD
from ..labels.variants import variants
from ..postprocess.methods import SHARE
from .affinity import REFINEMENT as AFFINITY_REFINEMENT
from .classify import train_and_label
from .layout import CONFIG, is_run
from .proportions import given_proportions
from .refine import IRN
from .refine import REFINEMENT as IRN_REFINEMENT
from .saliency import REFINEMENT as SALIENCY_REFINEMENT
from .saliency import SALIENCY
from .segment import train_and_predict
from .settings import BCE, cuts_at_given_shares, labelling_of, sections_of
from .stage import OUTSIDE, RECORD, Refinement, Stage
from .yardstick import best_constant, is_outdated

# By the section of the recipe that asks for it, in the order in which they refine.
REFINEMENTS: Mapping[str, Refinement] = {
    AFFINITY: AFFINITY_REFINEMENT,
    IRN: IRN_REFINEMENT,
    SALIENCY: SALIENCY_REFINEMENT,
}
LEAK, SEGMENTER = "leak_best_constant", "segmenter"
# The section of the recipe that may name a table.
PROPORTIONS = "proportions"
# What to do about a damaged config of a run.
REWRITTEN = "give the `sbce run` command again, which writes it anew"
_COPY = "put a copy of it there"
FROM_MASKS = "proportions from masks"


def outside_of(config: RunConfig, images: TaggedImages) -> dict[str, str]:
    """Check what refinements and rounds read from outside the run; returns their hashes by name of the section.

    Args:
        config: of the run.
        images: the training images.

    Raises:
        OSError: something is missing.
        ValueError: something cannot be used.
    """
    found = {
        name: refinement.outside(config, section, images)
        for name, refinement in REFINEMENTS.items()
        if (section := getattr(config, name)) is not None and refinement.outside is not None
    }
    given = given_proportions(config, images)
    return found if given is None else {**found, PROPORTIONS: given[1]}


def check_refinements(config: RunConfig, classifier: PreTrainedModel) -> None:
    """See that every refinement of a recipe fits the classifier.

    Raises:
        ValueError: one does not.
    """
    for name, refinement in REFINEMENTS.items():
        if (section := getattr(config, name)) is not None and refinement.check is not None:
            refinement.check(config, section, classifier)


def stages_of(config: RunConfig, outside: Mapping[str, str] | None = None) -> list[Stage]:
    """The stages of a run, each after those that it needs.

    Args:
        config: of the run.
        outside: see [`outside_of`]; without it, the stages' keys are not those of a run.
    """
    outside = outside or {}
    stages = [_classifier(config, 0, None, outside)]
    for number in range(1, config.rounds + 1):
        stages.append(_classifier(config, number, stages[-1], outside))
    first, last = stages[0], stages[-1]
    if config.data.score_split is not None:
        scored = {"data": {"score_split": config.data.score_split}}
        # Whatever stage 0's own rule is.
        stores = variants("fixed", config.labelling.crf, "labels")
        yardstick = Stage(
            name=LEAK,
            kind="yardstick",
            make=best_constant,
            settings=scored,
            needs=(first,),
            stores=stores,
            uses_masks=True,
            scored_on=config.data.score_split,
            is_outdated=is_outdated,
        )
        stages.append(yardstick)
    labelled = last
    for name, refinement in REFINEMENTS.items():
        if getattr(config, name) is not None:
            labelled = _refinement(config, name, refinement, (labelled, last), outside)
            stages.append(labelled)
    if config.segmenter is not None:
        sources: dict[str, Stage | None] = {"adaptive": labelled, "bce": first, "mask": None}
        for labels in ("adaptive", *config.segmenter.compare):
            stages.append(_segmenter(config, labels, sources[labels], last))
    return stages


def _classifier(config: RunConfig, number: int, previous: Stage | None, outside: Mapping[str, str]) -> Stage:
    values, labelling = deciding(config), labelling_of(config, number)
    given = cuts_at_given_shares(config)
    settings: dict[str, Any] = {
        "labelling": deciding(labelling),
        "proportions": {key: value for key, value in values["proportions"].items() if key != "from_masks"},
        # Where class maps end decides the least share that a present class keeps.
        "spatial": {"image_size": config.spatial.image_size},
    }
    settings |= sections_of(config, number)
    # A round is trained with a given table, or stage 0 is labelled by it, too.
    reads = given or previous is not None
    if reads and PROPORTIONS in outside:
        settings[PROPORTIONS] = values["proportions"] | {OUTSIDE: outside[PROPORTIONS]}
    leak = reads and config.proportions.from_masks
    return Stage(
        name=f"round_{number}" if number else BCE,
        kind="classifier",
        make=partial(train_and_label, number=number),
        settings=settings,
        needs=() if previous is None else (previous,),
        stores=variants(SHARE if given else labelling.rule, labelling.crf, "labels"),
        scored_on=config.data.score_split,
        leak=leak,
        note=FROM_MASKS if leak else "",
    )


def _refinement(
    config: RunConfig, name: str, refinement: Refinement, needs: Sequence[Stage], outside: Mapping[str, str]
) -> Stage:
    """A refinement of the labels of the first of `needs` by the classifier of the last."""
    labelling = labelling_of(config, config.rounds)
    settings = {
        "seed": config.seed,
        "trunk_weights": config.trunk_weights,
        name: deciding(config)[name] | ({OUTSIDE: outside[name]} if name in outside else {}),
        "labelling": deciding(labelling),
        "guard": deciding(config)["guard"],
    }
    stores, split = variants(name, labelling.crf, "labels"), config.data.score_split
    needed, leak = tuple(dict.fromkeys(needs)), needs[0].leak
    note = f"{refinement.note}; {FROM_MASKS}" if leak else refinement.note
    return Stage(name, "refinement", refinement.make, settings, needed, stores, scored_on=split, leak=leak, note=note)


def _segmenter(config: RunConfig, labels: str, source: Stage | None, classifier: Stage) -> Stage:
    section = deciding(config)[SEGMENTER]
    # Which others there are decides nothing about this one.
    section.pop("compare")
    return Stage(
        name=f"{SEGMENTER}/{labels}",
        kind="segmenter",
        make=partial(train_and_predict, source=source, classifier=classifier),
        settings={"seed": config.seed, SEGMENTER: section},
        needs=tuple(dict.fromkeys(stage for stage in (source, classifier) if stage is not None)),
        stores=() if section["score_split"] is None else variants(METHOD, section["prediction"]["crf"], "predictions"),
        uses_masks=source is None,
        scored_on=section["score_split"],
        leak=source is not None and source.leak,
        note="" if source is None else source.note,
    )


def read_config(run_dir: Path) -> RunConfig:
    """The config of a run directory.

    Raises:
        UserError: it is damaged, none of this version's, or a link out of the run.
    """
    path = run_dir / CONFIG
    require_own(path, _COPY)
    values = read_yaml_file(path, REWRITTEN)
    try:
        return from_mapping(RunConfig, values, str(path))
    except UserError as error:
        raise UserError(f"{error}; {REWRITTEN}") from error


def classifier_of(stages: Sequence[Stage]) -> Stage:
    """The stage whose classifier is the run's."""
    return [stage for stage in stages if stage.kind == "classifier"][-1]


def labels_of(stages: Sequence[Stage]) -> Stage:
    """The stage whose label maps are the run's: the last round, or what refines it."""
    return [stage for stage in stages if stage.kind in ("classifier", "refinement")][-1]


def segmenter_of(stages: Sequence[Stage]) -> Stage | None:
    """The stage whose segmentation network is the run's: the first, as the others are compared with it."""
    return next((stage for stage in stages if stage.kind == "segmenter"), None)


def find_run(directory: Path) -> tuple[Path, str] | tuple[None, None]:
    """The run directory that a folder is a part of, and the stage; `None` twice for any other folder.

    Args:
        directory: a stage's folder, or one in it.

    Raises:
        UserError: the run's config is a link out of it.
    """
    directory = directory.resolve()
    for folder in (directory, *directory.parents[:4]):
        if (folder / RECORD).is_file():
            for run_dir in folder.parents[:2]:
                if is_run(run_dir):
                    require_own(run_dir / CONFIG, _COPY)
                    return run_dir, folder.relative_to(run_dir).as_posix()
    return None, None
