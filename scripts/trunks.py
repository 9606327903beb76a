"""Which trunks serve: a training step, labelling, saving and loading with each, as a Markdown table.

python scripts/trunks.py [NAME ...] [--sizes 224 256 320] [--small]

Weights are random and images are noise: it says whether a trunk of timm's works with this library, at training sizes
and on a photo of 333 x 250 at its own size, not how good it is. Each model is then loaded again, and the folder that a
push would send in a process that has transformers and timm, but not this package. `--small` makes the transformers two
layers deep.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

# By family; the first of each is the one that tests look at.
TRUNKS = {
    "CNN": (
        "test_efficientnet",
        "resnet50",
        "mobilenetv2_100",
        "tf_efficientnet_lite2",
        "convnext_atto",
        "regnety_002",
        "densenet121",
        "hrnet_w18_small",
        "vgg16",
    ),
    "NHWC": ("test_mambaout", "mambaout_femto", "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"),
    "ViT": (
        "test_vit",
        "vit_tiny_patch16_224",
        "deit_tiny_distilled_patch16_224",
        "deit3_small_patch16_224",
        "vit_small_patch14_dinov2",
        "vit_small_patch14_reg4_dinov2",
        "vit_small_patch16_dinov3",
        "eva02_tiny_patch14_224",
        "vit_medium_patch16_rope_reg1_gap_256",
        "xcit_nano_12_p16_224",
        "beit_base_patch16_224",
    ),
    "hybrid": (
        "mobilevitv2_050",
        "mobilevit_s",
        "efficientvit_b0",
        "edgenext_xx_small",
        "poolformer_s12",
        "pvt_v2_b0",
        "davit_tiny",
        "fastvit_t8",
        "twins_pcpvt_small",
        "vit_small_resnet26d_224",
        "levit_128s",
    ),
}
CLASSES = {"id2label": {0: "ant", 1: "bee"}, "label2id": {"ant": 0, "bee": 1}}
PHOTO = (333, 250)
# What the other process runs: it reads folders, one a line, and answers with a word, one a line.
ELSEWHERE = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "sbce_hf":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())

import numpy as np, torch
from transformers import AutoModelForImageClassification

for line in sys.stdin:
    folder = line.rstrip()
    try:
        model = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True).eval()
        with torch.no_grad():
            logits = model(torch.from_numpy(np.load(f"{folder}/pixels.npy"))).pixel_logits.numpy()
        apart = float(np.abs(logits - np.load(f"{folder}/logits.npy")).max())
        answer = "yes" if apart <= 1e-4 else f"no: differs by {apart:.1e}"
    except Exception as error:
        answer = "no: " + str(error).replace("|", "/").replace("\\n", " ")[:80]
    print(answer, flush=True)
"""


def main() -> None:
    """Print one row per trunk."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="of timm's (default: a choice of all families)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 256, 320], help="of training samples")
    parser.add_argument("--small", action="store_true", help="two layers of each plain transformer")
    options = parser.parse_args()
    families = {name: family for family, names in TRUNKS.items() for name in names}
    sizes = " | ".join(f"train {size}" for size in options.sizes)
    print(
        f"| trunk | family | features | {sizes} | photo {PHOTO[0]} x {PHOTO[1]} | loaded | without the package | s |"
    )
    print(f"| --- | --- | --- | {' | '.join('---' for _ in options.sizes)} | --- | --- | --- | ---: |")
    with Elsewhere() as elsewhere:
        for name in options.names or families:
            started = time.perf_counter()
            row = try_trunk(name, options.sizes, elsewhere, small=options.small)
            seconds = time.perf_counter() - started
            print(f"| {name} | {families.get(name, '')} | {' | '.join(row)} | {seconds:.1f} |", flush=True)


class Elsewhere:
    """A process that cannot import this package, and loads what a push would send with `trust_remote_code`."""

    def __enter__(self) -> Self:
        self._home = tempfile.TemporaryDirectory()
        offline = {"HF_HOME": self._home.name, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", ELSEWHERE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=self._home.name,
            env={**{k: v for k, v in os.environ.items() if k != "HF_MODULES_CACHE"}, **offline},
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.communicate()
        self._home.cleanup()

    def load(self, folder: Path) -> str:
        """Load a folder with `pixels.npy` and `logits.npy`; `"yes"`, or why not."""
        assert self._process.stdin is not None and self._process.stdout is not None
        print(folder, file=self._process.stdin, flush=True)
        return self._process.stdout.readline().rstrip() or "no: the process has ended"


def try_trunk(name: str, sizes: list[int], elsewhere: Elsewhere, small: bool = False) -> list[str]:
    """What a trunk does, in words: `"yes"` or why not.

    Args:
        name: of timm's.
        sizes: of training samples.
        elsewhere: where the published folder is loaded.
        small: two layers of a plain transformer instead of all.

    Returns:
        channels and stride, one word for each size, for the photo, and for loading here and elsewhere.
    """
    import torch

    from sbce_hf.models.configuration_spatial_bce import SpatialBceConfig
    from sbce_hf.models.modeling_spatial_bce import SpatialBceForImageClassification

    model, problem = None, ""
    # Strides that a trunk cannot choose, and depths that it does not take, are left out.
    depths: list[dict[str, Any]] = [{"trunk_kwargs": {"depth": 2}}, {}] if small else [{}]
    for fields in ({"output_stride": stride, **depth} for depth in depths for stride in (8, None)):
        torch.manual_seed(0)
        try:
            config = SpatialBceConfig(trunk=name, embedding_dim=16, freeze_batch_norm=False, **fields, **CLASSES)
            model = SpatialBceForImageClassification(config)
            break
        except ValueError as error:
            problem = _brief(error)
    if model is None:
        return [problem, *("no" for _ in sizes), "no", "no", "no"]
    features = f"{model.spatial_bce.num_features} at {_attempt(lambda: _stride(model, sizes[0]))}"
    steps = [_attempt(lambda size=size: _train(model, size)) for size in sizes]
    labelled, loaded = _attempt(lambda: _label(model)), _attempt(lambda: _reload(model))
    return [features, *steps, labelled, loaded, _attempt(lambda: _publish(model, elsewhere))]


def _attempt(function: Any) -> str:
    try:
        return str(function() or "yes")
    # Any error is an answer.
    except Exception as error:
        return f"no: {_brief(error)}"


def _stride(model: Any, size: int) -> int:
    import torch

    with torch.no_grad():
        return round(size / model.eval().spatial_bce(torch.zeros(1, 3, size, size)).last_hidden_state.shape[-1])


def _brief(error: Exception) -> str:
    return str(error).replace("|", "/").replace("\n", " ")[:80]


def _train(model: Any, size: int) -> None:
    """One step; what the trunk has trainable must get a gradient."""
    import torch

    model.train()
    generator = torch.Generator().manual_seed(size)
    pixels = torch.randn(2, 3, size, size, generator=generator)
    labels = torch.tensor([[1.0, 0], [0, 1]])
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    loss = model(pixels, labels=labels, proportions=labels * 0.3).loss
    loss.backward()
    gradients = [p.grad for p in _trained(model)]
    # Branches that start from zero pass none on yet.
    moved = [gradient is not None and bool(gradient.abs().sum() > 0) for gradient in gradients]
    if not loss.isfinite() or sum(moved) < 0.2 * len(moved):
        raise ValueError(f"loss {loss.item():.3g}, {sum(moved)} of {len(moved)} weights of the trunk got a gradient")
    optimizer.step()
    optimizer.zero_grad()


def _trained(model: Any) -> list[Any]:
    found = [p for p in model.spatial_bce.trunk.parameters() if p.requires_grad]
    if not found:
        raise ValueError("nothing of the trunk is trained")
    return found


def _label(model: Any) -> None:
    """Class maps of a photo at its own size and at half of it, and of its mirror image."""
    import numpy as np
    from PIL import Image

    from sbce_hf.config import LabellingConfig
    from sbce_hf.inference.views import class_maps

    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*PHOTO[::-1], 3), np.uint8))
    (maps,) = class_maps(model, [photo], np.array([[1, 1]]), LabellingConfig(scales=(1.0, 0.5)))
    if maps.logits.shape != (2, *PHOTO[::-1]):
        raise ValueError(f"class maps of shape {maps.logits.shape}")


def _reload(model: Any) -> None:
    """The same answers from a checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        model.eval().save_pretrained(folder)
        loaded = type(model).from_pretrained(folder)
    _, ours, theirs = _pixels_and_logits(model, loaded)
    if (apart := abs(ours - theirs).max()) > 1e-4:
        raise ValueError(f"differs by {apart:.1e}")


def _publish(model: Any, elsewhere: Elsewhere) -> str:
    """The same answers from what a push would send, where this package is not installed."""
    import numpy as np

    from sbce_hf.hub.models import ModelSource, render_model_folder
    from sbce_hf.models.image_processing_spatial_bce import SpatialBceImageProcessor

    with tempfile.TemporaryDirectory() as folder:
        source, published = Path(folder, "model"), Path(folder, "published")
        model.eval().save_pretrained(source)
        SpatialBceImageProcessor().save_pretrained(source)
        published.mkdir()
        render_model_folder(ModelSource(source), "user/name", published)
        pixels, logits = _pixels_and_logits(model)
        np.save(published / "pixels.npy", pixels)
        np.save(published / "logits.npy", logits)
        return elsewhere.load(published)


def _pixels_and_logits(*models: Any) -> list[Any]:
    """Noise, and each model's pixel logits for it."""
    import torch

    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return [pixels.numpy(), *(model.eval()(pixels).pixel_logits.numpy() for model in models)]


if __name__ == "__main__":
    main()
