"""Names of images: what label maps are stored under."""

import os
from collections.abc import Iterable
from pathlib import PurePosixPath

from ..errors import UserError
from ..text import is_writable, visible

# Bytes of a file's name on the usual file systems, less what a label map's own ending and a temporary one take.
MAX_NAME = 255 - len(".png.tmp-00000")


def check_ids(image_ids: Iterable[str], split: str, where: str = "data") -> None:
    """Look at the names of a split's images before anything is made of them.

    Args:
        image_ids: of the split.
        split: its name, for messages.
        where: they are from, for messages.

    Raises:
        UserError: no image, a name twice, one that is no relative path or too long for a file's, or two of which the
            label maps could not lie side by side.
    """
    seen: set[str] = set()
    folders: set[str] = set()
    for image_id in image_ids:
        if image_id in seen:
            raise UserError(f"{where}: image id {image_id!r} occurs twice in split {split!r}; expected unique ids")
        # Label maps are stored under this name.
        if not image_id or "\\" in image_id or "\0" in image_id or not _is_inside(image_id):
            raise UserError(
                f"{where}: image id {image_id!r} is no relative path; expected one without '..' or a leading '/'"
            )
        if not is_writable(image_id):
            raise UserError(
                f"data: image id {visible(repr(image_id))[:120]}: has control characters, or what is no character; "
                "expected a name that can be written into any file. Rename the image"
            )
        path = PurePosixPath(image_id)
        if any(len(os.fsencode(part)) > MAX_NAME for part in path.parts):
            raise UserError(
                f"{where}: image id {image_id[:40]!r}...: a name in it is longer than {MAX_NAME} bytes, so that its "
                "label map could not be stored; rename the file"
            )
        seen.add(image_id)
        folders.update(str(folder) for folder in path.parents)
    if not seen:
        raise UserError(f"{where}: split {split!r} has no images")
    if clash := next((image_id for image_id in seen if f"{image_id}.png" in folders), None):
        raise UserError(
            f"{where}: image id {clash!r}: its label map {clash}.png would lie where others' folder is; rename one"
        )


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and str(path) == name
