"""Speed of training, of its data path, of starting, and of counting: the plain or released way beside this library's.

python scripts/benchmark_training.py [--only losses counting] [--repeats 9]

Each pair does the same work in one process, the two in turn, on one thread; printed are medians of the CPU time. What
each pair returns is compared. Longer than 300 lines, because the plain way of each comparison stands here in full.
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
    # All plain runs first, and the first plain one before all: what the other does to the process cannot be undone.
    in_turn: bool = True
    # Its threads count.
    threads: bool = False
    # Relative and absolute difference of what both return.
    rtol: float = 1e-4
    atol: float = 1e-6


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
    print(f"{hardware()}, 1 thread, {', '.join(f'{name} {number}' for name, number in versions().items())}")
    for name in options.only:
        for pair in COMPARISONS[name]():
            if pair.in_turn:
                tune_allocator()
            slow, fast = measure(pair, options.repeats)
            check(pair)
            print(f"{pair.name}: {slow * 1000:.2f} ms / {fast * 1000:.2f} ms = {slow / fast:.1f}", flush=True)


def check(pair: Pair) -> None:
    """Both ways give the same.

    Raises:
        AssertionError: they do not.
    """
    import torch

    plain = pair.plain()
    found = pair.ours()
    if isinstance(plain, str):
        assert found == plain
        return
    torch.testing.assert_close(found, plain, rtol=pair.rtol, atol=pair.atol)


def measure(pair: Pair, repeats: int) -> tuple[float, float]:
    """Median seconds of CPU time of both ways, run in turn; of what is short, several at once."""
    ways = (pair.plain, pair.ours)
    order = [0, 1] * repeats if pair.in_turn else [0] * repeats + [1] * repeats
    seconds: tuple[list[float], list[float]] = [], []
    clock = time.process_time if pair.threads else time.thread_time
    pair.plain()
    for way in order:
        if way and not seconds[way]:
            pair.ours()
        started, number = clock(), 0
        while not number or clock() - started < SHORT:
            ways[way]()
            number += 1
        seconds[way].append((clock() - started) / number)
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


def loading(photos: int = 16, size: int = 369) -> list[Pair]:
    """Training samples of photos of 500 x 375: as the released program makes them, and as ours do."""
    import io

    import numpy as np
    import torch
    from datasets import Dataset
    from PIL import Image, ImageEnhance

    from sbce_hf.config import AugmentationConfig, DataConfig
    from sbce_hf.data.preprocessing import IMAGENET
    from sbce_hf.data.schema import features
    from sbce_hf.data.transforms import TrainingDataset
    from sbce_hf.data.validation import checked_images
    from sbce_hf.training.device import tune_allocator

    generator = np.random.default_rng(0)
    files = []
    for _ in range(photos):
        coarse = Image.fromarray(generator.integers(0, 256, (30, 40, 3), np.uint8))
        noise = generator.integers(-12, 13, (375, 500, 3))
        values = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC)) + noise
        stream = io.BytesIO()
        Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=90)
        files.append(stream.getvalue())
    rows = {"image_id": [str(index) for index in range(photos)], "labels": [[0]] * photos}
    rows["image"] = [{"bytes": content, "path": None} for content in files]
    dataset = Dataset.from_dict(rows, features=features(["cup"], with_mask=False))
    images = checked_images(dataset, ["cup"], DataConfig(source="hub", dataset="benchmark", score_split=None), "train")
    augmentation = AugmentationConfig(flip=False)
    samples = TrainingDataset(images, size, augmentation, seed=0)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET.mean, IMAGENET.std))
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)

    def plain() -> Any:
        batch = []
        for index, content in enumerate(files):
            image = Image.open(io.BytesIO(content)).convert("RGB")
            image = image.resize((size, size), Image.Resampling.BILINEAR)
            draw = np.random.default_rng([0, 0, index])
            low = max(0.0, 1 - augmentation.color_jitter)
            factors = draw.uniform(low, 1 + augmentation.color_jitter, size=3)
            for which in draw.permutation(3):
                image = enhancers[which](image).enhance(float(factors[which]))
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float() / 255
            batch.append((pixels - mean) / std)
        return batch

    def ours() -> Any:
        tune_allocator()
        return [samples[index]["pixel_values"] for index in range(photos)]

    name = f"loading {photos} photos with jittered colours: the usual steps, plain malloc / here, freed memory kept"
    return [Pair(name, plain, ours, in_turn=False)]


def starting(photos: int = 300, side: tuple[int, int] = (500, 375)) -> list[Pair]:
    """Reading a folder of photos: decoding each, as the first start does, and as later ones do."""
    import tempfile
    from pathlib import Path

    import numpy as np
    from PIL import Image

    from sbce_hf.config import DataConfig
    from sbce_hf.data import known_photos, load_images

    folder = Path(tempfile.mkdtemp())
    (folder / "images").mkdir()
    generator = np.random.default_rng(0)
    for index in range(photos):
        coarse = Image.fromarray(generator.integers(0, 256, (30, 40, 3), np.uint8))
        coarse.resize(side, Image.Resampling.BICUBIC).save(folder / "images" / f"{index}.jpg", quality=90)
    (folder / "tags.csv").write_text("file,tags\n" + "".join(f"{index}.jpg,cup\n" for index in range(photos)))
    config = DataConfig(source="folder", data_dir=str(folder), score_split=None)

    def start(memory: Path) -> str:
        before, known_photos.FOLDER = known_photos.FOLDER, memory
        try:
            return load_images(config, "train").manifest_hash
        finally:
            known_photos.FOLDER = before

    # A file is no folder, so nothing can be kept in it.
    name = f"starting with {photos} photos of {side}: each decoded / each remembered"
    nothing, memory = folder / "tags.csv" / "memory", folder / "memory"
    return [Pair(name, lambda: start(nothing), lambda: start(memory), threads=True)]


TRUNKS: tuple[dict[str, Any], ...] = (
    {"trunk": "resnet18"},
    {"trunk": "mobilenetv2_100", "output_stride": 8},
    {"trunk": "tf_efficientnet_lite2"},
    {"trunk": "convnext_tiny"},
)


def precision(trunks: Sequence[dict[str, Any]] = TRUNKS, size: int = 256, batch: int = 4) -> list[Pair]:
    """A training step in float32 and in what `mixed_precision: auto` chooses, both channels-last."""
    return [_step(trunk, size, batch) for trunk in trunks]


def _step(values: dict[str, Any], size: int, batch: int) -> Pair:
    import torch

    from sbce_hf.config import LoopConfig
    from sbce_hf.training.classifier import create_classifier
    from sbce_hf.training.depthwise import quick_depthwise
    from sbce_hf.training.device import resolved

    model = create_classifier(values, [str(index) for index in range(20)]).train()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-arg]
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, size, size, generator=generator).to(memory_format=torch.channels_last)
    labels = torch.eye(20)[torch.arange(batch)]
    chosen = resolved(LoopConfig(mixed_precision="auto")).mixed_precision

    def step(half: bool) -> Any:
        model.zero_grad()
        with (
            torch.autocast("cpu", torch.bfloat16, enabled=half),
            quick_depthwise(model, chosen if half else "no", "cpu"),
        ):
            loss = model(images, labels, labels * 0.2).loss
            loss.backward()
        return loss.detach()

    what = ", ".join(str(value) for value in values.values())
    name = f"training step, {what}, {batch} x {size} x {size}: float32 / auto, here {chosen}"
    return Pair(name, lambda: step(False), lambda: step(chosen == "bf16"), rtol=0.05)


# What changes the process comes first.
COMPARISONS: dict[str, Callable[[], list[Pair]]] = {
    "loading": loading,
    "losses": losses,
    "counting": counting,
    "starting": starting,
    "precision": precision,
}


if __name__ == "__main__":
    main()
