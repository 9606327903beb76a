"""The paper's trunk, which timm does not have: the wide ResNet-38 (Wu et al., "Wider or Deeper", model A1), dilated.

Modules are named as in the released program, so that its files fit as they are.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch.nn.functional as F
from timm.models import FeatureInfo, is_model, register_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# Its name among timm's.
RESNET38 = "resnet38"
# Feature levels: the module that a level ends with, its channels and its stride.
_LEVELS = (
    ("conv1a", 64, 1),
    ("b2_2", 128, 2),
    ("b3_2", 256, 4),
    ("b4_5", 512, 8),
    ("b5_2", 1024, 8),
    ("b6", 2048, 8),
    ("bn7", 4096, 8),
)


class PreActivationBlock(nn.Module):
    """A residual block: batch norm and ReLU before each convolution, nothing after the sum.

    Args:
        in_channels (`int`): of the input.
        widths (`Sequence[int]`): output channels of the convolutions: two 3x3, or 1x1, 3x3, 1x1.
        stride (`int`): of the first convolution and of the projection.
        dilations (`Sequence[int]`): of the convolutions.
        dropout (`float`): probability that a channel is dropped before a convolution, the first excepted.
    """

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[int],
        stride: int = 1,
        dilations: Sequence[int] = (1, 1),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        kernels = (3, 3) if len(widths) == 2 else (1, 3, 1)
        self._branches = ("branch2a", "branch2b1", "branch2b2")[: len(widths)]
        self._dropout = dropout
        channels = in_channels
        for index, (branch, width) in enumerate(zip(self._branches, widths, strict=True)):
            kernel, dilation = kernels[index], dilations[index]
            conv = nn.Conv2d(
                channels,
                width,
                kernel,
                stride=stride if index == 0 else 1,
                padding=dilation * (kernel // 2),
                dilation=dilation,
                bias=False,
            )
            self.add_module(f"bn_{branch}", nn.BatchNorm2d(channels))
            self.add_module(f"conv_{branch}", conv)
            channels = width
        same_shape = stride == 1 and in_channels == channels
        self.conv_branch1 = None if same_shape else nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map `inputs` of shape `(B, D, H, W)` to shape `(B, E, H / stride, W / stride)`, rounded up."""
        branch, shortcut = inputs, inputs
        for index, name in enumerate(self._branches):
            branch = F.relu(self.get_submodule(f"bn_{name}")(branch), inplace=True)
            if index == 0 and self.conv_branch1 is not None:
                shortcut = self.conv_branch1(branch)
            elif index > 0 and self._dropout:
                branch = F.dropout2d(branch, self._dropout, self.training)
            branch = self.get_submodule(f"conv_{name}")(branch)
        return shortcut + branch


class ResNet38(nn.Module):
    """The trunk, with the face of a timm feature extractor; random weights.

    `feature_info` has the levels `conv1a`, the ends of stages 2 to 6 (before the next block's batch norm), and `bn7`,
    which is not rectified.

    Args:
        out_indices (`Sequence[int]`, *optional*): levels to return; negative ones count from the last. What lies
            behind the last of them is not built. `None` returns all.
        output_stride (`int`): 8; there are no other dilations.

    Raises:
        ValueError: a level that it does not have, or another output stride.
    """

    def __init__(self, out_indices: Sequence[int] | None = (-1,), output_stride: int = 8) -> None:
        super().__init__()
        out_indices = range(len(_LEVELS)) if out_indices is None else out_indices
        if output_stride != 8:
            raise ValueError(f"trunk 'resnet38': got output_stride {output_stride}, expected 8 or None")
        if not out_indices or any(not -len(_LEVELS) <= index < len(_LEVELS) for index in out_indices):
            raise ValueError(
                f"trunk 'resnet38': got feature levels {list(out_indices)}, expected {-len(_LEVELS)} to "
                f"{len(_LEVELS) - 1}"
            )
        levels = [{"num_chs": width, "reduction": stride, "module": name} for name, width, stride in _LEVELS]
        returned = tuple(sorted(index % len(levels) for index in out_indices))
        self.feature_info = FeatureInfo(levels, returned)
        self._checkpointing = False
        self._returned = {_LEVELS[index][0] for index in returned}
        for name, module in _modules():
            self.add_module(name, module)
            if name == _LEVELS[returned[-1]][0]:
                break

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the blocks' inputs for the gradient, and compute what is in a block again; timm's name."""
        self._checkpointing = enable

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        """Map `pixel_values` of shape `(B, 3, H, W)` to the levels, `(B, D, H / stride, W / stride)`, rounded up."""
        features, values = [], pixel_values
        for name, module in self.named_children():
            values = checkpoint(module, values, use_reentrant=False) if self._checkpointing else module(values)
            if name in self._returned:
                features.append(values)
        return features


def _modules() -> Iterator[tuple[str, nn.Module]]:
    yield "conv1a", nn.Conv2d(3, 64, 3, padding=1, bias=False)
    yield from _stage("b2", 3, 64, (128, 128), stride=2)
    yield from _stage("b3", 3, 128, (256, 256), stride=2)
    yield from _stage("b4", 6, 256, (512, 512), stride=2)
    yield "b5", PreActivationBlock(512, (512, 1024), dilations=(1, 2))
    yield "b5_1", PreActivationBlock(1024, (512, 1024), dilations=(2, 2))
    yield "b5_2", PreActivationBlock(1024, (512, 1024), dilations=(2, 2))
    yield "b6", PreActivationBlock(1024, (512, 1024, 2048), dilations=(1, 4, 1), dropout=0.3)
    yield "b7", PreActivationBlock(2048, (1024, 2048, 4096), dilations=(1, 4, 1), dropout=0.5)
    yield "bn7", nn.BatchNorm2d(4096)


def _stage(
    name: str, depth: int, in_channels: int, widths: tuple[int, int], stride: int
) -> Iterator[tuple[str, nn.Module]]:
    yield name, PreActivationBlock(in_channels, widths, stride=stride)
    for index in range(1, depth):
        yield f"{name}_{index}", PreActivationBlock(widths[-1], widths)


def resnet38(pretrained: bool = False, **arguments: Any) -> ResNet38:
    """For timm's registry; what `timm.create_model` passes on to find weights is not looked at, there are none.

    Raises:
        ValueError: another output stride, a level that it does not have, or arguments of other architectures.
    """
    steering = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "features_only", "feature_cls")
    arguments = {name: value for name, value in arguments.items() if name not in steering}
    # timm leaves out what is `None`.
    arguments.setdefault("out_indices", None)
    if pretrained:
        raise ValueError(f"trunk {RESNET38!r}: timm has no weights of it")
    try:
        return ResNet38(**arguments)
    except TypeError as error:
        raise ValueError(f"trunk {RESNET38!r} with {arguments}: {error}; leave out trunk_kwargs") from error


# A checkpoint's own copy of this file finds the package's in the registry, or the other way round.
if not is_model(RESNET38):
    register_model(resnet38)
