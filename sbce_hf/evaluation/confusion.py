"""Mean intersection over union from an integer confusion matrix, as an `evaluate.Metric`."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import evaluate
import numpy as np
from accelerate import PartialState
from datasets import Features, Image

from ..data.schema import IGNORE_INDEX, TaggedImages
from ..labels.hub_store import HubLabelMaps
from ..labels.store import LabelStore
from ..processes import shared, summed
from .iou import class_iou, count, runs

_DESCRIPTION = "Mean intersection over union of label maps, from confusion counts summed over images."
_INPUTS = """
Args:
    predictions: label maps, `(H, W)` integers; 255 is a pixel without a label and counts as wrong.
    references: ground truth, `(H, W)` integers; 255 is left out.
"""


class MeanIoU(evaluate.Metric):
    """Mean IoU over background and classes; needs neither the Hub nor a buffer of label maps.

    Pixels whose ground truth is 255 are left out. A predicted 255 counts as wrong: it is missing from the intersection
    of the pixel's true label, and adds to no other label's union.

    Args:
        class_names: the `C` foreground classes; label 0 is background.
        absent_classes: `"exclude"` leaves a label that neither truth nor prediction has out of the mean, `"zero"`
            counts it 0.
        kwargs: of `evaluate.Metric`.

    Attributes:
        confusion: `(C + 1, C + 2)` int64, truth in rows; the last column counts pixels without a label.
        num_images: added so far.

    Examples:
        >>> import numpy as np
        >>> from sbce_hf import MeanIoU
        >>> metric = MeanIoU(["cup"])
        >>> metric.add(prediction=np.array([[0, 1], [0, 1]]), reference=np.array([[0, 1], [1, 255]]))
        >>> scores = metric.compute()
        >>> scores["mean_iou"], scores["per_class_iou"]
        (0.5, {'background': 0.5, 'cup': 0.5})
    """

    def __init__(
        self,
        class_names: Sequence[str],
        absent_classes: Literal["exclude", "zero"] = "exclude",
        **kwargs: Any,
    ) -> None:
        if absent_classes not in ("exclude", "zero"):
            raise ValueError(f"absent_classes: got {absent_classes!r}, expected 'exclude' or 'zero'")
        self.class_names = tuple(class_names)
        self.absent_classes = absent_classes
        self._reset()
        super().__init__(**kwargs)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=Features({"predictions": Image(), "references": Image()}),
        )

    def _reset(self) -> None:
        labels = len(self.class_names) + 1
        self.confusion = np.zeros((labels, labels + 1), np.int64)
        self.num_images = 0

    # evaluate copies the next three functions and extends their docstrings, so they need one and cannot use super().
    def add(self, *, prediction: np.ndarray, reference: np.ndarray, **kwargs: Any) -> None:
        """Add one image."""
        self.confusion += confusion_matrix(prediction, reference, len(self.class_names))
        self.num_images += 1

    def add_batch(self, *, predictions: Iterable[np.ndarray], references: Iterable[np.ndarray], **kwargs: Any) -> None:
        """Add several images, which may differ in size."""
        for prediction, reference in zip(predictions, references, strict=True):
            self.add(prediction=prediction, reference=reference)

    def compute(
        self,
        *,
        predictions: Iterable[np.ndarray] | None = None,
        references: Iterable[np.ndarray] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Score what was added, and start anew.

        Returns:
            `mean_iou` (`float`), `per_class_iou` (name to `float`, NaN for a label that neither side has),
            `num_images` and `confusion`.

        Raises:
            ValueError: no pixel with ground truth was added.
        """
        if predictions is not None and references is not None:
            self.add_batch(predictions=predictions, references=references)
        if not self.confusion.any():
            raise ValueError(
                f"mean IoU: got {self.num_images} images without one pixel of ground truth; add label maps"
            )
        iou = class_iou(self.confusion)
        counted = np.nan_to_num(iou) if self.absent_classes == "zero" else iou
        result = {
            "mean_iou": float(np.nanmean(counted)),
            "per_class_iou": dict(zip(("background", *self.class_names), iou.tolist(), strict=True)),
            "num_images": self.num_images,
            "confusion": self.confusion,
        }
        self._reset()
        return result


def confusion_matrix(prediction: np.ndarray, reference: np.ndarray, num_classes: int) -> np.ndarray:
    """Count pixels by true and predicted label.

    Args:
        prediction: `(H, W)` integers in `[0, C]`, or 255 for no label.
        reference: `(H, W)` integers in `[0, C]`, or 255 to leave the pixel out.
        num_classes: foreground classes `C`.

    Returns:
        `(C + 1, C + 2)` int64, truth in rows; the last column counts pixels without a label.

    Raises:
        ValueError: sizes that differ, or a value out of range.
    """
    prediction, reference = np.asarray(prediction), np.asarray(reference)
    if prediction.shape != reference.shape:
        raise ValueError(f"label map: got shape {prediction.shape}, expected the ground truth's {reference.shape}")
    predicted, true, lengths = runs(prediction, reference)
    for name, values in (("label map", predicted), ("ground truth", true)):
        wrong = np.unique(values[((values < 0) | (values > num_classes)) & (values != IGNORE_INDEX)])
        if len(wrong):
            raise ValueError(f"{name}: got values {wrong.tolist()}, expected 0 to {num_classes} or {IGNORE_INDEX}")
    valid, labels = true != IGNORE_INDEX, num_classes + 1
    column = np.minimum(predicted[valid].astype(np.int64), labels)
    flat = true[valid].astype(np.int64) * (labels + 1) + column
    return count(flat, lengths[valid], (labels, labels + 1))


def score_store(
    store: LabelStore | HubLabelMaps,
    images: TaggedImages,
    absent_classes: Literal["exclude", "zero"] = "exclude",
    process: PartialState | None = None,
) -> dict[str, Any]:
    """Score a store's label maps on the images that have a mask.

    Args:
        store: has a label map for each of them; images that could not be read are left out and not counted, those that
            it could not decide on count as wrong.
        images: with masks; may be fewer than the store's.
        absent_classes: see [`MeanIoU`].
        process: this one, if all processes call; they share the work.

    Returns:
        See [`MeanIoU.compute`].

    Raises:
        ValueError: other classes, no masks, a missing label map, or one of another size than its mask.
    """
    if store.class_names != tuple(images.class_names):
        raise ValueError(
            f"label store {store.directory}: has classes {list(store.class_names)}, the images "
            f"{list(images.class_names)}"
        )
    images = images.with_masks()
    if not len(images):
        raise ValueError("no image has a mask; score a split with masks, or set data.score_split to null")
    metric = MeanIoU(images.class_names, absent_classes)
    ids, undecided = images.image_ids, store.undecided
    skipped = store.skipped.keys() - undecided
    scored = [index for index in range(len(ids)) if ids[index] not in skipped]
    for position in shared(len(scored), process) if process else range(len(scored)):
        index = scored[position]
        image_id = ids[index]
        if image_id not in store and image_id not in undecided:
            raise ValueError(f"image {image_id!r}: no label map in {store.directory}; label this split first")
        try:
            truth = images.mask(index)
            nothing = np.full_like(truth, IGNORE_INDEX)
            prediction = nothing if image_id in undecided else store.read(image_id)
            metric.add(prediction=prediction, reference=truth)
        except ValueError as error:
            raise ValueError(f"image {image_id!r} of {store.directory}: {error}") from error
    if process:
        metric.confusion, metric.num_images = summed(metric.confusion, process), len(scored)
    return metric.compute()
