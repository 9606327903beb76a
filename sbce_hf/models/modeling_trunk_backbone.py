"""Backbones of transformers as trunks: DINOv2, DINOv3, Swin, ResNet and others, built from a configuration alone."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.models import FeatureInfo
from torch import Tensor, nn
from transformers import AutoBackbone
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING_NAMES

from .modeling_checkpoint import check_foreign_config
from .modeling_trunk_adapters import fit, spread

# In front of the `model_type` in a config's `trunk`.
PREFIX = "hf:"
# A wrapper of timm's, whose models are trunks by their own names.
_NOT_THESE = ("timm_backbone",)
# Of the image at which strides are measured.
_SIDE = 224


class BackboneTrunk(nn.Module):
    """A backbone of transformers with the face of a timm feature extractor; random weights.

    Args:
        backbone_config: content of its `config.json`. Nothing else is read, wherever it comes from.
        out_indices: stages to return; negative ones count from the last. `None` returns all, or of a plain
            transformer as many at equal distances as of timm's.

    Raises:
        ValueError: transformers has no such backbone, or the values make none.
    """

    def __init__(self, backbone_config: Mapping[str, Any], out_indices: Sequence[int] | None = (-1,)) -> None:
        super().__init__()
        kind = str(backbone_config.get("model_type"))
        check_foreign_config(backbone_config, "backbone_config")
        if kind not in MODEL_FOR_BACKBONE_MAPPING_NAMES or kind in _NOT_THESE:
            known = ", ".join(sorted(set(MODEL_FOR_BACKBONE_MAPPING_NAMES) - set(_NOT_THESE)))
            raise ValueError(f"backbone_config.model_type: got {kind[:80]!r}, expected one of {known}")
        values = {key: value for key, value in backbone_config.items() if key not in ("out_indices", "out_features")}
        config: Any = CONFIG_MAPPING[kind].from_dict(values)
        stages = list(config.stage_names[1:])
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            levels = _measured(config, stages)
        if out_indices is None:
            plain = len({level["reduction"] for level in levels}) == 1
            out_indices = spread(len(stages)) if plain else range(len(stages))
        returned = tuple(sorted(range(len(stages))[index] for index in out_indices))
        config.set_output_features_output_indices(out_features=[stages[index] for index in returned], out_indices=None)
        self.model: Any = AutoBackbone.from_config(config, trust_remote_code=False)
        self.feature_info = FeatureInfo(levels, returned)
        self.multiple = _patch(config)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute activations again for the gradient instead of keeping them; timm's name."""
        (self.model.gradient_checkpointing_enable if enable else self.model.gradient_checkpointing_disable)()

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        """Map `pixel_values` of shape `(B, 3, H, W)` to the stages, each `(B, D, h, w)`."""
        return list(self.model(fit(pixel_values, self.multiple), return_dict=True).feature_maps)


def _patch(config: Any) -> int:
    size = getattr(config, "patch_size", 1)
    return size if isinstance(size, int) else max(size)


def _measured(config: Any, stages: Sequence[str]) -> list[dict[str, Any]]:
    """Each stage's channels and stride, as timm tells them, measured without numbers."""
    config = copy.deepcopy(config)
    config.set_output_features_output_indices(out_features=list(stages), out_indices=None)
    side = max(_SIDE // _patch(config), 1) * _patch(config)
    # Some are built for one size.
    fixed = getattr(config, "image_size", None) if config.model_type in ("beit", "vitdet") else None
    side = fixed if isinstance(fixed, int) else side
    maps = AutoBackbone.from_config(config, trust_remote_code=False).eval()(torch.empty(1, 3, side, side)).feature_maps
    return [
        {"num_chs": one.shape[1], "reduction": round(side / one.shape[-1]), "module": stage}
        for stage, one in zip(stages, maps, strict=True)
    ]
