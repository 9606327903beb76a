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
from .modeling_initialization import without_memory
from .modeling_trunk_adapters import fit, spread

# In front of the `model_type` in a config's `trunk`.
PREFIX = "hf:"
# A wrapper of timm's, whose models are trunks by their own names.
_NOT_THESE = ("timm_backbone",)
# Of a trunk; ViT-g has 1.1e9.
MAX_PARAMETERS = 1_500_000_000
# Of all stages. ResNet-152 has 50 blocks, ViT-22B has 48; each takes a few hundredths of a second to build.
MAX_BLOCKS = 100
# Of the image at which strides are measured.
_SIDE = 224


class BackboneTrunk(nn.Module):
    """A backbone of transformers with the face of a timm feature extractor; random weights.

    Args:
        backbone_config: content of its `config.json`. Nothing else is read, wherever it comes from.
        out_indices: stages to return; negative ones count from the last. `None` returns all, or of a plain
            transformer as many at equal distances as of timm's.

    Raises:
        ValueError: transformers has no such backbone, or the values make none, or one that is too large.
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
        check_backbone_size(config)
        stages = list(config.stage_names[1:])
        with without_memory():
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


def check_backbone_size(config: Any) -> None:
    """Refuse a backbone that is too deep or too large, by its configuration alone: to build one takes its time.

    What passes may still be too large; then it is counted, once it is built without numbers.

    Args:
        config: of a backbone of transformers.

    Raises:
        ValueError: too many blocks, or too many weights at the very least.
    """
    for key, value in config.to_dict().items():
        if any(word in key for word in ("layers", "depth", "blocks", "configs", "conv_layer")):
            blocks = _count_blocks(value)
            if blocks > MAX_BLOCKS:
                raise ValueError(f"{key}: got {blocks} in all, expected at most {MAX_BLOCKS}")
    repeats = zip(getattr(config, "stage_num_blocks", ()), getattr(config, "stage_numb_of_layers", ()), strict=False)
    if (layers := sum(blocks * each for blocks, each in repeats)) > 4 * MAX_BLOCKS:
        raise ValueError(
            f"stage_num_blocks times stage_numb_of_layers: got {layers}, expected at most {4 * MAX_BLOCKS}"
        )
    if (weights := _least_weights(config)) > MAX_PARAMETERS:
        raise ValueError(f"has at least {weights:.3g} parameters, expected at most {MAX_PARAMETERS:.3g}")


def _count_blocks(value: Any) -> int:
    """A number of blocks, the sum of those of all stages, or how many are described one by one."""
    if isinstance(value, int):
        return abs(value)
    if not isinstance(value, list | tuple):
        return 0
    if any(isinstance(part, list | tuple) for part in value):
        inner = [part for part in value if isinstance(part, list | tuple)]
        return sum(_count_blocks(part) if any(isinstance(one, list | tuple) for one in part) else 1 for part in inner)
    return sum(abs(part) for part in value if isinstance(part, int))


def _least_weights(config: Any) -> float:
    """How many weights a backbone has at the very least.

    A transformer's block has four square matrices, and two with the ratio of its MLP; a block of a pyramid, be it of
    ResNet's or ConvNeXt's kind, has at least as many weights as one square matrix of the channels that it gives.
    """
    depths, widths = getattr(config, "depths", None), getattr(config, "hidden_sizes", None)
    # HGNet's are left over from ResNet, and say nothing.
    if hasattr(config, "stage_num_blocks"):
        depths, widths = config.stage_num_blocks, config.stage_out_channels
    if depths and widths is None and isinstance(getattr(config, "embed_dim", None), int):
        widths = [config.embed_dim * 2**stage for stage in range(len(depths))]
    if depths and widths:
        pairs = zip(reversed(depths), reversed(widths), strict=False)
        return float(sum(depth * width**2 for depth, width in pairs))
    depth, width = getattr(config, "num_hidden_layers", None), getattr(config, "hidden_size", None)
    if not isinstance(depth, int) or not isinstance(width, int):
        return 0.0
    ratio = getattr(config, "mlp_ratio", 0) or getattr(config, "intermediate_size", 0) / max(width, 1)
    return float(depth * width**2 * (4 + 2 * ratio))


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
