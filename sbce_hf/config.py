"""Every mode and number of a run, as checked dataclasses read from YAML.

This file imports nothing heavy, so that a wrong key is reported before torch is loaded. Each room takes the part that
concerns it; only `pipeline.py`, `run_report.py` and `cli.py` see a whole [`RunConfig`].

Longer than 300 lines because every default is documented here and nowhere else.
"""

import contextlib
import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from huggingface_hub.dataclasses import strict

T = TypeVar("T")

RECIPES = Path(__file__).parent / "recipes"

_OFFICIAL_TRAINING = {
    "head_lr_factor": 10.0,
    "scale_lr_factor": 10.0,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "poly_power": 0.9,
    "max_grad_norm": None,
    "augmentation": {
        "flip": False,
        "color_jitter": 0.0,
        "randaugment": 2,
        "randaugment_magnitude": 9,
        "geometric": True,
    },
}

# What the recipe key `official: true` sets: the released program's choices, see [`load_recipe`]. What depends on the
# data set and the machine stays the recipe's: trunk, image size, batch, learning rate, epochs, rounds, and the period
# of the alternation.
OFFICIAL: dict[str, Any] = {
    "model": {
        "embedding_dim": 128,
        "class_map_bias": False,
        "logit_scale_init": 10.0,
        "normalization": "official",
        "kl_weight": 1.0,
        "kl_form": "bernoulli",
        "kl_slope_leak": 0.0,
        "kl_in_threshold_phase": True,
        "detach_threshold_input": False,
    },
    "bce": _OFFICIAL_TRAINING,
    "spatial": _OFFICIAL_TRAINING,
    "labelling": {
        "rule": "official",
        "scales": [1.0, 0.5, 1.5, 2.0],
        "flip": True,
        "crf": {
            "iterations": 10,
            "gt_prob": 0.7,
            "gaussian_sxy": 3.0,
            "gaussian_compat": 3.0,
            "bilateral_sxy": 40.0,
            "bilateral_srgb": 5.0,
            "bilateral_compat": 10.0,
        },
    },
    "proportions": {"lost": "minimum"},
    "final_scales": None,
}


def _at_least(section: str, value: float | None, name: str, low: float, strictly: bool = False) -> None:
    if value is not None and (value < low or (strictly and value == low)):
        raise ValueError(f"{section}.{name}: got {value}, expected {'more than' if strictly else 'at least'} {low}")


@strict
@dataclass(kw_only=True)
class DataConfig:
    """Where images and tags come from.

    Args:
        source: `"shapes"` (the embedded example), `"voc"` (a VOC devkit folder), `"coco"` (COCO's folders), `"folder"`
            (images and a tags table) or `"hub"` (a Hugging Face dataset).
        data_dir: folder of a `voc`, `coco` or `folder` source.
        tags_file: tags table (of `coco`: instances file), relative to `data_dir`; by default the one that is found
            there.
        classes: foreground classes, in the order of their label-map values 1, 2, ...; by default all the source has.
            Other tags of a `voc` or `coco` source are left out; elsewhere a tag that is not listed is an error.
        train_split: split whose tags are trained on and whose images are labelled.
        score_split: split with masks on which label maps are scored in the report; `None` scores nothing.
        max_images: use only the first so many images of a split.
        strict: stop at the first unreadable image instead of skipping and listing it.
        partial: use what is there of a `voc` or `coco` split instead of stopping because images are missing.
        unlabelled: what value 255 in a COCO-Stuff mask is for the score: left out, or background.
        dataset: name on the Hub or local path, for source `"hub"`.
        dataset_config: its configuration.
        revision: its git revision.
        columns: maps the schema's columns (`image_id`, `image`, `labels`, `mask`) to the dataset's.
        shapes_images: images of the training split of source `"shapes"`.
        shapes_size: their height and width in pixels.
        shapes_seed: their seed; independent of the run's, so that seeds can be compared on the same images.
    """

    source: Literal["shapes", "voc", "coco", "folder", "hub"] = "folder"
    data_dir: str | None = None
    tags_file: str | None = None
    classes: tuple[str, ...] | None = None
    train_split: str = "train"
    score_split: str | None = None
    max_images: int | None = None
    strict: bool = False
    partial: bool = False
    unlabelled: Literal["ignore", "background"] = "ignore"
    dataset: str | None = None
    dataset_config: str | None = None
    revision: str | None = None
    columns: dict[str, str] | None = None
    shapes_images: int = 320
    shapes_size: int = 96
    shapes_seed: int = 0

    def validate_source(self) -> None:
        """Each source has what it needs."""
        if self.source in ("voc", "coco", "folder") and self.data_dir is None:
            raise ValueError(f"data.data_dir: missing, but source {self.source!r} reads a folder; pass --data-dir")
        if self.source == "hub" and self.dataset is None:
            raise ValueError("data.dataset: missing, but source 'hub' reads a Hugging Face dataset; name it")
        if self.classes is not None and len(set(self.classes)) != len(self.classes):
            raise ValueError(f"data.classes: got {list(self.classes)}, expected each name once")
        _at_least("data", self.max_images, "max_images", 1)
        _at_least("data", self.shapes_images, "shapes_images", 1)
        _at_least("data", self.shapes_size, "shapes_size", 32)


@strict
@dataclass(kw_only=True)
class AugmentationConfig:
    """Training augmentation; every draw is seeded by (seed, epoch, index).

    Args:
        flip: mirror half of the images (the released program does not).
        color_jitter: range of brightness, contrast and saturation factors around 1; 0 is off.
        randaugment: number of RandAugment operations; 0 is off, the release uses 2.
        randaugment_magnitude: their strength, 0-30.
        geometric: let RandAugment also shear, move and rotate. The proportions do not move with the image, so this is
            only for reproducing the release.
    """

    flip: bool = True
    color_jitter: float = 0.3
    randaugment: int = 0
    randaugment_magnitude: int = 9
    geometric: bool = False

    def validate_ranges(self) -> None:
        """Ranges."""
        _at_least("augmentation", self.color_jitter, "color_jitter", 0)
        _at_least("augmentation", self.randaugment, "randaugment", 0)
        if not 0 <= self.randaugment_magnitude <= 30:
            raise ValueError(f"augmentation.randaugment_magnitude: got {self.randaugment_magnitude}, expected 0 to 30")


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
            _at_least("training", getattr(self, name), name, 1)
        for name in ("head_lr_factor", "momentum", "weight_decay", "poly_power", "num_workers"):
            _at_least("training", getattr(self, name), name, 0)
        _at_least("training", self.lr, "lr", 0, strictly=True)
        _at_least("training", self.max_grad_norm, "max_grad_norm", 0, strictly=True)
        _at_least("training", self.checkpoints_total_limit, "checkpoints_total_limit", 1)
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
        _at_least("training", self.period, "period", 1)
        _at_least("training", self.scale_lr_factor, "scale_lr_factor", 0)
        _at_least("training", self.image_size, "image_size", 32)
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
        _at_least("training", self.crop_size, "crop_size", 32)
        _at_least("training", self.image_size, "image_size", 32)
        _at_least("training", self.color_jitter, "color_jitter", 0)
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
            _at_least("segmenter.training", getattr(self, name), name, 0)


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


@strict
@dataclass(kw_only=True)
class CrfConfig:
    """Dense CRF (pydensecrf); standard deviations in pixels and grey values. Defaults are those for hard labels.

    Args:
        iterations: of mean field.
        gt_prob: confidence in the given label; of no effect where probabilities are given.
        gaussian_sxy: position deviation of the smoothness kernel.
        gaussian_compat: its Potts weight.
        bilateral_sxy: position deviation of the appearance kernel.
        bilateral_srgb: its colour deviation.
        bilateral_compat: its Potts weight.
    """

    iterations: int = 10
    gt_prob: float = 0.7
    gaussian_sxy: float = 3.0
    gaussian_compat: float = 3.0
    bilateral_sxy: float = 40.0
    bilateral_srgb: float = 5.0
    bilateral_compat: float = 10.0

    def validate_ranges(self) -> None:
        """Ranges."""
        _at_least("crf", self.iterations, "iterations", 1)
        for name in ("gaussian_sxy", "bilateral_sxy", "bilateral_srgb"):
            _at_least("crf", getattr(self, name), name, 0, strictly=True)
        if not 0 < self.gt_prob < 1:
            raise ValueError(f"crf.gt_prob: got {self.gt_prob}, expected between 0 and 1")


@strict
@dataclass(kw_only=True)
class LabellingConfig:
    """From a checkpoint to label maps.

    Args:
        rule: `"paper"` and `"official"` use the adaptive thresholds (method of the paper, of the released program),
            `"fixed"` compares `relu(z) / max` with `background_threshold` (the rule of the BCE stage).
        background_threshold: constant of the `"fixed"` rule.
        image_size: side to which images are resized before the scales, as in training; `None` keeps their own size.
        scales: of the views.
        flip: add each view's mirror image.
        batch_size: views of one size that go through the network together.
        crf: dense CRF parameters; `None` skips the CRF.
        crf_workers: processes that run the CRF and write label maps.
        known_classes: `"tags"`, or `"predicted"` from the image-level logits.
        class_threshold: image-level probability above which a class counts as predicted.
    """

    rule: Literal["paper", "official", "fixed"] = "paper"
    background_threshold: float = 0.3
    image_size: int | None = None
    scales: tuple[float, ...] = (1.0, 0.5, 1.5, 2.0)
    flip: bool = True
    batch_size: int = 8
    crf: CrfConfig | None = field(default_factory=CrfConfig)
    crf_workers: int = 2
    known_classes: Literal["tags", "predicted"] = "tags"
    class_threshold: float = 0.5

    def validate_ranges(self) -> None:
        """Ranges."""
        _at_least("labelling", self.batch_size, "batch_size", 1)
        _at_least("labelling", self.crf_workers, "crf_workers", 1)
        _at_least("labelling", self.image_size, "image_size", 32)
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f"labelling.scales: got {list(self.scales)}, expected one or more numbers above 0")
        for name in ("background_threshold", "class_threshold"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"labelling.{name}: got {getattr(self, name)}, expected between 0 and 1")


@strict
@dataclass(kw_only=True)
class IrnRefinementConfig:
    """Refinement of the last round's label maps: a boundary network trained on what is sure, and a random walk (IRN).

    The area of a class is where it passes its adaptive threshold. Both shares are taken of that area, by rank, so that
    they suit saturated class maps as well; the dense CRF of `labelling` follows each.

    Args:
        model: fields of `IrnConfig`.
        trunk_weights: of the boundary network: `"random"`, `"pretrained"` (timm's) or a checkpoint file; `None` takes
            the run's `trunk_weights`.
        foreground_share: the highest pixels of a class, as many as this share of its area, are sure to be it.
        background_share: pixels beyond this share of every class's area are sure to be background.
        training: of the boundary network.
        walk_radius: a step of the walk goes to pixels closer than this, on a grid of a quarter of the image's size.
        walk_exponent: of the affinities.
        walk_steps: length of the walk.
        background_threshold: what arrives, divided by the maximum over the image's classes, is background below this
            (published: 0.25 for VOC).
    """

    model: dict[str, Any] = field(default_factory=dict)
    trunk_weights: str | None = None
    foreground_share: float = 0.5
    background_share: float = 1.5
    training: BoundaryTrainingConfig = field(default_factory=BoundaryTrainingConfig)
    walk_radius: int = 5
    walk_exponent: float = 10.0
    walk_steps: int = 256
    background_threshold: float = 0.25

    def validate_ranges(self) -> None:
        """Ranges."""
        if not 0 < self.foreground_share <= 1 <= self.background_share:
            raise ValueError(
                f"irn.foreground_share and background_share: got {self.foreground_share} and "
                f"{self.background_share}, expected 0 < foreground_share <= 1 <= background_share"
            )
        _at_least("irn", self.walk_radius, "walk_radius", 2)
        _at_least("irn", self.walk_exponent, "walk_exponent", 0)
        _at_least("irn", self.walk_steps, "walk_steps", 0)
        if not 0 < self.background_threshold < 1:
            raise ValueError(f"irn.background_threshold: got {self.background_threshold}, expected between 0 and 1")


@strict
@dataclass(kw_only=True)
class PredictionConfig:
    """From a segmentation network to label maps, without tags.

    Args:
        image_size: long side to which images are resized before the scales; `None` keeps their own size.
        scales: of the views.
        flip: add each view's mirror image.
        merge: of the views' probabilities: their mean, or per class their maximum, which is then normalised.
        window: side of the sliding window in pixels of scale 1; `None` takes the whole image at once.
        overlap: share of a window that the next one covers again.
        batch_size: views of one image and size that go through the network together.
        crf: dense CRF parameters, with the probabilities as unary term; `None` skips the CRF. Each window is refined
            by itself.
        crf_workers: processes that run the CRF and write label maps.
    """

    image_size: int | None = None
    scales: tuple[float, ...] = (1.0,)
    flip: bool = True
    merge: Literal["mean", "max"] = "mean"
    window: int | None = None
    overlap: float = 0.5
    batch_size: int = 8
    crf: CrfConfig | None = None
    crf_workers: int = 2

    def validate_ranges(self) -> None:
        """Ranges."""
        _at_least("prediction", self.batch_size, "batch_size", 1)
        _at_least("prediction", self.crf_workers, "crf_workers", 1)
        _at_least("prediction", self.image_size, "image_size", 32)
        _at_least("prediction", self.window, "window", 64)
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f"prediction.scales: got {list(self.scales)}, expected one or more numbers above 0")
        if not 0 <= self.overlap < 1:
            raise ValueError(f"prediction.overlap: got {self.overlap}, expected at least 0 and below 1")


@strict
@dataclass(kw_only=True)
class SegmenterConfig:
    """The last stage of a run: a segmentation network, trained on the label maps.

    Args:
        architecture: `"deeplab"`, or the `model_type` of a transformers model with an
            `AutoModelForSemanticSegmentation`, such as `"segformer"`.
        model: fields of the architecture's config, the classes excepted.
        from_config: folder or `config.json` of a transformers model, which starts from random weights.
        checkpoint: folder or Hub id of a transformers model, whose weights are the start.
        weights: start of a DeepLab's trunk: `"classifier"` (the label maps' own), `"pretrained"` (timm's), `"random"`
            or a checkpoint file.
        training: see [`SegmenterTrainingConfig`].
        prediction: see [`PredictionConfig`].
        score_split: split on which segmenters are scored; `None` scores nothing.
        compare: what else the same segmenter is trained on for the report's table: `"bce"` (stage 0's label maps) and
            `"mask"` (true masks: a yardstick, the only training that reads them).
    """

    architecture: str = "deeplab"
    model: dict[str, Any] = field(default_factory=dict)
    from_config: str | None = None
    checkpoint: str | None = None
    weights: str = "classifier"
    training: SegmenterTrainingConfig = field(default_factory=SegmenterTrainingConfig)
    prediction: PredictionConfig = field(default_factory=PredictionConfig)
    score_split: str | None = None
    compare: tuple[Literal["bce", "mask"], ...] = ()

    @property
    def starts_from_classifier(self) -> bool:
        """Whether the trunk is that of the classifier that made the label maps."""
        return self.architecture == "deeplab" and self.weights == "classifier"

    def validate_start(self) -> None:
        """One start only."""
        if self.from_config is not None and self.checkpoint is not None:
            raise ValueError("segmenter: got from_config and checkpoint; expected one of them")
        if self.architecture == "deeplab" and (self.from_config is not None or self.checkpoint is not None):
            raise ValueError(
                "segmenter.architecture: got deeplab with from_config or checkpoint; name the transformers "
                "architecture, for example segformer"
            )
        if self.architecture != "deeplab" and self.from_config is None and self.checkpoint is None:
            raise ValueError(
                f"segmenter.architecture: got {self.architecture!r}; set from_config (random weights) or checkpoint, "
                "or use deeplab"
            )


@strict
@dataclass(kw_only=True)
class ProportionConfig:
    """Foreground proportions from label maps.

    Args:
        minimum: lower clamp of a present class's proportion; also at least one pixel. A class that the label map lost
            would otherwise be pushed out for good.
        maximum: upper clamp.
        lost: what a tagged class gets of which the label map has no pixel: `"minimum"`, or `"previous"` for the
            proportion that this round was trained with, so that one bad label map does not extinguish it.
    """

    minimum: float = 0.005
    maximum: float = 0.95
    lost: Literal["minimum", "previous"] = "minimum"

    def validate_ranges(self) -> None:
        """Ranges."""
        if not 0 < self.minimum < self.maximum < 1:
            raise ValueError(
                f"proportions.minimum and maximum: got {self.minimum} and {self.maximum}, expected 0 < min < max < 1"
            )


@strict
@dataclass(kw_only=True)
class RunConfig:
    """A whole run: stage 0 (BCE), then `rounds` of Spatial-BCE training and labelling.

    A recipe may also say `official: true`, see [`load_recipe`].

    Args:
        seed: of weights, order and augmentation.
        data: see [`DataConfig`].
        model: fields of `SpatialBceConfig`, the classes excepted.
        trunk_weights: `"random"`, `"pretrained"` (timm's, needs the network once) or a checkpoint file.
        bce: training of stage 0.
        rounds: number of Spatial-BCE rounds.
        spatial: training of each round.
        labelling: how every checkpoint becomes label maps; stage 0 uses its rule `"fixed"`.
        final_scales: of the views for the last round's label maps, instead of `labelling.scales`: the rounds before
            need proportions only, which fewer views give sooner. `None` labels all rounds alike.
        proportions: see [`ProportionConfig`].
        irn: refinement of the last round's label maps, see [`IrnRefinementConfig`]; `None` leaves them as they are.
        segmenter: the last stage, see [`SegmenterConfig`]; `None` ends with label maps.
        contact_images: images on the report's contact sheet.
    """

    seed: int = 0
    data: DataConfig = field(default_factory=lambda: DataConfig(source="shapes"))
    model: dict[str, Any] = field(default_factory=dict)
    trunk_weights: str = "pretrained"
    bce: TrainingConfig = field(default_factory=TrainingConfig)
    rounds: int = 3
    spatial: TrainingConfig = field(default_factory=TrainingConfig)
    labelling: LabellingConfig = field(default_factory=LabellingConfig)
    final_scales: tuple[float, ...] | None = None
    proportions: ProportionConfig = field(default_factory=ProportionConfig)
    irn: IrnRefinementConfig | None = None
    segmenter: SegmenterConfig | None = None
    contact_images: int = 8

    def validate_ranges(self) -> None:
        """Ranges."""
        _at_least("run", self.rounds, "rounds", 1)
        _at_least("run", self.contact_images, "contact_images", 0)
        if self.final_scales is not None and (not self.final_scales or min(self.final_scales) <= 0):
            raise ValueError(f"final_scales: got {list(self.final_scales)}, expected one or more numbers above 0")


def from_mapping(cls: type[T], values: Mapping[str, Any], where: str = "config") -> T:
    """Build a config dataclass from nested mappings.

    Args:
        cls: one of this file's dataclasses.
        values: its fields, nested ones as mappings.
        where: dotted path and file for error messages.

    Raises:
        ValueError: an unknown key (with the nearest known one), a value of the wrong type or out of range.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{where}: got {values!r}, expected a mapping of {cls.__name__}'s fields")
    hints = typing.get_type_hints(cls)
    check_keys(values, hints, where)
    arguments = {name: _convert(hints[name], value, f"{where}.{name}") for name, value in values.items()}
    try:
        return cls(**arguments)
    except Exception as error:
        # strict wraps every error in its own type; the cause carries the message.
        raise ValueError(f"{where}: {error.__cause__ or error}") from error


def check_keys(values: Mapping[str, Any], known: Mapping[str, Any], where: str) -> None:
    """Raise a `ValueError` that names the first unknown key and its nearest known one."""
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(sorted(known))}"
            raise ValueError(f"{where}: unknown key {key!r}; {hint}")


def _convert(hint: Any, value: Any, where: str) -> Any:
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    for option in options:
        if dataclasses.is_dataclass(option) and isinstance(value, Mapping):
            return from_mapping(typing.cast(type, option), value, where)
        if typing.get_origin(option) is tuple and isinstance(value, (list, tuple)):
            return tuple(_convert(typing.get_args(option)[0], item, where) for item in value)
    if float in options and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value


def to_mapping(config: Any) -> dict[str, Any]:
    """The inverse of [`from_mapping`]: plain containers, ready for YAML or JSON."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def merge(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested mappings; a `null` or a non-mapping replaces what was there."""
    merged = dict(base)
    for key, value in override.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def parse_override(text: str) -> dict[str, Any]:
    """Turn `"spatial.lr=1e-3"` into nested mappings; the value is YAML.

    Raises:
        ValueError: no `=`.
    """
    import yaml

    path, equals, value = text.partition("=")
    if not equals or not path:
        raise ValueError(f"--set {text!r}: expected key=value, for example spatial.lr=0.001")
    parsed = yaml.safe_load(value)
    if isinstance(parsed, str):
        # YAML 1.1 reads 1e-3 as a string.
        with contextlib.suppress(ValueError):
            parsed = float(parsed)
    for key in reversed(path.split(".")):
        parsed = {key: parsed}
    return parsed


def recipe_path(name: str) -> Path:
    """The file of a built-in recipe, or the given path itself.

    Raises:
        FileNotFoundError: neither exists.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else RECIPES / f"{name}.yaml"
    if not path.is_file():
        built_in = ", ".join(sorted(p.stem for p in RECIPES.glob("*.yaml")))
        raise FileNotFoundError(f"recipe {name!r}: no file {path}; built-in recipes: {built_in}, or pass a .yaml file")
    return path


def load_recipe(name: str, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """Read a recipe, apply overrides, check everything.

    `official: true`, in the file or the overrides, stands for the values of [`OFFICIAL`]: they replace the file's and
    are replaced by the overrides'. The config that is returned, and saved by a run, has the values only.

    Args:
        name: a built-in recipe's name or a YAML file.
        overrides: nested mappings, merged over the file.

    Raises:
        FileNotFoundError: no such recipe.
        ValueError: invalid YAML, an unknown key or an impossible value.
    """
    import yaml

    path = recipe_path(name)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(values, Mapping):
        raise ValueError(f"{path}: got {values!r}, expected a mapping such as data: {{source: shapes}}")
    values, overrides = dict(values), dict(overrides or {})
    official = overrides.pop("official", values.pop("official", False))
    if not isinstance(official, bool):
        raise ValueError(f"official: got {official!r}, expected true or false")
    if official:
        values = merge(values, OFFICIAL)
    wanted, section = (overrides.get("segmenter") or {}).get("architecture"), values.get("segmenter")
    if wanted is not None and section and wanted != section.get("architecture", "deeplab"):
        # The file's fields are those of another architecture.
        values["segmenter"] = {key: value for key, value in section.items() if key != "model"}
    return from_mapping(RunConfig, merge(values, overrides), where=path.name)
