"""What makes every trunk look alike: feature maps `(B, D, h, w)` that cover the image evenly, whatever is within.

| what timm builds | how it becomes a trunk |
| --- | --- |
| a convolutional pyramid | as it is, dilated to an output stride |
| a pyramid that computes in `(B, h, w, D)`: Swin, MambaOut | [`PyramidTrunk`]: maps are turned round |
| a pyramid behind timm's getter: Hiera, Twins | [`PyramidTrunk`] |
| a plain transformer, with levels of one stride: ViT, EVA, DINOv2, DINOv3 | [`TokenTrunk`]: maps behind the norm |

Backbones of transformers are in `modeling_trunk_backbone.py`.

The adapters' models take sides that are multiples of a patch only: images are resized to the nearest ones.
"""

import inspect
from collections.abc import Sequence
from typing import Any, cast

import torch.nn.functional as F
from timm.models._features import FeatureGetterNet
from torch import Tensor, nn

# Layers of a plain transformer that are taken where all levels of a trunk are asked for.
LEVELS = 4
# What lets timm's transformers take images of any size, by the name of the argument.
_ANY_SIZE = {"dynamic_img_size": True, "strict_img_size": False}


class PyramidTrunk(FeatureGetterNet):
    """A pyramid whose levels timm's `forward_intermediates` gives.

    Args:
        model: timm's plain model.
        out_indices: levels to return; negative ones count from the last. What lies behind is removed.
        others: what timm has for its own extractors.
    """

    def __init__(self, model: nn.Module, out_indices: Sequence[int] | None = None, **others: Any) -> None:
        # Those with the other order can norm their last level, as their own head has it.
        super().__init__(model, cast(Any, out_indices), norm=is_nhwc(model))
        # Of its patches; deeper levels are rounded up, as convolutions do it.
        self.multiple = min(level["reduction"] for level in self.feature_info.info)

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        """Map `pixel_values` of shape `(B, 3, H, W)` to the levels, each `(B, D, h, w)`."""
        return super().forward(fit(pixel_values, self.multiple))


class TokenTrunk(FeatureGetterNet):
    """A plain transformer: its patches' tokens as maps, behind the final norm.

    Args:
        model: timm's plain model.
        out_indices: layers to return; negative ones count from the last. What lies behind is removed, but for the
            norm. A number, timm's default where nobody names any, returns [`LEVELS`] layers at equal distances, the
            last among them.
        others: what timm has for its own extractors.
    """

    def __init__(self, model: Any, out_indices: Sequence[int] | int = 1, **others: Any) -> None:
        if isinstance(out_indices, int):
            out_indices = spread(len(model.feature_info))
        # Models that classify the mean of all tokens have their norm there; timm removes it with the head.
        last_norm = getattr(model, "fc_norm", None)
        super().__init__(model, cast(Any, out_indices), norm=True)
        self._norm_is_last = isinstance(getattr(model, "norm", None), nn.Identity) and isinstance(
            last_norm, nn.LayerNorm
        )
        if self._norm_is_last:
            model.fc_norm = last_norm
        self.multiple = self.feature_info.reduction()[-1]
        # Not all of timm's transformers can tell them.
        can_tell = "return_prefix_tokens" in inspect.signature(model.forward_intermediates).parameters
        self._prefix = {"return_prefix_tokens": True} if can_tell and model.num_prefix_tokens else {}

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        """Map `pixel_values` of shape `(B, 3, H, W)` to the layers, each `(B, D, h, w)`."""
        return self.look(pixel_values)[0]

    def look(self, pixel_values: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """The layers, and the last one's class and register tokens `(B, P, D)`; `None` without any."""
        model: Any = self.model
        found = model.forward_intermediates(
            fit(pixel_values, self.multiple),
            indices=self.out_indices,
            norm=True,
            output_fmt="NCHW",
            intermediates_only=True,
            **self._prefix,
        )
        pairs = [level if isinstance(level, tuple | list) else (level, None) for level in found]
        levels, prefix = [level for level, _ in pairs], pairs[-1][1]
        if self._norm_is_last:
            levels = [model.fc_norm(level.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) for level in levels]
            prefix = None if prefix is None else model.fc_norm(prefix)
        return levels, prefix


def fit(pixel_values: Tensor, multiple: int) -> Tensor:
    """Resize images of shape `(B, 3, H, W)` to the nearest sides that are multiples of a number, at least one."""
    height, width = (max(side + multiple // 2, multiple) // multiple * multiple for side in pixel_values.shape[-2:])
    if (height, width) == tuple(pixel_values.shape[-2:]):
        return pixel_values
    return F.interpolate(pixel_values, (height, width), mode="bilinear", align_corners=False, antialias=True)


def spread(depth: int) -> list[int]:
    """Positions of [`LEVELS`] layers of `depth` at equal distances, of which the last is the last layer."""
    count = min(LEVELS, depth)
    return [round((index + 1) * depth / count) - 1 for index in range(count)]


def adapter_for(trunk: nn.Module) -> type[FeatureGetterNet] | None:
    """Which adapter a feature extractor of timm's needs; `None` if it is a trunk as it is.

    Args:
        trunk: as timm builds it with `features_only`, with any levels.
    """
    if isinstance(trunk, FeatureGetterNet):
        return TokenTrunk if has_one_stride(trunk) else PyramidTrunk
    return PyramidTrunk if is_nhwc(trunk) else None


def has_one_stride(trunk: Any) -> bool:
    """Whether all levels of a trunk have the same stride, as the layers of a plain transformer have."""
    return len({level["reduction"] for level in trunk.feature_info.info}) == 1


def is_nhwc(module: nn.Module) -> bool:
    """Whether timm says that a model's or an extractor's maps are `(B, h, w, D)`."""
    return str(getattr(module, "output_fmt", "")).endswith("NHWC")


def any_size(model: nn.Module) -> dict[str, bool]:
    """The arguments that let a model of timm's take images of any size, as far as its classes know them."""
    known = {name for base in type(model).__mro__ for name in inspect.signature(cast(Any, base).__init__).parameters}
    return {name: value for name, value in _ANY_SIZE.items() if name in known}
