"""Images through the network at several scales and mirrored, merged into one set of class maps per image."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..config import LabellingConfig
from ..data.preprocessing import IMAGENET, Preprocessing
from ..models.modeling_spatial_bce import SpatialBceForImageClassification
from ..postprocess.rules import ClassMaps
from ..training.device import autocast

# Below this a trunk of stride 32 has no feature map left to speak of.
MIN_SIDE = 32
_TINY = 1e-12


def view_sizes(height: int, width: int, config: LabellingConfig) -> list[tuple[int, int]]:
    """Height and width of an image's views, one per scale.

    They are not rounded to the stride: at scale 1 the network must see the size it was trained on.

    Args:
        height: of the image.
        width: of the image.
        config: `image_size` and `scales`.
    """
    base = (height, width) if config.image_size is None else (config.image_size, config.image_size)
    sizes = [tuple(max(MIN_SIDE, round(side * scale)) for side in base) for scale in config.scales]
    return cast(list[tuple[int, int]], sizes)


def class_maps(
    model: SpatialBceForImageClassification,
    images: Sequence[Image.Image],
    labels: np.ndarray | None,
    config: LabellingConfig,
    *,
    image_ids: Sequence[str] | None = None,
    preprocessing: Preprocessing = IMAGENET,
) -> list[ClassMaps]:
    """Average class-map logits and threshold logits over views (paper, sec. 4.1).

    Args:
        model: used in evaluation mode, and left in it.
        images: `n` RGB images of any sizes.
        labels: `(n, C)`, above 0 for a known class; not used, and may be `None`, if `config.known_classes` is
            `"predicted"`.
        config: scales, mirror images, batch size and what the known classes are.
        image_ids: names for the result and for error messages; by default their positions.
        preprocessing: of the photos; the image processor's.

    Returns:
        One [`ClassMaps`] per image, at the image's own size. Images without a known tag do not go through the network.

    Raises:
        ValueError: no labels where they are needed or of another shape, or the network answers with NaN or infinity.
    """
    return list(iterate_class_maps(model, images, labels, config, image_ids=image_ids, preprocessing=preprocessing))


@torch.inference_mode()
def feature_norms(
    model: SpatialBceForImageClassification,
    images: Sequence[Image.Image],
    config: LabellingConfig,
    preprocessing: Preprocessing = IMAGENET,
) -> Iterator[np.ndarray]:
    """Length of the trunk's last feature vectors, as in [`ClassMaps`]: of each image `(H, W)` float32.

    Args:
        model: a classifier, used in evaluation mode, and left in it.
        images: RGB images of any sizes.
        config: scales, mirror images and batch size.
        preprocessing: of the photos; the image processor's.
    """
    model.eval()
    for image, views in zip(images, _forward_views(model, images, config, preprocessing), strict=True):
        yield _merge([view[3] for view in views], [], np.zeros(1, np.int64), (image.height, image.width))[0]


@torch.inference_mode()
def iterate_class_maps(
    model: SpatialBceForImageClassification,
    images: Sequence[Image.Image],
    labels: np.ndarray | None,
    config: LabellingConfig,
    *,
    image_ids: Sequence[str] | None = None,
    preprocessing: Preprocessing = IMAGENET,
) -> Iterator[ClassMaps]:
    """As [`class_maps`], with one image's at a time: a photo of 12 megapixels has 48 MB of them for each class."""
    model.eval()
    ids = [str(i) for i in range(len(images))] if image_ids is None else list(image_ids)
    known = (
        None if config.known_classes == "predicted" else _known_from_tags(labels, len(images), len(model.logit_scale))
    )
    used = [i for i in range(len(images)) if known is None or known[i].any()]
    outputs = _forward_views(model, [images[i] for i in used], config, preprocessing)
    summaries = dict(zip(used, _summaries(model, outputs), strict=True))
    for i, image in enumerate(images):
        if i not in summaries:
            yield _no_classes(ids[i], image)
            continue
        views, (finite, image_logits, threshold_logits, scales) = outputs.pop(0), summaries[i]
        if not finite:
            raise ValueError(
                f"image {ids[i]!r}: the model's class maps are not finite; its training diverged, or its weights are "
                "damaged"
            )
        present = image_logits.sigmoid() > config.class_threshold if known is None else torch.from_numpy(known[i])
        classes = np.flatnonzero(present.numpy())
        norms = [view[3] for view in views] if config.rule in _WITH_FEATURES else []
        merged = _merge([view[0] for view in views], norms, classes, (image.height, image.width))
        yield ClassMaps(
            image_id=ids[i],
            classes=classes,
            logits=merged[: len(classes)],
            threshold_logits=threshold_logits.numpy()[classes],
            scales=scales.numpy()[classes],
            feature_norm=merged[-1] if norms else None,
        )


def _summaries(
    model: SpatialBceForImageClassification, outputs: "Sequence[Sequence[View]]"
) -> list[tuple[bool, Tensor, Tensor, Tensor]]:
    """Of each image: whether all is finite, image logits, threshold logits and scales, `(C,)` each, on the CPU.

    For all images at once, as each answer from a GPU is waited for.
    """
    if not outputs:
        return []
    rows = []
    for views in outputs:
        logits, thresholds = (torch.stack([view[part] for view in views]).mean(dim=0) for part in (1, 2))
        finite = torch.stack([values.isfinite().all() for values in [*(view[0] for view in views), thresholds]]).all()
        rows.append(torch.cat([finite.float()[None], logits, thresholds]))
    scales = model.logit_scale.detach().exp().float()
    answers = torch.stack([torch.cat([row, scales]) for row in rows]).cpu()
    count = len(scales)
    return [(bool(row[0]), *row[1:].split(count)) for row in answers]


def _known_from_tags(labels: np.ndarray | None, num_images: int, num_classes: int) -> np.ndarray:
    if labels is None or labels.shape != (num_images, num_classes):
        got = "none" if labels is None else f"shape {labels.shape}"
        raise ValueError(
            f"labels: got {got}, expected shape {(num_images, num_classes)}; or set labelling.known_classes to "
            "'predicted'"
        )
    return np.asarray(labels) > 0


# One view, or it and its mirror image: maps (C, h, w), image logits (C,), threshold logits (C,), and the length of the
# feature vectors (1, h, w).
View = tuple[Tensor, Tensor, Tensor, Tensor]
# Rules that look at the features, too.
_WITH_FEATURES = ("objects",)


def _forward_views(
    model: SpatialBceForImageClassification,
    images: Sequence[Image.Image],
    config: LabellingConfig,
    preprocessing: Preprocessing,
) -> list[list[View]]:
    """The views of each image, at the resolution of the feature maps; views of one size share a batch."""
    by_size: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i, image in enumerate(images):
        for size in view_sizes(image.height, image.width, config):
            by_size[size].append(i)
    views: list[list[View]] = [[] for _ in images]
    per_batch = max(1, config.batch_size // (1 + config.flip))
    chunks = [
        (size, members[start : start + per_batch])
        for size, members in by_size.items()
        for start in range(0, len(members), per_batch)
    ]

    def pixels(size: tuple[int, int], chunk: Sequence[int]) -> Tensor:
        stacked = torch.stack([to_pixels(images[i], size, preprocessing.resample) for i in chunk])
        return stacked.pin_memory() if model.device.type == "cuda" else stacked

    # Resizing holds no lock, and the network does not wait for it.
    with ThreadPoolExecutor(config.threads) as pool:
        for (_, chunk), ready in zip(chunks, pool.map(lambda item: pixels(*item), chunks), strict=True):
            batch = preprocessing(ready.to(model.device, non_blocking=True)).to(model.dtype)
            with autocast(config.mixed_precision, model.device.type):
                output = _forward(model, batch, config.flip)
            for i, view in zip(chunk, output, strict=True):
                views[i].append(view)
    return views


def _forward(model: SpatialBceForImageClassification, batch: Tensor, flip: bool) -> list[View]:
    if flip:
        batch = torch.cat([batch, batch.flip(-1)])
    output = model(batch.contiguous(memory_format=torch.channels_last), output_hidden_states=True, return_dict=True)
    maps, logits, thresholds = output.pixel_logits.float(), output.logits.float(), output.threshold_logits.float()
    norms = output.hidden_states[-1].float().norm(dim=1, keepdim=True)
    norms = norms / norms.amax(dim=(1, 2, 3), keepdim=True).clamp(min=_TINY)
    if flip:
        # Mirroring back and averaging here equals doing so at image size, bilinear interpolation being symmetric.
        half = len(batch) // 2
        maps, norms = ((values[:half] + values[half:].flip(-1)) / 2 for values in (maps, norms))
        logits, thresholds = (logits[:half] + logits[half:]) / 2, (thresholds[:half] + thresholds[half:]) / 2
    return list(zip(maps, logits, thresholds, norms, strict=True))


def to_pixels(
    image: Image.Image, size: tuple[int, int], resample: Image.Resampling = Image.Resampling.BILINEAR
) -> Tensor:
    """An image resized to `(height, width)`, as `(3, height, width)` uint8."""
    height, width = size
    resized = image.convert("RGB").resize((width, height), resample)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)


def _merge(maps: Sequence[Tensor], norms: Sequence[Tensor], classes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Means over scales at image size, of the known classes only (80 full-size maps would not be used), norms last."""
    chosen = torch.from_numpy(classes).to(maps[0].device)
    views = [view[chosen] for view in maps]
    if norms:
        views = [torch.cat([view, norm]) for view, norm in zip(views, norms, strict=True)]
    total = torch.zeros(len(views[0]), *size, device=maps[0].device)
    if len(total):
        for view in views:
            total += F.interpolate(view[None], size=size, mode="bilinear", align_corners=False)[0]
    return (total / len(maps)).cpu().numpy()


def _no_classes(image_id: str, image: Image.Image) -> ClassMaps:
    return ClassMaps(
        image_id=image_id,
        classes=np.zeros(0, np.int64),
        logits=np.zeros((0, image.height, image.width), np.float32),
        threshold_logits=np.zeros(0, np.float32),
        scales=np.zeros(0, np.float32),
    )
