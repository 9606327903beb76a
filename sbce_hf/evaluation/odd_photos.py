"""The photos of a stage that deserve a look first, found without masks: lost tags, and classes of unusual extent."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .tables import percent

# So many times more or less of a photo than of the class's median photo is unusual.
FACTOR = 4.0
# Of a photo without background; where most photos show little of it, that is usual.
WHOLE, USUAL = 0.95, 0.75
# Of fewer photos with a class no median is taken.
LEAST_PHOTOS = 5


@dataclass(frozen=True)
class OddPhoto:
    """A photo to look at.

    Args:
        image_id: its name.
        reasons: why, in words.
    """

    image_id: str
    reasons: tuple[str, ...]


def odd_photos(class_names: Sequence[str], records: Iterable[Mapping[str, Any]], count: int) -> list[OddPhoto]:
    """Rank photos by their label maps' records, the oddest first.

    Photos with more lost tags come first, then those with a class that covers the most unusual share of them, then
    those without background.

    Args:
        class_names: the C foreground classes.
        records: of a label store: `image_id`, `classes` and, in the same order, `proportions` in 0-1.
        count: of photos, at most.
    """
    records = list(records)
    shares: dict[int, list[float]] = {}
    for record in records:
        for index, share in zip(record["classes"], record["proportions"], strict=True):
            if share > 0:
                shares.setdefault(index, []).append(share)
    usual = {index: float(np.median(found)) for index, found in shares.items() if len(found) >= LEAST_PHOTOS}
    totals = [sum(record["proportions"]) for record in records]
    some_background = float(np.median(totals)) <= USUAL if totals else False
    ranked = []
    for record, total in zip(records, totals, strict=True):
        lost, distance, reasons = 0, 0.0, []
        for index, share in zip(record["classes"], record["proportions"], strict=True):
            name = class_names[index]
            if share == 0:
                lost += 1
                reasons.append(f"no pixel of its tag {name}")
            elif (far := abs(math.log(share / usual.get(index, share)))) >= math.log(FACTOR):
                distance = max(distance, far)
                reasons.append(
                    f"{name} covers {percent(share)} % of it, where {percent(usual[index])} % of a photo is usual"
                )
        if not reasons and total >= WHOLE and some_background:
            reasons.append(f"{percent(total)} % of it is foreground")
        if reasons:
            ranked.append(((-lost, -distance, record["image_id"]), OddPhoto(record["image_id"], tuple(reasons))))
    return [photo for _, photo in sorted(ranked, key=lambda pair: pair[0])[:count]]
