"""Several runs that differ in their seed alone, as one table: what of a difference is method, and what is luck."""

from collections.abc import Mapping, Sequence

import numpy as np

from .quality import StageQuality
from .scores import ScoreRow
from .tables import Table, percent


def seeds_table(
    scores: Mapping[int, Sequence[ScoreRow]], qualities: Mapping[int, Mapping[str, StageQuality]]
) -> Table:
    """One line per stage's label maps: mean and range over seeds, the class that is worst in the mean, and lost tags.

    What used ground truth is left out. Without scores there are lost tags only.

    Args:
        scores: by seed, the rows of a run; those that any seed lacks are left out.
        qualities: by seed and stage.
    """
    stages = dict.fromkeys(name for quality in qualities.values() for name in quality)
    rows = {
        seed: {(row.stage, row.crf): row for row in found if not row.uses_ground_truth}
        for seed, found in scores.items()
    }
    cells = []
    for stage in stages:
        for crf in (False, True):
            lost = [_lost(quality[stage], crf) for quality in qualities.values() if stage in quality]
            found = [own[stage, crf] for own in rows.values() if (stage, crf) in own]
            if found and len(found) == len(scores):
                values = np.array([row.mean_iou for row in found])
                spread = f"{percent(values.min())} to {percent(values.max())}" if len(found) > 1 else "-"
                means = _class_means(found)
                worst = min(means, key=lambda name: means[name])
                score = (found[0].rule, percent(values.mean()), spread, f"{worst} {percent(means[worst])}")
            elif any(rows.values()):
                # Not every method's label maps are there before and after the CRF.
                continue
            else:
                score = ("", "-", "-", "-")
            cells.append((stage, score[0], "yes" if crf else "no", *score[1:], percent(float(np.mean(lost)))))
    mean = f"mIoU (%), mean of {len(scores)} seeds"
    header = ("Stage", "Rule", "Dense CRF", mean, "Range", "Worst class", "Lost tags (%)")
    return Table(header, cells, text_columns=3)


def _class_means(rows: Sequence[ScoreRow]) -> dict[str, float]:
    means = {name: float(np.mean([row.per_class_iou[name] for row in rows])) for name in rows[0].per_class_iou}
    return {name: value for name, value in means.items() if not np.isnan(value)} or {"-": float("nan")}


def _lost(quality: StageQuality, crf: bool) -> float:
    """Share of tags without a pixel."""
    tags = sum(c.images for c in quality.classes)
    lost = sum((c.lost_share if crf else c.empty_share) * c.images for c in quality.classes if c.images)
    return lost / tags if tags else float("nan")
