"""A recipe's `trunk: hf:NAME`, for a folder or Hub id, becomes what a checkpoint keeps: a backbone's configuration."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from transformers import PreTrainedModel

from ..errors import UserError
from ..models.configuration_checks import BACKBONE
from ..models.modeling_checkpoint import read_json
from ..models.modeling_trunk_backbone import PREFIX
from ..models.modeling_trunk_weights import load_trunk_weights
from ..references import CHECKPOINT_FILES, download, is_cached, require_answer

# What timm keeps on the Hub, the first one that is there.
TIMM_FILES = ("model.safetensors", "pytorch_model.bin")
# In a folder of transformers.
CONFIG, WEIGHTS = "config.json", "model.safetensors"
# Of a config.json, what describes no architecture.
_NOT_ARCHITECTURE = ("architectures", "auto_map", "dtype", "torch_dtype", "transformers_version", "_name_or_path")


def is_elsewhere(trunk: str) -> bool:
    """Whether a trunk names a folder or repository that describes a backbone of transformers."""
    return trunk.startswith(PREFIX) and not BACKBONE.fullmatch(trunk)


def resolve_backbone(fields: Mapping[str, Any], weights: str) -> tuple[dict[str, Any], str]:
    """Read a backbone's configuration from where a recipe says; other fields are returned as they are.

    Only its `config.json`, its `preprocessor_config.json` and, for weights `"pretrained"`, its safetensors file are
    read or downloaded; its code is never run.

    Args:
        fields: of a model's config.
        weights: of the trunk: `"random"`, `"pretrained"` or a safetensors file.

    Returns:
        the fields with `trunk="hf:<model_type>"` and `backbone_config`, and the weights, as a file for `"pretrained"`.

    Raises:
        OSError: no such folder or repository, or no such file in it.
        UserError: it describes no model.
    """
    trunk = str(fields.get("trunk", ""))
    if not is_elsewhere(trunk):
        return dict(fields), weights
    name = trunk.removeprefix(PREFIX)
    patterns = CHECKPOINT_FILES if weights == "pretrained" else ("*config.json",)
    folder = Path(name) if Path(name).is_dir() else download(name, "model", patterns)
    values = read_json(folder / CONFIG)
    kind = values.get("model_type")
    if not isinstance(kind, str) or not BACKBONE.fullmatch(f"{PREFIX}{kind}"):
        raise UserError(f"trunk {trunk!r}: {folder / CONFIG}: model_type: got {str(kind)[:80]!r}, expected a name")
    described = {key: value for key, value in values.items() if key not in _NOT_ARCHITECTURE}
    if weights == "pretrained":
        if not (folder / WEIGHTS).is_file():
            raise FileNotFoundError(
                f"trunk {trunk!r}: {folder} has no {WEIGHTS}; pickles and shards are not read: give a safetensors file"
            )
        weights = str(folder / WEIGHTS)
    own = {"trunk": f"{PREFIX}{kind}", "backbone_config": {**described, **(fields.get("backbone_config") or {})}}
    return {"output_stride": None, **fields, **own}, weights


def load_start(model: PreTrainedModel, weights: str) -> None:
    """Give a model's trunk the weights that training starts from.

    Args:
        model: with random weights.
        weights: see [`load_trunk_weights`]; `"random"` loads nothing.

    Raises:
        FileNotFoundError: see [`load_trunk_weights`]; or they have to be downloaded, and nobody answers.
        ValueError: see [`load_trunk_weights`].
    """
    if weights == "random":
        return
    trunk = getattr(model.config, "trunk", "")
    known = timm.get_pretrained_cfg(trunk) if timm.is_model(trunk.partition(".")[0]) else None
    repository = known.hf_hub_id if weights == "pretrained" and known is not None else None
    if repository is not None and not is_cached(repository, *TIMM_FILES):
        remedy = "connect to it once, or fetch the file elsewhere and give it: --trunk-weights FILE"
        require_answer(f"trunk weights of {trunk!r}", repository, remedy)
    load_trunk_weights(model, weights)
