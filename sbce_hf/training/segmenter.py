"""Training a segmentation network on label maps: DeepLab, or any transformers model for semantic segmentation."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import PartialState
from accelerate.utils import set_seed
from torch import Tensor
from transformers import (
    AutoModelForSemanticSegmentation,
    PreTrainedConfig,
    PreTrainedModel,
    SegformerImageProcessor,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING

from ..config import SegmenterConfig, SegmenterTrainingConfig, check_keys
from ..data import IGNORE_INDEX, TaggedImages
from ..data.preprocessing import IMAGENET, Preprocessing, read_preprocessing
from ..labels.label_maps import LabelMaps, check_label_maps
from ..models.configuration_checks import label_fields, label_names
from ..models.configuration_deeplab import DeepLabConfig
from ..models.image_processing_deeplab import DeepLabImageProcessor
from ..models.modeling_checkpoint import check_buildable, check_foreign_config, check_loadable, read_json
from ..models.modeling_deeplab import DeepLabForSemanticSegmentation
from ..models.modeling_trunk import MAX_PARAMETERS
from ..references import local_checkpoint
from .backbones import load_start, resolve_backbone
from .crops import SegmentationDataset
from .device import use_cpu
from .folder import FitSummary
from .health import SingleClassWatch
from .loop import fit
from .metrics import Values, Window
from .optimization import OPTIMIZERS, segmenter_parameter_groups

BACKGROUND = "background"

# What the architectures call the label that does not count.
_IGNORE_FIELDS: tuple[str, ...] = ("semantic_loss_ignore_index", "loss_ignore_index")

# Fields of a model's config that change without changing what is learned.
_VOLATILE = ("transformers_version", "_name_or_path", "architectures", "dtype")


class SegmenterTask:
    """A step of a segmentation network.

    Args:
        config: optimiser and learning rates, [`filled`][SegmenterTrainingConfig.filled].
        class_names: the foreground classes.
    """

    def __init__(self, config: SegmenterTrainingConfig, class_names: Sequence[str]) -> None:
        self.config, self.class_names = config, (BACKGROUND, *class_names)
        self._watch = SingleClassWatch(self.class_names)

    def optimizer(self, model: PreTrainedModel) -> torch.optim.Optimizer:
        """The config's, on the [`segmenter_parameter_groups`]."""
        return OPTIMIZERS[str(self.config.optimizer)](segmenter_parameter_groups(model, self.config), self.config)

    def loss(self, model: Any, batch: dict[str, Tensor], iteration: int) -> tuple[Tensor, Values]:
        """Loss of one batch with `pixel_values` and `labels`; 0 if every pixel is ignored."""
        output = model(pixel_values=batch["pixel_values"], labels=batch["labels"])
        # The mean over no pixel is NaN in models that do not care; their gradient is 0 nevertheless.
        valid = (batch["labels"] != IGNORE_INDEX).any()
        loss = torch.where(valid, output.loss, torch.zeros_like(output.loss))
        return loss, {"loss": loss, **_pixel_values(output.logits, batch["labels"])}

    def check(self, window: Window) -> None:
        """Raise a [`TrainingHealthError`] if the network predicts a single class."""
        self._watch.update(window)

    def state(self) -> dict[str, Any]:
        """Of the watch over the predicted classes."""
        return self._watch.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Of the watch over the predicted classes."""
        if state:
            self._watch.restore(state)


@torch.no_grad()
def _pixel_values(logits: Tensor, labels: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Correct and labelled pixels per class, of shape `(K,)`, and shares of foreground, at the logits' resolution."""
    nearest = F.interpolate(labels[:, None].float(), logits.shape[-2:], mode="nearest-exact")[:, 0].long()
    predicted, valid = logits.argmax(dim=1), nearest != IGNORE_INDEX
    # Ignored pixels are members of no class.
    member = nearest[..., None] == torch.arange(logits.shape[1], device=logits.device)
    correct = member & (predicted == nearest)[..., None]
    return {
        "pixel_accuracy": (correct.sum(dim=(0, 1, 2)), member.sum(dim=(0, 1, 2))),
        "foreground_predicted": (((predicted > 0) & valid).sum(), valid.sum()),
        "foreground_labelled": (((nearest > 0) & valid).sum(), valid.sum()),
    }


def train_segmenter(
    model: PreTrainedModel,
    images: TaggedImages,
    label_maps: LabelMaps,
    config: SegmenterTrainingConfig,
    *,
    output_dir: Path,
    seed: int = 0,
    inputs: Mapping[str, Any] | None = None,
    preprocessing: Preprocessing | None = None,
) -> FitSummary:
    """Train a segmentation network on label maps; see [`fit`] for resuming.

    Args:
        model: takes `pixel_values` and `labels`, returns `loss` and `logits`; its classes are background, then those
            of `images`; see [`create_segmenter`].
        images: the training set; those without a label map are left out.
        label_maps: a `LabelStore`, or [`MaskLabels`].
        config: of the training.
        output_dir: of the stage.
        seed: of order and augmentation.
        inputs: what else a training and its continuation must agree on; plain values.
        preprocessing: of the photos; by default what the config of a DeepLab says, and for other models ImageNet's.

    Returns:
        The summary; the trained model and its image processor are in its `model_dir`.

    Raises:
        ValueError: model, images and label maps do not belong together; see [`check_label_maps`].
        TrainingHealthError: training has failed.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from sbce_hf import DataConfig, SegmenterConfig, load_images, train_segmenter
        >>> from sbce_hf.config import SegmenterTrainingConfig
        >>> from sbce_hf.labels.label_maps import MaskLabels
        >>> from sbce_hf.training.segmenter import create_segmenter
        >>> images = load_images(DataConfig(source="shapes", shapes_images=8, shapes_size=48), "train")
        >>> start = SegmenterConfig(model={"trunk": "test_resnet"}, weights="random")
        >>> model = create_segmenter(start, images.class_names)
        >>> config = SegmenterTrainingConfig(epochs=2, batch_size=4, crop_size=48, num_workers=0)
        >>> with tempfile.TemporaryDirectory() as folder:  # true masks, in the place of a `LabelStore`
        ...     fitted = train_segmenter(model, images, MaskLabels(images), config, output_dir=Path(folder))
        >>> fitted.iterations, fitted.images
        (4, 8)
    """
    names, expected = label_names(model.config), (BACKGROUND, *images.class_names)
    if names != expected:
        raise ValueError(
            f"the model's classes are {list(names)}, expected {dict(enumerate(expected))}; set id2label to these"
        )
    config = config.filled("sgd" if isinstance(model.config, DeepLabConfig) else "adamw")
    if preprocessing is None:
        preprocessing = Preprocessing.of(model.config) if isinstance(model.config, DeepLabConfig) else IMAGENET
    process = PartialState(cpu=use_cpu())
    images, labels_hash = check_label_maps(images, label_maps)
    dataset = SegmentationDataset(images, label_maps, config, seed, preprocessing)
    fields = {key: value for key, value in model.config.to_diff_dict().items() if key not in _VOLATILE}
    inputs = {**(inputs or {}), "images": images.manifest_hash, "label_maps": labels_hash, "model": fields}
    if preprocessing != IMAGENET:
        inputs["preprocessing"] = asdict(preprocessing)
    task = SegmenterTask(config, images.class_names)
    summary = fit(
        model, task, dataset, config, output_dir=Path(output_dir), seed=seed, name="segmenter.training", inputs=inputs
    )
    if process.is_main_process:
        _image_processor(model.config, config, preprocessing).save_pretrained(summary.model_dir)
    # Others read it next.
    process.wait_for_everyone()
    return summary


def _image_processor(
    model_config: PreTrainedConfig, config: SegmenterTrainingConfig, preprocessing: Preprocessing = IMAGENET
) -> Any:
    """What turns an image into `pixel_values` as in training, before the random scale."""
    fields = preprocessing.processor_fields()
    if isinstance(model_config, DeepLabConfig):
        if config.image_size is None:
            return DeepLabImageProcessor(**fields)
        return DeepLabImageProcessor(do_resize=True, size={"longest_edge": config.image_size}, **fields)
    # For every transformers model: each has a processor class of its own, but some do not normalise or swap colour
    # channels, whereas training treats all alike.
    if hasattr(model_config, "image_size"):
        # Such a model may take images of one size only: that of the crops.
        size = {"height": config.crop_size, "width": config.crop_size}
    elif config.image_size is not None:
        size = {"max_height": config.image_size, "max_width": config.image_size}
    else:
        return SegformerImageProcessor(do_resize=False, **fields)
    return SegformerImageProcessor(do_resize=True, size=size, **fields)


def start_preprocessing(config: SegmenterConfig) -> Preprocessing | None:
    """What the checkpoint of a transformers model that is the start says; `None` without one.

    Args:
        config: see [`create_segmenter`].

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: see [`read_preprocessing`].
    """
    return None if config.checkpoint is None else read_preprocessing(local_checkpoint(config.checkpoint))


def create_segmenter(
    config: SegmenterConfig, class_names: Sequence[str], *, classifier: PreTrainedModel | None = None, seed: int = 0
) -> PreTrainedModel:
    """Build a segmentation network to start from; label 0 is background.

    Args:
        config: architecture and start.
        class_names: the foreground classes.
        classifier: the `SpatialBceForImageClassification` whose trunk is the start, for `weights="classifier"`.
        seed: of the weights that are not loaded.

    Raises:
        FileNotFoundError: a file or checkpoint that the config names does not exist.
        ValueError: an unknown architecture or field, one that does not fit, or no classifier where one is the start.
    """
    labels = label_fields((BACKGROUND, *class_names))
    for key in (*labels, "num_labels"):
        if key in config.model:
            raise ValueError(f"segmenter.model.{key}: the classes come from the data; leave it out")
    if config.architecture != "deeplab":
        return _create_transformers_model(config, labels, seed)
    set_seed(seed)
    if config.weights == "classifier":
        if classifier is None:
            raise ValueError(
                "segmenter.weights: got 'classifier', but there is none to start from; use 'pretrained', 'random' or "
                "a checkpoint file"
            )
        return DeepLabForSemanticSegmentation.from_classifier(classifier, **config.model)
    fields, weights = resolve_backbone(config.model, config.weights)
    model = DeepLabForSemanticSegmentation(DeepLabConfig(**fields, **labels))
    load_start(model, weights)
    return model


def _create_transformers_model(config: SegmenterConfig, labels: dict[str, Any], seed: int) -> PreTrainedModel:
    name = config.architecture
    known = {config_class.model_type for config_class in MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING}
    if name not in known:
        raise ValueError(f"segmenter.architecture: got {name!r}, expected 'deeplab' or one of {sorted(known)}")
    where = "checkpoint" if config.from_config is None else "from_config"
    source = str(getattr(config, where))
    folder = None if where == "from_config" else local_checkpoint(source)
    values = _read_config(f"segmenter.{where}", folder or Path(source))
    if values.get("model_type") != name:
        raise ValueError(
            f"segmenter.{where}: {source} is of model_type {values.get('model_type')!r}, expected {name!r}; set "
            "segmenter.architecture to the former, or name another file"
        )
    config_class = CONFIG_MAPPING[name]
    known_fields: dict[str, Any] = config_class().to_dict()
    check_keys(config.model, known_fields, "segmenter.model")
    check_foreign_config(config.model, "segmenter.model")
    values |= config.model | labels | {key: IGNORE_INDEX for key in _IGNORE_FIELDS if key in known_fields}
    # It would contradict the names.
    values.pop("num_labels", None)
    try:
        model_config = config_class.from_dict(values)
    # transformers reads what is there; any error can come of a wrong value.
    except Exception as error:
        raise ValueError(f"segmenter.{where}: {source}: {error}") from error
    set_seed(seed)
    # A half-precision checkpoint is not trained in half precision: that is `mixed_precision`'s matter.
    if folder is None:
        check_buildable(AutoModelForSemanticSegmentation, model_config, source, MAX_PARAMETERS)
        return AutoModelForSemanticSegmentation.from_config(model_config, dtype=torch.float32, trust_remote_code=False)
    check_loadable(AutoModelForSemanticSegmentation, model_config, folder)
    options: dict[str, Any] = {"config": model_config, "dtype": torch.float32, "use_safetensors": True}
    try:
        # The checkpoint's own classes give way to the data's.
        return AutoModelForSemanticSegmentation.from_pretrained(
            folder, ignore_mismatched_sizes=True, trust_remote_code=False, **options
        )
    except RuntimeError as error:
        raise ValueError(f"segmenter.checkpoint: {folder}: {error}") from error


def _read_config(field: str, path: Path) -> dict[str, Any]:
    if not path.exists():
        raise FileNotFoundError(f"{field}: no file or folder {path}; expected a config.json or a folder with one")
    try:
        values = read_json(path / "config.json" if path.is_dir() else path)
    except OSError as error:
        raise FileNotFoundError(f"{field}: {path} has no readable config.json: {error}") from error
    check_foreign_config(values, str(path))
    return values
