"""Trunks: what turns an image into a feature map, under every model of this package.

A trunk is a timm feature extractor, or a module of this package that has the same face: called with images it returns
a list of feature maps, and `feature_info` tells their channels and strides.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any, Protocol, cast

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithNoAttention
from transformers.utils.generic import can_return_tuple

from .configuration_checks import Interpolation, check_trunk
from .modeling_initialization import fill_missing, is_empty, lacks_values
from .modeling_resnet38 import ResNet38
from .modeling_vgg16 import dilate_vgg

# The trunk that is not timm's.
RESNET38 = "resnet38"
# Of a trunk; ViT-g has 1.1e9.
MAX_PARAMETERS = 1_500_000_000
# Of its buffers, which may be tables that grow faster than its weights.
MAX_BUFFERS = 2**26
# Of a feature level, channels per pixel of the image: a level of ResNet-38 or VGG16 has 64.
MAX_DENSITY = 128


class TrunkConfig(Protocol):
    """The fields that the config of every model with a trunk has; see `SpatialBceConfig` for their meaning."""

    trunk: str
    trunk_kwargs: dict | None
    output_stride: int | None
    feature_index: int
    frozen_reduction: int
    freeze_batch_norm: bool
    feature_relu: bool
    image_mean: list[float | int] | None
    image_std: list[float | int] | None
    interpolation: Interpolation | None


class HasTrunk:
    """A model that holds a trunk as `trunk`; put it before `PreTrainedModel` among the bases."""

    config: Any
    trunk: Any

    def build_trunk(self, config: TrunkConfig, **overrides: Any) -> None:
        """Build the trunk with random weights; sets `trunk`. For the arguments see [`create_trunk`]."""
        self.trunk = create_trunk(config, **overrides)
        self._rebuild_trunk = partial(create_trunk, config, **overrides)
        self._trunk_was_empty = is_empty(self.trunk)

    def _init_weights(self, module: nn.Module) -> None:
        # transformers calls this for every submodule, of a new model, too: there the trunk keeps what timm gave it.
        # Whichever module is the first that lacks something, the whole trunk is filled at once.
        if self._trunk_was_empty and lacks_values(module):
            fill_missing(self.trunk, self._rebuild_trunk)


class TrunkMixin(HasTrunk):
    """A model that is a trunk: put it before `PreTrainedModel` among the bases, call [`build_trunk`], `post_init`."""

    num_features: int
    _gradient_checkpointing = False

    def build_trunk(self, config: TrunkConfig, **overrides: Any) -> None:
        """Build the trunk with random weights and freeze what the config says; sets `trunk` and `num_features`."""
        super().build_trunk(config, **overrides)
        self.num_features = self.trunk.feature_info.channels()[-1]
        self._freeze()

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether the trunk computes activations again for the gradient instead of keeping them; set by transformers.

        Which ones is timm's choice. Batch norm that is trained then updates its running statistics twice a step.
        Setting it raises a `ValueError` if the trunk cannot do it.
        """
        return self._gradient_checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, enable: bool) -> None:
        # timm's wrapper of transformers leaves it to the model within.
        network: Any = getattr(self.trunk, "model", self.trunk)
        if not hasattr(network, "set_grad_checkpointing"):
            raise ValueError(f"trunk {self.config.trunk!r}: has no gradient checkpointing; train without it")
        network.set_grad_checkpointing(enable)
        self._gradient_checkpointing = enable

    def _freeze(self) -> None:
        names = _names(self.trunk)
        for name in names[: count_frozen(names, self.trunk.feature_info.info, self.config.frozen_reduction)]:
            if not name.endswith("."):
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

    @can_return_tuple
    def forward(
        self, pixel_values: Tensor, output_hidden_states: bool | None = None
    ) -> BaseModelOutputWithNoAttention:
        """Compute the feature map.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(B, 3, H, W)`): normalised images.
            output_hidden_states (`bool`, *optional*): return `hidden_states`, too; by default what the config says.

        Returns:
            `BaseModelOutputWithNoAttention`: `last_hidden_state` of shape `(B, D, h, w)`; `hidden_states`, the
            trunk's feature levels before it is rectified, of which there is one: what lies behind is not built.
        """
        levels = self.trunk(pixel_values)
        features = F.relu(levels[-1]) if self.config.feature_relu else levels[-1]
        return BaseModelOutputWithNoAttention(features, wanted_levels(self.config, levels, output_hidden_states))


def wanted_levels(config: Any, levels: Iterable[Tensor], wanted: bool | None) -> tuple[Tensor, ...] | None:
    """Feature levels as `hidden_states`, if the caller asks for them or, unasked, the config."""
    return tuple(levels) if (config.output_hidden_states if wanted is None else wanted) else None


def create_trunk(config: TrunkConfig, **overrides: Any) -> nn.Module:
    """Build the config's trunk as a feature extractor with one feature level.

    Args:
        config ([`TrunkConfig`]): names the trunk; a stranger's may choose an architecture, and nothing else.
        overrides: further arguments of `timm.create_model`, which the caller answers for: `pretrained=True`, or
            `out_indices=None` for all feature levels.

    Raises:
        ValueError: timm does not know the trunk, the trunk rejects an argument, or it is larger than
            [`MAX_PARAMETERS`].
    """
    # Again, because a configuration's fields can be set after its own check.
    check_trunk(config)
    if config.trunk == RESNET38:
        return _create_resnet38(config, **overrides)
    # Counted before memory is taken; building must not change what the caller's seed gives.
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        trunk: Any = _create_timm(config, **{**overrides, "pretrained": False})
    level = max(trunk.feature_info.info, key=lambda level: level["num_chs"] / level["reduction"] ** 2)
    for got, limit, what in (
        (sum(tensor.numel() for tensor in trunk.parameters()), MAX_PARAMETERS, "parameters"),
        (sum(tensor.numel() for tensor in trunk.buffers()), MAX_BUFFERS, "numbers in its tables"),
        (level["num_chs"] / level["reduction"] ** 2, MAX_DENSITY, "feature channels per pixel of the image"),
    ):
        if got > limit:
            raise ValueError(
                f"trunk {config.trunk!r} with {config.trunk_kwargs}: has {got:.3g} {what}, expected at most "
                f"{limit:.3g}"
            )
    return _create_timm(config, **overrides)


def _create_timm(config: TrunkConfig, **overrides: Any) -> nn.Module:
    arguments = dict(config.trunk_kwargs or {})
    # timm cannot dilate a VGG.
    vgg_stride = config.output_stride if config.trunk.startswith("vgg") else None
    if config.output_stride is not None and vgg_stride is None:
        arguments["output_stride"] = config.output_stride
    fixed = {"pretrained": False, "features_only": True, "out_indices": _one_level(config)}
    try:
        trunk = timm.create_model(config.trunk, **{**arguments, **fixed, **overrides})
    # Weights that cannot be fetched are no matter of the arguments.
    except OSError:
        raise
    # timm checks few arguments: any error can come of a wrong one.
    except Exception as error:
        raise ValueError(
            f"trunk {config.trunk!r} with {arguments}: {error}. Expected a timm model with features_only and, unless "
            "output_stride is None, a settable output stride; timm.list_models('*') lists the names"
        ) from error
    return trunk if vgg_stride is None else dilate_vgg(trunk, vgg_stride)


def _one_level(config: TrunkConfig) -> tuple[int]:
    # The config of a model that takes all levels does not name one.
    return (getattr(config, "feature_index", -1),)


def _create_resnet38(config: TrunkConfig, **overrides: Any) -> ResNet38:
    arguments = {**(config.trunk_kwargs or {}), "out_indices": _one_level(config), **overrides}
    if config.output_stride is not None:
        arguments["output_stride"] = config.output_stride
    try:
        return ResNet38(**arguments)
    except TypeError as error:
        raise ValueError(f"trunk {RESNET38!r} with {arguments}: {error}; leave out trunk_kwargs") from error


def _names(trunk: nn.Module) -> list[str]:
    """Of modules, with a dot at the end, and of parameters, in order: many a level is a module without parameters."""
    return [
        f"{path}.{name}".removeprefix(".")
        for path, module in trunk.named_modules()
        for name in ("", *dict(module.named_parameters(recurse=False)))
    ][1:]


def count_frozen(names: list[str], levels: list[dict], frozen_reduction: int) -> int:
    """How many of the trunk's names, in order, belong to the levels of at most `frozen_reduction` stride."""
    frozen = 0
    for level in levels:
        if level["reduction"] > frozen_reduction:
            continue
        prefix = level["module"].replace(".", "_") + "_"
        frozen = max([frozen, *(i + 1 for i, name in enumerate(names) if name.replace(".", "_").startswith(prefix))])
    return frozen


def _batch_norms(module: nn.Module) -> list[nn.Module]:
    return [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
