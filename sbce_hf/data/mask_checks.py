"""Masks of a score split: bad ones, those on which a score says nothing, and which of them a score was made on."""

import contextlib
import logging
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from ..files import digest
from ..progress import tracked
from .decoding import UnreadableError, decode_indices, named, upright_size
from .known_photos import photo_key
from .schema import IGNORE_INDEX, TaggedImages, require_upright

# That are looked at where a second is too long.
FEW = 16

logger = logging.getLogger(__name__)


def masks_hash(images: TaggedImages) -> str:
    """Tells masks from others and from their earlier states; belongs into the key of every score.

    Of the images, of each one's mask size and modification time (or bytes), and of what the values in it mean.

    Args:
        images: as [`TaggedImages.with_masks`] gives them.

    Raises:
        OSError: a mask file is gone.
    """
    if images.painter is not None:
        states = [images.painter.state()]
    else:
        states = [photo_key(row["mask"])[1] for row in images.dataset.select_columns("mask")]
    meaning = [images.mask_values, images.unlabelled]
    return digest({"images": images.manifest_hash, "masks": states, "meaning": meaning})


def check_masks(images: TaggedImages) -> list[str]:
    """Open every mask of a split.

    Returns:
        what to know of the scores, in sentences: classes that cannot be scored, and numbers that seem to be others.

    Raises:
        UserError: no masks, a bad one, or masks that hold no class at all: every label map would score well on them.
    """
    masked = images.with_masks()
    if len(masked) == 0:
        raise no_masks()
    if len(masked) < len(images):
        logger.warning("%d of %d images have a mask; only these can be scored", len(masked), len(images))

    def values(index: int) -> NDArray[np.bool_]:
        shown = np.zeros(256, bool)
        shown[masked.mask(index)] = True
        return shown

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        looks = pool.map(values, range(len(masked)))
        shown = np.stack(list(tracked(looks, "checking masks", len(masked), "masks")))
    in_mask, tagged = shown[:, 1 : 1 + images.num_classes], masked.label_matrix() > 0
    ignored = bool(shown[:, IGNORE_INDEX].any())
    if not in_mask.any():
        value = "255, which is ignored" if ignored else "0, which is background"
        hint = f": is 255 your class {images.class_names[0]}? " if ignored and images.num_classes == 1 else "; "
        raise UserError(
            f"data.score_split: the {len(masked)} masks hold nothing but {'0 and ' if ignored else ''}{value}{hint}"
            f"Write 1 for {images.class_names[0]}"
            f"{', 2 for ' + images.class_names[1] + ' and so on' if images.num_classes > 1 else ''}, or set "
            "data.score_split to null to score nothing"
        )
    return _notes(images.class_names, in_mask, tagged, ignored)


def no_masks() -> UserError:
    """What is told of a score split without any."""
    return UserError("data.score_split: the split has no masks to score on; name another, or null to score nothing")


def check_mask_sizes(pairs: Mapping[str, tuple[Path, Path]]) -> None:
    """Compare the sizes of a few masks with those of their photos: who mixes up sizes does so everywhere.

    Args:
        pairs: photo and mask by the photo's name.

    Raises:
        UserError: a mask that cannot be read, or of another size.
    """
    for image_id in list(pairs)[:FEW]:
        photo, mask = pairs[image_id]
        name = f"mask of image {image_id!r}"
        # A photo that cannot be read is left out later, with its mask.
        with contextlib.suppress(UnreadableError):
            size = upright_size(str(photo))
            with named(name):
                shape = decode_indices(str(mask)).shape
            require_upright(shape, size, name)


def _notes(names: tuple[str, ...], in_mask: NDArray, tagged: NDArray, ignored: bool) -> list[str]:
    """Sentences on masks that do not go with the tags.

    Args:
        names: of the ``C`` classes.
        in_mask: `(n, C)`, true where a class is in a mask.
        tagged: the same of the tags.
        ignored: a mask has pixels of 255.
    """
    lost = [
        name for name, seen, known in zip(names, in_mask.T, tagged.T, strict=True) if known.any() and not seen.any()
    ]
    notes = []
    if lost:
        notes.append(
            f"{', '.join(lost)}: tagged, but in no mask, so its IoU says nothing"
            f"{'; 255 in a mask is no class, it is ignored' if ignored else ''}"
        )
    strange = (in_mask & ~tagged).any(axis=1)
    if 2 * strange.sum() > len(strange):
        order = ", ".join(f"{value} {name}" for value, name in enumerate(names[:5], start=1))
        notes.append(
            f"{int(strange.sum())} of {len(strange)} masks hold a class that their photo is not tagged with: are "
            f"their numbers in this order? {order}{', ...' if len(names) > 5 else ''}; else set data.classes"
        )
    return notes
