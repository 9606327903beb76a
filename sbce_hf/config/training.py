"""What every training has, and each kind of training."""

from dataclasses import dataclass, field
from typing import Literal

from huggingface_hub.dataclasses import strict

from .data import AugmentationConfig
from .parsing import at_least


@strict
@dataclass(kw_only=True)
class LoopConfig:
    """What every training has: length, batch, optimiser, bookkeeping.

    Args:
        epochs: passes over the training split.
        batch_size: images per iteration over all processes and accumulation steps.
        lr: learning rate of the trunk.
        head_lr_factor: times `lr` for the heads.
        momentum: of SGD.
        weight_decay: see the stage's parameter groups for what is left out.
        poly_power: learning rate times `(1 - iteration / iterations) ** poly_power`, per iteration.
        max_grad_norm: gradient clipping; `None` is off.
        mixed_precision: of the forward pass; losses are always float32.
        gradient_accumulation_steps: micro-batches per optimiser step.
        num_workers: processes that load images.
        checkpoint_every: iterations between checkpoints.
        checkpoints_total_limit: checkpoints kept.
        log_every: iterations between logged values.
    """

    epochs: int = 20
    batch_size: int = 12
    lr: float = 1e-3
    head_lr_factor: float = 10.0
    momentum: float = 0.9
    weight_decay: float = 5e-4
    poly_power: float = 0.9
    max_grad_norm: float | None = None
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    gradient_accumulation_steps: int = 1
    num_workers: int = 2
    checkpoint_every: int = 100
    checkpoints_total_limit: int = 1
    log_every: int = 10

    def validate_loop(self) -> None:
        """Ranges."""
        for name in ("epochs", "batch_size", "gradient_accumulation_steps", "checkpoint_every", "log_every"):
            at_least("training", getattr(self, name), name, 1)
        for name in ("head_lr_factor", "momentum", "weight_decay", "poly_power", "num_workers"):
            at_least("training", getattr(self, name), name, 0)
        at_least("training", self.lr, "lr", 0, strictly=True)
        at_least("training", self.max_grad_norm, "max_grad_norm", 0, strictly=True)
        at_least("training", self.checkpoints_total_limit, "checkpoints_total_limit", 1)
        if self.batch_size % self.gradient_accumulation_steps:
            raise ValueError(
                f"training.batch_size: got {self.batch_size}, expected a multiple of gradient_accumulation_steps "
                f"({self.gradient_accumulation_steps})"
            )


@strict
@dataclass(kw_only=True)
class TrainingConfig(LoopConfig):
    """One training stage of the classifier. Defaults are the released recipe (paper, sec. 4.1).

    Args:
        image_size: images are resized to this height and width; the aspect is not kept.
        scale_lr_factor: times `lr` for the logit scales, which have no weight decay.
        period: length `r` of the weights/threshold alternation, in iterations.
        weights_iterations: the first `theta` of every `period` train the weights, the rest the thresholds.
        augmentation: see [`AugmentationConfig`].
    """

    image_size: int = 369
    scale_lr_factor: float = 10.0
    period: int = 100
    weights_iterations: int = 80
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)

    def validate_ranges(self) -> None:
        """Ranges."""
        at_least("training", self.period, "period", 1)
        at_least("training", self.scale_lr_factor, "scale_lr_factor", 0)
        at_least("training", self.image_size, "image_size", 32)
        if not 0 <= self.weights_iterations <= self.period:
            raise ValueError(
                f"training.weights_iterations: got {self.weights_iterations}, expected 0 to period ({self.period})"
            )


@strict
@dataclass(kw_only=True)
class CropTrainingConfig(LoopConfig):
    """Training on crops of images and their label maps.

    Args:
        crop_size: height and width of the samples; what an image does not fill is padded and ignored.
        image_size: long side to which images are resized before the random scale; `None` keeps their own size.
        min_scale: of the random scale, drawn evenly between the two.
        max_scale: of the random scale.
        flip: mirror half of the images.
        color_jitter: range of brightness, contrast and saturation factors around 1; 0 is off.
    """

    crop_size: int = 321
    image_size: int | None = None
    min_scale: float = 0.5
    max_scale: float = 1.5
    flip: bool = True
    color_jitter: float = 0.3

    def validate_crops(self) -> None:
        """Ranges."""
        at_least("training", self.crop_size, "crop_size", 32)
        at_least("training", self.image_size, "image_size", 32)
        at_least("training", self.color_jitter, "color_jitter", 0)
        if not 0 < self.min_scale <= self.max_scale:
            raise ValueError(
                f"training.min_scale and max_scale: got {self.min_scale} and {self.max_scale}, expected 0 < min <= max"
            )


@strict
@dataclass(kw_only=True)
class SegmenterTrainingConfig(CropTrainingConfig):
    """Training of a segmentation network on label maps. Defaults are DeepLab v2's on ResNet-101.

    Args:
        head_bias_lr_factor: times `lr` for the heads' biases.
        bias_weight_decay: of every bias.
    """

    epochs: int = 20
    batch_size: int = 10
    lr: float = 2.5e-4
    head_bias_lr_factor: float = 20.0
    bias_weight_decay: float = 0.0

    def validate_ranges(self) -> None:
        """Ranges."""
        for name in ("head_bias_lr_factor", "bias_weight_decay"):
            at_least("segmenter.training", getattr(self, name), name, 0)


@strict
@dataclass(kw_only=True)
class BoundaryTrainingConfig(CropTrainingConfig):
    """Training of the boundary network on seeds; its trunk is frozen. Defaults are the released program's.

    It has in effect no momentum: it passes its weight decay in momentum's place. `image_size` is also the size at
    which boundaries are looked for afterwards. The loss takes about 0.1 GB for each image of 512 x 512.
    """

    epochs: int = 3
    batch_size: int = 32
    lr: float = 0.1
    head_lr_factor: float = 1.0
    momentum: float = 0.0
    weight_decay: float = 1e-4
    crop_size: int = 512
    color_jitter: float = 0.0
