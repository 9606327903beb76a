"""What a finished stage is worth, once and for all: `scores.json` from masks, `quality.json` without any.

The report and the cards are made from these files. The work is shared by all processes. Nothing that a stage is made
from reads them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..config import RunConfig
from ..data import TaggedImages
from ..data.mask_checks import masks_hash
from ..errors import UserError
from ..evaluation.confusion import score_store
from ..evaluation.odd_photos import OddPhoto, odd_photos
from ..evaluation.quality import Agreement, StageQuality, agreement, stage_quality
from ..evaluation.scores import ScoreRow, SegmenterRow
from ..files import check_fields, digest, read_fields, write_json
from ..labels.store import LabelStore
from ..postprocess.methods import SHARE
from ..processes import share_of, shared, summed
from .bench import Bench
from .guard import kept_note
from .layout import REMEDY
from .stage import KEPT, Stage

SCORES, QUALITY = "scores.json", "quality.json"
# Photos that deserve a look; a report shows some of them.
ODD_KEPT = 100
# Stages whose label maps are results, and so can be looked at without masks.
LABELLED = ("classifier", "refinement")
# What the files hold, as annotations; `null` stands for NaN.
_Number = float | int | None
_ROW: dict[str, Any] = {
    **{"crf": bool, "mean_iou": _Number, "per_class_iou": dict[str, _Number], "num_images": int},
    **{"uses_ground_truth": bool | None, "note": str | None},
}
_LABELS_ROW: dict[str, Any] = {"stage": str, "rule": str, "uses_ground_truth": bool}
_SEGMENTER_ROW: dict[str, Any] = {"labels": str}
_CLASS: dict[str, Any] = {
    **{"name": str, "images": int, "threshold_quantiles": list[_Number], "thresholds": list[_Number]},
    **{"warnings": list[str], "empty_share": _Number, "lost_share": _Number, "coverage_mean": _Number},
    **{"coverage_median": _Number, "soft_share": _Number, "mean_probability": _Number},
}
_AGREEMENT: dict[str, Any] = {
    **{"with": str, "mean_iou": _Number, "per_class_iou": list[_Number], "pixels": _Number, "num_images": int},
}


def measure(bench: Bench, stage: Stage, key: str) -> None:
    """Score a finished stage and look at its quality, unless that has been done.

    Args:
        bench: of the run; all processes call.
        stage: finished.
        key: of the stage.
    """
    scored = bench.segmenter_data.scored if stage.kind == "segmenter" else bench.scored
    if stage.scored_on is not None and scored is not None:
        _once(bench, stage, SCORES, digest({"stage": key, "masks": masks_hash(scored)}), _scores, scored)
    if stage.kind in LABELLED:
        _once(bench, stage, QUALITY, key, _quality)


def _once(bench: Bench, stage: Stage, name: str, key: str, make: Any, *arguments: Any) -> None:
    path = bench.run_dir / stage.name / name
    # The main process decides for all: on a shared disk another may already see what it writes.
    if not bench.decided((read_fields(path, {"key": str}, REMEDY) or {}).get("key") == key):
        values = make(bench, stage, *arguments)
        if bench.process.is_main_process:
            write_json(path, {"key": key, **values})
        bench.process.wait_for_everyone()


def _scores(bench: Bench, stage: Stage, scored: TaggedImages) -> dict[str, Any]:
    rows, folder = [], bench.run_dir / stage.name
    paths = dict.fromkeys([*(folder / name for name in stage.stores), stage.final_store(bench.run_dir)])
    for path in paths:
        store, note = LabelStore(path), stage.note
        if path == folder / KEPT:
            note = "; ".join(filter(None, (note, kept_note(folder))))
        result = score_store(store, scored, process=bench.process)
        crf = bool(store.meta.get("crf"))
        numbers = {key: result[key] for key in ("mean_iou", "per_class_iou", "num_images")}
        row: ScoreRow | SegmenterRow
        if stage.kind == "segmenter":
            labels = stage.name.rpartition("/")[2]
            row = SegmenterRow(labels=labels, crf=crf, uses_ground_truth=stage.leak, note=note, **numbers)
        else:
            row = ScoreRow(
                stage=_source(stage).name if stage.kind == "yardstick" else stage.name,
                rule=_rule(stage, store, bench.config),
                crf=crf,
                uses_ground_truth=stage.uses_masks or stage.leak,
                note=note,
                **numbers,
            )
        rows.append(asdict(row))
    return {"rows": rows}


def _source(stage: Stage) -> Stage:
    return stage.needs[0]


def _rule(stage: Stage, store: LabelStore, config: RunConfig) -> str:
    """How class maps became labels, in words."""
    labelling = store.meta["config"]
    if stage.kind == "yardstick":
        return f"best constant {labelling['background_threshold']:g}"
    plain = {
        "peak": f"peak {labelling.get('peak_share', 0):g}",
        "mean": "mean",
        SHARE: "given shares",
        "objects": f"objects {labelling.get('object_threshold', 0):g}",
    }
    if labelling["rule"] in plain:
        rule = plain[labelling["rule"]]
        if labelling["rule"] == "peak" and labelling.get("confidence_weight"):
            rule += f", confidence {labelling['confidence_weight']:g}"
        if labelling["rule"] == "peak" and labelling.get("object_weight"):
            rule += f", objects {labelling['object_weight']:g}"
    else:
        # The walk starts from the adaptive thresholds, whichever of their rules it is.
        rule = "adaptive (paper)" if stage.kind == "refinement" else f"adaptive ({labelling['rule']})"
    if words := labelling.get("in_words"):
        rule = words
    elif labelling["rule"] == "fixed" and stage.kind != "refinement":
        rule = f"fixed {labelling['background_threshold']:g}"
    if tuple(labelling["scales"]) != tuple(config.labelling.scales):
        rule += f", scales {' '.join(f'{scale:g}' for scale in labelling['scales'])}"
    return rule


def _quality(bench: Bench, stage: Stage) -> dict[str, Any]:
    paths = (bench.run_dir / stage.name / stage.stores[0], stage.final_store(bench.run_dir))
    stores = [LabelStore(path) for path in paths]
    # What ignores pixels may find nothing sure in an image before the CRF, or after it only.
    undecided = set.union(*(store.undecided for store in stores))
    before, after = ([store.record(name) for name in sorted(store.done_ids() - undecided)] for store in stores)
    quality = stage_quality(stage.name, bench.images.class_names, before, after)
    found = None
    if stage.needs:
        source = _source(stage)
        previous, last = LabelStore(source.final_store(bench.run_dir)), stores[-1]
        ids = [name for name in bench.images.image_ids if name in previous and name in last]
        own = share_of(bench.process).of(ids)
        compared = agreement(
            (previous.read(ids[index]) for index in shared(len(ids), bench.process)),
            (last.read(name) for name in own),
            bench.images.num_classes,
            total=lambda counts: summed(counts, bench.process),
        )
        found = {"with": source.name, **asdict(compared), "per_class_iou": compared.per_class_iou.tolist()}
    odd = odd_photos(bench.images.class_names, after, ODD_KEPT)
    return {"stage": quality.to_plain(), "agreement": found, "odd": [asdict(photo) for photo in odd]}


def read_scores(folder: Path) -> list[dict[str, Any]]:
    """The rows of a stage's `scores.json`; none where nothing was scored.

    Raises:
        UserError: it is damaged, as in all that reads here.
    """
    path = folder / SCORES
    rows = (read_fields(path, {"rows": list[dict]}, REMEDY) or {"rows": []})["rows"]
    return [check_fields(row, _ROW, f"{path}: rows", REMEDY) for row in rows]


def read_quality(folder: Path) -> tuple[StageQuality, tuple[str, Agreement] | None] | None:
    """A stage's quality, and its agreement with the stage before; `None` where there is none."""
    path = folder / QUALITY
    values = read_fields(path, {"stage": dict, "agreement": dict | None}, REMEDY)
    if values is None:
        return None
    stage, compared = values["stage"], values["agreement"]
    check_fields(stage, {"stage": str, "num_images": int, "classes": list[dict]}, f"{path}: stage", REMEDY)
    for one in stage["classes"]:
        check_fields(one, _CLASS, f"{path}: stage.classes", REMEDY)
        _only(one, _CLASS, f"{path}: stage.classes")
    if compared is None:
        return StageQuality.from_plain(stage), None
    check_fields(compared, _AGREEMENT, f"{path}: agreement", REMEDY)
    return StageQuality.from_plain(stage), (compared["with"], Agreement.from_plain(compared))


def read_odd(folder: Path) -> list[OddPhoto]:
    """The photos of a stage that deserve a look, the oddest first."""
    path = folder / QUALITY
    found = (read_fields(path, {"odd": list[dict] | None}, REMEDY) or {}).get("odd") or []
    for photo in found:
        check_fields(photo, {"image_id": str, "reasons": list[str]}, f"{path}: odd", REMEDY)
    return [OddPhoto(photo["image_id"], tuple(photo["reasons"])) for photo in found]


def _only(values: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    """Refuse what another version has written besides."""
    for name in values:
        if name not in known:
            raise UserError(f"{where}: {name[:80]}: unknown field; {REMEDY}")


def score_rows(run_dir: Path, stages: Sequence[Stage]) -> tuple[list[ScoreRow], list[SegmenterRow]]:
    """The rows of a run's stages, of label maps and of segmenters."""
    labels: list[ScoreRow] = []
    segmenters: list[SegmenterRow] = []
    for stage in stages:
        # What is there may be of an earlier start that had masks.
        rows = [] if stage.scored_on is None else read_scores(run_dir / stage.name)
        where = f"{run_dir / stage.name / SCORES}: rows"
        for row in rows:
            own = _SEGMENTER_ROW if stage.kind == "segmenter" else _LABELS_ROW
            check_fields(row, own, where, REMEDY)
            _only(row, own | _ROW, where)
            row = {name: value for name, value in row.items() if value is not None or name == "mean_iou"}
            if stage.kind == "segmenter":
                segmenters.append(SegmenterRow(**row))
            else:
                labels.append(ScoreRow(**row))
    return sorted(labels, key=lambda row: row.uses_ground_truth), segmenters
