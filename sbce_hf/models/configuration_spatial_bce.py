"""Configuration of the Spatial-BCE classifier."""

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


@strict
class SpatialBceConfig(PaletteMixin, PreTrainedConfig):
    r"""Configuration of [`SpatialBceForImageClassification`].

    The foreground classes are ``id2label`` (or ``num_labels``); background is not a class of this model.

    The defaults are chosen to hold on small data sets, where the released weighting drives present classes to
    ``p = 0`` (the absent classes' term outweighs them) and then has no gradient left (the sigmoid is flat there):
    ``normalization="balanced"``, ``kl_slope_leak`` and ``logit_scale_init`` each answer one of the causes.
    The recipe key `official: true` sets the released values.

    Args:
        trunk (`str`, defaults to `"resnet50"`):
            Any timm model name that supports `features_only`, convolutional or not, or `"resnet38"` (the paper's).
        trunk_kwargs (`dict`, *optional*):
            Arguments of the architecture, e.g. `{"pad_type": "same"}`: some of `TRUNK_ARGUMENTS`, with plain values.
        backbone_config (`dict`, *optional*):
            Of a trunk `hf:dinov2` and the like: the content of its `config.json`, from which it is built. By default
            that of transformers.
        output_stride (`int`, *optional*, defaults to 8):
            Stride of the feature map. `None` leaves the trunk's own (needed by trunks that cannot dilate).
        feature_index (`int`, defaults to -1):
            Which of the trunk's feature levels is used; negative counts from the last.
        frozen_reduction (`int`, defaults to 4):
            Trunk parameters up to the last feature level of at most this stride are frozen ("the stem and the first
            stage"). 0 freezes nothing. The first stage of `"resnet38"` ends at stride 2.
        frozen_share (`float`, *optional*):
            Freeze this share of the trunk's layers instead, from the first on. `None` goes by `frozen_reduction`;
            of a plain transformer, all of whose levels have one stride, and of a backbone of transformers it freezes
            a quarter unless that is 0.
        train_trunk (`bool`, defaults to `True`):
            `False` freezes the whole trunk, dropout included: only the heads are trained.
        freeze_batch_norm (`bool`, defaults to `True`):
            Batch norm uses its running statistics and its affine parameters are not trained. Set to `False` for a
            trunk that starts from random weights.
        feature_relu (`bool`, *optional*):
            Rectify the trunk's features, as the paper does. No effect on trunks that end in a ReLU. `None` becomes
            `True` for a trunk with batch norm, and `False` for transformers and other trunks without.
        image_mean (`list[float]`, *optional*):
            Per channel, of values in [0, 1], what the weights of the trunk were trained with. `None` is what they are
            known to want, see [`load_trunk_weights`], and then ImageNet's.
        image_std (`list[float]`, *optional*):
            Standard deviation per channel, alike.
        interpolation (`str`, *optional*):
            How photos are resized: `"nearest"`, `"bilinear"`, `"bicubic"` or `"lanczos"`. `None` is what the weights
            want, if their mean or deviation is not ImageNet's, and else `"bilinear"`.
        embedding_dim (`int`, defaults to 128):
            Rank of the linear map from features to class maps.
        logit_scale_init (`float`, defaults to 1.0):
            Start of the learned per-class scale `exp(tau)`: `p = sigmoid(exp(tau) * z)`. The released program starts
            at 10. There a stage 0 that trained unscaled logits hands over maps that are binary from the first
            iteration on; with 1 the same logits are trained throughout and start well inside the sigmoid's slope.
        class_map_bias (`bool`, defaults to `False`):
            Give each class map a bias. The released program has none.
        normalization (`"balanced"` or `"official"`, defaults to `"balanced"`):
            Weighting of present and absent classes in the spatial loss, see `spatial_bce_loss`.
        present_loss (`"ratio"` or `"cross_entropy"`, defaults to `"ratio"`):
            What a present class's pixels pay in the spatial loss: the paper's `R`, or the cross-entropy to their own
            side of the quantile threshold, which with `kl_weight` 0 is stable under any proportions; see
            `spatial_bce_loss`.
        kl_weight (`float`, defaults to 1.0):
            Weight of the proportion term.
        kl_form (`"bernoulli"` or `"odds"`, defaults to `"bernoulli"`):
            Form of the proportion term, see `proportion_kl`.
        kl_slope_leak (`float`, defaults to 0.05):
            Keeps the proportion term's gradient alive where the sigmoid is flat, see `proportion_kl`. The released
            program has 0.
        kl_in_threshold_phase (`bool`, defaults to `False`):
            Keep the proportion term in the threshold phase, as the released program does.
        detach_threshold_input (`bool`, defaults to `True`):
            Keep the threshold head's gradient out of the trunk. The released program lets it through.
        image_top_share (`float`, defaults to 1.0):
            The image-level logit is the mean over this share of highest pixels. 1 is the plain mean of the BCE stage;
            after Spatial-BCE, which leaves maps negative outside objects, 0.1 is saved instead.
        initializer_range (`float`, defaults to 0.02):
            Standard deviation of the threshold head's initial weights.
        palette (`list[list[int]]`, *optional*):
            `[red, green, blue]` per label-map value, background first; published checkpoints have it. It goes
            when the number of labels changes.

    Raises:
        ValueError: an unknown key, or a value outside its range.

    Examples:
        >>> from sbce_hf import SpatialBceConfig
        >>> names = {"id2label": {0: "cup", 1: "plate"}, "label2id": {"cup": 0, "plate": 1}}
        >>> config = SpatialBceConfig(trunk="test_resnet", kl_weight=0.5, **names)
        >>> config.num_labels, config.output_stride, config.normalization
        (2, 8, 'balanced')
    """

    model_type = "spatial_bce"
    unlabelled_values = 1

    trunk: str = "resnet50"
    trunk_kwargs: dict | None = None
    backbone_config: dict | None = None
    output_stride: int | None = 8
    feature_index: int = -1
    frozen_reduction: int = 4
    frozen_share: float | int | None = None
    train_trunk: bool = True
    freeze_batch_norm: bool = True
    feature_relu: bool | None = None
    image_mean: list[float | int] | None = None
    image_std: list[float | int] | None = None
    interpolation: Interpolation | None = None
    embedding_dim: int = 128
    logit_scale_init: float | int = 1.0
    class_map_bias: bool = False
    normalization: Literal["balanced", "official"] = "balanced"
    present_loss: Literal["ratio", "cross_entropy"] = "ratio"
    kl_weight: float | int = 1.0
    kl_form: Literal["bernoulli", "odds"] = "bernoulli"
    kl_slope_leak: float | int = 0.05
    kl_in_threshold_phase: bool = False
    detach_threshold_input: bool = True
    image_top_share: float | int = 1.0
    initializer_range: float | int = 0.02
    palette: list[list[int]] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs = checked_keys(self, kwargs)
        if self.problem_type is None:
            self.problem_type = "multi_label_classification"
        super().__post_init__(**kwargs)

    def validate_ranges(self) -> None:
        """Called by `strict` after the types are checked."""
        check_trunk(self)
        check_initializer_range(self)
        check_widths(self, ("embedding_dim",))
        for name in ("kl_weight", "kl_slope_leak"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"SpatialBceConfig.{name}: got {getattr(self, name)}, expected at least 0.0")
        if not self.logit_scale_init > 0:
            raise ValueError(f"SpatialBceConfig.logit_scale_init: got {self.logit_scale_init}, expected above 0")
        if not 0 < self.image_top_share <= 1:
            raise ValueError(
                f"SpatialBceConfig.image_top_share: got {self.image_top_share}, expected above 0 and at most 1"
            )
        colours, expected = self.palette, len(self.id2label or {}) + self.unlabelled_values
        if colours is not None and (len(colours) != expected or not all(map(_is_colour, colours))):
            raise ValueError(
                f"SpatialBceConfig.palette: got {colours}, expected {expected} colours [red, green, blue] of 0 to "
                "255, background first"
            )


def _is_colour(colour: list[int]) -> bool:
    return len(colour) == 3 and all(0 <= part <= 255 for part in colour)


SpatialBceConfig.register_for_auto_class()
