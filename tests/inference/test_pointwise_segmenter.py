"""Segmentation networks that look at single pixels: what windows, memory and the CRF's queue do to their answers."""

import ctypes
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers.modeling_outputs import SemanticSegmenterOutput

from sbce_hf.config import CrfConfig, PredictionConfig
from sbce_hf.data.preprocessing import IMAGENET
from sbce_hf.inference import segmenter as segmentation
from sbce_hf.inference.segmenter import segment

PLAIN = PredictionConfig(flip=False)


class Pointwise(torch.nn.Module):
    """A network that looks at single pixels, and so does not see where a window ends; stride 1."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, num_labels=4):
        super().__init__()
        self.config = SimpleNamespace(
            num_labels=num_labels, id2label=dict(enumerate(["background", "ant", "bee", "cat"]))
        )
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.randn(num_labels, 3, 1, 1, generator=generator)

    def forward(self, pixel_values, return_dict):
        return SemanticSegmenterOutput(logits=F.conv2d(pixel_values, self.weight))


@pytest.mark.parametrize("batch_size", [1, 4, 64])
@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.5])
def test_windows_of_a_pointwise_network_are_the_whole_image(overlap, batch_size):
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (150, 201, 3), dtype=np.uint8))
    config = replace(PLAIN, flip=True, overlap=overlap, batch_size=batch_size)
    windowed = segment(Pointwise(), photo, replace(config, window=64))
    assert np.allclose(windowed, segment(Pointwise(), photo, config), atol=1e-6)


def memory(field):
    """A field of /proc/self/status in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measures memory as Linux does")
def test_memory_does_not_grow_with_the_height_times_the_classes():
    height, labels = 8000, 100
    photo = Image.effect_noise((64, height), 90).convert("RGB")
    whole = labels * height * 64 * 4 / 2**20
    used = []
    for config in (replace(PLAIN, window=64, overlap=0.25, batch_size=1), PLAIN):
        # What earlier tests have freed is given back, or it would be used again unseen.
        getattr(ctypes.CDLL(None), "malloc_trim", id)(0)
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts afresh
        before = memory("VmRSS")
        item = segmentation._predict(Pointwise(labels), "tall", photo, config, IMAGENET, crf=None)
        used.append(memory("VmHWM") - before)
        assert item.label_maps[0]().shape == (height, 64)
    assert used[0] < whole / 3, f"{used[0]:.0f} MiB, all probabilities are {whole:.0f}"
    assert used[1] > whole, "without a window they are all held: the test would see it"


def test_probabilities_in_the_queue_of_the_crf_are_bounded(monkeypatch):
    config = PredictionConfig(window=64, flip=False, crf=CrfConfig(iterations=1), crf_workers=1)
    photo = Image.effect_noise((64, 2000), 90).convert("RGB")
    with segmentation.CrfPool(config.crf, 1) as pool:
        waiting = []
        submit = pool._executor.submit

        def spy(*arguments):
            waiting.append(pool._executor._work_queue.qsize())
            return submit(*arguments)

        monkeypatch.setattr(pool._executor, "submit", spy)
        item = segmentation._predict(Pointwise(), "tall", photo, config, IMAGENET, crf=pool)
        assert len(item.label_maps) == 2 and len(waiting) > 50 and max(waiting) <= 2


def test_outputs_that_are_no_segmentation():
    class Odd(Pointwise):
        def forward(self, pixel_values, return_dict):
            return SemanticSegmenterOutput(logits=self.answer)

    model, photo = Odd(), Image.new("RGB", (80, 60))
    for answer, message in (
        (None, "got none"),
        (torch.zeros(1, 4), r"\(1, 4\).*batch, 4"),
        (torch.zeros(1, 3, 8, 8), "3"),
    ):
        model.answer = answer
        with pytest.raises(ValueError, match=message):
            segment(model, photo, PLAIN)
    model.answer = torch.full((1, 4, 8, 8), torch.nan)
    with pytest.raises(ValueError, match="not finite"):
        segment(model, photo, PLAIN)
