"""Refinement of label maps by how alike the patches of a photo are to the network itself."""

from dataclasses import dataclass
from typing import Literal

from huggingface_hub.dataclasses import strict

from .ranges import MAX_SIDE, Checked, number


@strict
@dataclass(kw_only=True)
class AffinityConfig(Checked):
    """Class maps spread to what looks alike, before the rule; nothing is trained, and no mask is read.

    The photo is looked at once. What its patches attend to, or how alike their features are, becomes the weights with
    which each patch takes the others' values.

    Args:
        source: `"attention"`: what each patch of a transformer attends to, averaged over heads and layers, as
            MCTformer (Xu et al., CVPR 2022) and CLIP-ES (Lin et al., CVPR 2023) take it; `"features"`: the cosine of
            the trunk's last features, of any trunk, as TokenCut (Wang et al., CVPR 2022) takes that of keys. Those of
            a small convolutional network have made label maps worse; see the recipes' README.
        layers: of `attention`: how many of the last layers, at most all that the trunk has (CLIP-ES: 8 of 12).
        threshold: of `features`: a cosine below this counts as 0 (TokenCut: 0.2, of keys).
        power: exponent of the weights, entry by entry, before each row is divided by its sum. `None` is 1 for
            `attention`, as published, and 8 for `features`, as AffinityNet (Ahn and Kwak, CVPR 2018) has it for
            learned ones.
        symmetrise: `"sinkhorn"` divides rows and columns by their sums in turn, then takes the mean with the
            transpose (CLIP-ES); `"mean"` takes this mean only.
        sinkhorn_steps: of `sinkhorn`: how often.
        steps: how often values are passed on (CLIP-ES: twice).
        image_size: side to which the photo is resized for this look; `None` takes `labelling.image_size`, or the
            photo's own size if there is none.
        max_cells: a photo with more patches is looked at in a smaller size. Memory grows with the square: 4096 patches
            are 64 MB for each of a few matrices.
    """

    SECTION = "affinity"

    source: Literal["attention", "features"] = "attention"
    layers: int = number(8, at_least=1, limit=1000)
    threshold: float = number(0.3, at_least=0, below=1)
    power: float | None = number(None, above=0, limit=1000)
    symmetrise: Literal["sinkhorn", "mean"] = "sinkhorn"
    sinkhorn_steps: int = number(3, at_least=1, limit=1000)
    steps: int = number(2, at_least=0, limit=10_000)
    image_size: int | None = number(None, at_least=32, limit=MAX_SIDE)
    max_cells: int = number(4096, at_least=16, limit=65_536)

    def __post_init__(self) -> None:
        # What is left open is decided here, so that a run's config and its keys say what was used.
        if self.power is None:
            self.power = 1.0 if self.source == "attention" else 8.0
