"""The dilated VGG of DeepLab, made from timm's feature extractor, so that timm's weights fit as they are."""

from typing import Any

from torch import nn


def dilate_vgg(trunk: Any, output_stride: int) -> nn.Module:
    """Give a VGG a smaller output stride, as DeepLab v1 does; in place, no parameter changes.

    Every 2x2 pool becomes a 3x3 pool with padding 1, which keeps side lengths odd (321 -> 161 -> 81 -> 41). Pools that
    would exceed the output stride get stride 1, and convolutions behind such a pool are dilated by 2. At output stride
    8 these are `pool4`, `pool5` and `conv5`.

    Args:
        trunk: timm's VGG with `features_only`.
        output_stride (`int`): 8, 16 or 32.

    Returns:
        the same trunk.
    """
    stride, dilation = 1, 1
    for name, layer in list(trunk.items()):
        if isinstance(layer, nn.MaxPool2d):
            step = 2 if stride < output_stride else 1
            trunk[name] = nn.MaxPool2d(3, stride=step, padding=1)
            stride, dilation = stride * step, dilation * 2 // step
        elif isinstance(layer, nn.Conv2d):
            layer.dilation = layer.padding = (dilation, dilation)
    for level in trunk.feature_info.info:
        level["reduction"] = min(level["reduction"], output_stride)
    return trunk
