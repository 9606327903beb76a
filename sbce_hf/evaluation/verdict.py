"""What came of a run, in a few sentences."""

from collections.abc import Sequence

from .quality import StageQuality
from .scores import ScoreRow
from .tables import percent


def verdict(final: StageQuality, scores: Sequence[ScoreRow] = (), skipped: int = 0) -> list[str]:
    """Sentences on the label maps that a run ends with.

    Args:
        final: of them.
        scores: of all stages; those of another stage, and leaks, are left out.
        skipped: photos without a label map, because they could not be read.
    """
    photos = f"{final.num_images} photos have a label map, made by {final.stage}"
    sentences = [f"{photos}; {skipped} could not be read." if skipped else f"{photos}."]
    tags = sum(c.images for c in final.classes)
    if tags:
        lost = round(sum(c.lost_share * c.images for c in final.classes if c.images))
        sentences.append(
            f"Every one of {tags} tags has pixels."
            if not lost
            else f"{lost} of {tags} tags ({percent(lost / tags)} %) have no pixel."
        )
    own = [row for row in scores if row.stage == final.stage and not row.uses_ground_truth]
    if own:
        # The last is what later steps take: after the CRF, with classes that were kept.
        row = own[-1]
        sentences.append(
            f"Against the masks of {row.num_images} photos: mIoU {percent(row.mean_iou)} %. No mask was used to make "
            "them."
        )
    return sentences
