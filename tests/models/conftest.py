import pytest
import torch
from hostile_models import MODELS
from safetensors.torch import save_file

from sbce_hf.models.image_processing_deeplab import DeepLabImageProcessor


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """One checkpoint of each model, as a training leaves it."""
    folder = tmp_path_factory.mktemp("good")
    for kind, build in MODELS.items():
        build().save_pretrained(folder / kind)
    DeepLabImageProcessor().save_pretrained(folder / "deeplab")
    return folder


@pytest.fixture
def bait(tmp_path):
    path = tmp_path / "bait" / "secret.safetensors"
    path.parent.mkdir()
    save_file({"a": torch.zeros(1)}, path)
    return path
