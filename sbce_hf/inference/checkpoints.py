"""Checkpoints on disk: classifiers, and segmentation networks of ours or any that transformers can load.

A checkpoint may come from a stranger. It is data: what it is told to load, and how much memory it asks for, is looked
at before transformers acts on it, and its own code is never run. What it lacks, transformers fills in with initial
values and goes on; here nothing predicts with them.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from accelerate import PartialState
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING

from ..data.own_files import strings_in
from ..data.preprocessing import IMAGENET, PREPROCESSOR, Preprocessing, read_preprocessing
from ..models.configuration_checks import check_labels
from ..models.configuration_irn import IrnConfig
from ..models.configuration_spatial_bce import SpatialBceConfig
from ..models.image_processing_deeplab import DeepLabImageProcessor
from ..models.modeling_checkpoint import check_foreign_config, check_loadable, own_file, read_json, weight_files
from ..models.modeling_irn import IrnModel
from ..models.modeling_spatial_bce import SpatialBceForImageClassification
from ..training.device import tune_allocator, use_cpu

# Longest side to which a checkpoint may have photos resized, in pixels.
MAX_SIDE = 4096

logger = logging.getLogger(__name__)


def read_config(checkpoint: Path) -> PreTrainedConfig:
    """The configuration of a checkpoint.

    Raises:
        FileNotFoundError: the folder holds no checkpoint.
        ValueError: it is damaged, of an unknown kind, or names anything to load but the checkpoint's own weights.
    """
    path = checkpoint / "config.json"
    for file in checkpoint.glob("*.*"):
        own_file(file)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected the model/ folder of a finished training")
    check_foreign_config(read_json(path), str(path))
    try:
        config = AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)
        check_labels(type(config).__name__, config.id2label)
        return config
    except OSError:
        raise
    # transformers reads what is there; any error can come of a wrong value.
    except Exception as error:
        raise ValueError(f"{path}: {error}") from error


def read_classifier(checkpoint: Path) -> SpatialBceForImageClassification:
    """Load a classifier to train on; heads that it lacks get their initial values, with a warning.

    Raises:
        FileNotFoundError: the folder holds no checkpoint.
        ValueError: see [`read_config`]; or the weights are damaged, or another model's, or the trunk's are missing.
    """
    model, missing = _read_classifier(checkpoint)
    trunk = [name for name in missing if name.startswith(f"{model.base_model_prefix}.")]
    if trunk:
        raise ValueError(
            f"{checkpoint}: lacks weights of the trunk, {_listing(trunk)}: there is nothing to go on from. Fetch the "
            "checkpoint again, or start a training without one"
        )
    if missing:
        logger.warning("%s: lacks %s; they start from their initial values", checkpoint, _listing(missing))
    return model


def _read_classifier(checkpoint: Path) -> tuple[SpatialBceForImageClassification, list[str]]:
    weight_files(checkpoint)
    config = read_config(checkpoint)
    if not isinstance(config, SpatialBceConfig):
        raise ValueError(f"{checkpoint}: is a {config.model_type}, expected a classifier of this library")
    # What feeds a checkpoint is what its image processor says, also where the training goes on from it.
    preprocessing = read_preprocessing(checkpoint)
    if preprocessing is not None:
        preprocessing.note(config)
    elif Preprocessing.of(config) == IMAGENET:
        logger.warning("%s: has no %s; photos are normalised as for ImageNet", checkpoint, PREPROCESSOR)
    model, missing = _load(SpatialBceForImageClassification, checkpoint, config)
    return cast(SpatialBceForImageClassification, model), missing


def load_classifier(checkpoint: Path) -> SpatialBceForImageClassification:
    """Load a classifier for inference, on this process's device.

    Raises:
        FileNotFoundError: the folder holds no checkpoint.
        ValueError: see [`read_config`]; or the weights are damaged, another model's, or not complete.
    """
    model, missing = _read_classifier(checkpoint)
    _require_all(checkpoint, missing, "train it first: sbce train-classifier --checkpoint")
    return cast(SpatialBceForImageClassification, _for_inference(model))


def load_boundary_network(checkpoint: Path) -> IrnModel:
    """Load IRN's boundary network for inference, on this process's device.

    Raises:
        FileNotFoundError: the folder holds no checkpoint.
        ValueError: see [`read_config`]; or the weights are damaged, another model's, or not complete.
    """
    config = read_config(checkpoint)
    if not isinstance(config, IrnConfig):
        raise ValueError(f"{checkpoint}: is a {config.model_type}, expected a boundary network of this library")
    model, missing = _load(IrnModel, checkpoint, config)
    _require_all(checkpoint, missing, "train it again")
    return cast(IrnModel, _for_inference(model))


def labelling_side(checkpoint: Path) -> int | None:
    """Side to which a classifier's photos are resized, if its checkpoint says so.

    Raises:
        ValueError: the checkpoint's image processor says something else than one side.
    """
    path = checkpoint / PREPROCESSOR
    # Not every training leaves one.
    if not path.is_file():
        return None
    size = read_json(path).get("size")
    side = size.get("height") if isinstance(size, dict) else None
    if size is not None and not (isinstance(side, int) and 1 <= side <= MAX_SIDE):
        raise ValueError(f"{path}: size: got {str(size)[:120]}, expected a height and width of 1 to {MAX_SIDE} pixels")
    return side


def read_segmenter(checkpoint: Path) -> tuple[PreTrainedConfig, Any]:
    """The configuration of a segmentation network and its image processor, without the weights.

    Raises:
        FileNotFoundError: the folder holds no checkpoint, or no image processor.
        ValueError: see [`read_config`]; or not a segmentation network, or one whose images are not normalised by mean
            and deviation.
    """
    weight_files(checkpoint)
    config = read_config(checkpoint)
    if config.model_type == SpatialBceConfig.model_type:
        raise ValueError(
            f"{checkpoint}: is a classifier, expected a segmentation network; a classifier's label maps are made by "
            "sbce label"
        )
    settings = checkpoint / PREPROCESSOR
    if not settings.is_file():
        raise FileNotFoundError(f"{settings}: missing; save the image processor of the training there")
    _check_processor(checkpoint, read_json(settings))
    try:
        processor: Any = AutoImageProcessor.from_pretrained(checkpoint, trust_remote_code=False)
    except OSError:
        raise
    except Exception as error:
        raise ValueError(f"{settings}: {error}") from error
    if not isinstance(processor.rescale_factor, int | float):
        raise ValueError(f"{settings}: rescale_factor: got {str(processor.rescale_factor)[:80]!r}, expected a number")
    preprocessing_of(processor, str(settings))
    scaled = processor.do_rescale and processor.do_normalize and math.isclose(processor.rescale_factor, 1 / 255)
    if not scaled or getattr(processor, "do_flip_channel_order", False):
        raise ValueError(
            f"{settings}: expected RGB that is rescaled by 1/255, then normalised by image_mean and image_std"
        )
    return config, processor


def _check_processor(checkpoint: Path, values: dict[str, Any]) -> None:
    """Raise for an image processor of another kind than segmentation networks have; some load files when made."""
    other = checkpoint / "processor_config.json"
    if other.exists():
        raise ValueError(f"{other}: would be read instead of preprocessor_config.json; remove it")
    # An entry of transformers' table has had more than one form.
    known = {DeepLabImageProcessor.__name__}
    for config_class in MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING:
        known |= set(strings_in(IMAGE_PROCESSOR_MAPPING_NAMES.get(config_class.model_type)))
    for key in ("image_processor_type", "feature_extractor_type"):
        name = str(values.get(key) or "").replace("FeatureExtractor", "ImageProcessor")
        if name and name.removesuffix("Fast") not in {one.removesuffix("Fast") for one in known}:
            raise ValueError(
                f"{checkpoint / PREPROCESSOR}: {key}: got {name[:120]!r}, expected one of {', '.join(sorted(known))}"
            )


def load_segmenter(checkpoint: Path) -> tuple[PreTrainedModel, Any]:
    """Load a segmentation network for inference, on this process's device, and its image processor.

    Raises:
        FileNotFoundError: see [`read_segmenter`].
        ValueError: see [`read_segmenter`]; or the weights are damaged, another model's, or not complete.
    """
    config, processor = read_segmenter(checkpoint)
    model, missing = _load(AutoModelForSemanticSegmentation, checkpoint, config)
    _require_all(checkpoint, missing, "train it first: sbce train-segmenter")
    return _for_inference(model), processor


def _load(kind: Any, checkpoint: Path, config: PreTrainedConfig) -> tuple[PreTrainedModel, list[str]]:
    """A model, and the names of its weights that the checkpoint lacks, in the model's order."""
    check_loadable(kind, config, checkpoint)
    options: dict[str, Any] = {"config": config, "use_safetensors": True, "trust_remote_code": False}
    try:
        with _without_report():
            # Shapes are compared below, where they can be told.
            model, found = kind.from_pretrained(
                checkpoint, **options, output_loading_info=True, ignore_mismatched_sizes=True
            )
    except RuntimeError as error:
        raise ValueError(f"{checkpoint}: the weights are not those of config.json's model: {error}") from error
    if found["mismatched_keys"]:
        name, got, expected = sorted(found["mismatched_keys"])[0]
        raise ValueError(
            f"{checkpoint}: the weights are not those of config.json's model: {name} is {tuple(got)}, expected "
            f"{tuple(expected)}, and so {len(found['mismatched_keys'])} in all"
        )
    if found["unexpected_keys"]:
        logger.warning("%s: holds more than the model: %s", checkpoint, _listing(sorted(found["unexpected_keys"])))
    # transformers may have renamed weights while it loaded; its own list is in the model's names. Counters of batches
    # do nothing here, and other programs leave them out.
    lacking = {name for name in found["missing_keys"] if not name.endswith("num_batches_tracked")}
    return model, [name for name in model.state_dict() if name in lacking]


@contextmanager
def _without_report() -> Iterator[None]:
    """Keep transformers from logging a table of what a checkpoint lacks as "newly initialized": here that is told."""
    log = logging.getLogger("transformers.modeling_utils")

    # Not its level, by which transformers decides to log still more.
    def is_error(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR

    log.addFilter(is_error)
    try:
        yield
    finally:
        log.removeFilter(is_error)


def _require_all(checkpoint: Path, missing: Sequence[str], remedy: str) -> None:
    if missing:
        raise ValueError(
            f"{checkpoint}: lacks {_listing(missing)}; its label maps would be random. Fetch the checkpoint again if "
            f"it should be complete, or {remedy}"
        )


def _listing(names: Sequence[str]) -> str:
    # A stranger's names may be long, or no names at all.
    shown = ", ".join(repr(name[:120]) for name in names[:3])
    return f"{len(names)} weights ({shown}{', ...' if len(names) > 3 else ''})"


def _for_inference(model: Any) -> PreTrainedModel:
    device = PartialState(cpu=use_cpu()).device
    if device.type == "cpu":
        tune_allocator()
    return model.eval().to(device)


def preprocessing_of(processor: Any, where: str = PREPROCESSOR) -> Preprocessing:
    """What an image processor of transformers does with a photo, its size excepted.

    Args:
        processor: that [`read_segmenter`] has loaded.
        where: for messages.

    Raises:
        ValueError: see [`Preprocessing.of_processor`].
    """
    values = {key: getattr(processor, key, None) for key in ("image_mean", "image_std", "resample")}
    return Preprocessing.of_processor(values, where)


def trained_side(processor: Any, where: str) -> int | None:
    """Long side to which an image processor of a checkpoint `where` resizes, if that is what it does.

    Raises:
        ValueError: a side above [`MAX_SIDE`].
    """
    size = dict(processor.size or {}) if processor.do_resize else {}
    same = len({str(value) for value in size.values()}) == 1
    side = size.get("longest_edge") or (size.get("max_height") if same else None)
    if side is not None and not (isinstance(side, int) and 1 <= side <= MAX_SIDE):
        raise ValueError(f"{where}: {PREPROCESSOR}: size: got {str(side)[:80]}, expected 1 to {MAX_SIDE} pixels")
    return side
