"""ImageNet weights of other programs become trunk files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from ..models.configuration_spatial_bce import SpatialBceConfig
from ..models.modeling_resnet38 import RESNET38
from ..models.modeling_trunk import create_trunk
from ..models.modeling_trunk_weights import flat_name
from .checkpoints import read_state_dict, require_finite
from .mxnet_params import is_params, read_params, resnet38_name
from .report import ImportReport, check_shapes


def import_trunk(path: str | Path, trunk: str | None = None) -> tuple[dict[str, Tensor], ImportReport]:
    """Read the weights of a trunk.

    Args:
        path: an MXNet NDArray list (`.params`) of ResNet-38; or a safetensors file or what `torch.save` wrote, with
            timm's names, or for `"resnet38"` with those of [`ResNet38`].
        trunk: timm's name of the network, or `"resnet38"`; not needed for an NDArray list.

    Returns:
        what `load_trunk_weights` reads from a safetensors file, and a report. For a network of timm's these are all
        tensors of the file, because timm may want more of them than the trunk uses.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged or holds the weights of another network, or `trunk` is missing or unknown.
    """
    path = Path(path)
    found: Mapping[str, Any]
    if is_params(path):
        if trunk not in (None, RESNET38):
            raise ValueError(f"{path}: is an MXNet NDArray list, which is read for {RESNET38!r}; got trunk {trunk!r}")
        trunk = RESNET38
        found = read_params(path)
        model = trunk_on_meta()
        theirs = {name: resnet38_name(name) for name in model.state_dict()}
    elif trunk is None:
        raise ValueError(f"{path}: whose weights? Give timm's name of the network, or {RESNET38!r}")
    else:
        model = (
            trunk_on_meta() if trunk == RESNET38 else create_trunk(SpatialBceConfig(trunk=trunk, output_stride=None))
        )
        found = read_state_dict(path)
        flat = {flat_name(name): name for name in found}
        theirs = {name: flat.get(flat_name(name), name) for name in model.state_dict()}
    shapes = {theirs[name]: tuple(value.shape) for name, value in model.state_dict().items()}
    missing = check_shapes(path, found, shapes, f"trunk {trunk!r}")
    if trunk == RESNET38:
        state = {ours: float32(found[name]) if name in found else torch.tensor(0) for ours, name in theirs.items()}
    else:
        # Cloned, because a safetensors file cannot hold one tensor under two names.
        state = {
            name: torch.clone(tensor, memory_format=torch.contiguous_format)
            for name, tensor in cast(Any, found).items()
        }
    require_finite(path, state)
    return state, ImportReport(
        mapped=tuple(name for name in shapes if name in found),
        unused=tuple(name for name in found if name not in shapes),
        missing=tuple(missing),
    )


def trunk_on_meta() -> Any:
    """A ResNet-38 that has shapes but no memory."""
    with torch.device("meta"):
        return create_trunk(SpatialBceConfig(trunk=RESNET38))


def float32(array: Any) -> Tensor:
    """A contiguous copy of an array or tensor; counters of batch norm stay integers."""
    if isinstance(array, Tensor):
        dtype = torch.float32 if array.ndim else torch.int64
        return array.to(dtype, copy=True, memory_format=torch.contiguous_format)
    return torch.from_numpy(np.array(array, dtype=np.float32))
