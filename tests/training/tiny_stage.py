"""A training stage of milliseconds, for tests and, as a script, for processes that tests kill."""

import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from sbce_hf.config import TrainingConfig
from sbce_hf.training.loop import fit
from sbce_hf.training.optimization import sgd

CONFIG = {
    "epochs": 6,
    "batch_size": 4,
    "lr": 0.05,
    "num_workers": 0,
    "checkpoint_every": 4,
    "log_every": 3,
}


class NoisyDataset:
    """42 samples with noise from (seed, epoch, index), as the real one augments."""

    def __init__(self, images=42):
        self.images, self.epoch = images, 0

    def __len__(self):
        return self.images

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __getitem__(self, index):
        noise = np.random.default_rng([7, self.epoch, index]).standard_normal((3, 8, 8), np.float32)
        return {
            "pixel_values": torch.from_numpy(noise + index % 2),
            "labels": float(index % 2),
            "index": index,
            "epoch": self.epoch,
        }


class TinyModel(nn.Module):
    """Convolution, batch norm, dropout: everything whose state a restart could lose."""

    def __init__(self, dropout=0.3):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(dropout))
        self.head = nn.Linear(6, 1)

    def forward(self, pixel_values, labels):
        logits = self.head(self.features(pixel_values).mean(dim=(-2, -1)))[:, 0]
        return {"loss": F.binary_cross_entropy_with_logits(logits, labels.float()), "logits": logits}

    def save_pretrained(self, path):
        path.mkdir(parents=True)
        state = {key: value.contiguous() for key, value in self.state_dict().items()}
        save_file(state, path / "model.safetensors")


class TinyTask:
    class_names = ("even", "odd")

    def __init__(self, delay=0.0, fail_at=None, poison_at=None):
        self.delay, self.fail_at, self.poison_at = delay, fail_at, poison_at
        self.seen, self.epochs, self.windows = [], [], []
        # Windows checked, over all restarts.
        self.checked = 0

    def optimizer(self, model):
        self.groups = [
            {"params": model.features.parameters(), "lr": 0.05},
            {"params": model.head.parameters(), "lr": 0.5},
        ]
        return sgd(self.groups, self.config)

    def loss(self, model, batch, iteration):
        if iteration == self.fail_at:
            raise KeyboardInterrupt
        time.sleep(self.delay)
        self.epochs.append(set(batch["epoch"].tolist()))
        self.seen.append((iteration, sorted(batch["index"].tolist())))
        output = model(pixel_values=batch["pixel_values"], labels=batch["labels"])
        loss = output["loss"] * (float("nan") if iteration == self.poison_at else 1.0)
        odd = batch["labels"].double()
        present = torch.stack([1 - odd, odd]).sum(dim=1)
        index = batch["index"].double()
        return loss, {"loss": loss, "index": (torch.stack([(1 - odd) * index, odd * index]).sum(dim=1), present)}

    def check(self, window):
        self.windows.append(window)
        self.checked += 1

    def state(self):
        return {"checked": self.checked}

    def restore(self, state):
        self.checked = state["checked"]


def run(output_dir, task=None, dataset=None, model=None, seed=3, **config):
    torch.manual_seed(0)
    task = task or TinyTask()
    task.config = TrainingConfig(**{**CONFIG, **config})
    return fit(
        model or TinyModel(),
        task,
        dataset or NoisyDataset(),
        task.config,
        output_dir=Path(output_dir),
        seed=seed,
        name="tiny",
    )


if __name__ == "__main__":
    run(sys.argv[1], TinyTask(delay=0.02), num_workers=1)
