"""Image tags in, pixel-level label maps out: Adaptive Spatial-BCE for the Hugging Face ecosystem.

The public names load on first use, so that `import sbce_hf` (and with it `sbce --help`) stays instant.
"""

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
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
}

__all__ = ["__version__", *_ROOMS]


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)


def _register_config() -> None:
    from transformers.models.auto.configuration_auto import AutoConfig

    from .models.configuration_deeplab import DeepLabConfig
    from .models.configuration_irn import IrnConfig
    from .models.configuration_spatial_bce import SpatialBceConfig

    for config in (SpatialBceConfig, DeepLabConfig, IrnConfig):
        AutoConfig.register(config.model_type, config, exist_ok=True)


def _register_model() -> None:
    from transformers.models.auto import modeling_auto

    from .models.modeling_deeplab import DeepLabConfig, DeepLabForSemanticSegmentation, DeepLabModel
    from .models.modeling_irn import IrnConfig, IrnModel
    from .models.modeling_spatial_bce import SpatialBceConfig, SpatialBceForImageClassification, SpatialBceModel

    bases: dict[type, type] = {SpatialBceConfig: SpatialBceModel, DeepLabConfig: DeepLabModel, IrnConfig: IrnModel}
    for config, base in bases.items():
        modeling_auto.AutoModel.register(config, base, exist_ok=True)
    modeling_auto.AutoModelForImageClassification.register(
        SpatialBceConfig, SpatialBceForImageClassification, exist_ok=True
    )
    modeling_auto.AutoModelForSemanticSegmentation.register(
        DeepLabConfig, DeepLabForSemanticSegmentation, exist_ok=True
    )
    # The image segmentation pipeline knows no registered models and would log that it does not support this one.
    names = modeling_auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES
    names[DeepLabConfig.model_type] = DeepLabForSemanticSegmentation.__name__


def _register_image_processor() -> None:
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    from .models.configuration_deeplab import DeepLabConfig
    from .models.configuration_spatial_bce import SpatialBceConfig
    from .models.image_processing_deeplab import DeepLabImageProcessor
    from .models.image_processing_spatial_bce import SpatialBceImageProcessor

    processors: dict[type, type] = {
        SpatialBceConfig: SpatialBceImageProcessor,
        DeepLabConfig: DeepLabImageProcessor,
    }
    for config, processor in processors.items():
        AutoImageProcessor.register(config, image_processor_classes={"torchvision": processor}, exist_ok=True)


_REGISTRATIONS: dict[str, Callable[[], None]] = {
    "transformers.models.auto.configuration_auto": _register_config,
    "transformers.models.auto.modeling_auto": _register_model,
    "transformers.models.auto.image_processing_auto": _register_image_processor,
}


class _RegisterAfterImport(importlib.abc.MetaPathFinder):
    """Registers our classes once transformers' auto modules are imported, whichever package comes first.

    Registering at once would import torch, timm and transformers (seconds), and `sbce --help` must not wait for them.
    """

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Let the other finders find an auto module, and register when it has been executed."""
        register = _REGISTRATIONS.pop(name, None)
        spec = importlib.util.find_spec(name) if register else None
        if spec is None or spec.loader is None or register is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            register()

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


# The finder first: registering with one auto module imports our models, and these the other auto modules.
sys.meta_path.insert(0, _RegisterAfterImport())
for _name in [name for name in _REGISTRATIONS if name in sys.modules]:
    _REGISTRATIONS.pop(_name)()
