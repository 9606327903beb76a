"""What every training has, and each kind of training."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from huggingface_hub.dataclasses import strict

from ..errors import UserError
from .data import AugmentationConfig
from .ranges import MAX_SIDE, Checked, added, number

Optimizer = Literal["sgd", "adamw"]

# What goes with each optimiser: DeepLab v2's values on ResNet-101, and those of SegFormer's authors.
_SEGMENTER: dict[Optimizer, dict[str, Any]] = {
    "sgd": {"lr": 2.5e-4, "weight_decay": 5e-4, "head_bias_lr_factor": 20.0},
    "adamw": {"lr": 6e-5, "weight_decay": 0.01, "head_bias_lr_factor": 10.0},
}


@strict
@dataclass(kw_only=True)
class LoopConfig(Checked):
    """What every training has: length, batch, optimiser, bookkeeping.

    Args:
        epochs: passes over the training split.
        min_iterations: a stage that would be shorter gets as many more epochs as it takes: what a network needs to
            learn is counted in steps, however few the photos.
        batch_size: images per iteration over all processes and accumulation steps.
        lr: learning rate of the trunk.
        head_lr_factor: factor of `lr` for the heads.
        momentum: SGD momentum.
        weight_decay: see the stage's parameter groups for what is left out.
        poly_power: learning rate times `(1 - iteration / iterations) ** poly_power`, per iteration.
        max_grad_norm: gradient clipping; `None` is off.
        mixed_precision: precision of the forward pass; losses are always float32. `"auto"` is `"bf16"` on CPUs and
            GPUs that compute in it and `"no"` elsewhere; what it was is saved with the result. It is not the default
            because it changes results in their last digits, from one machine to another.
        compile: compile the model's trunk by `torch.compile`, which takes a minute or more before the first steps;
            `None` is no.
        gradient_accumulation_steps: micro-batches per optimiser step.
        num_workers: processes that load images.
        checkpoint_every: iterations between checkpoints.
        checkpoints_total_limit: checkpoints kept.
        log_every: iterations between logged values.
    """

    SECTION = "training"

    epochs: int = number(20, at_least=1, limit=100_000)
    min_iterations: int = number(0, at_least=0, limit=10_000_000)
    batch_size: int = number(12, at_least=1, limit=100_000)
    lr: float = number(1e-3, above=0)
    head_lr_factor: float = number(10.0, at_least=0)
    momentum: float = number(0.9, at_least=0)
    weight_decay: float = number(5e-4, at_least=0)
    poly_power: float = number(0.9, at_least=0)
    max_grad_norm: float | None = number(None, above=0)
    mixed_precision: Literal["no", "bf16", "fp16", "auto"] = "no"
    compile: bool | None = added(before=None)
    gradient_accumulation_steps: int = number(1, at_least=1)
    num_workers: int = number(2, decides=False, at_least=0, limit=1024)
    checkpoint_every: int = number(100, decides=False, at_least=1)
    checkpoints_total_limit: int = number(1, decides=False, at_least=1)
    log_every: int = number(10, decides=False, at_least=1)

    @property
    def optimizer_states(self) -> int:
        """How many numbers the optimiser keeps for each that is trained."""
        return 1 if self.momentum else 0

    def validate_loop(self) -> None:
        """The batch can be divided."""
        if self.batch_size % self.gradient_accumulation_steps:
            raise UserError(
                f"training.batch_size: got {self.batch_size}, expected a multiple of gradient_accumulation_steps "
                f"({self.gradient_accumulation_steps})"
            )


@strict
@dataclass(kw_only=True)
class TrainingConfig(LoopConfig):
    """One training stage of the classifier. Defaults are the released recipe (paper, sec. 4.1).

    Args:
        image_size: images are resized to this height and width; the aspect is not kept.
        scale_lr_factor: factor of `lr` for the logit scales, which have no weight decay.
        period: length `r` of the weights/threshold alternation, in iterations.
        weights_iterations: the first `theta` of every `period` train the weights, the rest the thresholds.
        targets: what a round learns of the label maps of the stage before: `"proportions"`, the share of each class
            (paper), or `"labels"`, each pixel's. Stage 0 has none.
        min_scale: of the random scale at which images and label maps are cut out for targets `"labels"`, drawn evenly
            between the two; a scale of 1 is `image_size`.
        max_scale: of the random scale.
        min_threshold_phases: in a stage that is too short for as many, period and phases shrink in proportion.
        augmentation: see [`AugmentationConfig`].
        feature_sizes: with a frozen trunk (`model.train_trunk: false`) and targets `"labels"`: at how many sizes,
            evenly from `min_scale` to `max_scale`, features are kept on disk; `None` is 3.

    Examples:
        >>> from sbce_hf import TrainingConfig
        >>> config = TrainingConfig(epochs=10, image_size=256, targets="labels")
        >>> config.batch_size, config.period, config.weights_iterations
        (12, 100, 80)
    """

    image_size: int = number(369, at_least=32, limit=MAX_SIDE)
    scale_lr_factor: float = number(10.0, at_least=0)
    period: int = number(100, at_least=1)
    weights_iterations: int = 80
    targets: Literal["proportions", "labels"] = "proportions"
    min_scale: float = number(0.8, above=0, limit=64)
    max_scale: float = number(1.6, above=0, limit=64)
    min_threshold_phases: int = number(3, at_least=1, limit=1000)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    feature_sizes: int | None = added(before=None, at_least=1, limit=64)

    def validate_period(self) -> None:
        """The alternation fits into its period."""
        if not 0 <= self.weights_iterations <= self.period:
            raise UserError(
                f"training.weights_iterations: got {self.weights_iterations}, expected 0 to period ({self.period})"
            )

    def validate_targets(self) -> None:
        """The random scale can be drawn, and nothing moves an image away from its label map."""
        if self.min_scale > self.max_scale:
            raise UserError(
                f"training.min_scale and max_scale: got {self.min_scale} and {self.max_scale}, expected min <= max"
            )
        if self.targets == "labels" and self.augmentation.geometric and self.augmentation.randaugment:
            raise UserError(
                "training.augmentation.geometric: got true with targets 'labels', expected false: RandAugment would "
                "move the image and not its label map"
            )


@strict
@dataclass(kw_only=True)
class CropTrainingConfig(LoopConfig):
    """Training on crops of images and their label maps.

    Args:
        crop_size: height and width of the samples; what an image does not fill is padded and ignored.
        image_size: long side to which images are resized before the random scale; `None` keeps their own size.
        min_scale: lowest random scale; it is drawn evenly between the two.
        max_scale: highest random scale.
        flip: mirror half of the images.
        color_jitter: range of brightness, contrast and saturation factors around 1; 0 is off.
    """

    crop_size: int = number(321, at_least=32, limit=MAX_SIDE)
    image_size: int | None = number(None, at_least=32, limit=MAX_SIDE)
    min_scale: float = 0.5
    max_scale: float = number(1.5, limit=64)
    flip: bool = True
    color_jitter: float = number(0.3, at_least=0)

    def validate_scales(self) -> None:
        """The random scale can be drawn."""
        if not 0 < self.min_scale <= self.max_scale:
            raise UserError(
                f"training.min_scale and max_scale: got {self.min_scale} and {self.max_scale}, expected 0 < min <= max"
            )


@strict
@dataclass(kw_only=True)
class SegmenterTrainingConfig(CropTrainingConfig):
    """Training of a segmentation network on label maps. Defaults are DeepLab v2's on ResNet-101.

    Args:
        optimizer: `"sgd"`, or `"adamw"` with torch's betas, which has no use for `momentum`; `None` is `"sgd"` for a
            DeepLab and `"adamw"` for a transformers model.
        lr: learning rate of the trunk; `None` is 2.5e-4 with SGD and 6e-5 with AdamW.
        weight_decay: decay of what is no bias; `None` is 5e-4 with SGD and 0.01 with AdamW.
        head_bias_lr_factor: factor of `lr` for the heads' biases; `None` is 20 with SGD and 10 with AdamW.
        bias_weight_decay: decay of every bias.
    """

    SECTION = "segmenter.training"

    epochs: int = 20
    batch_size: int = 10
    optimizer: Optimizer | None = added(before="sgd")
    # None is gone once the optimiser is known.
    lr: float | None = None  # type: ignore[assignment]
    weight_decay: float | None = None  # type: ignore[assignment]
    head_bias_lr_factor: float | None = number(None, at_least=0)
    bias_weight_decay: float = number(0.0, at_least=0)

    @property
    def optimizer_states(self) -> int:
        """See [`LoopConfig.optimizer_states`]."""
        return 2 if self.optimizer == "adamw" else super().optimizer_states

    def filled(self, optimizer: Optimizer) -> "SegmenterTrainingConfig":
        """The same with a value for everything that a recipe may leave open.

        Args:
            optimizer: where the recipe names none.
        """
        chosen = self.optimizer or optimizer
        left_open = {name: value for name, value in _SEGMENTER[chosen].items() if getattr(self, name) is None}
        return replace(self, optimizer=chosen, **left_open)


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
