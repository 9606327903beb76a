"""The Spatial-BCE classifier: a timm trunk, class maps with learned logit scales, and a threshold head."""

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, initialization
from transformers.utils.generic import ModelOutput, can_return_tuple

from .configuration_spatial_bce import SpatialBceConfig
from .losses_phases import Phase, phase_losses
from .losses_spatial_bce import sum_over_processes
from .modeling_checkpoint import DataOnlyMixin
from .modeling_trunk import TrunkMixin


@dataclass
class SpatialBceOutput(ModelOutput):
    """Output of [`SpatialBceForImageClassification`].

    Args:
        loss (`torch.FloatTensor` of shape `()`): present when `labels` are given.
        logits (`torch.FloatTensor` of shape `(B, C)`): image-level class logits, see `image_top_share` of the config.
        pixel_logits (`torch.FloatTensor` of shape `(B, C, h, w)`): scaled class maps `exp(tau) * z`; their sigmoid is
            the paper's probability map `P`.
        thresholds (`torch.FloatTensor` of shape `(B, C)`): adaptive thresholds in (0, 1), in the domain of `P`.
        threshold_logits (`torch.FloatTensor` of shape `(B, C)`): their logits, which are what is averaged over views.
        spatial_loss (`torch.FloatTensor` of shape `()`): the loss without the proportion term.
        proportion_loss (`torch.FloatTensor` of shape `()`): the proportion term before its weight.
        hidden_states (`tuple[torch.FloatTensor]`): on request, the trunk's, see [`SpatialBceModel`].
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    pixel_logits: Tensor | None = None
    thresholds: Tensor | None = None
    threshold_logits: Tensor | None = None
    spatial_loss: Tensor | None = None
    proportion_loss: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class SpatialBcePreTrainedModel(DataOnlyMixin, PreTrainedModel):
    """Weight initialisation shared by the models of this family."""

    config_class = SpatialBceConfig
    base_model_prefix = "spatial_bce"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # transformers calls this for every submodule but the trunk's, which are the trunk's matter. Each head is
        # initialised at its own call, because a module whose own parameters were all loaded is passed over.
        if module is self and isinstance(module, SpatialBceForImageClassification):
            initialization.constant_(module.logit_scale, math.log(self.config.logit_scale_init))
        elif module is getattr(self, "embedding", None):
            initialization.xavier_uniform_(module.weight)
        elif module is getattr(self, "class_maps", None):
            # The released program keeps one 128 -> 1 convolution per class: Xavier with fan_out 1, not C.
            bound = math.sqrt(6 / (self.config.embedding_dim + 1))
            initialization.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                initialization.zeros_(module.bias)
        elif module is getattr(self, "threshold_head", None):
            initialization.normal_(module.weight, std=self.config.initializer_range)


class SpatialBceModel(TrunkMixin, SpatialBcePreTrainedModel):
    """The trunk: images to a feature map.

    Args:
        config ([`SpatialBceConfig`]): the trunk is built with random weights; see [`load_trunk_weights`].

    Examples:
        >>> import torch
        >>> from sbce_hf import SpatialBceConfig, SpatialBceModel
        >>> trunk = SpatialBceModel(SpatialBceConfig(trunk="test_resnet", output_stride=8))
        >>> trunk(torch.randn(1, 3, 64, 48)).last_hidden_state.shape
        torch.Size([1, 96, 8, 6])
    """

    def __init__(self, config: SpatialBceConfig) -> None:
        super().__init__(config)
        self.build_trunk(config)
        self.post_init()


class SpatialBceForImageClassification(SpatialBcePreTrainedModel):
    """Image tags in, class maps with image-specific thresholds out (paper, sec. 3).

    Examples:
        >>> import torch
        >>> from sbce_hf import SpatialBceConfig, SpatialBceForImageClassification
        >>> model = SpatialBceForImageClassification(SpatialBceConfig(trunk="test_resnet", num_labels=3))
        >>> labels = torch.tensor([[1.0, 0.0, 1.0]])  # one image, with the first and the third class
        >>> outputs = model(torch.randn(1, 3, 64, 64), labels=labels, proportions=0.2 * labels)
        >>> outputs.pixel_logits.shape, outputs.thresholds.shape, outputs.loss.requires_grad
        (torch.Size([1, 3, 8, 8]), torch.Size([1, 3]), True)
    """

    def __init__(self, config: SpatialBceConfig) -> None:
        super().__init__(config)
        self.spatial_bce = SpatialBceModel(config)
        channels, classes = self.spatial_bce.num_features, cast(int, config.num_labels)
        # No activation between the two: a rank-limited linear map, so that released checkpoints load.
        self.embedding = nn.Conv2d(channels, config.embedding_dim, 1, bias=False)
        self.class_maps = nn.Conv2d(config.embedding_dim, classes, 1, bias=config.class_map_bias)
        self.threshold_head = nn.Conv2d(channels, classes, 1, bias=False)
        self.logit_scale = nn.Parameter(torch.empty(classes))
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        proportions: Tensor | None = None,
        phase: Phase = "weights",
        label_maps: Tensor | None = None,
        output_hidden_states: bool | None = None,
        features: Tensor | None = None,
    ) -> SpatialBceOutput:
        """Compute class maps, thresholds and, with `labels`, the loss of one phase.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(B, 3, H, W)`, *optional*): normalised images.
            labels (`torch.FloatTensor` of shape `(B, C)`): 1 for a present class, 0 for an absent one.
            proportions (`torch.FloatTensor` of shape `(B, C)`): foreground proportions in [0, 1]; needed by every loss
                but `"bce"`'s.
            phase (`str`): `"bce"` trains the baseline classifier on image logits, `"weights"` everything but the
                thresholds, `"threshold"` the thresholds alone (sec. 3.3).
            label_maps (`torch.LongTensor` of shape `(B, H', W')`, *optional*): 0 background, `c + 1` class `c`, 255
                unknown. In the phase `"weights"` present classes are trained on them instead of on proportions, and
                there is no proportion term: they say both how much and where.
            output_hidden_states (`bool`, *optional*): return the trunk's, see [`SpatialBceModel`].
            features (`torch.FloatTensor` of shape `(B, D, h, w)`, *optional*): what the trunk has made of images
                before, its `last_hidden_state`, instead of `pixel_values`.

        Returns:
            [`SpatialBceOutput`].

        Raises:
            ValueError: neither images nor features, or both; an unknown phase, no proportions where the phase needs
                them, or, where reading them costs nothing, proportions outside [0, 1].
        """
        if (pixel_values is None) is (features is None):
            raise ValueError("expected pixel_values, or features of a trunk that has looked at them, and not both")
        hidden_states = None
        if features is None:
            trunk = self.spatial_bce(pixel_values, output_hidden_states=output_hidden_states, return_dict=True)
            features, hidden_states = trunk.last_hidden_state, trunk.hidden_states
        scale = self.logit_scale.exp()[:, None, None]
        pixel_logits = self.class_maps(self.embedding(features)) * scale
        head_input = features.detach() if self.config.detach_threshold_input else features
        threshold_logits = self.threshold_head(head_input).float().mean(dim=(-2, -1))
        thresholds = threshold_logits.sigmoid()
        losses: dict[str, Tensor] = {}
        if labels is not None:
            losses = phase_losses(
                pixel_logits=pixel_logits,
                thresholds=thresholds,
                labels=labels,
                proportions=proportions,
                label_maps=label_maps,
                phase=phase,
                config=cast(SpatialBceConfig, self.config),
                reduce=sum_over_processes if self.training else None,
            )
        return SpatialBceOutput(
            loss=losses.get("loss"),
            logits=pool_top(pixel_logits, self.config.image_top_share),
            pixel_logits=pixel_logits,
            thresholds=thresholds,
            threshold_logits=threshold_logits,
            spatial_loss=losses.get("spatial_loss"),
            proportion_loss=losses.get("proportion_loss"),
            hidden_states=hidden_states,
        )


def pool_top(pixel_logits: Tensor, share: float) -> Tensor:
    """Mean of each map's highest pixels.

    Args:
        pixel_logits (`torch.Tensor` of shape `(B, C, h, w)`): any maps.
        share (`float`): of pixels that count, at least one; 1 is the plain mean.

    Returns:
        `torch.Tensor` of shape `(B, C)`.
    """
    flat = pixel_logits.flatten(2)
    if share < 1:
        flat = flat.topk(max(1, round(share * flat.shape[-1])), dim=-1).values
    return flat.mean(dim=-1)


SpatialBceModel.register_for_auto_class("AutoModel")
SpatialBceForImageClassification.register_for_auto_class("AutoModelForImageClassification")
