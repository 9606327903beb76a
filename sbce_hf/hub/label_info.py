"""What a published configuration of label maps says of itself: counts, and what it was made from."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub.dataclasses import strict

from ..config import from_mapping
from ..config.yaml_text import read_yaml_file
from ..errors import UserError
from ..files import MAX_NOTES, check_fields, file_digest, parse_json, read_small
from ..labels.store import LabelStore
from ..runs.layout import CONFIG
from ..runs.provenance import without_local_paths
from ..runs.stage import read_record
from ..runs.stages import REWRITTEN, find_run
from ..text import check_names, visible

# A configuration, a shard and a tag become parts of paths, and of commands in the card.
_PLAIN = re.compile(r"\w[\w.-]*", re.ASCII)
# What is read of a source; older ones have a rule where there is a method now.
_SOURCE: dict[str, Any] = {
    **{"options": dict, "num_images": int, "crf": bool | None, "ground_truth": bool | None, "seed": int | None},
    **dict.fromkeys(("stage", "method", "rule", "checkpoint", "key"), str | None),
}


@dataclass(frozen=True)
class LabelSource:
    """What a store's label maps were made from and how.

    Args:
        stage: of the run, such as `"round_2"`; `None` outside of a run.
        method: threshold rule, or what was used instead; `None` for the prediction of a segmentation network.
        crf: whether a dense CRF refined them.
        options: of labelling or prediction.
        seed: of the run.
        checkpoint: hash of the weights.
        key: of everything the label maps depend on.
        ground_truth: whether masks were used; `None` if that was not recorded.
        num_images: label maps taken from this store.
    """

    stage: str | None
    method: str | None
    crf: bool
    options: dict[str, Any]
    seed: int | None
    checkpoint: str | None
    key: str
    ground_truth: bool | None
    num_images: int


@strict
@dataclass
class LabelSetInfo:
    """What a configuration says of itself in its `info.json`.

    Args:
        class_names: the ``C`` foreground classes.
        num_images: rows.
        num_bytes: of the shards.
        images_per_class: rows whose `labels` name the class, for each.
        lost_per_class: of these, rows in which the class got no pixel.
        with_images: the photos are there too.
        complete: every image of the stores has a label map or was skipped.
        skipped: images that could not be labelled.
        sources: stores, in the order in which they were pushed.
        shards: SHA-256 by file name.
        tag: git tag of the commit that brought it; `None` without one.
    """

    class_names: list[str]
    num_images: int = 0
    num_bytes: int = 0
    images_per_class: list[int] = field(default_factory=list)
    lost_per_class: list[int] = field(default_factory=list)
    with_images: bool = False
    complete: bool = True
    skipped: list[str] = field(default_factory=list)
    sources: list[dict[str, Any]] = field(default_factory=list)
    shards: dict[str, str] = field(default_factory=dict)
    tag: str | None = None


def read_info(path: Path, repo_id: str) -> LabelSetInfo:
    """Read an `info.json` of a repository.

    Raises:
        ValueError: something else has written it.
    """
    # The name of a configuration is any folder's.
    where = f"{repo_id}: {visible(path.parent.name)}/{path.name}"
    try:
        values = parse_json(read_small(path, MAX_NOTES, "remove it"), path.name)
        info = from_mapping(LabelSetInfo, values, path.name)
        check_names(info.class_names, "class_names")
        counts = (info.images_per_class, info.lost_per_class)
        if any(len(values) != len(info.class_names) for values in counts):
            raise UserError("images_per_class and lost_per_class: expected one number for each class")
        for source in info.sources:
            check_fields(source, _SOURCE, "sources", "remove it")
        names = (path.parent.name, *info.shards, *([] if info.tag is None else [info.tag]))
        if odd := [name for name in names if not _PLAIN.fullmatch(name)]:
            raise UserError(f"got the name {visible(odd[0])[:80]!r}, expected letters, digits, _, - and .")
        return info
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{where} was not written by sbce push labels ({error}); push into another repository"
        ) from error


def grown(
    old: LabelSetInfo, store: LabelStore, new: Sequence[str], shards: dict[str, str], size: int, holds_all: bool
) -> LabelSetInfo:
    """What a configuration says of itself when label maps are added.

    Args:
        old: what it said before.
        store: the label maps are from.
        new: image ids of those that are added.
        shards: SHA-256 of the files that hold them, by name.
        size: bytes of these files.
        holds_all: the store has every label map that was published before, so that it alone says what is complete.
    """
    classes = range(len(store.class_names))
    present, lost = np.zeros(len(classes), np.int64), np.zeros(len(classes), np.int64)
    for image_id in new:
        row = store.row(image_id)
        present[row["labels"]] += 1
        lost[[c for c, share in zip(row["labels"], row["proportions"], strict=True) if share == 0]] += 1
    added = [asdict(source_of(store, len(new)))] if new else []
    return replace(
        old,
        num_images=old.num_images + len(new),
        num_bytes=old.num_bytes + size,
        images_per_class=(present + (old.images_per_class or 0)).tolist(),
        lost_per_class=(lost + (old.lost_per_class or 0)).tolist(),
        complete=store.complete and (old.complete or holds_all),
        sources=[*old.sources, *added],
        shards={**old.shards, **shards},
    )


def source_of(store: LabelStore, num_images: int) -> LabelSource:
    """What is known of a store's origin, from its own description and the run it lies in; without local paths."""
    directory = store.directory.resolve()
    run_dir, stage = find_run(directory)
    seed = ground_truth = None
    checkpoint = store.meta.get("checkpoint")
    if run_dir is not None:
        config = read_yaml_file(run_dir / CONFIG, REWRITTEN)
        seed = check_fields(config, {"seed": int | None}, str(run_dir / CONFIG), REWRITTEN).get("seed")
        ground_truth = read_record(run_dir / str(stage)).get("uses_masks")
        weights = directory.parents[1] / "model" / "model.safetensors"
        if checkpoint is None and weights.is_file():
            checkpoint = file_digest(weights)
    return LabelSource(
        stage=stage,
        # Older stores call it their rule.
        method=store.meta.get("method", store.meta.get("rule")),
        crf=bool(store.meta.get("crf")),
        options=without_local_paths(store.meta.get("config", {})),
        seed=seed,
        checkpoint=checkpoint,
        key=str(store.meta["key"]),
        ground_truth=ground_truth,
        num_images=num_images,
    )
