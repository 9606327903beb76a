"""Training the classifier: stage 0 with plain BCE, the rounds with Spatial-BCE."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import set_seed
from torch import Tensor
from transformers import PreTrainedModel

from ..config import TrainingConfig
from ..data import TaggedImages
from ..data.preprocessing import Preprocessing
from ..data.transforms import TrainingDataset
from ..labels.label_maps import LabelMaps, check_label_maps
from ..labels.proportions import check_trainable
from ..models.configuration_checks import label_fields, label_names
from ..models.configuration_spatial_bce import SpatialBceConfig
from ..models.image_processing_spatial_bce import SpatialBceImageProcessor
from ..models.losses_phases import Phase
from ..models.losses_spatial_bce import sum_over_processes
from ..models.modeling_spatial_bce import SpatialBceForImageClassification, SpatialBceOutput
from ..postprocess.rules import SOFT_RANGE
from .backbones import load_start, resolve_backbone
from .crops import LabelledDataset
from .features import FeatureDataset, compute_features, training_views
from .folder import FitSummary
from .health import ClassHealth
from .loop import fit, stage_folder
from .metrics import Values, Window
from .optimization import LOGIT_SCALE, alternation, parameter_groups, phase_for, sgd
from .own_loss import ClassifierLoss, name_of, own_loss, try_own_loss
from .sampler import EpochDataset, count_iterations

Kind = Literal["bce", "spatial"]

# Folder of the features of a trunk that is not trained.
FEATURES = "features"

# The highest pixels decide whether a class is there once maps are negative outside objects.
IMAGE_TOP_SHARE: dict[Kind, float] = {"bce": 1.0, "spatial": 0.1}

PHASES: dict[Kind, tuple[Phase, ...]] = {"bce": ("bce",), "spatial": ("weights", "threshold")}


class ClassifierTask:
    """A step of the classifier.

    Args:
        kind: `"bce"` trains on image logits, `"spatial"` alternates between weights and thresholds.
        config: learning rates and the alternation.
        class_names: of the model's classes.
        iterations: of the stage.
        guarded: see [`ClassHealth`].
        loss: see [`train_classifier`].

    Raises:
        UserError: a stage of kind `"spatial"` would train no threshold.
    """

    def __init__(
        self,
        kind: Kind,
        config: TrainingConfig,
        class_names: Sequence[str],
        iterations: int,
        guarded: bool = False,
        loss: ClassifierLoss | None = None,
    ) -> None:
        self.kind, self.config, self.class_names, self._own = kind, config, tuple(class_names), loss
        self._period, self._weights_iterations = alternation(iterations, config) if kind == "spatial" else (1, 1)
        self._health = ClassHealth(self.class_names, guarded)

    def optimizer(self, model: PreTrainedModel) -> torch.optim.Optimizer:
        """SGD on the [`parameter_groups`]."""
        return sgd(parameter_groups(model, self.config), self.config)

    def loss(self, model: Any, batch: dict[str, Tensor], iteration: int) -> tuple[Tensor, Values]:
        """Loss of one batch with `pixel_values`, `labels` and, for `"spatial"`, `proportions`, maybe `label_maps`."""
        phase: Phase = "bce"
        if self.kind == "spatial":
            phase = phase_for(iteration, self._period, self._weights_iterations)
        proportions = batch["proportions"] if self.kind == "spatial" else None
        known = {"labels": batch["labels"], "proportions": proportions, "label_maps": batch.get("label_maps")}
        seen = {"pixel_values": batch.get("pixel_values"), "features": batch.get("features")}
        if self._own is None:
            output = model(**seen, **known, phase=phase)
            values = _logged(output, phase)
        else:
            output = model(**seen)
            values = own_loss(
                self._own,
                phase,
                pixel_logits=output.pixel_logits.float(),
                thresholds=output.thresholds,
                **known,
                # Of the model itself, inside what several processes wrap around it.
                config=getattr(model, "module", model).config,
                reduce=sum_over_processes,
            )
        loss = values["loss"]
        values |= _per_class(output, batch["labels"], proportions)
        for name, parameter in model.named_parameters():
            if name.split(".")[-1] == LOGIT_SCALE:
                values[LOGIT_SCALE] = parameter.exp().mean()
        return loss, values

    def check(self, window: Window) -> None:
        """Raise a [`TrainingHealthError`] if a class no longer learns."""
        if self.kind == "spatial":
            self._health.update(window)

    def state(self) -> dict[str, Any]:
        """Of the watch over the classes."""
        return self._health.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Of the watch over the classes."""
        if state:
            self._health.restore(state)


def _logged(output: SpatialBceOutput, phase: Phase) -> dict[str, Any]:
    """The model's own losses, by the names under which they are logged."""
    values = {"loss": output.loss}
    if phase != "bce":
        values["threshold_loss" if phase == "threshold" else "spatial_loss"] = output.spatial_loss
    if output.proportion_loss is not None:
        values["proportion_loss"] = output.proportion_loss
    return values


@torch.no_grad()
def _per_class(output: Any, labels: Tensor, proportions: Tensor | None) -> dict[str, tuple[Tensor, Tensor]]:
    """Sums over the batch's images with each class, and their number: each of shape `(C,)`."""
    present = (labels > 0).double()
    probabilities = output.pixel_logits.float().sigmoid()
    soft = (probabilities > SOFT_RANGE[0]) & (probabilities < SOFT_RANGE[1])
    per_image = {
        "mean_p": probabilities.mean(dim=(-2, -1)),
        "soft_share": soft.float().mean(dim=(-2, -1)),
        "threshold": output.thresholds,
    }
    if proportions is not None:
        per_image["mean_q"] = proportions
    images = present.sum(dim=0)
    return {key: ((value.double() * present).sum(dim=0), images) for key, value in per_image.items()}


def train_classifier(
    model: PreTrainedModel,
    images: TaggedImages,
    config: TrainingConfig,
    kind: Kind,
    proportions: np.ndarray | None = None,
    *,
    output_dir: Path,
    seed: int = 0,
    label_maps: LabelMaps | None = None,
    guarded: bool = False,
    features_dir: Path | None = None,
    loss: ClassifierLoss | None = None,
) -> FitSummary:
    """Train a classifier on tagged images; see [`fit`] for resuming.

    Args:
        model: a `SpatialBceForImageClassification` whose classes are those of `images`.
        images: the training set.
        config: of this stage.
        kind: `"bce"` or `"spatial"`.
        proportions: `(n, C)` foreground proportions, for `"spatial"`: in (0, 1] of the present classes; those of the
            others are not read.
        output_dir: of this stage.
        seed: of order and augmentation.
        label_maps: for `"spatial"` with `config.targets` `"labels"`: what the images are trained on. Images without a
            label map are left out.
        features_dir: where the features of a trunk that is not trained are kept; by default in `output_dir`.
        guarded: whoever calls holds back a class that this has harmed, so one alone does not end the training.
        loss: instead of [`phase_losses`], see [`ClassifierLoss`]. The stage keeps its qualified name, and is continued
            with a loss of this name only; two lambdas have the same. Numbers of its own are best given by
            `functools.partial`, which makes them part of the name.

    Returns:
        The summary; the trained model is in its `model_dir`.

    Raises:
        ValueError: model, images, proportions and label maps do not belong together.
        UserError: `loss` gives no loss.
        TrainingHealthError: training has failed.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from sbce_hf import DataConfig, TrainingConfig, load_images, train_classifier
        >>> from sbce_hf.training.classifier import create_classifier
        >>> images = load_images(DataConfig(source="shapes", shapes_images=8, shapes_size=48), "train")
        >>> model = create_classifier({"trunk": "test_resnet", "freeze_batch_norm": False}, images.class_names)
        >>> config = TrainingConfig(epochs=2, batch_size=4, image_size=48, num_workers=0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     fitted = train_classifier(model, images, config, "bce", output_dir=Path(folder))
        >>> fitted.iterations, fitted.images
        (4, 8)

        With a loss of one's own, which adds to the present ones and is logged with its parts:

        >>> from sbce_hf import phase_losses
        >>> def with_entropy(*, pixel_logits, **others):
        ...     losses = phase_losses(pixel_logits=pixel_logits, **others)
        ...     p = pixel_logits.sigmoid()
        ...     entropy = (p * (1 - p)).mean()
        ...     return losses | {"loss": losses["loss"] + 0.1 * entropy, "entropy": entropy}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     fitted = train_classifier(model, images, config, "bce", output_dir=Path(folder), loss=with_entropy)
        >>> 0 < fitted.values["entropy"] < 0.25
        True
    """
    names = label_names(model.config)
    if names != tuple(images.class_names):
        raise ValueError(
            f"the model's classes {list(names)} are not the images' {list(images.class_names)}; set id2label to these"
        )
    preprocessing = Preprocessing.of(model.config)
    source: dict[str, Any] = {"images": images.manifest_hash, "proportions": None}
    if kind == "spatial" and config.targets == "labels":
        if label_maps is None:
            raise ValueError("label_maps: missing; targets 'labels' are pixels of the label maps of a stage before")
        images, content = check_label_maps(images, label_maps)
        source |= {"images": images.manifest_hash, "label_maps": content}
    else:
        label_maps = None
        if kind == "spatial":
            check_trainable(proportions, images)
            source["proportions"] = hashlib.sha256(np.asarray(proportions).tobytes()).hexdigest()[:16]
    shares = proportions if kind == "spatial" and label_maps is None else None
    fields = {key: getattr(model.config, key) for key in type(model.config).__annotations__}
    if fields["train_trunk"]:
        # Older trainings have no such field.
        del fields["train_trunk"]
    inputs = source | {"model": fields}
    if loss is not None:
        inputs["loss"] = name_of(loss)
    folder = stage_folder(output_dir, config, images=len(images), seed=seed, name=kind, inputs=inputs)
    if folder.summary() is None:
        if loss is not None:
            try_own_loss(loss, cast(SpatialBceConfig, model.config), PHASES[kind], label_maps is not None)
        # Pooling is the stage's matter. A finished stage leaves the model as it was given.
        cast(Any, model.config).image_top_share = IMAGE_TOP_SHARE[kind]
    dataset: EpochDataset
    if not cast(Any, model.config).train_trunk and folder.summary() is None:
        kept = Path(features_dir or Path(output_dir) / FEATURES)
        files = compute_features(model, images, training_views(config), preprocessing, kept)
        dataset = FeatureDataset(images, files, config, seed, shares, label_maps)
    elif label_maps is not None:
        dataset = LabelledDataset(images, label_maps, config, seed, preprocessing)
    else:
        dataset = TrainingDataset(images, config.image_size, config.augmentation, seed, shares, preprocessing)
    task = ClassifierTask(kind, config, names, count_iterations(len(images), config), guarded, loss)
    summary = fit(model, task, dataset, config, output_dir=Path(output_dir), seed=seed, name=kind, inputs=inputs)
    if PartialState().is_main_process:
        size = {"height": config.image_size, "width": config.image_size}
        SpatialBceImageProcessor(size=size, **preprocessing.processor_fields()).save_pretrained(summary.model_dir)
    # Others read it next.
    PartialState().wait_for_everyone()
    return summary


def create_classifier(
    fields: Mapping[str, Any], class_names: Sequence[str], trunk_weights: str = "random", seed: int = 0
) -> SpatialBceForImageClassification:
    """Build a classifier to start from.

    Args:
        fields: of [`SpatialBceConfig`], the classes excepted.
        class_names: the foreground classes.
        trunk_weights: `"random"`, `"pretrained"` (timm's) or a checkpoint file.
        seed: of the weights that are not loaded.

    Raises:
        FileNotFoundError: no such checkpoint file, or timm's weights cannot be had.
        ValueError: an unknown field, or one that does not fit the trunk.
    """
    set_seed(seed)
    fields, trunk_weights = resolve_backbone(fields, trunk_weights)
    model = SpatialBceForImageClassification(SpatialBceConfig(**fields, **label_fields(class_names)))
    load_start(model, trunk_weights)
    return model
