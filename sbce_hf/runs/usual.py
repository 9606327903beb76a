"""How sure a network usually is of each class: looked for once for each checkpoint, and kept.

round_1/labels/confidence.json     by class name, beside the label stores that it was needed for
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import PartialState

from ..config import LabellingConfig, deciding
from ..data import TaggedImages
from ..data.preprocessing import IMAGENET, Preprocessing
from ..files import digest, file_digest, read_fields, write_json
from ..inference.classifier import listens, usual_confidence
from ..models.modeling_spatial_bce import SpatialBceForImageClassification
from ..processes import decided
from ..training.device import use_cpu

CONFIDENCE = "confidence.json"


def usual_of(
    model: SpatialBceForImageClassification,
    images: TaggedImages,
    labelling: LabellingConfig,
    folders: Sequence[Path],
    made_from: Mapping[str, Any],
) -> dict[int, float] | None:
    """How sure a network usually is of each class, by index; `None` if `labelling` does not ask. All processes call.

    Args:
        model: the classifier.
        images: that are labelled.
        labelling: views and rule.
        folders: that may hold [`CONFIDENCE`]; where none was made from the same, the first gets it.
        made_from: what it depends on; plain values.
    """
    if not listens(labelling):
        return None
    key, names = digest(made_from), images.class_names

    def look() -> dict[int, float]:
        for folder in folders:
            fields = {"key": str, "classes": dict[str, float]}
            kept = read_fields(folder / CONFIDENCE, fields, "remove it, and it is made anew")
            if kept is not None and kept["key"] == key:
                values = kept["classes"]
                return {index: values[name] for index, name in enumerate(names) if name in values}
        found = usual_confidence(model, images, labelling, Preprocessing.of(model.config))
        folders[0].mkdir(parents=True, exist_ok=True)
        values = {names[index]: value for index, value in found.items()}
        write_json(folders[0] / CONFIDENCE, {"key": key, "classes": values})
        return found

    return decided(look, PartialState(cpu=use_cpu()))


def made_from_checkpoint(
    model_dir: Path, model: SpatialBceForImageClassification, images: TaggedImages, labelling: LabellingConfig
) -> dict[str, Any]:
    """Everything that class maps depend on, and what the rule makes of them; plain values."""
    # Without the number of CRF processes, which may have to be lowered before a run can be continued.
    made_from = {
        "labelling": deciding(labelling),
        "images": images.manifest_hash,
        "weights": file_digest(model_dir / "model.safetensors"),
    }
    preprocessing = Preprocessing.of(model.config)
    return made_from if preprocessing == IMAGENET else made_from | {"preprocessing": asdict(preprocessing)}
