"""Label maps of a training set, wherever they lie, and a check of all of them before anything long starts."""

import contextlib
import hashlib
import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..data.decoding import UnreadableError, is_of_the_file
from ..data.schema import IGNORE_INDEX, TaggedImages
from ..data.validation import listing
from ..errors import UserError
from ..progress import tracked
from .store import LabelStore

logger = logging.getLogger(__name__)


class LabelMaps(Protocol):
    """Label maps by image id, as a `LabelStore` on this machine and `HubLabelMaps` have them."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The foreground classes; class `c` has the value `c + 1`."""

    @property
    def complete(self) -> bool:
        """Whether an image without a label map will never get one."""

    def __contains__(self, image_id: str) -> bool: ...

    def read(self, image_id: str) -> NDArray[np.uint8]:
        """The label map of an image, `uint8` of shape `(H, W)`."""


class MaskLabels:
    """True masks as label maps: the yardstick for label maps that were made without masks.

    A network trained on these uses ground truth; nothing that is called weakly supervised may be made from it.

    Args:
        images: those without a mask have no label map.
    """

    complete = True

    def __init__(self, images: TaggedImages) -> None:
        self._images = images.with_masks()
        self._indices = {image_id: index for index, image_id in enumerate(self._images.image_ids)}
        self.class_names = images.class_names

    def __contains__(self, image_id: str) -> bool:
        return image_id in self._indices

    def read(self, image_id: str) -> NDArray[np.uint8]:
        """The mask of an image, `uint8` of shape `(H, W)`; see [`TaggedImages.mask`]."""
        return self._images.mask(self._indices[image_id])


def require_all(store: LabelStore) -> None:
    """See that a store has what it says it has, before something is made from all of its label maps.

    Raises:
        UserError: label maps are not there, or are no files; or their records are not.
    """
    if gone := store.gone:
        raise UserError(
            f"label maps {store.directory}: {len(gone)} are missing, the first is of image {gone[0]!r}; make them "
            "again with the command that made them"
        )
    there, expected = len(store.done_ids()) + len(store.skipped), store.meta["num_images"]
    if store.complete and there < expected:
        raise UserError(
            f"label maps {store.directory}: is of {expected} images, and {expected - there} have no line in its "
            "records-*.jsonl; put those files back, or make the label maps again with the command that made them"
        )


def check_label_maps(images: TaggedImages, label_maps: LabelMaps) -> tuple[TaggedImages, str]:
    """Read every label map once and check what training relies on.

    Images without a label map, such as those that labelling has skipped, are left out.

    Args:
        images: the training set.
        label_maps: of these images; those of others are not looked at.

    Returns:
        the images that have a label map, and a hash of the label maps' content.

    Raises:
        ValueError: other classes, labelling was interrupted, no label map at all, or one that is unreadable, has a
            value that is no class, says nothing, or is not of its image's size; names the image.
    """
    if label_maps.class_names != images.class_names:
        raise UserError(
            f"label maps: have the classes {list(label_maps.class_names)}, expected the images' "
            f"{list(images.class_names)} in this order; label these images, or set data.classes to the label maps'"
        )
    ids = images.image_ids
    kept = [index for index, image_id in enumerate(ids) if image_id in label_maps]
    missing = [image_id for image_id in ids if image_id not in label_maps]
    if missing and not label_maps.complete:
        raise UserError(
            f"label maps: {len(missing)} of {len(ids)} images have none ({listing(missing)}), and the store is not "
            "complete; run the command that labels again, it continues where it stopped"
        )
    if not kept:
        raise UserError(
            f"label maps: none of the {len(ids)} images has one (first image: {ids[0]!r}); expected label maps of the "
            "same image ids"
        )
    if missing:
        logger.warning("%d of %d images have no label map: %s", len(missing), len(ids), listing(missing))

    def look(index: int) -> bytes:
        values = _checked_label_map(images, index, label_maps)
        return hashlib.sha256(json.dumps([ids[index], values.shape]).encode() + values.tobytes()).digest()

    content = hashlib.sha256(json.dumps(list(label_maps.class_names)).encode())
    # Masks that are painted read their annotations at the first one: once, not once per thread.
    look(kept[0])
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        looks = pool.map(look, kept)
        for digest in tracked(looks, "checking label maps", len(kept)):
            content.update(digest)
    return images.select(kept) if missing else images, content.hexdigest()


def check_values(values: NDArray[np.uint8], num_classes: int, name: str) -> NDArray[np.intp]:
    """Check that a label map holds nothing but background, classes and pixels to ignore.

    Args:
        values: of shape `(H, W)`.
        num_classes: number of foreground classes.
        name: of the label map, for messages.

    Returns:
        the values that occur, ascending.

    Raises:
        UserError: it holds another value, or is no such array.
    """
    if values.ndim != 2 or values.dtype != np.uint8:
        raise UserError(
            f"{name}: got {values.dtype} of shape {values.shape}, expected 8-bit values of shape (H, W), as a "
            "palette or grey PNG has"
        )
    occurring = np.flatnonzero(np.bincount(values.ravel(), minlength=256))
    unknown = occurring[(occurring > num_classes) & (occurring != IGNORE_INDEX)]
    if unknown.size:
        raise UserError(
            f"{name}: got value {unknown[0]}, expected 0 (background) to {num_classes}, as there are "
            f"{num_classes} classes, or {IGNORE_INDEX} (ignore); correct it or leave the image out"
        )
    return occurring


def _checked_label_map(images: TaggedImages, index: int, label_maps: LabelMaps) -> NDArray[np.uint8]:
    image_id = images.dataset["image_id"][index]
    name = f"label map of image {image_id!r}"
    try:
        values = label_maps.read(image_id)
    except Exception as error:
        if not is_of_the_file(error):
            raise
        raise UserError(f"{name}: {type(error).__name__}: {error}; correct it or leave the image out") from error
    occurring = check_values(values, images.num_classes, name)
    if occurring.tolist() == [IGNORE_INDEX]:
        raise UserError(
            f"{name}: got {IGNORE_INDEX} (ignore) for every pixel, expected at least one with a class or background; "
            "leave the image out"
        )
    # A photo that has become unreadable is skipped when it is labelled next.
    with contextlib.suppress(UnreadableError):
        images.require_size(index, values, name)
    return values
