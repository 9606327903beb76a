"""A whole run, and its last stage."""

from dataclasses import dataclass, field
from typing import Any, Literal

from huggingface_hub.dataclasses import strict

from ..errors import UserError
from .affinity import AffinityConfig
from .data import DataConfig
from .labelling import GuardConfig, IrnRefinementConfig, LabellingConfig, PredictionConfig, ProportionConfig
from .ranges import Checked, free_switch, number, view_scales
from .saliency import SaliencyConfig
from .training import SegmenterTrainingConfig, TrainingConfig


@strict
@dataclass(kw_only=True)
class SegmenterConfig(Checked):
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

    Examples:
        >>> from sbce_hf import RunConfig, SegmenterConfig
        >>> config = RunConfig(segmenter=SegmenterConfig(model={"head": "largefov"}, weights="classifier"))
        >>> config.segmenter.training.optimizer, config.segmenter.training.lr
        ('sgd', 0.00025)
    """

    SECTION = "segmenter"

    architecture: str = "deeplab"
    model: dict[str, Any] = field(default_factory=dict)
    from_config: str | None = None
    checkpoint: str | None = None
    weights: str = "classifier"
    training: SegmenterTrainingConfig = field(default_factory=SegmenterTrainingConfig)
    prediction: PredictionConfig = field(default_factory=PredictionConfig)
    score_split: str | None = None
    compare: tuple[Literal["bce", "mask"], ...] = ()

    def __post_init__(self) -> None:
        # What is left open is decided here, so that a run's config and its keys say what was used.
        self.training = self.training.filled("sgd" if self.architecture == "deeplab" else "adamw")

    @property
    def starts_from_classifier(self) -> bool:
        """Whether the trunk is that of the classifier that made the label maps."""
        return self.architecture == "deeplab" and self.weights == "classifier"

    def validate_start(self) -> None:
        """One start only."""
        if self.from_config is not None and self.checkpoint is not None:
            raise UserError("segmenter: got from_config and checkpoint; expected one of them")
        if self.architecture == "deeplab" and (self.from_config is not None or self.checkpoint is not None):
            raise UserError(
                "segmenter.architecture: got deeplab with from_config or checkpoint; name the transformers "
                "architecture, for example segformer"
            )
        if self.architecture != "deeplab" and self.from_config is None and self.checkpoint is None:
            raise UserError(
                f"segmenter.architecture: got {self.architecture!r}; set from_config (random weights) or checkpoint, "
                "or use deeplab"
            )


@strict
@dataclass(kw_only=True)
class RunConfig(Checked):
    """A whole run: stage 0 (BCE), then `rounds` of Spatial-BCE training and labelling.

    A recipe may also say `official: true` and `mixed_precision: auto`, see [`load_recipe`].

    Args:
        seed: seed of weights, order and augmentation.
        data: see [`DataConfig`].
        model: fields of `SpatialBceConfig`, the classes excepted.
        trunk_weights: `"random"`, `"pretrained"` (timm's, needs the network once) or a checkpoint file.
        bce: training of stage 0.
        rounds: number of Spatial-BCE rounds.
        spatial: training of each round.
        labelling: how every checkpoint becomes label maps; stage 0, without trained thresholds, has its own rule.
        first_rule: the rule of stage 0: `"fixed"` or `"objects"`, see [`LabellingConfig`].
        final_scales: sizes of the views for the last round's label maps, instead of `labelling.scales`: the rounds
            before need proportions only, which fewer views give sooner. `None` labels all rounds alike.
        proportions: see [`ProportionConfig`].
        guard: keeps a class's label maps from before where a round or a refinement has harmed it, see
            [`GuardConfig`]; `None` takes whatever comes.
        affinity: refinement of the last round's class maps by what its network finds alike, see [`AffinityConfig`];
            `None` leaves them as they are. Instead of `irn`, which starts from the same class maps.
        irn: refinement of the last round's label maps, see [`IrnRefinementConfig`]; `None` leaves them as they are.
        saliency: refinement by saliency maps, after `irn`, see [`SaliencyConfig`]; `None` uses none.
        segmenter: the last stage, see [`SegmenterConfig`]; `None` ends with label maps.
        contact_images: images on the report's contact sheet.
        odd_images: photos to look at first in the report, found without masks.
        overlays: draw every final label map over its photo, into the run's folder `overlays`.

    Examples:
        >>> from sbce_hf import DataConfig, RunConfig, TrainingConfig
        >>> data = DataConfig(source="folder", data_dir="photos")
        >>> config = RunConfig(data=data, rounds=2, spatial=TrainingConfig(epochs=10, image_size=256))
        >>> config.rounds, config.spatial.lr, config.labelling.rule
        (2, 0.001, 'paper')
    """

    SECTION = "run"

    seed: int = number(0, at_least=0, at_most=2**32 - 1)
    data: DataConfig = field(default_factory=lambda: DataConfig(source="shapes"))
    model: dict[str, Any] = field(default_factory=dict)
    trunk_weights: str = "pretrained"
    bce: TrainingConfig = field(default_factory=TrainingConfig)
    rounds: int = number(3, at_least=1, limit=100)
    spatial: TrainingConfig = field(default_factory=TrainingConfig)
    labelling: LabellingConfig = field(default_factory=LabellingConfig)
    first_rule: Literal["fixed", "objects"] = "fixed"
    final_scales: tuple[float, ...] | None = view_scales(None)
    proportions: ProportionConfig = field(default_factory=ProportionConfig)
    guard: GuardConfig | None = field(default_factory=GuardConfig)
    affinity: AffinityConfig | None = None
    irn: IrnRefinementConfig | None = None
    saliency: SaliencyConfig | None = None
    segmenter: SegmenterConfig | None = None
    contact_images: int = number(8, decides=False, at_least=0, limit=10_000)
    odd_images: int = number(8, decides=False, at_least=0, at_most=100)
    overlays: bool = free_switch(True)

    def validate_refinements(self) -> None:
        """What refines the class maps is one thing: the other's label maps would be lost."""
        if self.affinity is not None and self.irn is not None:
            raise UserError(
                "affinity and irn: got both, expected one of them, because each starts from the last round's class "
                "maps; say irn=null or affinity=null"
            )
