"""A data set shows only itself: its rows' bytes, and files in its own folder."""

import os
from pathlib import Path

from datasets import Dataset

from ..errors import UserError
from ..files import is_inside


def require_own_files(dataset: Dataset, root: Path) -> None:
    """Raise for an image or mask that a link, or a path in a row, takes from elsewhere on this machine.

    Args:
        dataset: columns of [`schema.features`].
        root: the data set's own folder.

    Raises:
        UserError: names the image, its file and the option that allows it.
    """
    for column in ("image", "mask"):
        if column not in dataset.column_names:
            continue
        for image_id, source in zip(dataset["image_id"], dataset[column], strict=True):
            path = source["path"] if source is not None and source["bytes"] is None else None
            if path is not None and not is_inside(path, root):
                raise UserError(
                    f"{column} of image {image_id!r}: got {path} ({os.path.realpath(path)}), expected the file's "
                    f"bytes or a path inside of {root}. If these data are your own, set data.outside_files=true"
                )
