"""Kill a run again and again and start it anew: it has to end with the bytes of a run that nobody disturbed.

    python scripts/kills.py [--kills 30] [--seed 0] [--folder DIR]

The run is a small one with every kind of stage: stage 0, two rounds, the best constant, IRN, saliency maps and three
segmentation networks, with a guard so strict that each stage keeps some class from before. SIGKILL comes at random
moments up to a quarter of the undisturbed run's time after each start; a run that has ended is compared, and the next
one begins, until there were as many kills. A table counts them by what was being made; the status is 1 if any file
differs from the undisturbed run's: label maps, weights, proportions, scores, what was kept.
"""

import argparse
import collections
import contextlib
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TRAINING = {"epochs": 4, "batch_size": 4, "num_workers": 0, "checkpoint_every": 2, "log_every": 2}
STAGE = {**TRAINING, "image_size": 48, "lr": 0.01, "period": 6, "weights_iterations": 4}
RECIPE = {
    "data": {
        "source": "shapes",
        "train_split": "train",
        "score_split": "train",
        "shapes_images": 40,
        "shapes_size": 48,
    },
    "trunk_weights": "random",
    "model": {
        "trunk": "test_resnet",
        "freeze_batch_norm": False,
        "frozen_reduction": 0,
        "embedding_dim": 8,
        "logit_scale_init": 1.0,
    },
    "bce": STAGE,
    "spatial": STAGE,
    "rounds": 2,
    "labelling": {
        "rule": "peak",
        "confidence_weight": 0.5,
        "object_weight": 2.0,
        "scales": [1.0],
        "batch_size": 4,
        "crf_workers": 1,
        "crf": {"iterations": 2},
    },
    "irn": {
        "model": {"trunk": "test_resnet", "side_channels": 8, "radius": 4},
        "training": {**TRAINING, "epochs": 2, "crop_size": 48},
    },
    "segmenter": {
        "model": {"head": "largefov", "atrous_rates": [2], "head_channels": 16, "freeze_batch_norm": False},
        "training": {**TRAINING, "epochs": 1, "crop_size": 48},
        "score_split": "val",
        "compare": ["bce", "mask"],
    },
    # A class that covers a little less than before is kept from there.
    "guard": {"min_coverage": 1.0, "min_refined": 1.0, "least_images": 1},
    "contact_images": 2,
}
# What two runs that end alike have alike; clocks, versions and starts are in other files.
PATTERNS = (
    *("*.png", "*.safetensors", "*.parquet"),
    *("scores.json", "quality.json", "guard.json", "scan.json", "confidence.json"),
)


def main() -> int:
    """Run undisturbed, then killed, and compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--folder", metavar="DIR", help="for the runs; by default one that is removed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        return _compare(Path(folder), options.kills, random.Random(options.seed))


def _compare(folder: Path, kills: int, generator: random.Random) -> int:
    recipe = _recipe(folder)
    started = time.perf_counter()
    expected = folder / "undisturbed"
    _start(recipe, expected).wait()
    whole = time.perf_counter() - started
    truth = digests(expected)
    print(f"undisturbed: {whole:.0f} seconds, {len(truth)} files compared", flush=True)
    hit: collections.Counter[str] = collections.Counter()
    wrong = 0
    while hit.total() < kills:
        run_dir = folder / f"killed{hit.total()}"
        while hit.total() < kills and (place := _killed(recipe, run_dir, generator.uniform(0, whole / 4))) is not None:
            stage = place.rpartition("/")[0].split("/labels")[0].split("/model")[0].split("/checkpoints")[0]
            hit[stage or "start and end"] += 1
            print(f"kill {hit.total()}: last written {place}", flush=True)
        status = _start(recipe, run_dir).wait()
        wrong += _differs(truth, run_dir, status)
    print("\n".join(f"{stage:<24}{count:>4} kills" for stage, count in hit.items()))
    return int(wrong > 0)


def _killed(recipe: Path, run_dir: Path, seconds: float) -> str | None:
    """Start, kill, and say what was written last; `None` if the run has ended before."""
    process = _start(recipe, run_dir)
    # Before the folder is there or found, nothing is done that could be lost.
    before = _newest(run_dir)
    while process.poll() is None and _newest(run_dir) == before:
        time.sleep(0.05)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    if process.poll() is not None:
        return None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    newest = _newest(run_dir)
    return None if newest is None else newest[1]


def _differs(truth: dict[str, str], run_dir: Path, status: int) -> bool:
    found = digests(run_dir)
    differing = sorted(name for name in truth.keys() | found.keys() if truth.get(name) != found.get(name))
    left = [path for path in run_dir.rglob("*.tmp*") if path.is_file()]
    print(
        f"{run_dir.name}: exit status {status}, {len(differing)} of {len(truth)} files differ, {len(left)} left over"
    )
    for name in differing[:10]:
        print(f"differs: {name}")
    return bool(differing or left or status)


def digests(run_dir: Path) -> dict[str, str]:
    """Hash of everything in a run directory that has to be the same."""
    paths = {path for pattern in PATTERNS for path in run_dir.rglob(pattern)}
    return {str(path.relative_to(run_dir)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(paths)}


def _recipe(folder: Path) -> Path:
    """Write the recipe, and maps as a saliency network might give them: the things' outlines, with noise."""
    import numpy as np
    import yaml
    from PIL import Image

    from sbce_hf.config import load_recipe
    from sbce_hf.data import load_images

    path, maps = folder / "recipe.yaml", folder / "saliency"
    path.write_text(yaml.safe_dump({**RECIPE, "saliency": {"maps": str(maps)}}))
    maps.mkdir()
    images, generator = load_images(load_recipe(str(path)).data, "train"), np.random.default_rng(0)
    for index, image_id in enumerate(images.image_ids):
        truth = images.mask(index)
        values = np.where(truth > 0, 200, 10) + generator.normal(0, 4, truth.shape)
        Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(maps / f"{image_id}.png")
    return path


def _start(recipe: Path, run_dir: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "sbce_hf.cli", "run", "--recipe", str(recipe), "--output-dir", str(run_dir)]
    log = (run_dir.parent / f"{run_dir.name}.log").open("ab")
    return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def _newest(run_dir: Path) -> tuple[int, str] | None:
    """When the newest file of a run was written, and its name in the run directory."""
    found = []
    for path in run_dir.rglob("*"):
        # What is named at this moment may be gone the next.
        with contextlib.suppress(FileNotFoundError):
            if path.is_file():
                found.append((path.stat().st_mtime_ns, str(path.relative_to(run_dir))))
    return max(found, default=None)


if __name__ == "__main__":
    raise SystemExit(main())
