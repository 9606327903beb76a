"""Ratios of this library's way to the plain way, both in one process, median of several runs.

python scripts/benchmark.py [--trunk mobilenetv2_100] [--size 256] [--batch 16] [--repeats 5]
"""

import argparse
import statistics
import time
from collections.abc import Callable


def main() -> None:
    """Print one line per comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trunk", default="mobilenetv2_100")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()

    import torch

    from sbce_hf.provenance import hardware, versions

    torch.manual_seed(0)
    shape = f"batch {options.batch}, {options.classes} classes, {options.size} x {options.size}, float32"
    print(f"{hardware()}, {torch.get_num_threads()} threads, torch {versions()['torch']}, {shape}")
    _compare("loss and gradient: loop over pairs / vectorised", *_losses(options), options.repeats)
    _compare(
        "training step: contiguous, plain malloc / channels-last, tuned malloc", *_steps(options), options.repeats
    )


def _compare(name: str, plain: Callable[[], None], ours: Callable[[], None], repeats: int) -> None:
    # All plain runs first: the allocator cannot be tuned back.
    slow, fast = _median(plain, repeats), _median(ours, repeats)
    print(f"{name}: {slow * 1000:.1f} ms / {fast * 1000:.1f} ms = {slow / fast:.2f}")


def _median(function: Callable[[], None], repeats: int) -> float:
    function()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def _losses(options: argparse.Namespace) -> tuple[Callable[[], None], Callable[[], None]]:
    import torch
    import torch.nn.functional as F

    from sbce_hf.models.losses_spatial_bce import spatial_bce_loss

    side = options.size // 8
    logits = torch.randn(options.batch, options.classes, side, side, requires_grad=True)
    labels = (torch.rand(options.batch, options.classes) < 0.1).float()
    proportions = torch.rand(options.batch, options.classes).clamp(0.05, 0.95)

    def loop() -> None:
        total = logits.new_zeros(())
        for maps, present, shares in zip(logits, labels, proportions, strict=True):
            for pixels, label, share in zip(maps, present, shares, strict=True):
                if label == 0:
                    total = total + F.softplus(pixels).sum()
                    continue
                p = pixels.sigmoid().flatten()
                t = p.detach().sort(descending=True).values[int(share * p.numel())]
                total = total + (1 - ((p - t) / torch.where(p > t, 1 - t, t)) ** 2).sum()
        (total / logits.numel()).backward()

    def vectorised() -> None:
        spatial_bce_loss(logits, labels, proportions, "official").backward()

    return loop, vectorised


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


if __name__ == "__main__":
    main()
