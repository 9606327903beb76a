"""Weights for a trunk, from timm or from a safetensors file, and how photos are to be prepared for them."""

import copy
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast, get_args

import timm
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from .configuration_checks import Interpolation, check_preprocessing
from .modeling_checkpoint import read_json
from .modeling_resnet38 import RESNET38
from .modeling_trunk import TrunkConfig, create_trunk
from .modeling_trunk_backbone import PREFIX

# In the metadata of a safetensors file: JSON with what its weights are to be fed with, by the configs' names.
RECORD = "preprocessing"
RECORDED = ("image_mean", "image_std", "interpolation")


def load_trunk_weights(model: PreTrainedModel, weights: str) -> None:
    """Load weights into a built model's trunk, in place, and note in its config what they are to be fed with.

    That is what the file says, see [`RECORD`], or else what timm knows of the trunk's weights. What the config has
    already is left alone. A trunk that wants ImageNet's mean and deviation keeps the `None` that stands for them, and
    photos are resized as they always have been.

    Args:
        model: a model with a trunk; `post_init` would undo weights loaded before construction.
        weights (`str`): `"pretrained"` for timm's own, or the path of a safetensors file: timm's checkpoint of the
            same architecture, or what `sbce import` writes.

    Raises:
        FileNotFoundError: no such file, or timm's weights are neither cached nor to be downloaded.
        ValueError: the file is no safetensors file or holds other weights or NaN, or timm has none.

    Examples:
        >>> import tempfile
        >>> import timm
        >>> import torch
        >>> from safetensors.torch import save_file
        >>> from sbce_hf import SpatialBceConfig, SpatialBceModel, load_trunk_weights
        >>> network, model = timm.create_model("test_resnet"), SpatialBceModel(SpatialBceConfig(trunk="test_resnet"))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_file(network.state_dict(), f"{folder}/trunk.safetensors")
        ...     load_trunk_weights(model, f"{folder}/trunk.safetensors")
        >>> torch.equal(model.trunk.conv1[0].weight, network.conv1[0].weight)
        True
    """
    base: Any = model.base_model
    config = cast(Any, model.config)
    # What a file says is checked before the weights are read.
    record = preprocessing_record(config.trunk, weights)
    load = _load_backbone if config.trunk.startswith(PREFIX) else _load_timm
    try:
        load(base.trunk, config, weights)
    except RuntimeError as error:
        raise ValueError(f"trunk weights {weights}: are not those of {config.trunk!r}: {error}") from error
    _require_finite(base.trunk, weights)
    for name, value in record.items():
        if getattr(config, name) is None:
            setattr(config, name, value)


def _require_finite(trunk: nn.Module, weights: str) -> None:
    """Raise a `ValueError` that names the first weight that is no number."""
    for name, tensor in trunk.state_dict().items():
        if not bool(tensor.isfinite().all()):
            raise ValueError(
                f"trunk weights {weights}: {name!r}: got NaN or infinity, expected finite values; fetch the file again"
            )


def _load_timm(trunk: nn.Module, config: Any, weights: str) -> None:
    """Load weights of timm's names, or of ResNet-38's."""
    if weights != "pretrained":
        _check_trunk_file(trunk, config.trunk, weights)
    elif config.trunk == RESNET38:
        raise ValueError(
            f"trunk weights 'pretrained': timm has none of {RESNET38!r}. Make a file from its ImageNet weights with "
            "`sbce import FILE --output resnet38.safetensors` and give that, or give 'random'"
        )
    try:
        trunk.load_state_dict(_trunk_state(trunk, config, weights))
    except OSError as error:
        raise FileNotFoundError(
            f"trunk weights of {config.trunk!r} cannot be loaded: {error}. Connect to the Hub once, or give a "
            "checkpoint file instead of 'pretrained'"
        ) from error


def preprocessing_record(trunk: str, weights: str) -> dict[str, Any]:
    """What a trunk's weights are to be fed with: `image_mean`, `image_std` and `interpolation` of a config.

    Args:
        trunk: name of the network, with or without the name of its weights.
        weights: see [`load_trunk_weights`].

    Returns:
        empty where they want ImageNet's mean and deviation, or nothing is known of them.

    Raises:
        ValueError: the file's record is damaged.
    """
    found = _file_record(weights) or _processor_record(trunk, weights) or _folder_record(weights)
    if found is None:
        known = timm.get_pretrained_cfg(trunk) if timm.is_model(trunk.partition(".")[0]) else None
        if known is None:
            return {}
        found = {"image_mean": list(known.mean), "image_std": list(known.std), "interpolation": known.interpolation}
        # timm has a few with a filter drawn at random.
        if known.interpolation not in get_args(Interpolation):
            found["interpolation"] = None
    usual = {"image_mean": list(IMAGENET_DEFAULT_MEAN), "image_std": list(IMAGENET_DEFAULT_STD)}
    return {} if all(found[name] == value for name, value in usual.items()) else found


def _file_record(weights: str) -> dict[str, Any] | None:
    """What `sbce import` has written into a safetensors file besides the weights."""
    if not weights.endswith(".safetensors") or not os.path.isfile(weights):
        return None
    try:
        with safe_open(weights, framework="pt") as file:
            text = (file.metadata() or {}).get(RECORD)
        if text is None:
            return None
        found = json.loads(text)
        record = {name: found[name] for name in RECORDED}
        # A file may say anything.
        check_preprocessing(record, "record")
        return record
    # Damage of the file itself is told where the weights are read.
    except SafetensorError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"trunk weights {weights}: damaged record {RECORD!r}: {error}; import the file again"
        ) from error


def _processor_record(trunk: str, weights: str) -> dict[str, Any] | None:
    """What the image processor of transformers beside a backbone's weights says."""
    path = Path(weights).parent / "preprocessor_config.json"
    if not trunk.startswith(PREFIX) or not path.is_file():
        return None
    values = read_json(path)
    names = {2: "bilinear", 3: "bicubic", 0: "nearest", 1: "lanczos"}
    found = {name: values.get(name) for name in ("image_mean", "image_std")}
    if None in found.values():
        return None
    found["interpolation"] = names.get(values.get("resample", 2), "bilinear")
    check_preprocessing(found, str(path))
    return found


def _folder_record(weights: str) -> dict[str, Any] | None:
    """What timm's `config.json` beside a file says."""
    path = Path(weights).parent / "config.json"
    if not os.path.isfile(weights) or not path.is_file():
        return None
    return folder_record(path, read_json(path))


def folder_record(path: Path, values: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a `config.json` of timm's says that its weights are to be fed with; `None` where it says nothing.

    Raises:
        ValueError: it says something else than three numbers, twice, and a filter.
    """
    known = values.get("pretrained_cfg")
    if not isinstance(known, Mapping) or not {"mean", "std"} <= known.keys():
        return None
    filter_name = known.get("interpolation")
    found = {
        "image_mean": known["mean"],
        "image_std": known["std"],
        "interpolation": filter_name if filter_name in get_args(Interpolation) else None,
    }
    check_preprocessing(found, f"{path}: pretrained_cfg")
    return found


def _load_backbone(trunk: Any, config: Any, path: str) -> None:
    """Load a file of transformers into a backbone, by transformers' own names."""
    name = config.trunk
    if not path.endswith(".safetensors") or not os.path.isfile(path):
        raise ValueError(
            f"trunk weights {path}: expected a .safetensors file of transformers for {name!r}, or 'random'; "
            "'pretrained' needs a trunk 'hf:' with a folder or Hub id"
        )
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"trunk weights {path}: is no safetensors file: {error}") from error
    kind, backbone_config = type(trunk.model), copy.deepcopy(trunk.model.config)
    loaded, found = kind.from_pretrained(None, config=backbone_config, state_dict=state, output_loading_info=True)
    # What stands for hidden patches while such a network is trained is never seen here.
    if missing := sorted(name for name in found["missing_keys"] if not name.endswith("mask_token")):
        raise ValueError(
            f"trunk weights {path}: lacks {len(missing)} of trunk {name!r}, first {missing[0]!r}: it belongs to "
            "another architecture or size, which its config.json describes: trunk 'hf:FOLDER'"
        )
    trunk.model.load_state_dict(loaded.state_dict())


def _trunk_state(trunk: nn.Module, config: TrunkConfig, weights: str) -> Mapping[str, Tensor]:
    if config.trunk == RESNET38:
        with safe_open(weights, framework="pt") as file:
            return {name: file.get_tensor(name) for name in trunk.state_dict() if name in file.keys()}  # noqa: SIM118
    overrides: dict = {"pretrained": True}
    if weights != "pretrained":
        overrides["pretrained_cfg_overlay"] = {"file": str(weights)}
    # Through features_only: its key names differ from the plain model's.
    return create_trunk(config, **overrides).state_dict()


def _check_trunk_file(trunk: nn.Module, name: str, path: str) -> None:
    """Raise for a file that timm would read as a pickle, or would take though it lacks the trunk's weights."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"trunk weights: no file {path}; give a checkpoint file, 'pretrained' or 'random'")
    remedy = f"`sbce import {path} --trunk {name} --output FILE.safetensors` checks and converts other files"
    try:
        if not path.endswith(".safetensors"):
            raise ValueError(f"trunk weights {path}: expected a .safetensors file; {remedy}")
        with safe_open(path, framework="pt") as file:
            missing = missing_weights(trunk, file.keys())
    except SafetensorError as error:
        raise ValueError(f"trunk weights {path}: is no safetensors file: {error}; {remedy}") from error
    if missing:
        raise ValueError(
            f"trunk weights {path}: lacks {len(missing)} of trunk {name!r}, first {missing[0]!r}: it belongs to "
            f"another architecture, or has other names than timm's; {remedy}"
        )


def missing_weights(trunk: nn.Module, names: Iterable[str]) -> list[str]:
    """Names of the trunk's weights that a checkpoint of the plain model lacks; counters do not count.

    timm's feature extractors flatten some modules' names and put `model.` in front of others.
    """
    there = {flat_name(name) for name in names}
    needed = (name for name in trunk.state_dict() if not name.endswith("num_batches_tracked"))
    return [name for name in needed if flat_name(name) not in there]


def flat_name(name: str) -> str:
    """What a weight's name in a plain timm model and in its feature extractor have in common."""
    return name.removeprefix("model.").replace(".", "_")
