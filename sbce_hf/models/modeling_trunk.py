"""Trunks: what turns an image into a feature map, under every model of this package.

A trunk is a timm feature extractor, or a module of this package that has the same face: called with images it returns
a list of feature maps, and `feature_info` tells their channels and strides.
"""

import os
from collections.abc import Mapping
from typing import Any, Protocol, cast

import timm
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel


class TrunkConfig(Protocol):
    """The fields that the config of every model with a trunk has; see `SpatialBceConfig` for their meaning."""

    trunk: str
    trunk_kwargs: dict | None
    output_stride: int | None
    feature_index: int
    frozen_reduction: int
    freeze_batch_norm: bool
    feature_relu: bool


class TrunkMixin:
    """A model that is a trunk: put it before `PreTrainedModel` among the bases, call [`build_trunk`], `post_init`."""

    config: Any
    trunk: Any
    num_features: int

    def build_trunk(self, config: TrunkConfig) -> None:
        """Build the trunk with random weights and freeze what the config says; sets `trunk` and `num_features`."""
        self.trunk = create_trunk(config)
        self.num_features = self.trunk.feature_info.channels()[-1]
        self._freeze()

    def _freeze(self) -> None:
        names = [name for name, _ in self.trunk.named_parameters()]
        for name in names[: count_frozen(names, self.trunk.feature_info.info, self.config.frozen_reduction)]:
            self.trunk.get_parameter(name).requires_grad_(False)
        if self.config.freeze_batch_norm:
            for module in _batch_norms(self.trunk):
                for parameter in module.parameters():
                    parameter.requires_grad_(False)

    def train(self, mode: bool = True) -> Any:
        """Like `nn.Module.train`, but frozen batch norm stays in evaluation mode, and what is frozen stays so."""
        cast(Any, super()).train(mode)
        # `from_pretrained` replaces every parameter by a trainable one; it ends with `eval()`, and so comes by here.
        self._freeze()
        if self.config.freeze_batch_norm:
            for module in _batch_norms(self.trunk):
                module.eval()
        return self

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Map `pixel_values` of shape `(B, 3, H, W)` to features of shape `(B, D, h, w)`."""
        features = self.trunk(pixel_values)[-1]
        return F.relu(features) if self.config.feature_relu else features


def create_trunk(config: TrunkConfig, **overrides: Any) -> nn.Module:
    """Build the config's trunk as a feature extractor with one feature level.

    Args:
        config ([`TrunkConfig`]): names the trunk.
        overrides: further arguments of `timm.create_model`, e.g. `pretrained=True`.

    Raises:
        ValueError: timm does not know the trunk, or the trunk rejects an argument.
    """
    arguments = dict(config.trunk_kwargs or {})
    if config.output_stride is not None:
        arguments["output_stride"] = config.output_stride
    fixed = {"pretrained": False, "features_only": True, "out_indices": (config.feature_index,)}
    try:
        return timm.create_model(config.trunk, **{**fixed, **arguments, **overrides})
    except (RuntimeError, TypeError, NotImplementedError, AssertionError) as error:
        raise ValueError(
            f"trunk {config.trunk!r} with {arguments}: {error}. Expected a timm model with features_only and, unless "
            "output_stride is None, a settable output stride; timm.list_models('*') lists the names"
        ) from error


def load_trunk_weights(model: PreTrainedModel, weights: str) -> None:
    """Load ImageNet weights into a built model's trunk, in place.

    Args:
        model: a model with a trunk; `post_init` would undo weights loaded before construction.
        weights (`str`): `"pretrained"` for timm's own, or the path of a checkpoint file for the same architecture.

    Raises:
        FileNotFoundError: no such file, or timm's weights are neither cached nor to be downloaded.
        ValueError: the file holds other weights.
    """
    overrides: dict = {"pretrained": True}
    if weights != "pretrained":
        if not os.path.isfile(weights):
            raise FileNotFoundError(
                f"trunk weights: no file {weights}; give a checkpoint file, 'pretrained' or 'random'"
            )
        overrides["pretrained_cfg_overlay"] = {"file": str(weights)}
    base: Any = model.base_model
    config = cast(Any, model.config)
    try:
        # Through features_only: its key names differ from the plain model's.
        state: Mapping[str, Tensor] = create_trunk(config, **overrides).state_dict()
    except OSError as error:
        raise FileNotFoundError(
            f"trunk weights of {config.trunk!r} cannot be loaded: {error}. Connect to the Hub once, or give a "
            "checkpoint file instead of 'pretrained'"
        ) from error
    base.trunk.load_state_dict(state)


def count_frozen(names: list[str], levels: list[dict], frozen_reduction: int) -> int:
    """How many of the trunk's parameters, in order, belong to the levels of at most `frozen_reduction` stride."""
    frozen = 0
    for level in levels:
        if level["reduction"] > frozen_reduction:
            continue
        prefix = level["module"].replace(".", "_") + "_"
        frozen = max([frozen, *(i + 1 for i, name in enumerate(names) if name.replace(".", "_").startswith(prefix))])
    return frozen


def _batch_norms(module: nn.Module) -> list[nn.Module]:
    return [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
