"""Refinement of label maps by somebody's saliency maps."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub.dataclasses import strict

from ..errors import UserError
from .ranges import Checked, free_text, number


@strict
@dataclass(kw_only=True)
class SaliencyConfig(Checked):
    """Saliency maps decide what is foreground; classes come from tags, class maps and earlier label maps.

    A saliency network was trained on masks, though of other photos: results say that one was used.

    Args:
        maps: folder with a grey PNG per image, `<image_id>.png`, 0 to 255, of the image's size.
        column: of the dataset (source `"hub"`) that holds such PNGs, instead of `maps`.
        resize: resize maps of another size, bilinearly, instead of stopping.
        rule: `"edam"` (salient pixels get the best class, no pixel is ignored) or `"oaa"` (background competes with
            the class maps, and what contradicts itself is ignored).
        classes_from: of `edam`, in a run: `"labels"` takes a salient pixel's class from the label maps of the stage
            before, where these have one, and else from the class maps; `"class_maps"` from these only, as published.
        background_saliency: of `edam`: a pixel is background up to this saliency.
        certain_probability: of `edam`: a pixel is foreground, whatever its saliency, where a known class has a higher
            probability than this; 1 makes no exception.
        least_activation: of `oaa`: activations below this count as 0.
        conflict: of `oaa`: a pixel is ignored where two or more of background and classes are above this.
        strong_activation: of `oaa`: an activation above this counts as full saliency.
        salient: of `oaa`: background is ignored from this saliency on.
        least_foreground: of `oaa`: an image with a smaller share of foreground is ignored.
    """

    SECTION = "saliency"

    maps: str | None = free_text()
    column: str | None = free_text()
    resize: bool = False
    rule: Literal["edam", "oaa"] = "edam"
    classes_from: Literal["labels", "class_maps"] = "labels"
    background_saliency: int = number(20, at_least=0, at_most=255)
    certain_probability: float = number(0.99999, above=0, at_most=1)
    least_activation: float = number(0.3, at_least=0, at_most=1)
    conflict: float = number(0.9, above=0, at_most=1)
    strong_activation: float = number(0.8, above=0, at_most=1)
    salient: int = number(32, at_least=1, at_most=255)
    least_foreground: float = number(0.01, at_least=0, at_most=1)

    @property
    def origin(self) -> str:
        """Where the maps lie, without the path to it."""
        return f"column {self.column}" if self.maps is None else Path(self.maps).name

    def validate_origin(self) -> None:
        """The maps come from one place."""
        if (self.maps is None) == (self.column is None):
            got = "neither maps nor column" if self.maps is None else "maps and column"
            raise UserError(
                f"saliency: got {got}, expected one of them; name the maps' folder, as in --set saliency.maps=DIR"
            )
