"""What travels to the Hub inside a checkpoint: models, losses, image processing. Imports nothing of ours.

Importing this package registers the models with transformers' Auto classes, so that their checkpoints load without
`trust_remote_code`.
"""

from typing import Any

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES

from .configuration_deeplab import DeepLabConfig
from .configuration_irn import IrnConfig
from .configuration_spatial_bce import SpatialBceConfig
from .image_processing_deeplab import DeepLabImageProcessor
from .image_processing_spatial_bce import SpatialBceImageProcessor
from .modeling_deeplab import DeepLabForSemanticSegmentation, DeepLabModel
from .modeling_irn import IrnModel
from .modeling_spatial_bce import SpatialBceForImageClassification, SpatialBceModel

_BASES: dict[Any, type] = {SpatialBceConfig: SpatialBceModel, DeepLabConfig: DeepLabModel, IrnConfig: IrnModel}
for _config, _model in _BASES.items():
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModel.register(_config, _model, exist_ok=True)
AutoModelForImageClassification.register(SpatialBceConfig, SpatialBceForImageClassification, exist_ok=True)
AutoModelForSemanticSegmentation.register(DeepLabConfig, DeepLabForSemanticSegmentation, exist_ok=True)
_PROCESSORS: dict[Any, type] = {SpatialBceConfig: SpatialBceImageProcessor, DeepLabConfig: DeepLabImageProcessor}
for _config, _processor in _PROCESSORS.items():
    AutoImageProcessor.register(_config, image_processor_classes={"torchvision": _processor}, exist_ok=True)
# The image segmentation pipeline knows no registered models and would log that it does not support this one.
MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES[DeepLabConfig.model_type] = DeepLabForSemanticSegmentation.__name__
