"""Configuration of the boundary network of IRN."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .configuration_checks import check_keys


@strict
class IrnConfig(PreTrainedConfig):
    r"""Configuration of [`IrnModel`]. Defaults are the published network.

    One thing differs: timm's first level of a ResNet lies before the pooling, at twice the published resolution.

    Args:
        trunk (`str`, defaults to `"resnet50"`):
            Any timm model name that supports `features_only`, or `"resnet38"`.
        trunk_kwargs (`dict`, *optional*):
            Passed to `timm.create_model`, e.g. `{"pad_type": "same"}`.
        output_stride (`int`, *optional*, defaults to 16):
            Stride of the deepest feature level. `None` leaves the trunk's own (needed by trunks that cannot dilate).
        side_channels (`int`, defaults to 32):
            Width to which each feature level is reduced.
        side_groups (`int`, defaults to 4):
            Groups of the normalisation of each reduced level.
        radius (`int`, defaults to 10):
            The loss compares pixels of the boundary map closer than this.

    Raises:
        ValueError: an unknown key, or a value outside its range.
    """

    model_type = "sbce_irn"

    trunk: str = "resnet50"
    trunk_kwargs: dict | None = None
    output_stride: int | None = 16
    side_channels: int = 32
    side_groups: int = 4
    radius: int = 10

    def __post_init__(self, **kwargs: Any) -> None:
        check_keys(self, kwargs)
        super().__post_init__(**kwargs)

    def validate_ranges(self) -> None:
        """Called by `strict` after the types are checked."""
        if self.output_stride is not None and self.output_stride not in (8, 16, 32):
            raise ValueError(f"IrnConfig.output_stride: got {self.output_stride}, expected 8, 16, 32 or None")
        if self.side_groups < 1 or self.side_channels < 1 or self.side_channels % self.side_groups:
            raise ValueError(
                f"IrnConfig.side_channels: got {self.side_channels}, expected a multiple of side_groups "
                f"({self.side_groups})"
            )
        if self.radius < 2:
            raise ValueError(f"IrnConfig.radius: got {self.radius}, expected at least 2")


IrnConfig.register_for_auto_class()
