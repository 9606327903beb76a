"""Every mode and number of a run, as checked dataclasses read from YAML.

Nothing in this room imports anything heavy, so that a wrong key is reported before torch is loaded. Each other room
takes the part that concerns it; only the files that see a run as a whole take a [`RunConfig`].
"""

from .affinity import AffinityConfig
from .data import AugmentationConfig, DataConfig
from .labelling import (
    CrfConfig,
    GuardConfig,
    IrnRefinementConfig,
    LabellingConfig,
    PredictionConfig,
    ProportionConfig,
)
from .parsing import check_keys, deciding, from_mapping, merge, parse_override, to_mapping
from .recipes import OFFICIAL, RECIPES, load_recipe, recipe_path
from .run import RunConfig, SegmenterConfig
from .saliency import SaliencyConfig
from .training import (
    BoundaryTrainingConfig,
    CropTrainingConfig,
    LoopConfig,
    SegmenterTrainingConfig,
    TrainingConfig,
)

__all__ = [
    "OFFICIAL",
    "RECIPES",
    "AffinityConfig",
    "AugmentationConfig",
    "BoundaryTrainingConfig",
    "CrfConfig",
    "CropTrainingConfig",
    "DataConfig",
    "GuardConfig",
    "IrnRefinementConfig",
    "LabellingConfig",
    "LoopConfig",
    "PredictionConfig",
    "ProportionConfig",
    "RunConfig",
    "SaliencyConfig",
    "SegmenterConfig",
    "SegmenterTrainingConfig",
    "TrainingConfig",
    "check_keys",
    "deciding",
    "from_mapping",
    "load_recipe",
    "merge",
    "parse_override",
    "recipe_path",
    "to_mapping",
]
