"""What the tests of hostile checkpoints share: a small model of each kind, and what a stranger does to it."""

import json
import shutil

from huggingface_hub.errors import StrictDataclassError

from sbce_hf.inference.checkpoints import load_classifier, load_segmenter
from sbce_hf.models.configuration_deeplab import DeepLabConfig
from sbce_hf.models.configuration_irn import IrnConfig
from sbce_hf.models.configuration_spatial_bce import SpatialBceConfig
from sbce_hf.models.modeling_deeplab import DeepLabForSemanticSegmentation
from sbce_hf.models.modeling_irn import IrnModel
from sbce_hf.models.modeling_spatial_bce import SpatialBceForImageClassification

NAMES = {"id2label": {0: "background", 1: "cat"}, "label2id": {"background": 0, "cat": 1}}
MODELS = {
    "classifier": lambda: SpatialBceForImageClassification(
        SpatialBceConfig(trunk="test_resnet", embedding_dim=8, id2label={0: "cat"}, label2id={"cat": 0})
    ),
    "irn": lambda: IrnModel(IrnConfig(trunk="test_resnet", side_channels=8)),
    "deeplab": lambda: DeepLabForSemanticSegmentation(
        DeepLabConfig(trunk="test_resnet", head="largefov", head_channels=8, **NAMES)
    ),
}
LOADERS = {"classifier": load_classifier, "deeplab": load_segmenter}
REFUSALS = (ValueError, StrictDataclassError)
# Everything together may not take more, in bytes; the process has loaded torch before.
MEMORY = 400 * 2**20


def planted(value, bait):
    """The value with the bait's path in place of the word."""
    if isinstance(value, dict):
        return {key: planted(part, bait) for key, part in value.items()}
    if isinstance(value, list):
        return [planted(part, bait) for part in value]
    return value.replace("BAIT", str(bait)) if isinstance(value, str) else value


def copy_with(source, target, fields):
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | fields))
    return target
