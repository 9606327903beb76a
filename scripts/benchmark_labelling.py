"""Speed of labelling: the dense CRF against pydensecrf, and labelling with everything against the bare network.

python scripts/benchmark_labelling.py [--only crf labelling] [--repeats 5] [--trunk mobilenetv2_100]

Both ways of a line do the same work in one process, in turn; printed are medians. Photos are those of the embedded
example with noise, at 500 x 375. On a machine with CUDA, `crf` is photos a second in batches on the GPU as well.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from benchmark import median
from benchmark_training import Pair, check, measure

if TYPE_CHECKING:
    from sbce_hf.data import TaggedImages

SIZE = (375, 500)
PARTS = ("crf", "labelling")


def main() -> None:
    """Print one line for each comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--trunk", default="mobilenetv2_100")
    parser.add_argument("--size", type=int, default=256, help="of the first view")
    parser.add_argument("--photos", type=int, default=32, help="to be labelled, and in a batch of the GPU's CRF")
    options = parser.parse_args()

    import torch

    from sbce_hf.runs.provenance import hardware, versions

    print(f"{hardware()}, {torch.get_num_threads()} threads, {', '.join(map(' '.join, versions().items()))}")
    if "crf" in options.only:
        for labels, shown in ((2, 2), (3, 3), (5, 5), (21, 21), (21, 3)):
            pair = crf(labels, shown)
            check(pair)
            slow, fast = measure(pair, options.repeats)
            print(f"{pair.name}: {slow * 1000:.0f} ms / {fast * 1000:.0f} ms = {slow / fast:.1f}", flush=True)
        if torch.cuda.is_available():
            _crf_on_the_gpu(options.photos, options.repeats)
    if "labelling" in options.only:
        _labelling(options.trunk, options.size, options.photos, options.repeats)


def _photo(seed: int = 0) -> np.ndarray:
    """Objects on a textured ground, as the embedded example draws them, with the noise of a camera."""
    image = np.asarray(_photos(seed + 1).image(seed).convert("RGB").resize(SIZE[::-1]), np.float32)
    return np.clip(image + np.random.default_rng(seed).normal(0, 6, image.shape), 0, 255).astype(np.uint8)


def _photos(count: int) -> "TaggedImages":
    from sbce_hf.config import DataConfig
    from sbce_hf.data import load_images

    return load_images(DataConfig(source="shapes", shapes_images=max(count, 8), shapes_size=SIZE[1]), "train")


def _patches(labels: int, shown: int, seed: int = 0) -> np.ndarray:
    """A label map in patches of 25 x 25 pixels."""
    chosen = np.arange(labels)[:: labels // shown][:shown]
    patches = np.random.default_rng(seed).choice(chosen, (15, 20)).astype(np.uint8)
    return np.kron(patches, np.ones((25, 25), np.uint8))


def crf(labels: int, shown: int) -> Pair:
    """Pydensecrf's CRF and numba's over a label map that shows some of the labels, on one core."""
    from sbce_hf.config import CrfConfig
    from sbce_hf.postprocess.crf import crf_probabilities

    image, indices = _photo(), _patches(labels, shown)

    def by(backend: Any) -> Callable[[], np.ndarray]:
        return lambda: crf_probabilities(image, indices, labels, CrfConfig(backend=backend))

    return Pair(
        f"CRF, {labels} labels of which {shown} are present, {SIZE[1]} x {SIZE[0]}: pydensecrf / numba",
        *map(by, ("pydensecrf", "numba")),
    )


def _crf_on_the_gpu(photos: int, repeats: int) -> None:
    import torch

    from sbce_hf.config import CrfConfig
    from sbce_hf.postprocess.crf import label_problem
    from sbce_hf.postprocess.lattice_torch import solve

    config = CrfConfig()
    problems = [label_problem(_photo(i % 8), _patches(3, 3, i), [0, 1], config) for i in range(photos)]
    given = [problem for problem in problems if problem is not None]
    seconds = median(lambda: solve(given, config, "cuda"), repeats)
    peak = torch.cuda.max_memory_allocated() / 2**30
    print(
        f"CRF, 3 labels, {SIZE[1]} x {SIZE[0]}, torch, batches of {photos}: {photos / seconds:.0f} photos/s with "
        f"transfers, peak memory {peak:.1f} GiB",
        flush=True,
    )


def _labelling(trunk: str, size: int, photos: int, repeats: int) -> None:
    """Wall and CPU time of labelling beside those of the bare forward passes, and of the CRF alone."""
    import torch

    from sbce_hf.config import CrfConfig, LabellingConfig
    from sbce_hf.inference.classifier import label_images
    from sbce_hf.training.classifier import create_classifier

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images = _photos(photos)
    model = create_classifier({"trunk": trunk}, list(images.class_names)).to(device).eval()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-arg]
    cores = os.cpu_count() or 1
    plain = LabellingConfig(image_size=size, scales=(1.0, 1.5), crf=None, threads=min(8, cores))
    sides = [round(size * scale) for scale in plain.scales]
    batches = [torch.randn(plain.batch_size, 3, side, side, device=device) for side in sides]
    batches = [batch.contiguous(memory_format=torch.channels_last) for batch in batches]

    @torch.inference_mode()
    def bare() -> None:
        # Each photo and its mirror image at each size.
        for _ in range(-(-2 * len(images) // plain.batch_size)):
            for batch in batches:
                model(batch, output_hidden_states=True, return_dict=True)
        if device.type == "cuda":
            torch.cuda.synchronize()

    def labelled(config: LabellingConfig) -> Callable[[], None]:
        def run() -> None:
            with tempfile.TemporaryDirectory() as folder:
                label_images(model, images, config, output_dir=Path(folder), key="benchmark")

        return run

    crfs = LabellingConfig(**{**vars(plain), "crf": CrfConfig(), "crf_workers": min(8, cores)})
    ways = {"bare forward passes": bare, "labelling without CRF": labelled(plain), "with CRF": labelled(crfs)}
    # In turn, as other load comes and goes.
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for number in range(repeats + 1):
        for name, function in ways.items():
            clock, busy = time.perf_counter(), time.process_time()
            function()
            if number:
                times[name].append((time.perf_counter() - clock, time.process_time() - busy))
    print(f"{trunk}, {len(images)} photos of {SIZE[1]} x {SIZE[1]}, views of {sides} and mirrored, {device.type}")
    for name, measured in times.items():
        seconds, work = (statistics.median(column) for column in zip(*measured, strict=True))
        print(
            f"{name}: {len(images) / seconds:.1f} photos/s, {seconds / len(images) * 1000:.0f} ms a photo, "
            f"{work / len(images) * 1000:.0f} ms of CPU",
            flush=True,
        )


if __name__ == "__main__":
    main()
