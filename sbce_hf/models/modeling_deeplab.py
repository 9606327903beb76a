"""DeepLab segmentation networks: a trunk and a LargeFOV or ASPP head."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, initialization
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.utils.generic import can_return_tuple

from .configuration_checks import label_fields, label_names
from .configuration_deeplab import DeepLabConfig
from .losses_segmentation import segmentation_loss
from .losses_spatial_bce import sum_over_processes
from .modeling_checkpoint import DataOnlyMixin
from .modeling_trunk import TrunkConfig, TrunkMixin


class AtrousBranch(nn.Module):
    """Features to logits at one atrous rate: two hidden layers and a classifier, or the classifier alone.

    Args:
        in_channels (`int`): of the features.
        rate (`int`): dilation of the 3x3 convolution.
        config ([`DeepLabConfig`]): see its `head_*` fields.
    """

    def __init__(self, in_channels: int, rate: int, config: DeepLabConfig) -> None:
        super().__init__()
        classes, width, norm = cast(int, config.num_labels), config.head_channels, config.head_batch_norm
        dropout = config.head_dropout or 0.0
        layers: list[nn.Module] = []
        if width:
            layers += [nn.Conv2d(in_channels, width, 3, padding=rate, dilation=rate, bias=not norm)]
            layers += [nn.BatchNorm2d(width), nn.ReLU()] if norm else [nn.ReLU(), nn.Dropout(dropout)]
            layers += [nn.Conv2d(width, width, 1, bias=not norm)]
            layers += [nn.BatchNorm2d(width)] if norm else []
            layers += [nn.ReLU(), nn.Dropout(dropout)]
            self.classifier = nn.Conv2d(width, classes, 1)
        else:
            self.classifier = nn.Conv2d(in_channels, classes, 3, padding=rate, dilation=rate)
        self.hidden = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        """Map features of shape `(B, D, h, w)` to logits of shape `(B, K, h, w)`."""
        return self.classifier(self.hidden(features))


class AtrousHead(nn.Module):
    """The sum of branches of the same depth, one per atrous rate.

    Args:
        in_channels (`int`): of the features.
        config ([`DeepLabConfig`]): see its `head_*` fields.
    """

    def __init__(self, in_channels: int, config: DeepLabConfig) -> None:
        super().__init__()
        self.branches = nn.ModuleList(AtrousBranch(in_channels, rate, config) for rate in config.atrous_rates or [])

    def forward(self, features: Tensor) -> Tensor:
        """Map features of shape `(B, D, h, w)` to logits of shape `(B, K, h, w)`."""
        return torch.stack([branch(features) for branch in self.branches]).sum(dim=0)


class DeepLabPreTrainedModel(DataOnlyMixin, PreTrainedModel):
    """Weight initialisation shared by the models of this family."""

    config_class = DeepLabConfig
    base_model_prefix = "deeplab"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # transformers calls this for every submodule but the trunk's, which are the trunk's matter.
        if isinstance(module, nn.Conv2d):
            if any(module is branch.classifier for branch in cast(Any, self.head).branches):
                initialization.normal_(module.weight, std=self.config.initializer_range)
            else:
                # N(0, 0.01), too, would shrink what passes the two hidden layers to a tenth.
                initialization.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                initialization.zeros_(module.bias)
        else:
            super()._init_weights(module)


class DeepLabModel(TrunkMixin, DeepLabPreTrainedModel):
    """The trunk: images to a feature map.

    Args:
        config ([`DeepLabConfig`]): the trunk is built with random weights; see [`load_trunk_weights`].

    Examples:
        >>> import torch
        >>> from sbce_hf import DeepLabConfig, DeepLabModel
        >>> trunk = DeepLabModel(DeepLabConfig(trunk="test_resnet", output_stride=8))
        >>> trunk(torch.randn(1, 3, 64, 48)).last_hidden_state.shape
        torch.Size([1, 96, 8, 6])
    """

    def __init__(self, config: DeepLabConfig) -> None:
        super().__init__(config)
        self.build_trunk(config)
        self.post_init()


class DeepLabForSemanticSegmentation(DeepLabPreTrainedModel):
    """Images in, logits per pixel out.

    Args:
        config ([`DeepLabConfig`]): the trunk is built with random weights; see [`load_trunk_weights`] and
            [`from_classifier`](DeepLabForSemanticSegmentation.from_classifier).

    Examples:
        >>> import torch
        >>> from sbce_hf import DeepLabConfig, DeepLabForSemanticSegmentation
        >>> model = DeepLabForSemanticSegmentation(DeepLabConfig(trunk="test_resnet", num_labels=3))
        >>> label_maps = torch.randint(3, (1, 64, 64))  # 0 is background
        >>> outputs = model(torch.randn(1, 3, 64, 64), labels=label_maps)
        >>> outputs.logits.shape, outputs.loss.requires_grad
        (torch.Size([1, 3, 8, 8]), True)
    """

    def __init__(self, config: DeepLabConfig) -> None:
        super().__init__(config)
        self.deeplab = DeepLabModel(config)
        self.head = AtrousHead(self.deeplab.num_features, config)
        self.post_init()

    @classmethod
    def from_classifier(cls, classifier: PreTrainedModel, **fields: Any) -> "DeepLabForSemanticSegmentation":
        """Start a segmentation network from a classifier's trunk.

        Args:
            classifier ([`SpatialBceForImageClassification`]): gives the trunk's fields and weights (copied), and the
                class names, in front of which `background` is put.
            fields: of [`DeepLabConfig`]; these win over what is copied.

        Returns:
            a network with the classifier's trunk and a randomly initialised head.

        Raises:
            ValueError: an unknown field, or one that makes the trunk another network than the classifier's.
        """
        source: Any = classifier.config
        copied = {name: getattr(source, name) for name in TrunkConfig.__annotations__}
        copied |= label_fields(["background", *label_names(source)])
        model = cls(DeepLabConfig(**{**copied, **fields}))
        trunk: Any = classifier.base_model
        try:
            model.deeplab.trunk.load_state_dict(trunk.trunk.state_dict())
        except RuntimeError as error:
            raise ValueError(
                f"trunk {model.config.trunk!r} with {fields} is not the classifier's {source.trunk!r}: leave out "
                "trunk, trunk_kwargs and feature_index, or start from pretrained weights instead of the classifier"
            ) from error
        return model

    @can_return_tuple
    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, output_hidden_states: bool | None = None
    ) -> SemanticSegmenterOutput:
        """Compute logits and, with `labels`, the loss.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(B, 3, H, W)`): normalised images.
            labels (`torch.LongTensor` of shape `(B, H, W)`): label maps; `semantic_loss_ignore_index` does not count.
            output_hidden_states (`bool`, *optional*): return the trunk's, see [`DeepLabModel`].

        Returns:
            `SemanticSegmenterOutput`: its `logits` have the trunk's resolution, see `segmentation_loss`.
        """
        features = self.deeplab(pixel_values, output_hidden_states=output_hidden_states, return_dict=True)
        logits = self.head(features.last_hidden_state)
        loss = None
        if labels is not None:
            loss = segmentation_loss(
                logits,
                labels,
                self.config.semantic_loss_ignore_index,
                self.config.balanced_loss,
                sum_over_processes if self.training else None,
            )
        return SemanticSegmenterOutput(loss=loss, logits=logits, hidden_states=features.hidden_states)


DeepLabModel.register_for_auto_class("AutoModel")
DeepLabForSemanticSegmentation.register_for_auto_class("AutoModelForSemanticSegmentation")
