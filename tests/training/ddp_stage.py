"""A classifier's stage on an in-memory set, run by one process and by torchrun's two."""

import sys
from pathlib import Path

import numpy as np
import torch

from sbce_hf.config import TrainingConfig
from sbce_hf.models.configuration_spatial_bce import SpatialBceConfig
from sbce_hf.models.modeling_spatial_bce import SpatialBceForImageClassification
from sbce_hf.training.classifier import ClassifierTask
from sbce_hf.training.loop import fit

CLASSES = ("cat", "dog", "cow")
IMAGES, BATCH, ITERATIONS = 40, 4, 20
NORMALIZATIONS = ("balanced", "official")


class FewPositives:
    """Three in five images have no label at all, so that a process's half of a batch often has none."""

    def __init__(self):
        generator = np.random.default_rng(0)
        self.labels = np.zeros((IMAGES, 3), np.float32)
        for index in range(0, IMAGES, 5):
            self.labels[index, generator.integers(3)] = 1
            self.labels[index + 1] = 1

    def __len__(self):
        return IMAGES

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __getitem__(self, index):
        pixels = np.random.default_rng([self.epoch, index]).standard_normal((3, 32, 32), np.float32)
        return {
            "pixel_values": torch.from_numpy(pixels),
            "labels": torch.from_numpy(self.labels[index]),
            "proportions": torch.from_numpy(self.labels[index].astype(np.float64) * (0.1 + 0.02 * (index % 10))),
            "index": index,
        }


def run(output_dir, normalization, accumulation=1):
    torch.manual_seed(0)
    model = SpatialBceForImageClassification(
        SpatialBceConfig(
            trunk="test_resnet", num_labels=3, normalization=normalization, logit_scale_init=2.0, initializer_range=0.2
        )
    )
    # Both phases, and four changes between them.
    config = TrainingConfig(
        epochs=2,
        batch_size=BATCH,
        lr=0.02,
        period=5,
        weights_iterations=3,
        num_workers=0,
        log_every=1,
        checkpoint_every=7,
        gradient_accumulation_steps=accumulation,
    )
    task = ClassifierTask("spatial", config, CLASSES)
    return fit(model, task, FewPositives(), config, output_dir=Path(output_dir), seed=0, name=normalization)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in NORMALIZATIONS:
        run(Path(sys.argv[1]) / name, name)
    run(Path(sys.argv[1]) / "accumulated", "official", accumulation=2)
