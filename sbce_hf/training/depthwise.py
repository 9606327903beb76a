"""Gradients of depthwise convolutions in bfloat16 on a CPU, where most of them are slow."""

import contextlib
import types
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .device import precision_of

# The one kind with a fast gradient.
_FAST_KERNEL = (3, 3)


@contextlib.contextmanager
def quick_depthwise(model: nn.Module, precision: str, device: str) -> Iterator[None]:
    """Give depthwise convolutions other ways to the same result for as long as a model is trained; weights stay.

    Of depthwise gradients in bfloat16, oneDNN (of torch 2.14) has a fast one for 3 x 3 without stride and dilation;
    others take two to twenty times as long as in float32, which is then most of a step. So a dilated convolution
    becomes one without dilation on each of the grids of pixels that it never mixes, and what is another kind even then
    is computed in float32. Where no gradient is asked for, nothing changes.

    Args:
        model: changed while the context lasts.
        precision: of its forward pass, see [`precision_of`]; with another than `"bf16"` nothing changes.
        device: that it is on; on another than `"cpu"` nothing changes.
    """
    wanted = device == "cpu" and precision_of(precision) == "bf16"
    changed = [module for module in model.modules() if wanted and _is_slow(module)]
    for module in changed:
        module.forward = types.MethodType(_forward, module)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for module in changed:
            del module.forward


def _is_slow(module: nn.Module) -> bool:
    if not isinstance(module, nn.Conv2d) or module.groups == 1 or module.groups != module.in_channels:
        return False
    return (module.kernel_size, module.stride, module.dilation) != (_FAST_KERNEL, (1, 1), (1, 1))


def _forward(conv: nn.Conv2d, images: Tensor) -> Tensor:
    """The convolution of `(N, C, H, W)`, in the precision that surrounds it."""
    usual = type(conv).forward
    if not (torch.is_grad_enabled() and (images.requires_grad or conv.weight.requires_grad)):
        return usual(conv, images)
    by_grids = _keeps_size(conv) and conv.dilation[0] > 1
    if by_grids and conv.kernel_size == _FAST_KERNEL:
        return _on_grids(conv, images)
    with torch.autocast("cpu", enabled=False):
        exact = images.float()
        return (_on_grids(conv, exact) if by_grids else usual(conv, exact)).to(torch.bfloat16)


def _keeps_size(conv: nn.Conv2d) -> bool:
    """Whether it is one of torch's own with equal dilations, that pads as much as it takes away."""
    around = tuple(conv.dilation[0] * (side - 1) // 2 for side in conv.kernel_size)
    odd = all(side % 2 for side in conv.kernel_size)
    return (
        type(conv) is nn.Conv2d
        and odd
        and (conv.stride, conv.padding, conv.padding_mode) == ((1, 1), around, "zeros")
        and conv.dilation[0] == conv.dilation[1]
    )


def _on_grids(conv: nn.Conv2d, images: Tensor) -> Tensor:
    """A dilated convolution: with a dilation of `d`, a pixel meets those alone that are multiples of `d` away."""
    step = conv.dilation[0]
    count, channels, height, width = images.shape
    rows, columns = -(-height // step), -(-width // step)
    # What is added at the end are zeros, as the padding would be.
    pixels = F.pad(images, (0, columns * step - width, 0, rows * step - height)).permute(0, 2, 3, 1)
    grids = pixels.reshape(count, rows, step, columns, step, channels).permute(0, 2, 4, 1, 3, 5)
    grids = grids.reshape(count * step**2, rows, columns, channels).permute(0, 3, 1, 2)
    padding = tuple(side // 2 for side in conv.kernel_size)
    found = F.conv2d(grids, conv.weight, conv.bias, padding=padding, groups=conv.groups).permute(0, 2, 3, 1)
    found = found.reshape(count, step, step, rows, columns, -1).permute(0, 3, 1, 4, 2, 5)
    return found.reshape(count, rows * step, columns * step, -1).permute(0, 3, 1, 2)[:, :, :height, :width]
