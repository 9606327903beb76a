"""Checkpoints of the paper's released program become checkpoints of this library."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..config import OFFICIAL
from ..data.coco import COCO_CLASSES
from ..data.voc import VOC_CLASSES
from ..models.configuration_checks import label_fields
from ..models.configuration_spatial_bce import SpatialBceConfig
from ..models.modeling_resnet38 import RESNET38
from ..models.modeling_spatial_bce import SpatialBceForImageClassification
from ..training.classifier import IMAGE_TOP_SHARE
from .checkpoints import read_state_dict, require_finite
from .report import ImportReport, check_shapes
from .trunks import float32, trunk_on_meta

CLASS_MAP, EMBEDDING, THRESHOLD, SCALE = "fc_list.", "mask_layer_downsample.weight", "threshold.weight", "temperature"
# The stem and the first stage, which ends at this stride, are frozen.
FROZEN_REDUCTION = 2
KNOWN_CLASSES = {len(names): names for names in (VOC_CLASSES, COCO_CLASSES)}


def import_released(
    path: str | Path, class_names: Sequence[str] | None = None
) -> tuple[SpatialBceForImageClassification, ImportReport]:
    """Read a checkpoint of the released program.

    Args:
        path: what `torch.save` wrote: the network's state dict, also from DataParallel, also under `state_dict`.
        class_names: the foreground classes, in the order of training; by default VOC's for 20 classes and COCO's
            for 80.

    Returns:
        the model, in evaluation mode, in float32, configured as the released program; and a report.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged or is no such checkpoint, or `class_names` do not fit it.

    Examples:
        >>> from sbce_hf import import_released
        >>> model, report = import_released("checkpoint.pth", class_names=["cup", "plate"])
        >>> model.config.id2label, report.unused
        ({0: 'cup', 1: 'plate'}, ())
    """
    path = Path(path)
    state = read_state_dict(path)
    num_classes = _count_classes(path, state)
    names = _class_names(path, num_classes, class_names)
    shapes = _shapes(path, state, num_classes)
    missing = check_shapes(path, state, shapes, "the released program's network", optional=SCALE)
    used = {name: float32(state[name]) for name in shapes if name in state}
    require_finite(path, used)
    notes = () if SCALE in used else (f"no {SCALE!r}: the logit scale is its initial value, 10, for every class",)
    config = SpatialBceConfig(
        **OFFICIAL["model"]
        | {
            "trunk": RESNET38,
            "frozen_reduction": FROZEN_REDUCTION,
            "embedding_dim": shapes[EMBEDDING][0],
            "image_top_share": IMAGE_TOP_SHARE["spatial"],
        },
        **label_fields(names),
    )
    with torch.device("meta"):
        model = SpatialBceForImageClassification(config)
    model.load_state_dict(_renamed(used, num_classes, missing), assign=True)
    unused = tuple(name for name in state if name not in shapes)
    return model.eval(), ImportReport(tuple(used), unused, tuple(missing), notes)


def _count_classes(path: Path, state: Mapping[str, Tensor]) -> int:
    indices = {name.removeprefix(CLASS_MAP).removesuffix(".weight") for name in state if name.startswith(CLASS_MAP)}
    if not indices or indices != {str(index) for index in range(len(indices))}:
        got = ", ".join(sorted(indices)[:5]) or f"none among {', '.join(list(state)[:3])}, ..."
        raise ValueError(
            f"{path}: is no checkpoint of the released program: got class maps {got}, expected {CLASS_MAP}0.weight, "
            f"{CLASS_MAP}1.weight, ...; for the weights of a trunk give the trunk's name"
        )
    return len(indices)


def _class_names(path: Path, num_classes: int, class_names: Sequence[str] | None) -> tuple[str, ...]:
    if class_names is None:
        if num_classes not in KNOWN_CLASSES:
            raise ValueError(f"{path}: has {num_classes} classes, whose names it does not tell: give class_names")
        return KNOWN_CLASSES[num_classes]
    names = tuple(class_names)
    if len(names) != num_classes or len(set(names)) != num_classes or not all(names):
        raise ValueError(f"class_names: got {list(names)}, expected {num_classes} different ones, as {path} has")
    return names


def _shapes(path: Path, state: Mapping[str, Tensor], num_classes: int) -> dict[str, tuple[int, ...]]:
    """What the network has, by the released program's names."""
    trunk = trunk_on_meta()
    shapes = {name: tuple(value.shape) for name, value in trunk.state_dict().items()}
    channels = trunk.feature_info.channels()[-1]
    if EMBEDDING not in state or state[EMBEDDING].ndim != 4:
        got = tuple(state[EMBEDDING].shape) if EMBEDDING in state else "nothing"
        raise ValueError(f"{path}: array {EMBEDDING!r}: got {got}, expected shape (128, {channels}, 1, 1)")
    width = state[EMBEDDING].shape[0]
    heads = {f"{CLASS_MAP}{index}.weight": (1, width, 1, 1) for index in range(num_classes)}
    return (
        shapes
        | heads
        | {
            EMBEDDING: (width, channels, 1, 1),
            THRESHOLD: (num_classes, channels, 1, 1),
            SCALE: (num_classes,),
        }
    )


def _renamed(state: dict[str, Tensor], num_classes: int, missing: Sequence[str]) -> dict[str, Tensor]:
    """The state dict with our names; counters that old versions of PyTorch did not write are 0."""
    initial = torch.full((num_classes,), math.log(OFFICIAL["model"]["logit_scale_init"]))
    class_maps = [state.pop(f"{CLASS_MAP}{index}.weight") for index in range(num_classes)]
    heads = {
        "class_maps.weight": torch.cat(class_maps),
        "embedding.weight": state.pop(EMBEDDING),
        "threshold_head.weight": state.pop(THRESHOLD),
        "logit_scale": state.pop(SCALE, initial),
    }
    counters = {name: torch.tensor(0) for name in missing if name != SCALE}
    return heads | {f"spatial_bce.trunk.{name}": value for name, value in (state | counters).items()}
