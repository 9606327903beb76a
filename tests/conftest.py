import os
from collections import Counter
from pathlib import Path

import pytest
from slow import SLOW

REPOSITORY = Path(__file__).parent.parent
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def pytest_collection_modifyitems(items):
    for item in items:
        test = item.nodeid.partition("[")[0]
        if test in SLOW or test.partition("::")[0] in SLOW:
            item.add_marker("slow")
    # Files go to processes in this order: those with most of the slow tests first, so that none is left for the end.
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(scope="session")
def golden_dir():
    """Numbers of the released program that travel with the repository."""
    return Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def shared_dir():
    """Photos, weights and larger golden files, which do not travel with the repository."""
    path = Path(os.environ.get("SBCE_SHARED", REPOSITORY.parent / "shared"))
    if not path.is_dir():
        pytest.skip(f"{path} is absent; set SBCE_SHARED to the folder with the shared data")
    return path


@pytest.fixture(scope="session", autouse=True)
def known_photos(tmp_path_factory):
    """What is remembered of photos stays out of the home of whoever tests."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("known_photos")
        patch.setattr("sbce_hf.data.known_photos.FOLDER", folder)
        yield folder


TINY_RECIPE = """
data: {source: shapes, train_split: train, score_split: train, shapes_images: 12, shapes_size: 48}
trunk_weights: random
model: {trunk: test_resnet, freeze_batch_norm: false, frozen_reduction: 0, embedding_dim: 8, logit_scale_init: 1.0}
bce: &stage
  {epochs: 2, batch_size: 4, image_size: 48, lr: 0.01, num_workers: 0, checkpoint_every: 2, log_every: 2, period: 3,
   weights_iterations: 2}
spatial: *stage
rounds: 2
labelling: {scales: [1.0], batch_size: 4, crf_workers: 1, crf: {iterations: 2}}
contact_images: 2
# What so little training gives is mostly harm.
guard: null
"""


@pytest.fixture(scope="session")
def tiny_recipe(tmp_path_factory):
    """A recipe file that runs in seconds."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(TINY_RECIPE)
    return path
