"""How often each class is tagged, and which tags teach little: told at the start of a run and in its report."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

# With fewer photos of a class, what the network learns of it is their background as well.
FEW_PHOTOS = 8
# From this share of photos without tags on, they are rather not tagged yet than empty.
UNTAGGED_SHARE = 0.1


def count_tags(labels: NDArray, names: Sequence[str]) -> dict[str, int]:
    """Photos with each class, in the order of the classes.

    Args:
        labels: `(n, C)`, above 0 where a photo is tagged with a class.
        names: of the ``C`` classes.
    """
    return dict(zip(names, (labels > 0).sum(axis=0).tolist(), strict=True))


def histogram(counts: Mapping[str, int], num_photos: int) -> str:
    """One line per class with its photos, and one for photos without any."""
    width = max(map(len, counts), default=0)
    lines = [f"{name:{width}}  {count:6} photo{'s' if count != 1 else ''}" for name, count in counts.items()]
    return "\n".join([*lines, f"{'in all':{width}}  {num_photos:6} photo{'s' if num_photos != 1 else ''}"])


# What tables have where nobody wrote a tag.
NO_TAG = frozenset({"nan", "n/a", "na", "<na>", "null", "none", "-", "--", "?", "-1"})


def tag_concerns(labels: NDArray, names: Sequence[str]) -> list[str]:
    """Sentences on tags that alone teach little, the gravest first; none if all is well.

    Args:
        labels: see [`count_tags`].
        names: of the ``C`` classes.
    """
    present, found = labels > 0, []
    if (bare := int((~present.any(axis=1)).sum())) and bare >= UNTAGGED_SHARE * len(labels):
        found.append(
            f"{bare} of {len(labels)} photos have no tags: they are learned as showing none of the classes. Leave "
            "rows out that are not tagged yet"
        )
    alike: dict[bytes, list[str]] = {}
    for name, column in zip(names, present.T, strict=True):
        count = int(column.sum())
        if count and name.casefold() in NO_TAG:
            found.append(f"{name}: many programs write this for no tag; empty those cells if so")
        if count == 0:
            found.append(f"{name}: no photo has this tag")
        elif count == len(labels) and len(labels) > 1:
            found.append(f"{name}: every photo has this tag, so nothing tells it from what else they show")
        elif count < FEW_PHOTOS:
            found.append(f"{name}: only {count} photo{'s' if count > 1 else ''} to learn from")
        if count:
            alike.setdefault(np.packbits(column).tobytes(), []).append(name)
    found += [
        f"{' and '.join(together)}: always on the same photos, so nothing tells them apart; add photos of one without "
        "the other, or make them one class"
        for together in alike.values()
        if len(together) > 1
    ]
    return found
