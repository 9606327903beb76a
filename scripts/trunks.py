"""Which trunks serve: a training step, labelling, saving and loading with each, as a Markdown table.

python scripts/trunks.py [NAME ...] [--sizes 224 256 320] [--small]

Weights are random and images are noise: it says whether a trunk of timm's works with this library, at training sizes
and on a photo of 333 x 250 at its own size, not how good it is. `--small` makes the transformers two layers deep.
"""

import argparse
import json
import tempfile
import time
from typing import Any

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


def main() -> None:
    """Print one row per trunk."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="of timm's (default: a choice of all families)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 256, 320], help="of training samples")
    parser.add_argument("--small", action="store_true", help="two layers of each plain transformer")
    options = parser.parse_args()
    families = {name: family for family, names in TRUNKS.items() for name in names}
    sizes = " | ".join(f"train {size}" for size in options.sizes)
    print(f"| trunk | family | features | {sizes} | photo {PHOTO[0]} x {PHOTO[1]} | saved and loaded | s |")
    print(f"| --- | --- | --- | {' | '.join('---' for _ in options.sizes)} | --- | --- | ---: |")
    for name in options.names or families:
        started = time.perf_counter()
        row = try_trunk(name, options.sizes, small=options.small)
        seconds = time.perf_counter() - started
        print(f"| {name} | {families.get(name, '')} | {' | '.join(row)} | {seconds:.1f} |", flush=True)


def try_trunk(name: str, sizes: list[int], small: bool = False) -> list[str]:
    """What a trunk does, in words: `"yes"` or why not.

    Args:
        name: of timm's.
        sizes: of training samples.
        small: two layers of a plain transformer instead of all.

    Returns:
        channels and stride, one word for each size, for the photo, and for saving and loading.
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
        return [problem, *("no" for _ in sizes), "no", "no"]
    features = f"{model.spatial_bce.num_features} at {_attempt(lambda: _stride(model, sizes[0]))}"
    steps = [_attempt(lambda size=size: _train(model, size)) for size in sizes]
    return [features, *steps, _attempt(lambda: _label(model)), _attempt(lambda: _reload(model))]


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
    import torch

    with tempfile.TemporaryDirectory() as folder:
        model.eval().save_pretrained(folder)
        loaded = type(model).from_pretrained(folder)
        with open(f"{folder}/config.json", encoding="utf-8") as file:
            json.load(file)
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, theirs = (one(pixels).pixel_logits for one in (model, loaded))
    if (ours - theirs).abs().max() > 1e-4:
        raise ValueError(f"differs by {(ours - theirs).abs().max().item():.1e}")


if __name__ == "__main__":
    main()
