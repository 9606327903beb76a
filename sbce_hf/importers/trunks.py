"""ImageNet weights of other programs become trunk files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import timm
import torch
from torch import Tensor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..models.configuration_spatial_bce import SpatialBceConfig
from ..models.modeling_checkpoint import read_json
from ..models.modeling_resnet38 import RESNET38
from ..models.modeling_trunk import create_trunk
from ..models.modeling_trunk_weights import flat_name, folder_record
from .checkpoints import read_state_dict, require_finite
from .mxnet_params import is_params, read_params, resnet38_name
from .names import with_timm_names
from .report import ImportReport, check_shapes

# Of a folder of timm's.
CONFIG, WEIGHTS = "config.json", ("model.safetensors", "pytorch_model.bin")
# What torchvision's weights are fed with.
_TORCHVISION = {
    "image_mean": list(IMAGENET_DEFAULT_MEAN),
    "image_std": list(IMAGENET_DEFAULT_STD),
    "interpolation": "bilinear",
}


def import_trunk(
    path: str | Path, trunk: str | None = None, prefix: str | None = None
) -> tuple[dict[str, Tensor], ImportReport]:
    """Read the weights of a trunk.

    Args:
        path: an MXNet NDArray list (`.params`) of ResNet-38; or a safetensors file or what `torch.save` wrote, with
            timm's names or torchvision's, anywhere within a larger network, or for `"resnet38"` with those of
            [`ResNet38`]; or a folder of timm's on the Hub.
        trunk: timm's name of the network, or `"resnet38"`; not needed for an NDArray list or a folder, which say it.
        prefix: of the trunk's names; by default it is looked for.

    Returns:
        what `load_trunk_weights` reads from a safetensors file, and a report. For a network of timm's these are all
        tensors of the network, because timm may want more of them than the trunk uses.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged or holds the weights of another network, or `trunk` is missing or unknown.

    Examples:
        >>> import tempfile
        >>> import timm
        >>> import torch
        >>> from sbce_hf import import_trunk
        >>> network = timm.create_model("test_resnet")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"state_dict": network.state_dict()}, f"{folder}/checkpoint.pth")
        ...     weights, report = import_trunk(f"{folder}/checkpoint.pth", trunk="test_resnet")
        >>> torch.equal(weights["conv1.0.weight"], network.conv1[0].weight), report.missing
        (True, ())
    """
    path, record = Path(path), None
    notes: list[str] = []
    if path.is_dir():
        path, named, record = read_hub_folder(path)
        trunk = trunk or named
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
        if trunk != RESNET38:
            found, notes, is_torchvision = with_timm_names(path, found, trunk, model, prefix)
            record = _TORCHVISION if is_torchvision else record
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
        notes=tuple(notes),
        preprocessing=record,
    )


def read_hub_folder(folder: Path) -> tuple[Path, str, dict[str, Any] | None]:
    """A network's folder as timm writes it for the Hub.

    Returns:
        the file of weights, timm's name, and what the weights are to be fed with, if it says.

    Raises:
        FileNotFoundError: no such files.
        ValueError: it is no folder of timm's, or damaged.
    """
    config = folder / CONFIG
    if not config.is_file():
        raise FileNotFoundError(f"{folder}: has no {CONFIG}; expected a file of weights, or a folder of timm's")
    values = read_json(config)
    name = values.get("architecture")
    if not isinstance(name, str) or not timm.is_model(name):
        raise ValueError(f"{config}: architecture: got {str(name)[:80]!r}, expected a network of timm's")
    file = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise FileNotFoundError(f"{folder}: has none of {', '.join(WEIGHTS)}; fetch the folder again")
    return file, name, folder_record(config, values)


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
