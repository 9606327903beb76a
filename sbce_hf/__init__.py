"""Image tags in, pixel-level label maps out: Adaptive Spatial-BCE for the Hugging Face ecosystem.

The public names load on first use, so that `import sbce_hf` (and with it `sbce --help`) stays instant. Importing it
changes nothing in the process; `import sbce_hf.models` registers the models with transformers' Auto classes.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_ROOMS = {
    "SpatialBceConfig": "models.configuration_spatial_bce",
    "SpatialBceForImageClassification": "models.modeling_spatial_bce",
    "SpatialBceModel": "models.modeling_spatial_bce",
    "SpatialBceImageProcessor": "models.image_processing_spatial_bce",
    "IrnConfig": "models.configuration_irn",
    "IrnModel": "models.modeling_irn",
    "DeepLabConfig": "models.configuration_deeplab",
    "DeepLabForSemanticSegmentation": "models.modeling_deeplab",
    "DeepLabModel": "models.modeling_deeplab",
    "DeepLabImageProcessor": "models.image_processing_deeplab",
    "load_trunk_weights": "models.modeling_trunk_weights",
    "RunConfig": "config",
    "load_recipe": "config",
    "load_images": "data",
    "label_images": "inference.classifier",
    "LabelStore": "labels.store",
    "MeanIoU": "evaluation.confusion",
    "train_classifier": "training.classifier",
    "train_segmenter": "training.segmenter",
    "train_boundary": "training.boundary",
    "random_walk": "postprocess.random_walk",
    "segment": "inference.segmenter",
    "predict_images": "inference.segmenter",
    "load_photos": "data.photos",
    "import_released": "importers.released",
    "import_trunk": "importers.trunks",
    "run": "runs.run",
    "images_from_lists": "data.lists",
    "register_source": "data",
    "TaggedImages": "data.schema",
    "label_photos": "runs.photos",
    "load_checkpoint": "demo.explain",
    "explain": "demo.explain",
    "evaluate_labels": "runs.single",
    "phase_losses": "models.losses_phases",
    "spatial_bce_loss": "models.losses_spatial_bce",
    "threshold_loss": "models.losses_spatial_bce",
    "proportion_kl": "models.losses_spatial_bce",
    "quantile_threshold": "models.losses_present_classes",
    "segmentation_loss": "models.losses_segmentation",
    "boundary_loss": "models.losses_irn",
    **dict.fromkeys(
        ("DataConfig", "TrainingConfig", "LabellingConfig", "CrfConfig", "PredictionConfig", "SegmenterConfig"),
        "config",
    ),
}

__all__ = ["__version__", *_ROOMS]


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
