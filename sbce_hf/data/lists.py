"""Photos and tags that a program already holds."""

import os
from collections.abc import Sequence

from datasets import Dataset
from PIL import Image

from ..config import DataConfig
from ..errors import UserError
from ..text import check_names
from .decoding import encode_png
from .schema import TaggedImages, features
from .validation import checked_images

_SPLIT = "train"


def images_from_lists(
    photos: Sequence[str | os.PathLike[str] | Image.Image],
    tags: Sequence[Sequence[str]],
    class_names: Sequence[str] | None = None,
    image_ids: Sequence[str] | None = None,
) -> TaggedImages:
    """Make of photos and their tags what every function of this package takes.

    Args:
        photos: files, or pictures in memory, which are kept as PNGs.
        tags: of each photo; an empty one says that it shows background only.
        class_names: the foreground classes, in the order of their label-map values; by default all tags, sorted.
        image_ids: unique names under which label maps are stored; by default the photos' numbers.

    Raises:
        UserError: lists of different lengths, a tag that is no class, a class on no photo, or what is wrong with
            the photos; see [`checked_images`].

    Examples:
        >>> from PIL import Image
        >>> from sbce_hf import images_from_lists
        >>> photos = [Image.new("RGB", (32, 24), colour) for colour in ("red", "green")]
        >>> images = images_from_lists(photos, [["cup", "plate"], ["cup"]])
        >>> images.class_names, images.image_ids
        (('cup', 'plate'), ['0', '1'])
        >>> images.label_matrix().tolist()
        [[1.0, 1.0], [1.0, 0.0]]
    """
    names = tuple(sorted({tag for own in tags for tag in own})) if class_names is None else tuple(class_names)
    ids = [str(number) for number in range(len(photos))] if image_ids is None else list(image_ids)
    check_names(names, "class_names")
    for what, values in (("tags", tags), ("image_ids", ids)):
        if len(values) != len(photos):
            raise UserError(f"{what}: got {len(values)}, expected one for each of {len(photos)} photos")
    for image_id, own in zip(ids, tags, strict=True):
        # A text is a sequence of texts as well, of one sign each.
        if isinstance(own, str) or (unknown := [tag for tag in own if tag not in names]):
            got = repr(own) if isinstance(own, str) else repr(unknown[0])
            raise UserError(f"tags of photo {image_id!r}: got {got}, expected a list of {list(names)}")
    columns = {
        "image_id": ids,
        "image": [
            {"bytes": encode_png(photo), "path": None}
            if isinstance(photo, Image.Image)
            else {"bytes": None, "path": os.fspath(photo)}
            for photo in photos
        ],
        "labels": [sorted({names.index(tag) for tag in own}) for own in tags],
    }
    dataset = Dataset.from_dict(columns, features=features(names, with_mask=False))
    return checked_images(dataset, names, DataConfig(data_dir=".", train_split=_SPLIT), _SPLIT)
