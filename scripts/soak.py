"""Memory over time: label many small photos, then ask the page many times; exit status 1 if it grows.

    python scripts/soak.py [--photos 20000] [--questions 500] [--folder DIR]

The checkpoint is a small classifier with random weights, the photos are noise: what is held does not depend on either.
Labelling is flat if from the 2000th photo on (or the middle, of fewer) no sample lies more than 5 % above another; the
page, if after its first questions it holds at most 50 MB more.
"""

import argparse
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

# Resident bytes by what had been done.
Samples = list[tuple[int, int]]

SETTLED, GROWTH, PAGE_GROWTH = 2000, 0.05, 50 * 2**20
NAMES = {0: "cat", 1: "dog"}
WARM_UP = 30


def main() -> int:
    """Print one line per sample, and what came of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--photos", type=int, default=20_000)
    parser.add_argument("--questions", type=int, default=500, help="asked of the page")
    parser.add_argument("--folder", metavar="DIR", help="for photos and label maps; by default one that is removed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        checkpoint = _checkpoint(Path(folder))
        labelled = _label(checkpoint, Path(folder), options.photos)
        asked = _ask(checkpoint, Path(folder), options.questions)
    settled = [held for done, held in labelled if done >= min(SETTLED, options.photos // 2)]
    growth = max(settled) / min(settled) - 1
    kept = [held for done, held in asked if done >= min(WARM_UP, options.questions // 2)]
    page = max(kept) - kept[0]
    print(f"labelling: {100 * growth:.1f} % between samples of {len(settled)} (at most {100 * GROWTH:.0f} %)")
    print(f"page: {page / 2**20:.0f} MB more than at first (at most {PAGE_GROWTH >> 20} MB)")
    return int(growth > GROWTH or page > PAGE_GROWTH)


def _checkpoint(folder: Path) -> Path:
    from sbce_hf.models.configuration_spatial_bce import SpatialBceConfig
    from sbce_hf.models.modeling_spatial_bce import SpatialBceForImageClassification

    config = SpatialBceConfig(trunk="test_resnet", embedding_dim=8, id2label=NAMES)
    SpatialBceForImageClassification(config).save_pretrained(folder / "model")
    return folder / "model"


def _label(checkpoint: Path, folder: Path, count: int) -> Samples:
    import numpy as np
    from PIL import Image

    from sbce_hf.config import DataConfig, LabellingConfig
    from sbce_hf.data import load_images
    from sbce_hf.runs.single import label_with_checkpoint

    (folder / "photos" / "images").mkdir(parents=True)
    generator = np.random.default_rng(0)
    lines = ["file,tags"]
    for number in range(count):
        pixels = generator.integers(0, 255, (8, 8, 3), np.uint8)
        name = f"{number:06d}.jpg"
        Image.fromarray(pixels).resize((48, 40)).save(folder / "photos" / "images" / name)
        lines.append(f"{name},{NAMES[number % 2]}")
    (folder / "photos" / "tags.csv").write_text("\n".join(lines) + "\n")
    images = load_images(DataConfig(data_dir=str(folder / "photos")), "train")
    labelling = LabellingConfig(scales=(1.0,), batch_size=8, image_size=48, crf=None)

    def done() -> int:
        return sum(path.read_bytes().count(b"\n") for path in (folder / "labels").rglob("records-*.jsonl"))

    with _Watch("labelled", done) as watch:
        label_with_checkpoint(checkpoint, images, labelling, folder / "labels", True)
    return watch.samples


def _ask(checkpoint: Path, folder: Path, count: int) -> Samples:
    from gradio_client import Client, handle_file

    from sbce_hf.demo.page import LAUNCH, build_demo

    photo = sorted((folder / "photos" / "images").iterdir())[0]
    page = build_demo(str(checkpoint))
    page.launch(prevent_thread_lock=True, quiet=True, **LAUNCH)
    samples: Samples = []
    try:
        client = Client(page.local_url, verbose=False, download_files=False)
        for number in range(1, count + 1):
            client.predict(handle_file(str(photo)), list(NAMES.values()), False, number % 2 == 0, api_name="/label")
            if number % max(count // 20, 1) == 0 or number == WARM_UP:
                samples.append((number, _resident()))
                print(f"asked {number}: {samples[-1][1] / 2**20:.0f} MB", flush=True)
    finally:
        page.close()
    return samples


class _Watch:
    """Samples the resident memory every few seconds while something is done."""

    def __init__(self, what: str, done: Callable[[], int], seconds: float = 3.0) -> None:
        self.what, self.done, self.seconds = what, done, seconds
        self.samples: Samples = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._stop.wait(self.seconds):
            self._sample()

    def _sample(self) -> None:
        self.samples.append((self.done(), _resident()))
        print(f"{self.what} {self.samples[-1][0]}: {self.samples[-1][1] / 2**20:.0f} MB", flush=True)

    def __enter__(self) -> "_Watch":
        self.started = time.perf_counter()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._sample()
        print(f"{self.what}: {time.perf_counter() - self.started:.0f} seconds", flush=True)


def _resident() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024


if __name__ == "__main__":
    raise SystemExit(main())
