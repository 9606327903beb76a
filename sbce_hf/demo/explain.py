"""One photo through a checkpoint: its label map and everything that explains it.

Maps, rule and dense CRF are those of [`label_images`] and [`segment`]; nothing is computed in a second way.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from ..config import CrfConfig, LabellingConfig, PredictionConfig
from ..data.preprocessing import IMAGENET, Preprocessing
from ..inference.checkpoints import (
    labelling_side,
    load_classifier,
    load_segmenter,
    preprocessing_of,
    read_config,
    trained_side,
)
from ..inference.segmenter import segment
from ..inference.views import class_maps
from ..labels.store import MAX_CLASSES
from ..models.configuration_checks import label_names
from ..models.configuration_spatial_bce import SpatialBceConfig
from ..models.modeling_spatial_bce import SpatialBceForImageClassification, SpatialBceOutput
from ..postprocess.crf import dense_crf, dense_crf_from_probabilities
from ..postprocess.rules import apply_rule
from ..references import local_checkpoint
from ..runs.layout import result_of


@dataclass(frozen=True)
class ClassReading:
    """What the network says about one known class of a photo.

    Args:
        name: of the class.
        value: of its pixels in the label map.
        image_probability: that the class is on the photo, in [0, 1]; from the image alone, whatever the tags say.
        threshold: the adaptive threshold `t` in (0, 1), or the rule's constant.
        mean_probability: mean of the class map, in [0, 1].
        share: of the photo's pixels that got the class in the end, in [0, 1].
        probabilities: `(H, W)` float32, the class map in [0, 1].
        above: `(H, W)` bool, where the class exceeds its threshold.
    """

    name: str
    value: int
    image_probability: float
    threshold: float
    mean_probability: float
    share: float
    probabilities: np.ndarray
    above: np.ndarray


@dataclass(frozen=True)
class Explanation:
    """A photo's label map and how it came about.

    Args:
        label_map: `(H, W)` uint8 of the photo's size.
        readings: of the known classes, the most probable first; empty for a segmentation network.
        image_probabilities: class name to probability in [0, 1], the highest first; empty where the network was not
            asked, because no class is known, or has no such number.
    """

    label_map: np.ndarray
    readings: tuple[ClassReading, ...] = ()
    image_probabilities: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """A model that [`explain`] takes.

    Args:
        name: what it was loaded from.
        model: in evaluation mode, on its device.
        config: how photos are labelled; its type says whether the model is a classifier or a segmentation network.
        preprocessing: of the photos.
    """

    name: str
    model: PreTrainedModel
    config: LabellingConfig | PredictionConfig
    preprocessing: Preprocessing = IMAGENET

    @property
    def needs_tags(self) -> bool:
        """Whether the model is a classifier."""
        return isinstance(self.config, LabellingConfig)

    @property
    def names(self) -> tuple[str, ...]:
        """Name of each label-map value; 0 is background for a classifier, and whatever it is for a segmenter."""
        names = label_names(self.model.config)
        return ("background", *names) if self.needs_tags else names


def load_checkpoint(name: str, image_size: int | None = None) -> Checkpoint:
    """Load a classifier of this library, or any `AutoModelForSemanticSegmentation`, on this process's device.

    Args:
        name: a model folder, a run directory, or a Hub id with an optional `@revision`.
        image_size: side to which photos are resized, as in training; by default what the checkpoint's image processor
            says, or the photo's own size.

    Raises:
        OSError: there is no such checkpoint, it cannot be downloaded, or a segmenter has no image processor.
        ValueError: a model of another kind, or with too many classes, or without some of its weights.

    Examples:
        >>> import tempfile
        >>> from sbce_hf import SpatialBceImageProcessor, load_checkpoint
        >>> from sbce_hf.training.classifier import create_classifier
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     create_classifier({"trunk": "test_resnet"}, ["cup", "plate"]).save_pretrained(folder)
        ...     paths = SpatialBceImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
        ...     checkpoint = load_checkpoint(folder)
        >>> checkpoint.names, checkpoint.config.image_size
        (('background', 'cup', 'plate'), 64)
    """
    folder = local_checkpoint(result_of(name, "classifier"))
    config = read_config(folder)
    if config.model_type == SpatialBceConfig.model_type:
        checkpoint = _load_classifier(name, folder, image_size)
    elif any(architecture.endswith("ForSemanticSegmentation") for architecture in config.architectures or ()):
        model, processor = load_segmenter(folder)
        prediction = PredictionConfig(image_size=image_size or trained_side(processor, name))
        checkpoint = Checkpoint(name, model, prediction, preprocessing_of(processor))
    else:
        raise ValueError(
            f"{name}: config.json says architectures {config.architectures}, expected "
            "SpatialBceForImageClassification or any ...ForSemanticSegmentation"
        )
    if len(checkpoint.names) > MAX_CLASSES + 1:
        raise ValueError(
            f"{name}: got {len(checkpoint.names)} labels, expected at most {MAX_CLASSES + 1} (8-bit maps)"
        )
    return checkpoint


def _load_classifier(name: str, folder: Path, image_size: int | None) -> Checkpoint:
    labelling = LabellingConfig(image_size=image_size or labelling_side(folder), scales=(1.0,))
    model = load_classifier(folder)
    return Checkpoint(name, model, labelling, Preprocessing.of(model.config))


def explain(
    checkpoint: Checkpoint, photo: Image.Image, tags: Sequence[str] | None, crf: CrfConfig | None
) -> Explanation:
    """Label a photo with whatever the checkpoint is.

    Args:
        checkpoint: a classifier, or a segmentation network, which takes no notice of `tags`; left in evaluation mode.
            One call at a time: a hook reads a classifier's outputs.
        photo: RGB.
        tags: names of the classes on it; `None` predicts them from the photo. Without any, all is background.
        crf: dense CRF parameters; `None` skips the CRF.

    Raises:
        ValueError: a tag that is no class of the model, or class maps that are not finite.

    Examples:
        >>> import tempfile
        >>> from PIL import Image
        >>> from sbce_hf import CrfConfig, SpatialBceImageProcessor, explain, load_checkpoint
        >>> from sbce_hf.training.classifier import create_classifier
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     create_classifier({"trunk": "test_resnet"}, ["cup", "plate"]).save_pretrained(folder)
        ...     paths = SpatialBceImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
        ...     checkpoint = load_checkpoint(folder)
        >>> explanation = explain(checkpoint, Image.new("RGB", (90, 60), "orange"), ["plate"], CrfConfig())
        >>> explanation.label_map.shape, [(reading.name, reading.value) for reading in explanation.readings]
        ((60, 90), [('plate', 2)])
    """
    if isinstance(checkpoint.config, PredictionConfig):
        return _explain_segmenter(checkpoint, photo, replace(checkpoint.config, crf=crf))
    return _explain_tags(checkpoint, photo, tags, replace(checkpoint.config, crf=crf))


def _explain_tags(
    checkpoint: Checkpoint, photo: Image.Image, tags: Sequence[str] | None, config: LabellingConfig
) -> Explanation:
    model = cast(SpatialBceForImageClassification, checkpoint.model)
    names = label_names(model.config)
    unknown = [tag for tag in tags or () if tag not in names]
    if unknown:
        raise ValueError(f"tag {unknown[0]!r}: the model has no such class; its classes are {', '.join(names)}")
    labels = None if tags is None else np.array([[name in tags for name in names]], np.float32)
    config = replace(config, known_classes="predicted" if tags is None else "tags")
    image_logits: list[Tensor] = []

    def keep(_: torch.nn.Module, __: Any, output: SpatialBceOutput) -> None:
        image_logits.append(cast(Tensor, output.logits).float())

    # Class maps carry no image-level logits, and a second pass over the views would double the waiting time.
    with model.register_forward_hook(keep):
        maps = class_maps(model, [photo], labels, config, preprocessing=checkpoint.preprocessing)[0]
    labelled = apply_rule(maps, config)
    classes = maps.classes.tolist()
    label_map = labelled.label_map
    if config.crf is not None:
        label_map = dense_crf(np.asarray(photo), label_map, classes, config.crf)
    if not image_logits:
        return Explanation(label_map)
    # Every view has one row (and its mirror image another), so the mean over rows is the mean over views.
    probabilities = torch.cat(image_logits).mean(dim=0).sigmoid().cpu().numpy()
    readings = [
        ClassReading(
            name=names[c],
            value=c + 1,
            image_probability=float(probabilities[c]),
            threshold=float(labelled.thresholds[k]),
            mean_probability=float(p.mean(dtype=np.float64)),
            share=float((label_map == c + 1).mean()),
            probabilities=p,
            above=labelled.scores[k] > 0,
        )
        for k, (c, p) in enumerate(zip(classes, maps.probabilities, strict=True))
    ]
    readings.sort(key=lambda reading: -reading.image_probability)
    order = np.argsort(-probabilities, kind="stable").tolist()
    return Explanation(label_map, tuple(readings), {names[c]: float(probabilities[c]) for c in order})


def _explain_segmenter(checkpoint: Checkpoint, photo: Image.Image, config: PredictionConfig) -> Explanation:
    probabilities = segment(checkpoint.model, photo, config, checkpoint.preprocessing)
    # The CRF refines the whole photo, with a window too.
    if config.crf is not None:
        return Explanation(dense_crf_from_probabilities(np.asarray(photo), probabilities, config.crf))
    return Explanation(probabilities.argmax(axis=0).astype(np.uint8))
