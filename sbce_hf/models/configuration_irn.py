"""Configuration of the boundary network of IRN."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .configuration_checks import Interpolation, check_trunk, check_widths, checked_keys


@strict
class IrnConfig(PreTrainedConfig):
    r"""Configuration of [`IrnModel`]. Defaults are the published network.

    One thing differs: timm's first level of a ResNet lies before the pooling, at twice the published resolution.

    Args:
        trunk (`str`, defaults to `"resnet50"`):
            Any timm model name that supports `features_only`, or `"resnet38"`.
        trunk_kwargs (`dict`, *optional*):
            Arguments of the architecture, e.g. `{"pad_type": "same"}`: some of `TRUNK_ARGUMENTS`, with plain values.
        backbone_config (`dict`, *optional*):
            Of a trunk `hf:dinov2` and the like: the content of its `config.json`, from which it is built. By default
            that of transformers.
        output_stride (`int`, *optional*, defaults to 16):
            Stride of the deepest feature level. `None` leaves the trunk's own (needed by trunks that cannot dilate).
        image_mean (`list[float]`, *optional*):
            Per channel, of values in [0, 1], what the weights of the trunk were trained with. `None` is what they are
            known to want, see [`load_trunk_weights`], and then ImageNet's.
        image_std (`list[float]`, *optional*):
            Standard deviation per channel, alike.
        interpolation (`str`, *optional*):
            How photos are resized: `"nearest"`, `"bilinear"`, `"bicubic"` or `"lanczos"`. `None` is what the weights
            want, if their mean or deviation is not ImageNet's, and else `"bilinear"`.
        side_channels (`int`, defaults to 32):
            Width to which each feature level is reduced.
        side_groups (`int`, defaults to 4):
            Groups of the normalisation of each reduced level.
        radius (`int`, defaults to 10):
            The loss compares pixels of the boundary map closer than this.

    Raises:
        ValueError: an unknown key, or a value outside its range.

    Examples:
        >>> from sbce_hf import IrnConfig
        >>> config = IrnConfig(trunk="test_resnet", side_channels=8)
        >>> config.radius, config.output_stride
        (10, 16)
    """

    model_type = "sbce_irn"

    trunk: str = "resnet50"
    trunk_kwargs: dict | None = None
    backbone_config: dict | None = None
    output_stride: int | None = 16
    image_mean: list[float | int] | None = None
    image_std: list[float | int] | None = None
    interpolation: Interpolation | None = None
    side_channels: int = 32
    side_groups: int = 4
    radius: int = 10

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs = checked_keys(self, kwargs)
        super().__post_init__(**kwargs)

    def validate_ranges(self) -> None:
        """Called by `strict` after the types are checked."""
        check_trunk(self)
        # The loss compares each pixel with all of the radius.
        check_widths(self, ("radius",), low=2, high=64)
        check_widths(self, ("side_channels", "side_groups"), high=4096)
        if self.side_channels % self.side_groups:
            raise ValueError(
                f"IrnConfig.side_channels: got {self.side_channels}, expected a multiple of side_groups "
                f"({self.side_groups})"
            )


IrnConfig.register_for_auto_class()
