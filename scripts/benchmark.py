"""Speed: ratios of this library's way to the plain way, or with --gpu what training takes at the paper's size.

python scripts/benchmark.py [--trunk mobilenetv2_100] [--size 256] [--batch 16] [--repeats 5]
python scripts/benchmark.py --gpu [--trunk resnet38] [--size 369] [--batch 12] [--workers 8]

All in one process, medians of several runs. --gpu is the default where CUDA is; it runs on any device.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

# Name, 16-bit, channels-last, compiled.
VARIANTS = (
    ("float32", False, False, False),
    ("bfloat16", True, False, False),
    ("bfloat16, channels-last", True, True, False),
    ("bfloat16, channels-last, compiled", True, True, True),
)


def main() -> None:
    """Print one line per comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpu", action="store_true", help="measure training, by default of ResNet-38")
    parser.add_argument("--trunk")
    parser.add_argument("--size", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=8, help="processes that load images, with --gpu")
    options = parser.parse_args()

    import torch

    from sbce_hf.runs.provenance import hardware, versions

    options.gpu |= torch.cuda.is_available()
    for name, default in zip(
        ("trunk", "size", "batch"), ("resnet38", 369, 12) if options.gpu else ("mobilenetv2_100", 256, 16), strict=True
    ):
        setattr(options, name, getattr(options, name) or default)
    torch.manual_seed(0)
    shape = f"{options.trunk}, batch {options.batch}, {options.classes} classes, {options.size} x {options.size}"
    print(f"{hardware()}, {torch.get_num_threads()} threads, torch {versions()['torch']}, {shape}")
    if options.gpu:
        _measure_training(options)
        return
    name = f"IRN's walk, 2 classes, {options.size} x {options.size}: dense matrix squared 8 times / 256 steps"
    _compare(name, *_walks(options), options.repeats)
    _compare(
        "training step: contiguous, plain malloc / channels-last, tuned malloc", *_steps(options), options.repeats
    )


def _compare(name: str, plain: Callable[[], None], ours: Callable[[], None], repeats: int) -> None:
    # All plain runs first: the allocator cannot be tuned back.
    slow, fast = median(plain, repeats), median(ours, repeats)
    print(f"{name}: {slow * 1000:.1f} ms / {fast * 1000:.1f} ms = {slow / fast:.2f}")


def median(function: Callable[[], object], repeats: int) -> float:
    """Median seconds by the clock, after a first time."""
    function()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def _walks(options: argparse.Namespace) -> tuple[Callable[[], None], Callable[[], None]]:
    import torch

    from sbce_hf.postprocess.random_walk import random_walk

    side = options.size // 4
    maps, boundaries = torch.rand(2, side, side), torch.rand(side, side) ** 4
    # The matrix itself is not part of the plain way's time.
    rows = torch.eye(side**2).reshape(-1, side, side)
    transition = random_walk(rows, boundaries, steps=1).flatten(1)

    def squared() -> None:
        power = transition
        for _ in range(8):
            power = power @ power
        maps.flatten(1) @ power

    return squared, lambda: random_walk(maps, boundaries)


def _steps(options: argparse.Namespace) -> tuple[Callable[[], None], Callable[[], None]]:
    import torch

    from sbce_hf.training.classifier import create_classifier
    from sbce_hf.training.device import tune_allocator

    model = create_classifier({"trunk": options.trunk}, [str(index) for index in range(options.classes)]).train()
    images = torch.randn(options.batch, 3, options.size, options.size)
    labels = torch.eye(options.classes)[torch.arange(options.batch) % options.classes]
    proportions = labels * 0.2

    def step(layout: torch.memory_format) -> None:
        model.to(memory_format=layout)
        model(images.contiguous(memory_format=layout), labels, proportions).loss.backward()

    def tuned() -> None:
        tune_allocator()
        step(torch.channels_last)

    return lambda: step(torch.contiguous_format), tuned


def _measure_training(options: argparse.Namespace) -> None:
    import torch

    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    loss = median(_loss_alone(options, device), options.repeats)
    print(f"loss and its gradient alone, float32: {loss * 1000:.1f} ms")
    for name, half, channels_last, compiled in VARIANTS:
        torch.compiler.reset()
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        try:
            seconds = median(_training(options, device, half, channels_last, compiled), options.repeats)
        except RuntimeError as error:
            print(f"{name}: failed: {str(error).splitlines()[0]}")
            continue
        peak = f"{torch.cuda.max_memory_allocated() / 2**30:.2f} GiB" if device.type == "cuda" else "unknown"
        print(
            f"{name}: {options.batch / seconds:.1f} images/s, {seconds * 1000:.1f} ms a step of which the loss is "
            f"{loss / seconds:.1%}, peak memory {peak}"
        )
    waited, total = _waiting(options, device)
    print(f"bfloat16, channels-last, {options.workers} workers: {waited / total:.1%} of the time waits for images")


def _training(
    options: argparse.Namespace, device: Any, half: bool, channels_last: bool, compiled: bool
) -> Callable[..., None]:
    """A training step on a batch, or on random images where none is given."""
    import torch

    from sbce_hf.config import TrainingConfig
    from sbce_hf.training.classifier import create_classifier
    from sbce_hf.training.optimization import parameter_groups

    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = create_classifier({"trunk": options.trunk}, [str(index) for index in range(options.classes)]).train()
    model.to(device, memory_format=layout)
    optimizer = torch.optim.SGD(parameter_groups(model, TrainingConfig()), lr=1e-3, momentum=0.9)
    forward = torch.compile(model) if compiled else model
    synchronize = torch.accelerator.synchronize if device.type != "cpu" else lambda: None
    shown = torch.eye(options.classes)[torch.arange(options.batch) % options.classes]
    images = torch.randn(options.batch, 3, options.size, options.size)
    random = {"pixel_values": images, "labels": shown, "proportions": shown * 0.2}

    def step(batch: dict = random) -> None:
        images = batch["pixel_values"].to(device, memory_format=layout)
        labels, proportions = batch["labels"].to(device), batch["proportions"].to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            loss = forward(pixel_values=images, labels=labels, proportions=proportions).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        synchronize()

    return step


def _loss_alone(options: argparse.Namespace, device: Any) -> Callable[[], None]:
    import torch

    from sbce_hf.models.losses_spatial_bce import weights_loss

    side = options.size // 8
    logits = torch.randn(options.batch, options.classes, side, side, device=device, requires_grad=True)
    labels = torch.eye(options.classes, device=device)[torch.arange(options.batch) % options.classes]

    def run() -> None:
        sum(weights_loss(logits, labels, labels * 0.2)).backward()
        if device.type != "cpu":
            torch.accelerator.synchronize()

    return run


def _waiting(options: argparse.Namespace, device: Any) -> tuple[float, float]:
    """Seconds spent waiting for the loader, and in all, over images of the embedded example of the same size."""
    from torch.utils.data import DataLoader

    from sbce_hf.config import AugmentationConfig, DataConfig
    from sbce_hf.data import load_images
    from sbce_hf.data.transforms import TrainingDataset

    images = load_images(DataConfig(source="shapes", shapes_images=32, shapes_size=options.size), "train")
    options = argparse.Namespace(**{**vars(options), "classes": images.num_classes})
    step = _training(options, device, half=True, channels_last=True, compiled=False)
    dataset = TrainingDataset(images, options.size, AugmentationConfig(), 0, images.label_matrix() * 0.2)
    # Many, so that what the workers have loaded ahead of the first step hardly counts.
    count = 20 * options.repeats
    batches = [[(number * options.batch + i) % len(images) for i in range(options.batch)] for number in range(count)]
    pinned = device.type == "cuda"
    loader = iter(DataLoader(dataset, batch_sampler=batches, num_workers=options.workers, pin_memory=pinned))
    step(next(loader))
    waited, started = 0.0, time.perf_counter()
    before = started
    for batch in loader:
        waited += time.perf_counter() - before
        step(batch)
        before = time.perf_counter()
    return waited, before - started


if __name__ == "__main__":
    main()
