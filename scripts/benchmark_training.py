"""Speed of training, of its data path, of starting, and of counting: the plain or released way beside this library's.

python scripts/benchmark_training.py [--only losses counting] [--repeats 9]

Each pair does the same work in one process, the two in turn, on one thread; printed are medians of the CPU time. What
each pair returns is compared before it is timed.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

# Seconds below which a way is repeated.
SHORT = 0.02


class Pair(NamedTuple):
    """Two ways to the same result."""

    name: str
    plain: Callable[[], Any]
    ours: Callable[[], Any]


def main() -> None:
    """Print one line for each pair."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=COMPARISONS, default=list(COMPARISONS))
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()

    import torch

    from sbce_hf.runs.provenance import hardware, versions
    from sbce_hf.training.device import tune_allocator

    torch.set_num_threads(1)
    tune_allocator()
    print(f"{hardware()}, 1 thread, {', '.join(f'{name} {number}' for name, number in versions().items())}")
    for name in options.only:
        for pair in COMPARISONS[name]():
            check(pair)
            slow, fast = measure(pair, options.repeats)
            print(f"{pair.name}: {slow * 1000:.2f} ms / {fast * 1000:.2f} ms = {slow / fast:.1f}", flush=True)


def check(pair: Pair) -> None:
    """Both ways give the same.

    Raises:
        AssertionError: they do not.
    """
    import torch

    torch.testing.assert_close(pair.ours(), pair.plain(), rtol=1e-4, atol=1e-6)


def measure(pair: Pair, repeats: int) -> tuple[float, float]:
    """Median seconds of CPU time of both ways, run in turn; of what is short, several at once."""
    seconds: tuple[list[float], list[float]] = [], []
    for _ in range(repeats):
        for function, times in zip((pair.plain, pair.ours), seconds, strict=True):
            started, number = time.thread_time(), 0
            while not number or time.thread_time() - started < SHORT:
                function()
                number += 1
            times.append((time.thread_time() - started) / number)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def losses(batch: int = 12, classes: tuple[int, ...] = (20, 80), side: int = 47) -> list[Pair]:
    """Both terms of the weights phase and their gradient; one to three classes on an image."""
    return [_loss(batch, count, side) for count in classes]


def _loss(batch: int, classes: int, side: int) -> Pair:
    import torch

    from sbce_hf.models.losses_spatial_bce import weights_loss

    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(batch, classes, side, side, generator=generator).requires_grad_()
    labels = torch.zeros(batch, classes)
    for image, row in enumerate(labels):
        row[torch.randperm(classes, generator=generator)[: 1 + image % 3]] = 1
    shares = torch.rand(batch, classes, generator=generator).clamp(0.05, 0.95)

    def released() -> tuple[Any, Any]:
        # The released program: a loop over images and classes, a sort for each pair that is there.
        p = maps.sigmoid()
        terms = []
        for image in range(batch):
            for index in range(classes):
                values = p[image, index].flatten()
                if labels[image, index] == 0:
                    terms.append(-(1 - values).log().sum())
                    continue
                rank = int(shares[image, index] * values.numel())
                t = values.detach().sort(descending=True).values[rank]
                terms.append((1 - ((values - t) / torch.where(values > t, 1 - t, t)) ** 2).sum())
        m = p.mean(dim=(-2, -1))
        divergence = m * torch.log(m / shares) + (1 - m) * torch.log((1 - m) / (1 - shares))
        loss = torch.stack(terms).sum() / p.numel() + (labels * divergence).sum() / labels.sum()
        return loss.detach(), torch.autograd.grad(loss, maps)[0]

    def ours() -> tuple[Any, Any]:
        loss = sum(weights_loss(maps, labels, shares, "official"))
        return loss.detach(), torch.autograd.grad(loss, maps)[0]

    return Pair(f"loss and gradient ({batch}, {classes}, {side}, {side})", released, ours)


def counting(classes: int = 20, size: tuple[int, int] = (375, 500)) -> list[Pair]:
    """Pixels by true and predicted label: of a label map, and of class maps under ten thresholds."""
    import numpy as np
    from PIL import Image

    from sbce_hf.evaluation.confusion import confusion_matrix
    from sbce_hf.evaluation.scan import scan_fixed_threshold_on_ground_truth
    from sbce_hf.postprocess.rules import ClassMaps

    generator = np.random.default_rng(0)
    size_of_picture = size[::-1]

    def areas(values: Any) -> Any:
        return np.asarray(Image.fromarray(values).resize(size_of_picture, Image.Resampling.BICUBIC))

    # Outlines of blobs, not of blocks: as many changes as an object has rows.
    truth = np.where(areas(generator.random((9, 12), np.float32)) > 0.5, 4, 0).astype(np.uint8)
    truth[areas(generator.random((9, 12), np.float32)) > 0.7] = 8
    truth[:, :3] = 255
    logits = np.stack([areas(generator.standard_normal((12, 16), np.float32)) for _ in range(2)])
    prediction = np.array([4, 8, 0], np.uint8)[np.r_[logits, np.full_like(logits[:1], 0.3)].argmax(axis=0)]
    maps = ClassMaps("photo", np.array([3, 7]), logits, np.zeros(2, np.float32), np.ones(2, np.float32))

    def released(predicted: Any) -> Any:
        # The released program: three sums over the photo for each label.
        known = truth < 255
        right = (predicted == truth) * known
        sums = [
            (np.sum((predicted == c) * known), np.sum((truth == c) * known), np.sum((truth == c) * right))
            for c in range(classes + 1)
        ]
        return np.array(sums).T

    def sums(confusion: Any) -> Any:
        return np.array([confusion[:, : classes + 1].sum(axis=0), confusion.sum(axis=1), np.diagonal(confusion)])

    def released_scan(steps: Sequence[float]) -> Any:
        normalized = np.maximum(logits, 0) / logits.max(axis=(1, 2), keepdims=True)
        scores = np.zeros((classes + 1, *size), np.float32)
        scores[maps.classes + 1] = normalized
        found = []
        for step in steps:
            scores[0] = step
            found.append(released(scores.argmax(axis=0)))
        return np.stack(found)

    def scan(steps: Sequence[float]) -> Any:
        confusions = scan_fixed_threshold_on_ground_truth([maps], [truth], classes, steps).confusions
        return np.stack([sums(confusion) for confusion in confusions])

    one = Pair(
        f"counting one label map of {size_of_picture}: a loop over {classes + 1} labels / runs",
        lambda: released(prediction),
        lambda: sums(confusion_matrix(prediction, truth, classes)),
    )
    steps = tuple(round(0.05 * i, 2) for i in range(1, 11))
    name = f"counting {len(steps)} thresholds: the same for each / one pass"
    return [one, Pair(name, lambda: released_scan(steps), lambda: scan(steps))]


COMPARISONS: dict[str, Callable[[], list[Pair]]] = {"losses": losses, "counting": counting}


if __name__ == "__main__":
    main()
