"""The guard: a class that a stage has harmed keeps the label maps of the stage before.

    round_1/guard.json     which classes, and why; none if the stage has harmed none
    round_1/labels/kept    a label store, if there is any: these classes from before, the others as they are

Nothing here reads a mask: what counts is how often a class is lost, and how much of its images it covers.
"""

import contextlib
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..config import GuardConfig
from ..files import digest, read_fields, write_json
from ..labels.store import GROUP, LabelStore
from ..processes import share_of
from ..progress import tracked
from .bench import Bench
from .stage import KEPT, RECORD, Stage

GUARD = "guard.json"
# Fewer classes than these say nothing about the others.
_MANY = 3


class Harm(NamedTuple):
    """What a stage has done to its classes.

    Attributes:
        classes: those that it has harmed, each with the reason in words.
        all: so many are that all of them are kept.
    """

    classes: dict[str, str]
    all: bool = False


def hold_back(bench: Bench, stage: Stage) -> None:
    """Look at a labelled stage class by class, and make the store `KEPT` if the stage before is better for any.

    Args:
        bench: of the run; all processes call, and share the work.
        stage: labelled; compared with the first stage that it needs.
    """
    config = bench.config.guard
    if config is None:
        return
    folder, source = bench.run_dir / stage.name, stage.needs[0]
    before, after = LabelStore(source.final_store(bench.run_dir)), LabelStore(folder / stage.stores[-1])
    harmed = bench.decided(harmed_classes(before, after, config, stage.kind == "refinement"))
    if bench.process.is_main_process:
        write_json(folder / GUARD, {"before": source.name, **harmed._asdict()})
    if harmed.classes:
        _write_kept(bench, stage, before, after, harmed.classes)
    bench.process.wait_for_everyone()


def harmed_classes(before: LabelStore, after: LabelStore, config: GuardConfig, refined: bool = False) -> Harm:
    """The classes that the later of two stores has extinguished or flooded.

    Args:
        before: label maps of a stage.
        after: of the next one, of the same classes.
        config: the limits.
        refined: the later stage is a refinement.
    """
    least = config.min_refined if refined else config.min_coverage
    (old_ids, old), (new_ids, new) = before.proportions(), after.proportions()
    both = sorted(set(old_ids) & set(new_ids))
    old = old[np.searchsorted(old_ids, both)] if both else old[:0]
    new = new[np.searchsorted(new_ids, both)] if both else new[:0]
    classes = [after.record(image_id)["classes"] for image_id in both]
    found, judged = {}, 0
    for index, name in enumerate(after.class_names):
        known = np.array([index in those for those in classes], bool)
        # Of a class that had no pixel anywhere, nothing can be kept.
        if known.sum() < config.least_images or not old[known, index].any():
            continue
        judged += 1
        was, now = old[known, index], new[known, index]
        lost, ratio = int(((was > 0) & (now == 0)).sum()), float(now.mean() / was.mean())
        if lost > config.max_lost * len(was):
            found[name] = f"extinguished: lost from {lost} of its {len(was)} photos"
        elif ratio < least:
            found[name] = f"extinguished: covers {ratio:.2f} times as much as before"
        elif ratio > config.max_coverage and now.mean() > config.least_flood:
            found[name] = f"flooded: covers {ratio:.2f} times as much as before"
    if len(found) >= _MANY and len(found) > config.max_harmed * judged:
        others = f"as all classes are: {len(found)} of {judged} have been extinguished or flooded"
        kept = [name for index, name in enumerate(after.class_names) if old[:, index].any()]
        return Harm({name: found.get(name, others) for name in kept}, all=True)
    return Harm(found)


def merge(before: np.ndarray, after: np.ndarray, values: Collection[int]) -> np.ndarray:
    """The later label map, but for what concerns some classes: there the earlier one decides.

    Args:
        before: `(H, W)` uint8.
        after: `(H, W)` uint8.
        values: of the classes in both.
    """
    concerned = np.isin(before, list(values)) | np.isin(after, list(values))
    return np.where(concerned, before, after)


def _write_kept(bench: Bench, stage: Stage, before: LabelStore, after: LabelStore, harmed: Collection[str]) -> None:
    share, ids = share_of(bench.process), bench.images.image_ids
    values = [after.class_names.index(name) + 1 for name in harmed]
    details = {key: after.meta[key] for key in ("method", "config", "checkpoint", "crf")}
    note = "; ".join(filter(None, (after.note, kept_note(bench.run_dir / stage.name))))
    store = LabelStore.create(
        bench.run_dir / stage.name / KEPT,
        after.class_names,
        key=digest({"before": before.meta["key"], "after": after.meta["key"], "classes": values}),
        num_images=len(ids),
        details=details | {"config": details["config"] | {"note": note}},
        rank=share.rank,
        group=GROUP,
    )
    own = share.of(ids)
    with contextlib.ExitStack() as flushed:
        # Of what ends with an error, everything that was made is kept.
        flushed.callback(store.flush)
        for image_id in tracked(own, "keeping classes", len(own), shown=share.rank == 0):
            if image_id in store:
                continue
            record = after.record(image_id)
            if "skipped" in record:
                store.skip(image_id, record["skipped"])
                continue
            label_map = after.read(image_id)
            if image_id in before:
                label_map = merge(before.read(image_id), label_map, values)
            shares = [float((label_map == index + 1).mean()) for index in record["classes"]]
            store.write(image_id, label_map, {**record, "proportions": shares})
    store.mark_complete()


def _read(folder: Path) -> tuple[str, Harm]:
    """The stage that a stage was compared with, and what it has harmed; see [`kept_classes`]."""
    remedy = f"remove it and {folder / RECORD}, and give the `sbce run` command again, which writes both anew"
    found = read_fields(folder / GUARD, {"before": str, "classes": dict[str, str], "all": bool}, remedy)
    return ("", Harm({})) if found is None else (found["before"], Harm(found["classes"], found["all"]))


def kept_classes(folder: Path) -> list[tuple[str, str, str]]:
    """Of a stage's folder, each class that was kept from before: its name, the stage it is from, and the reason.

    Raises:
        UserError: what says so is damaged.
    """
    before, harm = _read(folder)
    return [(name, before, reason) for name, reason in harm.classes.items()]


def kept_together(folder: Path) -> list[tuple[str, str, str]]:
    """[`kept_classes`], with the names of those that have one reason in one entry."""
    together: dict[tuple[str, str], list[str]] = {}
    for name, source, reason in kept_classes(folder):
        together.setdefault((source, reason), []).append(name)
    return [(", ".join(names), source, reason) for (source, reason), names in together.items()]


def kept_note(folder: Path) -> str:
    """Which classes of a stage's folder were kept from where, for tables, cards and networks trained on them."""
    before, harm = _read(folder)
    if harm.all:
        return f"all classes kept from {before}"
    return "; ".join(f"{name} kept from {before}" for name in harm.classes)
