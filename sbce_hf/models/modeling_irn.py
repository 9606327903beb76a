"""The boundary network of IRN (Ahn et al., CVPR 2019): images to class boundaries."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput, can_return_tuple

from .configuration_irn import IrnConfig
from .losses_irn import boundary_loss
from .losses_spatial_bce import sum_over_processes
from .modeling_checkpoint import DataOnlyMixin
from .modeling_trunk import HasTrunk, wanted_levels

# Stride of the boundary map.
STRIDE = 4


@dataclass
class IrnOutput(ModelOutput):
    """What [`IrnModel`] returns.

    Args:
        loss (`torch.Tensor`): scalar; with labels.
        same_loss (`torch.Tensor`): scalar, its part of pairs with equal labels, detached.
        different_loss (`torch.Tensor`): scalar, its part of pairs with different labels, detached.
        boundary_logits (`torch.Tensor` of shape `(B, h, w)`): at a quarter of the images' size, rounded up; their
            sigmoid is 1 on a boundary.
        hidden_states (`tuple[torch.Tensor]`): on request, the trunk's feature levels, each `(B, D, h, w)`.
    """

    loss: Tensor | None = None
    same_loss: Tensor | None = None
    different_loss: Tensor | None = None
    boundary_logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class IrnModel(HasTrunk, DataOnlyMixin, PreTrainedModel):
    """A frozen trunk, all of whose feature levels a light head turns into a boundary map.

    Where the finest level is coarser than the boundary map, as all layers of a plain transformer are, learned
    upsampling brings the levels of that stride to its resolution.

    The published displacement branch serves instance masks only and shares nothing with the boundaries; it is left
    out.

    Args:
        config ([`IrnConfig`]): the trunk is built with random weights; see [`load_trunk_weights`].

    Examples:
        >>> import torch
        >>> from sbce_hf import IrnConfig, IrnModel
        >>> model = IrnModel(IrnConfig(trunk="test_resnet", side_channels=8)).eval()
        >>> boundaries = model(torch.randn(1, 3, 64, 48)).boundary_logits.sigmoid()
        >>> boundaries.shape
        torch.Size([1, 16, 12])
    """

    config_class = IrnConfig
    base_model_prefix = "irn"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    # The trunk, without a gradient, keeps no activations that could be computed again instead.
    supports_gradient_checkpointing = False

    def __init__(self, config: IrnConfig) -> None:
        super().__init__(config)
        self.build_trunk(config, out_indices=None)
        info: Any = self.trunk.feature_info
        strides, finest = info.reduction(), min(info.reduction())
        self._level = strides.index(STRIDE) if STRIDE in strides else None
        # Of the levels of the finest stride; 0 where that is fine enough.
        doublings = max(0, round(math.log2(finest / STRIDE)))
        self.sides = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, config.side_channels, 1, bias=False),
                nn.GroupNorm(config.side_groups, config.side_channels),
                *_upsampling(config, doublings if stride == finest else 0),
            )
            for channels, stride in zip(info.channels(), strides, strict=True)
        )
        self.boundary = nn.Conv2d(config.side_channels * len(self.sides), 1, 1)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        # Convolutions and norms keep torch's own initialisation, as in the released program. Only those built without
        # memory lack it; in a new model it would be drawn twice.
        head = (self.boundary, *self.sides.modules())
        kinds = nn.Conv2d | nn.ConvTranspose2d | nn.GroupNorm
        if self._trunk_was_empty and isinstance(module, kinds) and any(module is m for m in head):
            module.reset_parameters()

    def train(self, mode: bool = True) -> "IrnModel":
        """Like `nn.Module.train`, but the trunk is frozen."""
        super().train(mode)
        self.trunk.requires_grad_(False)
        self.trunk.eval()
        return self

    @can_return_tuple
    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, output_hidden_states: bool | None = None
    ) -> IrnOutput:
        """Compute the boundary map and, with `labels`, the loss.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(B, 3, H, W)`): normalised images.
            labels (`torch.LongTensor` of shape `(B, H, W)`): label maps, 0 for background; 255 does not count.
            output_hidden_states (`bool`, *optional*): return the trunk's feature levels, too; by default what the
                config says.

        Raises:
            ValueError: with labels, images too small for the radius.
        """
        with torch.no_grad():
            levels = self.trunk(pixel_values)
        if self._level is None:
            size = tuple(-(-side // STRIDE) for side in pixel_values.shape[-2:])
        else:
            size = levels[self._level].shape[-2:]
        sides = [
            F.relu(F.interpolate(side(level), size=size, mode="bilinear", align_corners=False))
            for side, level in zip(self.sides, levels, strict=True)
        ]
        logits = self.boundary(torch.cat(sides, dim=1))[:, 0]
        hidden_states = wanted_levels(self.config, levels, output_hidden_states)
        if labels is None:
            return IrnOutput(boundary_logits=logits, hidden_states=hidden_states)
        small = F.interpolate(labels[:, None].float(), size=size, mode="nearest-exact")[:, 0].long()
        losses = boundary_loss(logits, small, self.config.radius, reduce=sum_over_processes if self.training else None)
        same, different = losses.same.detach(), losses.different.detach()
        return IrnOutput(losses.loss, same, different, logits, hidden_states)


def _upsampling(config: IrnConfig, doublings: int) -> Iterator[nn.Module]:
    """Layers that double the resolution as often as asked for."""
    for _ in range(doublings):
        yield nn.ReLU()
        yield nn.ConvTranspose2d(config.side_channels, config.side_channels, 2, stride=2)
        yield nn.GroupNorm(config.side_groups, config.side_channels)


IrnModel.register_for_auto_class("AutoModel")
