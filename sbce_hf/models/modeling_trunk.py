"""Trunks: what turns an image into a feature map, under every model of this package.

A trunk is a timm feature extractor, or a module of this package that has the same face: called with images it returns
a list of feature maps `(B, D, h, w)`, and `feature_info` tells their channels and strides. See
`modeling_trunk_adapters.py` for what is made of which model.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, cast

import timm
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput, can_return_tuple

from .configuration_checks import Interpolation, check_trunk
from .modeling_initialization import fill_missing, is_empty, lacks_values, without_memory
from .modeling_resnet38 import resnet38  # noqa: F401 - enters timm's registry
from .modeling_trunk_adapters import adapter_for, any_size, has_one_stride
from .modeling_trunk_backbone import MAX_PARAMETERS, PREFIX, BackboneTrunk
from .modeling_trunk_freezing import batch_norms, count_frozen, count_share, names_of
from .modeling_vgg16 import dilate_vgg

# Of its layers, what a plain transformer has frozen unless the config says how much.
FROZEN_SHARE = 0.25
# Of its buffers, which may be tables that grow faster than its weights.
MAX_BUFFERS = 2**26
# Of a feature level, channels per pixel of the image: a level of ResNet-38 or VGG16 has 64.
MAX_DENSITY = 128


class TrunkConfig(Protocol):
    """The fields that the config of every model with a trunk has; see `SpatialBceConfig` for their meaning."""

    trunk: str
    trunk_kwargs: dict | None
    backbone_config: dict | None
    output_stride: int | None
    feature_index: int
    frozen_reduction: int
    frozen_share: float | int | None
    freeze_batch_norm: bool
    feature_relu: bool | None
    image_mean: list[float | int] | None
    image_std: list[float | int] | None
    interpolation: Interpolation | None


@dataclass
class TrunkOutput(ModelOutput):
    """Output of a model that is a trunk.

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(B, D, h, w)`): the feature map.
        hidden_states (`tuple[torch.FloatTensor]`): on request, the feature levels before the last is rectified.
        prefix_tokens (`torch.FloatTensor` of shape `(B, P, D)`): class and register tokens of a transformer.
    """

    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    prefix_tokens: Tensor | None = None


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
        if config.feature_relu is None:
            # Saved with the config, so that a checkpoint does not depend on the rule.
            config.feature_relu = wants_relu(self.trunk)
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
        within = getattr(self.trunk, "model", self.trunk)
        network: Any = self.trunk if hasattr(self.trunk, "set_grad_checkpointing") else within
        if not hasattr(network, "set_grad_checkpointing"):
            raise ValueError(f"trunk {self.config.trunk!r}: has no gradient checkpointing; train without it")
        network.set_grad_checkpointing(enable)
        self._gradient_checkpointing = enable

    @property
    def _trains_trunk(self) -> bool:
        # Not every model with a trunk leaves the choice.
        return getattr(self.config, "train_trunk", True)

    def _freeze(self) -> None:
        if not self._trains_trunk:
            self.trunk.requires_grad_(False)
            return
        names = names_of(self.trunk)
        share = self.config.frozen_share
        if share is None and (has_one_stride(self.trunk) or isinstance(self.trunk, BackboneTrunk)):
            # No level of it is coarser than another, or none is a module with a name.
            share = FROZEN_SHARE if self.config.frozen_reduction else 0
        if share is None:
            frozen = count_frozen(names, self.trunk.feature_info.info, self.config.frozen_reduction)
        else:
            frozen = count_share(names, share)
        for name in names[:frozen]:
            if not name.endswith("."):
                self.trunk.get_parameter(name).requires_grad_(False)
        if self.config.freeze_batch_norm:
            for module in batch_norms(self.trunk):
                for parameter in module.parameters():
                    parameter.requires_grad_(False)

    def train(self, mode: bool = True) -> Any:
        """Like `nn.Module.train`, but frozen batch norm stays in evaluation mode, and what is frozen stays so."""
        cast(Any, super()).train(mode)
        # `from_pretrained` replaces every parameter by a trainable one; it ends with `eval()`, and so comes by here.
        self._freeze()
        if not self._trains_trunk:
            self.trunk.eval()
        elif self.config.freeze_batch_norm:
            for module in batch_norms(self.trunk):
                module.eval()
        return self

    @can_return_tuple
    def forward(self, pixel_values: Tensor, output_hidden_states: bool | None = None) -> TrunkOutput:
        """Compute the feature map.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(B, 3, H, W)`): normalised images.
            output_hidden_states (`bool`, *optional*): return `hidden_states`, too; by default what the config says.

        Returns:
            [`TrunkOutput`]: its `hidden_states` are one feature level: what lies behind is not built.
        """
        look = getattr(self.trunk, "look", None)
        levels, prefix = look(pixel_values) if look else (self.trunk(pixel_values), None)
        features = F.relu(levels[-1]) if self.config.feature_relu else levels[-1]
        return TrunkOutput(features, wanted_levels(self.config, levels, output_hidden_states), prefix)


def wants_relu(trunk: nn.Module) -> bool:
    """Whether a trunk's features are rectified unless the config says otherwise.

    Networks with batch norm are built around rectified features. What is normed per pixel, a transformer's tokens or a
    ConvNeXt's sums, says as much by what is negative.
    """
    return not has_one_stride(trunk) and bool(batch_norms(trunk))


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
    is_backbone = config.trunk.startswith(PREFIX)
    # Counted before memory is taken; building must not change what the caller's seed gives.
    with without_memory():
        trunk: Any = _create(config)
        adapter = None if is_backbone else adapter_for(trunk)
        if adapter is not None:
            overrides |= {"feature_cls": adapter} | _any_size(config)
        if overrides:
            trunk = _create(config, **{**overrides, "pretrained": False})
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
    return _create(config, **overrides)


def _create(config: TrunkConfig, **overrides: Any) -> nn.Module:
    if not config.trunk.startswith(PREFIX):
        return _create_timm(config, **overrides)
    levels = overrides.get("out_indices", _one_level(config))
    try:
        return BackboneTrunk(
            {"model_type": config.trunk.removeprefix(PREFIX), **(config.backbone_config or {})}, levels
        )
    # Any error can come of a number that does not fit the others.
    except Exception as error:
        raise ValueError(f"trunk {config.trunk!r} with its backbone_config: {error}") from error


def _any_size(config: TrunkConfig) -> dict[str, bool]:
    """What lets the trunk take images of any size, where the config does not say otherwise."""
    arguments = dict(config.trunk_kwargs or {})
    plain = timm.create_model(config.trunk, **arguments, pretrained=False)
    return {name: value for name, value in any_size(plain).items() if name not in arguments}


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
            "output_stride is None, a settable output stride, which transformers do not have; timm.list_models('*') "
            "lists the names"
        ) from error
    return trunk if vgg_stride is None else dilate_vgg(trunk, vgg_stride)


def _one_level(config: TrunkConfig) -> tuple[int]:
    # The config of a model that takes all levels does not name one.
    return (getattr(config, "feature_index", -1),)
