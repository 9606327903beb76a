"""From networks to label maps, and from label maps to foreground proportions."""

from dataclasses import dataclass, field
from typing import Any, Literal

from huggingface_hub.dataclasses import strict

from ..errors import UserError
from .ranges import MAX_SIDE, Checked, added, free_text, number, view_scales
from .training import BoundaryTrainingConfig


@strict
@dataclass(kw_only=True)
class CrfConfig(Checked):
    """Dense CRF; standard deviations in pixels and grey values. Defaults are those for hard labels.

    Args:
        iterations: mean-field iterations.
        gt_prob: confidence in the given label; of no effect where probabilities are given.
        gaussian_sxy: position deviation of the smoothness kernel.
        gaussian_compat: Potts weight of the smoothness kernel.
        bilateral_sxy: position deviation of the appearance kernel.
        bilateral_srgb: colour deviation of the appearance kernel.
        bilateral_compat: Potts weight of the appearance kernel.
        side: long side to which larger photos are scaled for the CRF, as its widths are in pixels; the result has the
            photo's own size. The published widths are those of photos of 500 pixels. `None` never scales.
        min_kept: a class of which the CRF leaves less than this share of the pixels that it had gets them all back. A
            small thing on a busy ground is smoothed away, and its photo would teach that it is not there. 0 is off.
        backend: who computes it: `"numba"`, in threads; `"torch"`, many photos at once on the device of the networks;
            `"pydensecrf"`, the reference, in processes; `"auto"`, torch beside a network on a GPU, otherwise numba.
            Their numbers are the same up to rounding. A single photo, as on the page, is never torch's.
        batch_photos: photos that go through the CRF together with `backend` `"torch"`.

    Examples:
        >>> from dataclasses import replace
        >>> from sbce_hf import CrfConfig, LabellingConfig
        >>> crf = CrfConfig(bilateral_sxy=60.0, side=None)
        >>> config = LabellingConfig(rule="peak", crf=crf)
        >>> config.crf.iterations, replace(config, crf=None).crf
        (10, None)
    """

    SECTION = "crf"

    iterations: int = number(10, at_least=1, limit=10_000)
    gt_prob: float = number(0.7, above=0, below=1)
    gaussian_sxy: float = number(3.0, above=0)
    gaussian_compat: float = 3.0
    bilateral_sxy: float = number(40.0, above=0)
    bilateral_srgb: float = number(5.0, above=0)
    bilateral_compat: float = 10.0
    side: int | None = number(512, at_least=32, limit=MAX_SIDE)
    min_kept: float = number(0.2, at_least=0, below=1)
    backend: Literal["auto", "numba", "torch", "pydensecrf"] = added(before="auto", default="auto")
    batch_photos: int = number(32, decides=False, at_least=1, limit=10_000)


@strict
@dataclass(kw_only=True)
class LabellingConfig(Checked):
    """From a checkpoint to label maps.

    Args:
        rule: `"paper"` and `"official"` use the adaptive thresholds (method of the paper, of the released program),
            `"peak"` takes `peak_share` of the highest probability of each map as its threshold, `"mean"` cuts each map
            at the share of pixels that its mean probability gives, `"fixed"` compares `relu(z) / max` with
            `background_threshold` (the rule of the BCE stage), `"objects"` does so with `object_threshold`, and only
            where the trunk's features see an object of whatever class.
        background_threshold: constant of the `"fixed"` rule.
        object_threshold: constant of the `"objects"` rule.
        object_min_kept: of rule `"objects"`: a class that keeps less than this share of what rule `"fixed"` gives it
            gets that instead: it is not where the features are strong.
        peak_share: constant of the `"peak"` rule.
        confidence_weight: how much the `"peak"` rule listens to how sure the network is. Each threshold is divided by
            this power of the class's confidence in the photo, in units of its median over photos, at most by 3 either
            way; 0 takes the same share of every peak.
        object_weight: how much the `"peak"` rule holds back a class that floods the ground. Each threshold is divided
            by this power of the share of the class's area that lies on objects of whatever class, as stage 0's
            features see them, in the median over photos and in units of 0.9, by at least 0.5 and at most 1; 0 does not
            look. Only in a run, or with a checkpoint that lies in one.
        image_size: side to which images are resized before the scales, as in training; `None` keeps their own size.
        scales: sizes of the views relative to the image.
        flip: add each view's mirror image.
        batch_size: views of one size that go through the network together.
        crf: dense CRF parameters; `None` skips the CRF.
        crf_workers: threads that run the CRF (with pydensecrf processes, with torch one).
        threads: threads that decode photos and resize views while the network works.
        mixed_precision: precision of the network; `"auto"` is `"bf16"` where there are instructions for it.
        known_classes: `"tags"`, or `"predicted"` from the image-level logits.
        class_threshold: image-level probability above which a class counts as predicted.

    Examples:
        >>> from sbce_hf import LabellingConfig
        >>> config = LabellingConfig(rule="fixed", background_threshold=0.25, scales=(1.0, 2.0))
        >>> config.flip, config.crf.iterations
        (True, 10)
    """

    SECTION = "labelling"

    rule: Literal["paper", "official", "peak", "mean", "fixed", "objects"] = "paper"
    background_threshold: float = number(0.3, above=0, below=1)
    object_threshold: float = number(0.1, above=0, below=1)
    object_min_kept: float = number(0.2, at_least=0, below=1)
    peak_share: float = number(0.35, above=0, below=1)
    confidence_weight: float = added(before=0.0, default=0.0, at_least=0)
    object_weight: float = added(before=0.0, default=0.0, at_least=0)
    image_size: int | None = number(None, at_least=32, limit=MAX_SIDE)
    scales: tuple[float, ...] = view_scales((1.0, 0.5, 1.5, 2.0))
    flip: bool = True
    batch_size: int = number(8, at_least=1, limit=100_000)
    crf: CrfConfig | None = field(default_factory=CrfConfig)
    crf_workers: int = number(2, decides=False, at_least=1, limit=1024)
    threads: int = number(2, decides=False, at_least=1, limit=1024)
    mixed_precision: Literal["no", "bf16", "fp16", "auto"] = added(before="no", default="no")
    known_classes: Literal["tags", "predicted"] = "tags"
    class_threshold: float = number(0.5, above=0, below=1)


@strict
@dataclass(kw_only=True)
class IrnRefinementConfig(Checked):
    """Refinement of the last round's label maps: a boundary network trained on what is sure, and a random walk (IRN).

    The area of a class is where it passes its adaptive threshold. Both shares are taken of that area, by rank, so that
    they suit saturated class maps as well; the dense CRF of `labelling` follows each.

    Args:
        model: fields of `IrnConfig`; the trunk is the run's, unless this names one or there are `trunk_weights`.
        trunk_weights: start of the boundary network's trunk: `"random"`, `"pretrained"` (timm's) or a checkpoint file;
            `None` takes the run's `trunk_weights`.
        foreground_share: the highest pixels of a class, as many as this share of its area, are sure to be it.
        background_share: pixels beyond this share of every class's area are sure to be background.
        training: see [`BoundaryTrainingConfig`].
        walk_radius: a step of the walk goes to pixels closer than this, on a grid of a quarter of the image's size.
        walk_exponent: exponent of the affinities.
        walk_steps: length of the walk.
        background_threshold: what arrives, divided by the maximum over the image's classes, is background below this
            (published: 0.25 for VOC).
        map_weight: what share of the say the class maps keep after the walk. Above 0, what is compared with
            `background_threshold` is a weighted geometric mean of what arrives and of the class maps' probabilities,
            each divided by its class's own peak, so that a walk that floods or loses a class is held back; 0 asks the
            walk alone (published).
        object_weight: exponent of the length of stage 0's features in Otsu's thresholds of the photo, by which what is
            compared with `background_threshold` is multiplied where it is above 1: objects of whatever class keep more
            of what arrives, their ground does not. 0 does not look (published).
        boundary_weight: how much boundaries decide where a class of a photo ends. Above 0, its threshold is between a
            third of `background_threshold` and three times it: a geometric mean of levels, each weighted with the
            exponential of `boundary_weight` times the mean boundary probability along the outline that it gives. 0
            takes the constant itself (published).
    """

    SECTION = "irn"

    model: dict[str, Any] = field(default_factory=dict)
    trunk_weights: str | None = None
    foreground_share: float = 0.5
    background_share: float = 1.5
    training: BoundaryTrainingConfig = field(default_factory=BoundaryTrainingConfig)
    walk_radius: int = number(5, at_least=2, limit=100)
    walk_exponent: float = number(10.0, at_least=0)
    walk_steps: int = number(256, at_least=0, limit=1_000_000)
    background_threshold: float = number(0.25, above=0, below=1)
    map_weight: float = number(0.0, at_least=0, below=1)
    object_weight: float = added(before=0.0, default=0.0, at_least=0)
    boundary_weight: float = added(before=0.0, default=0.0, at_least=0)

    def validate_shares(self) -> None:
        """What is sure to be a class lies inside its area, what is sure to be background outside."""
        if not 0 < self.foreground_share <= 1 <= self.background_share:
            raise UserError(
                f"irn.foreground_share and background_share: got {self.foreground_share} and "
                f"{self.background_share}, expected 0 < foreground_share <= 1 <= background_share"
            )


@strict
@dataclass(kw_only=True)
class PredictionConfig(Checked):
    """From a segmentation network to label maps, without tags.

    Args:
        image_size: long side to which images are resized before the scales; `None` keeps their own size.
        scales: sizes of the views relative to the image.
        flip: add each view's mirror image.
        merge: what is taken of the views' probabilities: `"mean"`, or `"max"` per class, which is then normalised.
        window: side of the sliding window in pixels of scale 1; `None` takes the whole image at once.
        overlap: share of a window that the next one covers again.
        batch_size: views of one image and size that go through the network together.
        crf: dense CRF parameters, with the probabilities as unary term; `None` skips the CRF. Each window is refined
            by itself.
        crf_workers: threads that run the CRF (with pydensecrf processes, with torch one).
        threads: threads that decode photos while the network works.

    Examples:
        >>> from sbce_hf import CrfConfig, PredictionConfig
        >>> config = PredictionConfig(image_size=513, scales=(0.75, 1.0, 1.25), merge="max", crf=CrfConfig())
        >>> config.window is None, config.flip
        (True, True)
    """

    SECTION = "prediction"

    image_size: int | None = number(None, at_least=32, limit=MAX_SIDE)
    scales: tuple[float, ...] = view_scales((1.0,))
    flip: bool = True
    merge: Literal["mean", "max"] = "mean"
    window: int | None = number(None, at_least=64, limit=MAX_SIDE)
    overlap: float = number(0.5, at_least=0, below=1)
    batch_size: int = number(8, at_least=1, limit=100_000)
    crf: CrfConfig | None = None
    crf_workers: int = number(2, decides=False, at_least=1, limit=1024)
    threads: int = number(2, decides=False, at_least=1, limit=1024)


@strict
@dataclass(kw_only=True)
class ProportionConfig(Checked):
    """Foreground proportions from label maps.

    Args:
        minimum: lower clamp of a present class's proportion; also at least one pixel. A class that the label map lost
            would otherwise be pushed out for good.
        maximum: upper clamp.
        lost: what a tagged class gets of which the label map has no pixel: `"minimum"`, or `"previous"` for the
            proportion that this round was trained with, so that one bad label map does not extinguish it.
        file: a table of shares that are known better, as `sbce proportions` writes it, or to see what these would
            be worth. With `spatial.targets: proportions` every round is trained with them; with `labels` every stage's
            maps are cut at them, by rank, instead of by its rule.
        from_masks: has to be true for a table that was read off masks. What comes of it is a yardstick, no result.
    """

    SECTION = "proportions"

    minimum: float = 0.005
    maximum: float = 0.95
    lost: Literal["minimum", "previous"] = "previous"
    file: str | None = free_text()
    from_masks: bool = False

    def validate_file(self) -> None:
        """Only a table can be read off masks."""
        if self.from_masks and self.file is None:
            raise UserError(
                "proportions.from_masks: got true without proportions.file; name the table, or leave it out"
            )

    def validate_order(self) -> None:
        """The clamps are in order."""
        if not 0 < self.minimum < self.maximum < 1:
            raise UserError(
                f"proportions.minimum and maximum: got {self.minimum} and {self.maximum}, expected 0 < min < max < 1"
            )


@strict
@dataclass(kw_only=True)
class GuardConfig(Checked):
    """When a round or a refinement has harmed a class: told from its label maps and those before, without a mask.

    Such a class keeps the label maps of the stage before, the others are the new ones; what comes after goes on from
    these.

    Args:
        max_lost: extinguished: the share of the class's images that have lost it, and had not before, is above this.
        min_coverage: extinguished: its mean coverage is below this share of what it was.
        min_refined: the same of a refinement, which trims what rounds have painted too wide.
        max_coverage: flooded: its mean coverage is above this multiple of what it was ...
        least_flood: ... and above this share of its images: a class of which there was next to nothing may grow.
        least_images: classes with fewer images are not judged.
        max_harmed: where at least three classes and more than this share of those that are judged are harmed, the
            network is, and all classes are kept: their label maps can be as wrong without growing or vanishing.
    """

    SECTION = "guard"

    max_lost: float = number(0.1, at_least=0, at_most=1)
    min_coverage: float = number(0.5, at_least=0, at_most=1)
    max_coverage: float = number(2.0, at_least=1)
    least_flood: float = number(0.5, at_least=0, at_most=1)
    least_images: int = number(8, at_least=1, limit=1_000_000)
    min_refined: float = added(before=0.5, default=0.33, at_least=0, at_most=1)
    max_harmed: float = added(before=1.0, default=0.25, at_least=0, at_most=1)
