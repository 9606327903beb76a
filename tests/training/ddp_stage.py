"""Stages and labelling on small sets, run by one process and by torchrun's two."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState

from sbce_hf.config import BoundaryTrainingConfig, DataConfig, LabellingConfig, TrainingConfig
from sbce_hf.data import load_images
from sbce_hf.labels.label_maps import MaskLabels
from sbce_hf.models.configuration_spatial_bce import SpatialBceConfig
from sbce_hf.models.losses_phases import phase_losses
from sbce_hf.models.modeling_spatial_bce import SpatialBceForImageClassification
from sbce_hf.runs.single import label_with_checkpoint
from sbce_hf.training.boundary import create_boundary_network, train_boundary
from sbce_hf.training.classifier import ClassifierTask, create_classifier
from sbce_hf.training.loop import fit

CLASSES = ("cat", "dog", "cow")
IMAGES, BATCH, ITERATIONS = 40, 4, 20
# Name: kind, normalization, micro-batches, images, batch, iterations.
STAGES = {
    "balanced": ("spatial", "balanced", 1, IMAGES, BATCH, ITERATIONS),
    "official": ("spatial", "official", 1, IMAGES, BATCH, ITERATIONS),
    "accumulated": ("spatial", "official", 2, IMAGES, BATCH, ITERATIONS),
    # An odd share of every batch, and an epoch that leaves images over.
    "bce": ("bce", "balanced", 1, 37, 6, 24),
    "odd": ("spatial", "balanced", 1, 37, 6, 24),
    # Fewer images than a batch.
    "few": ("spatial", "balanced", 1, 10, 12, 20),
    # With a loss that is given from outside.
    "own": ("spatial", "balanced", 2, IMAGES, BATCH, ITERATIONS),
}
# One more than the processes can share equally.
LABELLED = DataConfig(source="shapes", shapes_images=13, shapes_size=48)


class FewPositives:
    """Three in five images have no label at all, so that a process's half of a batch often has none."""

    def __init__(self, images=IMAGES):
        generator = np.random.default_rng(0)
        self.labels = np.zeros((images, 3), np.float32)
        for index in range(0, images, 5):
            self.labels[index, generator.integers(3)] = 1
            self.labels[index + 1 : index + 2] = 1

    def __len__(self):
        return len(self.labels)

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


def given_loss(*, phase, **given):
    """The model's own, logged by the name of its phase."""
    loss = phase_losses(phase=phase, **given)["loss"]
    return {"loss": loss, f"{phase}_loss": loss}


def run(output_dir, name, **changes):
    kind, normalization, accumulation, images, batch, iterations = STAGES[name]
    torch.manual_seed(0)
    model = SpatialBceForImageClassification(
        SpatialBceConfig(
            trunk="test_resnet", num_labels=3, normalization=normalization, logit_scale_init=2.0, initializer_range=0.2
        )
    )
    # Both phases, and four changes between them.
    config = TrainingConfig(
        epochs=iterations // (images // min(batch, images)),
        batch_size=batch,
        lr=0.02,
        period=5,
        weights_iterations=3,
        num_workers=0,
        log_every=1,
        checkpoint_every=7,
        gradient_accumulation_steps=accumulation,
    )
    task = ClassifierTask(kind, config, CLASSES, iterations, loss=given_loss if name == "own" else None)
    config = replace(config, **changes)
    return fit(model, task, FewPositives(images), config, output_dir=Path(output_dir), seed=0, name=kind)


def boundary(output_dir):
    """Twenty steps of the boundary network on seeds of which halves of batches often have no pair of some kind."""
    images = load_images(replace(LABELLED, score_split="train"), "train")

    class Sparse(MaskLabels):
        def read(self, image_id):
            number = images.image_ids.index(image_id)
            mask = super().read(image_id).copy()
            if number % 3:
                mask[(mask > 0) if number % 3 == 1 else (mask == 0)] = 255
            return mask

    fields = {"trunk": "test_resnet", "side_channels": 8, "radius": 4}
    sizes = {"crop_size": 48, "min_scale": 1.0, "max_scale": 1.0}
    config = BoundaryTrainingConfig(epochs=7, batch_size=4, lr=0.2, num_workers=0, log_every=1, **sizes)
    return train_boundary(
        create_boundary_network(fields, "random"), images, Sparse(images), config, output_dir=Path(output_dir)
    )


def label(output_dir):
    """Label with untrained weights of a fixed seed; without the CRF, whose workers would import this file."""
    process = PartialState(cpu=True)
    images = load_images(LABELLED, "train")
    checkpoint = Path(output_dir) / "checkpoint"
    create_classifier({"trunk": "test_resnet"}, images.class_names).save_pretrained(checkpoint)
    process.wait_for_everyone()
    labelling = LabellingConfig(scales=(1.0,), batch_size=4, crf=None)
    return label_with_checkpoint(checkpoint, images, labelling, Path(output_dir) / "labels")


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    for stage in STAGES:
        run(folder / stage, stage)
    boundary(folder / "boundary")
    try:
        run(folder / "refused", "balanced", batch_size=5)
    except ValueError as error:
        (folder / f"refused_{torch.distributed.get_rank()}.txt").write_text(str(error))
    label(folder)
    # The other process sees an old folder: without what was finished or begun.
    rank, own = torch.distributed.get_rank(), folder / f"view_{torch.distributed.get_rank()}"
    if rank == 0:
        shutil.copytree(folder / "bce", own)
    before = run(own, "bce")
    (folder / f"finished_{rank}.txt").write_text(f"{before.iterations} {(own / 'checkpoints').exists()}")
