"""A segmentation network and images in, probabilities or stores of label maps out; no tags are needed."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from ..config import PredictionConfig, to_mapping
from ..data.preprocessing import IMAGENET, Preprocessing
from ..data.schema import TaggedImages
from ..labels.variants import variants
from ..models.configuration_checks import label_names
from ..postprocess.crf_pool import CrfPool
from ..processes import ALL, Share
from ..progress import PREDICTION
from .forward import logits_of
from .views import MIN_SIDE, to_pixels
from .windows import Tile, average_bands, cover
from .writing import LabelledImage, LabelSummary, write_stores

# The method of the label stores.
METHOD = "labels"


def foreground_classes(config: PreTrainedConfig) -> tuple[str, ...]:
    """The classes of a segmentation network without background, in the order of the label values 1, 2, ...

    Raises:
        ValueError: fewer than two labels, or label 0 is not background. Everywhere in this library it is.
    """
    names = label_names(config)
    if len(names) < 2 or names[0].casefold() != "background":
        raise ValueError(
            f"the model's labels are {list(names[:4])}{'...' if len(names) > 4 else ''}, expected 'background' as "
            "label 0 and classes from 1 on; a network that was trained on other labels cannot be used here"
        )
    return names[1:]


def segment(
    model: PreTrainedModel,
    image: Image.Image,
    config: PredictionConfig,
    preprocessing: Preprocessing = IMAGENET,
) -> np.ndarray:
    """Probabilities of every label at every pixel of one image; its CRF, if `config` has one, is not applied.

    As in DeepLab's evaluation, the logits of each view are upsampled to the view's size, turned into probabilities
    there, and these are resized to the image's size and merged. With a sliding window this is done for each window,
    and the overlapping ones are averaged.

    Args:
        model: any transformers model whose output has `logits` of shape `(B, K, h, w)`. Left in evaluation mode.
        image: of any size and mode.
        config: views and window.
        preprocessing: of the photos; the image processor's.

    Returns:
        `(K, H, W)` float32; sums to 1 over the labels.

    Raises:
        ValueError: the network's output has no such logits, or they are not finite.

    Examples:
        >>> from PIL import Image
        >>> from sbce_hf import DeepLabConfig, DeepLabForSemanticSegmentation, PredictionConfig, segment
        >>> model = DeepLabForSemanticSegmentation(DeepLabConfig(trunk="test_resnet", num_labels=3))
        >>> photo = Image.new("RGB", (90, 60), "orange")
        >>> probabilities = segment(model, photo, PredictionConfig(scales=(1.0, 1.5)))
        >>> probabilities.shape, probabilities.argmax(axis=0).shape
        ((3, 60, 90), (60, 90))
    """
    predictions = _predict_windows(model, image, config, preprocessing)
    return np.concatenate([band.cpu().numpy() for band in average_bands(predictions, image.width)], axis=1)


def predict_images(
    model: PreTrainedModel,
    images: TaggedImages,
    config: PredictionConfig,
    *,
    output_dir: Path,
    key: str,
    strict: bool = False,
    share: Share = ALL,
    preprocessing: Preprocessing = IMAGENET,
) -> LabelSummary:
    """Predict the label maps of images; their tags are not looked at.

    Killed at any moment and called again, it ends with the same bytes, see [`write_stores`].

    With a sliding window, the probabilities of one row of windows are held and no more: finished rows of the image
    become label values. So that this holds with a CRF too, it refines each window by itself, meanwhile, and
    a pixel gets the answer of the window whose middle is nearest.

    Args:
        model: see [`segment`]; label 0 is background. On its device.
        images: of which the classes are the model's.
        config: views, window, CRF.
        output_dir: gets the [`variants`] of `labels`.
        key: of everything the label maps depend on: checkpoint, options, `images.manifest_hash`.
        strict: raise at an unreadable image instead of skipping and listing it.
        share: this process's.
        preprocessing: see [`segment`].

    Returns:
        [`LabelSummary`]. The records in the stores hold the classes that each label map shows.

    Raises:
        ValueError: the model's classes are not the images' or label 0 is not background, the stores were made from
            something else, an unreadable image if `strict`, or an output that [`segment`] rejects.
        OSError: a store cannot be written.
        RuntimeError: a CRF process died.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from sbce_hf import DataConfig, LabelStore, PredictionConfig, SegmenterConfig, load_images, predict_images
        >>> from sbce_hf.training.segmenter import create_segmenter
        >>> images = load_images(DataConfig(source="shapes", shapes_images=4, shapes_size=48), "train")
        >>> start = SegmenterConfig(model={"trunk": "test_resnet"}, weights="random")
        >>> model = create_segmenter(start, images.class_names)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     summary = predict_images(model, images, PredictionConfig(), output_dir=Path(folder), key="first model")
        ...     print(summary.directories[0].name, len(LabelStore(summary.directories[0]).done_ids()))
        labels 4
    """
    classes = foreground_classes(cast(PreTrainedConfig, model.config))
    if classes != tuple(images.class_names):
        raise ValueError(
            f"the model's classes are {list(classes)}, the images' {list(images.class_names)}; expected the same "
            "names in the same order (data.classes sets the images')"
        )
    ids = images.image_ids

    def predict(group: Sequence[int], photos: Sequence[Image.Image], crf: CrfPool | None) -> Iterator[LabelledImage]:
        for i, photo in zip(group, photos, strict=True):
            yield _predict(model, ids[i], photo, config, preprocessing, crf)

    details = {"config": to_mapping(config)}
    return write_stores(
        images,
        predict,
        config,
        stores={Path(output_dir) / name: details for name in variants(METHOD, config.crf)},
        key=key,
        share=share,
        strict=strict,
        # Images do not share batches.
        group_size=1,
        what=PREDICTION,
        device=model.device,
    )


def prediction_sizes(
    size: tuple[int, int], config: PredictionConfig, trained_side: int | None
) -> list[tuple[int, int]]:
    """Heights and widths at which an image of a height and width is looked at.

    Args:
        size: of the image.
        config: views and window.
        trained_side: the `image_size` of the training, where `config` has none.
    """
    config = replace(config, image_size=config.image_size or trained_side)
    first = _windows(size, config)[0]
    return _view_sizes((first.height, first.width), _factor(size, config), config.scales)


def _factor(size: tuple[int, int], config: PredictionConfig) -> float:
    """From pixels of the image, of a height and width, to pixels of scale 1."""
    return 1.0 if config.image_size is None else config.image_size / max(size)


def _windows(size: tuple[int, int], config: PredictionConfig) -> list[Tile]:
    height, width = size
    side = max(size) if config.window is None else max(1, round(config.window / _factor(size, config)))
    return cover(height, width, side, config.overlap)


@torch.inference_mode()
def _predict_windows(
    model: PreTrainedModel,
    image: Image.Image,
    config: PredictionConfig,
    preprocessing: Preprocessing,
) -> Iterator[tuple[Tile, Tensor]]:
    """Each window with its probabilities `(K, h, w)`; the windows of a batch go through the network together."""
    model.eval()
    windows, per_batch = _windows((image.height, image.width), config), max(1, config.batch_size // (1 + config.flip))
    num_labels, factor = cast(Any, model.config).num_labels, _factor((image.height, image.width), config)
    for start in range(0, len(windows), per_batch):
        chunk = windows[start : start + per_batch]
        crops = [image.crop(window.box) for window in chunk]
        size = (chunk[0].height, chunk[0].width)
        merged = torch.zeros(len(chunk), num_labels, *size, device=model.device)
        for view in _view_sizes(size, factor, config.scales):
            pixels = torch.stack([to_pixels(crop, view, preprocessing.resample) for crop in crops]).to(model.device)
            batch = preprocessing(pixels).to(model.dtype)
            for index, logits in enumerate(logits_of(model, batch, config.flip)):
                # Behind the windows come their mirror images. Mirroring back here equals doing so at image size.
                own = logits.flip(-1) if index >= len(chunk) else logits
                probabilities, into = _probabilities(own, view, size), merged[index % len(chunk)]
                if config.merge == "mean":
                    into += probabilities
                else:
                    torch.maximum(into, probabilities, out=into)
        merged /= merged.sum(dim=1, keepdim=True)
        yield from zip(chunk, merged, strict=True)


def _view_sizes(size: tuple[int, int], factor: float, scales: Sequence[float]) -> list[tuple[int, int]]:
    height, width = size
    sizes = ([max(MIN_SIDE, round(side * factor * scale)) for side in (height, width)] for scale in scales)
    return [(view_height, view_width) for view_height, view_width in sizes]


def _probabilities(logits: Tensor, view: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Softmax at the view's size of logits `(K, h, w)`, resized to `size`."""
    values = F.interpolate(logits[None], view, mode="bilinear", align_corners=False).softmax(dim=1)
    if size != view:
        values = F.interpolate(values, size, mode="bilinear", align_corners=False)
    return values[0]


def _predict(
    model: PreTrainedModel,
    image_id: str,
    image: Image.Image,
    config: PredictionConfig,
    preprocessing: Preprocessing,
    crf: CrfPool | None,
) -> LabelledImage:
    """The label map before the CRF; and the CRF's answers to come, window by window."""
    refined: list[tuple[Tile, Future]] = []

    def submitted(predictions: Iterator[tuple[Tile, Tensor]]) -> Iterator[tuple[Tile, Tensor]]:
        for window, probabilities in predictions:
            if crf:
                photo = np.asarray(image.crop(window.box))
                refined.append((window, crf.submit_probabilities(photo, probabilities.cpu().numpy())))
            yield window, probabilities

    predictions = submitted(_predict_windows(model, image, config, preprocessing))
    # Made at once: finished rows, kept one by one between the large blocks, would leave memory that nothing fits into.
    label_map, top = np.empty((image.height, image.width), np.uint8), 0
    try:
        for band in average_bands(predictions, image.width):
            label_map[top : top + band.shape[1]] = band.argmax(dim=0).cpu().numpy()
            top += band.shape[1]
    except ValueError as error:
        raise ValueError(f"image {image_id!r}: {error}") from error

    def stitched() -> np.ndarray:
        whole = np.empty_like(label_map)
        for window, future in refined:
            whole[window.core] = future.result()[window.own_core]
        return whole

    return LabelledImage([lambda: label_map, *([stitched] if crf else [])], _describe)


def _describe(label_map: np.ndarray) -> dict[str, Any]:
    """The classes that a label map shows. There are no thresholds, but readers of stores expect one for each."""
    shares = np.bincount(label_map.ravel(), minlength=1)[1:] / label_map.size
    present = np.flatnonzero(shares)
    record = {"classes": present.tolist(), "thresholds": [None] * len(present)}
    return {**record, "proportions": shares[present].tolist()}
