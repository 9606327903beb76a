"""Configuration of the DeepLab segmentation networks."""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .configuration_checks import (
    Interpolation,
    PaletteMixin,
    check_initializer_range,
    check_trunk,
    check_widths,
    checked_keys,
)

# Rates of the two heads.
_RATES = {"largefov": [12], "aspp": [6, 12, 18, 24]}


def voc_palette(num_labels: int) -> list[list[int]]:
    """The colour map of PASCAL VOC: bits of the index, three at a time, become high bits of red, green and blue.

    Args:
        num_labels (`int`): number of colours, at most 256.

    Returns:
        `[red, green, blue]` per label value, each 0 to 255.
    """
    return [
        [sum(((label >> (3 * bit + channel)) & 1) << (7 - bit) for bit in range(8)) for channel in range(3)]
        for label in range(num_labels)
    ]


@strict
class DeepLabConfig(PaletteMixin, PreTrainedConfig):
    r"""Configuration of [`DeepLabForSemanticSegmentation`].

    The labels are ``id2label`` (or ``num_labels``) with 0 for background; classes of the classifier follow from 1 on.

    The head's fields default to the published network for the trunk and the head:

    | trunk | head | rates | head_channels | head_batch_norm | head_dropout |
    |---|---|---|---|---|---|
    | `vgg*` | `largefov` (DeepLab v1) | 12 | 1024 | no | 0.5 |
    | `vgg*` | `aspp` | 6, 12, 18, 24 | 1024 | no | 0.5 |
    | `resnet38` | `largefov` | 12 | 512 | yes | 0.5 |
    | any other | `largefov` | 12 | 1024 | no | 0 |
    | any other | `aspp` (DeepLab v2) | 6, 12, 18, 24 | 0 | no | 0 |

    These rates are for an output stride of 8. A trunk that keeps its own (`output_stride=None`), which is 14 to 32,
    gets half of them.

    Args:
        trunk (`str`, defaults to `"resnet101"`):
            Any timm model name that supports `features_only`, or `"resnet38"`.
        trunk_kwargs (`dict`, *optional*):
            Arguments of the architecture, e.g. `{"pad_type": "same"}`: some of `TRUNK_ARGUMENTS`, with plain values.
        backbone_config (`dict`, *optional*):
            Of a trunk `hf:dinov2` and the like: the content of its `config.json`, from which it is built. By default
            that of transformers.
        output_stride (`int`, *optional*, defaults to 8):
            Stride of the feature map. `None` leaves the trunk's own (needed by trunks that cannot dilate).
        feature_index (`int`, defaults to -1):
            Which of the trunk's feature levels is used; negative counts from the last.
        frozen_reduction (`int`, defaults to 0):
            Trunk parameters up to the last feature level of at most this stride are frozen. 0 freezes nothing.
        frozen_share (`float`, *optional*):
            Freeze this share of the trunk's layers instead, from the first on. `None` goes by `frozen_reduction`;
            of a plain transformer, all of whose levels have one stride, and of a backbone of transformers it freezes
            a quarter unless that is 0.
        freeze_batch_norm (`bool`, defaults to `True`):
            The trunk's batch norm uses its running statistics and its affine parameters are not trained. Set to
            `False` for a trunk that starts from random weights. The head's batch norm is always trained.
        feature_relu (`bool`, *optional*):
            Rectify the trunk's features. No effect on trunks that end in a ReLU. `None` becomes `True` for a trunk
            with batch norm, and `False` for transformers and other trunks without.
        image_mean (`list[float]`, *optional*):
            Per channel, of values in [0, 1], what the weights of the trunk were trained with. `None` is what they are
            known to want, see [`load_trunk_weights`], and then ImageNet's.
        image_std (`list[float]`, *optional*):
            Standard deviation per channel, alike.
        interpolation (`str`, *optional*):
            How photos are resized: `"nearest"`, `"bilinear"`, `"bicubic"` or `"lanczos"`. `None` is what the weights
            want, if their mean or deviation is not ImageNet's, and else `"bilinear"`.
        head (`"largefov"` or `"aspp"`, defaults to `"aspp"`):
            One branch with one atrous rate, or several branches whose logits are summed.
        atrous_rates (`list[int]`, *optional*):
            Dilation of each branch's 3x3 convolution.
        head_channels (`int`, *optional*):
            Width of a branch's two hidden layers (3x3 and 1x1); 0: the 3x3 convolution is the classifier.
        head_batch_norm (`bool`, *optional*):
            Batch norm after each hidden convolution, which then has no bias.
        head_dropout (`float`, *optional*):
            Dropout after each hidden layer; with batch norm only after the last.
        balanced_loss (`bool`, defaults to `False`):
            Average foreground and background pixels apart, see `segmentation_loss`.
        semantic_loss_ignore_index (`int`, defaults to 255):
            Label of pixels that do not count; not one of `id2label`.
        initializer_range (`float`, defaults to 0.01):
            Standard deviation of the classifiers' initial weights.
        palette (`list[list[int]]`, *optional*):
            `[red, green, blue]` per label; by default the VOC colour map, and again when the number of labels changes.

    Raises:
        ValueError: an unknown key, or a value outside its range.

    Examples:
        >>> from sbce_hf import DeepLabConfig
        >>> names = {"id2label": {0: "background", 1: "cup"}, "label2id": {"background": 0, "cup": 1}}
        >>> config = DeepLabConfig(trunk="test_resnet", head="largefov", **names)
        >>> config.atrous_rates, config.head_channels
        ([12], 1024)
    """

    model_type = "sbce_deeplab"

    trunk: str = "resnet101"
    trunk_kwargs: dict | None = None
    backbone_config: dict | None = None
    output_stride: int | None = 8
    feature_index: int = -1
    frozen_reduction: int = 0
    frozen_share: float | int | None = None
    freeze_batch_norm: bool = True
    feature_relu: bool | None = None
    image_mean: list[float | int] | None = None
    image_std: list[float | int] | None = None
    interpolation: Interpolation | None = None
    head: Literal["largefov", "aspp"] = "aspp"
    atrous_rates: list[int] | None = None
    head_channels: int | None = None
    head_batch_norm: bool | None = None
    head_dropout: float | int | None = None
    balanced_loss: bool = False
    semantic_loss_ignore_index: int = 255
    initializer_range: float | int = 0.01
    palette: list[list[int]] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs = checked_keys(self, kwargs)
        super().__post_init__(**kwargs)
        for name, value in self._head_defaults().items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        if self.palette is None:
            self.palette = self.default_palette()

    def default_palette(self) -> list[list[int]]:
        """The VOC colour map of as many colours as there are labels."""
        return voc_palette(len(self.id2label or {}))

    def _head_defaults(self) -> dict[str, Any]:
        """Fields of the published head; saved with the config, so that a checkpoint does not depend on this table."""
        own_stride = self.output_stride is None and self.trunk != "resnet38"
        rates = [rate // 2 if own_stride else rate for rate in _RATES.get(self.head, [])]
        if self.trunk.startswith("vgg"):
            hidden = {"head_channels": 1024, "head_batch_norm": False, "head_dropout": 0.5}
        elif self.head == "aspp":
            hidden = {"head_channels": 0, "head_batch_norm": False, "head_dropout": 0.0}
        elif self.trunk == "resnet38":
            hidden = {"head_channels": 512, "head_batch_norm": True, "head_dropout": 0.5}
        else:
            hidden = {"head_channels": 1024, "head_batch_norm": False, "head_dropout": 0.0}
        if self.head_channels == 0:
            hidden |= {"head_batch_norm": False, "head_dropout": 0.0}
        return {"atrous_rates": rates, **hidden}

    def validate_ranges(self) -> None:
        """Called by `strict` after the types are checked."""
        check_trunk(self)
        check_initializer_range(self)
        check_widths(self, ("head_channels",), low=0, high=4096)
        rates, hidden, dropout = self.atrous_rates or [], self.head_channels or 0, self.head_dropout or 0.0
        if not rates or min(rates) < 1 or (self.head == "largefov" and len(rates) > 1):
            expected = "one number" if self.head == "largefov" else "one or more numbers"
            raise ValueError(f"DeepLabConfig.atrous_rates: got {rates}, expected {expected} of at least 1")
        if len(rates) > 16 or max(rates) > 1024:
            raise ValueError(f"DeepLabConfig.atrous_rates: got {rates[:16]}, expected at most 16 numbers up to 1024")
        if hidden * len(rates) > 8192:
            raise ValueError(
                f"DeepLabConfig.head_channels: got {hidden} at {len(rates)} rates, expected at most 8192 in all"
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"DeepLabConfig.head_dropout: got {dropout}, expected at least 0 and below 1")
        if not hidden and (dropout or self.head_batch_norm):
            raise ValueError(
                f"DeepLabConfig.head_channels: got 0 with head_dropout {dropout} and head_batch_norm "
                f"{self.head_batch_norm}; these belong to hidden layers: give head_channels above 0, or leave them out"
            )

    def validate_labels(self) -> None:
        """Called by `strict`; label maps are 8-bit images in which one value is ignored."""
        labels = sorted(self.id2label or {})
        if labels != list(range(len(labels))) or not 1 <= len(labels) <= 255:
            raise ValueError(f"DeepLabConfig.id2label: got the ids {labels}, expected 0, 1, ... of at most 255 labels")
        if self.semantic_loss_ignore_index in labels:
            raise ValueError(
                f"DeepLabConfig.semantic_loss_ignore_index: got {self.semantic_loss_ignore_index}, which "
                "id2label has, too; expected a value that is no label, such as 255"
            )
        colours = self.palette or []
        good = all(len(colour) == 3 and all(0 <= part <= 255 for part in colour) for colour in colours)
        if len(colours) != len(labels) or not good:
            raise ValueError(
                f"DeepLabConfig.palette: got {colours}, expected {len(labels)} colours [red, green, blue] of 0 to 255"
            )


DeepLabConfig.register_for_auto_class()
