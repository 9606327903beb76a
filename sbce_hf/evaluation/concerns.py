"""What to know of a run before anything else, from tags and label-free numbers: the console's last lines."""

from collections.abc import Sequence

import numpy as np

from .quality import MAX_MEDIAN_COVERAGE, MIN_MEDIAN_COVERAGE, StageQuality
from .tables import percent
from .tag_counts import tag_concerns

# Of a class's photos: label maps that lose it on more of them deserve a look.
LOST_SHARE = 0.05
# Of the loss of a guess by the classes' frequencies: a stage 0 that ends above it has hardly learned.
UNLEARNED_SHARE = 0.5


def concerns(
    labels: np.ndarray, final: StageQuality | None, losses: Sequence[float] = (), kept: Sequence[str] = ()
) -> list[str]:
    """Sentences, the gravest first; none if all is well.

    Args:
        labels: `(n, C)`, above 0 where a photo of the training set is tagged with a class; classes as in `final`.
        final: quality of the label maps that the run ends with; `None` before there are any.
        losses: logged losses of stage 0, in order.
        kept: which classes' label maps are those of an earlier stage, and why, in sentences.
    """
    found = []
    present = labels > 0
    if final is not None:
        worst = sorted((c for c in final.classes if c.lost_share > LOST_SHARE), key=lambda c: -c.lost_share)
        for c in worst:
            lost = round(c.lost_share * c.images)
            found.append(f"{c.name}: lost from the label maps on {lost} of its {c.images} photos")
        odd = [c for c in final.classes if not MIN_MEDIAN_COVERAGE <= c.coverage_median <= MAX_MEDIAN_COVERAGE]
        for c in odd:
            # Of a class that is lost this is said above, of one without photos below.
            if c.lost_share <= LOST_SHARE:
                found.append(f"{final.stage}: {c.name} covers {_share(c.coverage_median)} of its median photo")
    found += kept
    if len(losses) and len(labels):
        # Of predicting each class with its frequency; the mean over classes, as the loss is.
        share = present.mean(axis=0).clip(1e-6, 1 - 1e-6)
        guess = float(-(share * np.log(share) + (1 - share) * np.log(1 - share)).mean())
        last = float(np.mean(losses[-max(1, len(losses) // 10) :]))
        if last > UNLEARNED_SHARE * guess:
            found.append(
                f"stage 0 has hardly learned the tags: its loss ends at {last:.3f}, that of a guess by frequency is "
                f"{guess:.3f}; raise bce.min_iterations or bce.lr"
            )
    if final is not None:
        found += tag_concerns(labels, [c.name for c in final.classes])
    return found


def _share(share: float) -> str:
    return f"{percent(share, 0 if share > MIN_MEDIAN_COVERAGE else 1)} %"
