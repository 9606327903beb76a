"""What class maps of a network are usually like: looked for once for each checkpoint, and kept.

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
from ..errors import UserError
from ..files import digest, file_digest, read_fields, write_json
from ..inference.checkpoints import load_classifier
from ..inference.classifier import listens, look_for_usual
from ..inference.irn import ObjectMap
from ..models.modeling_spatial_bce import SpatialBceForImageClassification
from ..postprocess.confidence import Usual
from ..processes import decided
from ..training.device import use_cpu
from .settings import BCE

CONFIDENCE = "confidence.json"


def usual_of(
    model_dir: Path,
    model: SpatialBceForImageClassification,
    images: TaggedImages,
    labelling: LabellingConfig,
    folders: Sequence[Path],
    made_from: Mapping[str, Any],
) -> Usual | None:
    """What class maps of a network are usually like; `None` if `labelling` does not ask. All processes call.

    Args:
        model_dir: the classifier.
        model: the same, loaded.
        images: that are labelled.
        labelling: views and rule.
        folders: that may hold [`CONFIDENCE`]; where none was made from the same, the first gets it.
        made_from: what it depends on; plain values.
    """
    if not listens(labelling):
        return None
    key, names = digest(made_from), images.class_names
    # Of a network that was looked at for confidence alone, nothing else is in the file.
    parts = {"classes": "confidence"} | ({"on_objects": "on_objects"} if labelling.object_weight else {})

    def look() -> Usual:
        fields = {"key": str, **dict.fromkeys(parts, dict[str, float])}
        for folder in folders:
            kept = read_fields(folder / CONFIDENCE, fields, "remove it, and it is made anew")
            if kept is not None and kept["key"] == key:
                by_class = {
                    part: {index: kept[field][name] for index, name in enumerate(names) if name in kept[field]}
                    for field, part in parts.items()
                }
                return Usual(**by_class)
        objects = None
        if labelling.object_weight:
            objects = ObjectMap(load_classifier(_first_of(model_dir, labelling)), labelling)
        found = look_for_usual(model, images, labelling, Preprocessing.of(model.config), objects)
        folders[0].mkdir(parents=True, exist_ok=True)
        by_name = {
            field: {names[index]: value for index, value in getattr(found, part).items()}
            for field, part in parts.items()
        }
        write_json(folders[0] / CONFIDENCE, {"key": key, **by_name})
        return found

    return decided(look, PartialState(cpu=use_cpu()))


def _first_of(model_dir: Path, labelling: LabellingConfig) -> Path:
    """Stage 0's network in the run that a checkpoint lies in."""
    first = model_dir.absolute().parent.parent / BCE / "model"
    if not first.is_dir():
        raise UserError(
            f"labelling.object_weight: got {labelling.object_weight:g}, but the network of stage 0, whose features "
            f"tell objects, is not at {first}; label with a checkpoint in its run's folder, or set "
            "labelling.object_weight to 0"
        )
    return first


def made_from_checkpoint(
    model_dir: Path, model: SpatialBceForImageClassification, images: TaggedImages, labelling: LabellingConfig
) -> dict[str, Any]:
    """Everything that class maps depend on, and what the rule makes of them; plain values.

    Raises:
        UserError: `labelling` asks for stage 0's network, and there is none.
    """
    # Without the number of CRF processes, which may have to be lowered before a run can be continued.
    made_from = {
        "labelling": deciding(labelling),
        "images": images.manifest_hash,
        "weights": file_digest(model_dir / "model.safetensors"),
    }
    if listens(labelling) and labelling.object_weight:
        made_from["first"] = file_digest(_first_of(model_dir, labelling) / "model.safetensors")
    preprocessing = Preprocessing.of(model.config)
    return made_from if preprocessing == IMAGENET else made_from | {"preprocessing": asdict(preprocessing)}
