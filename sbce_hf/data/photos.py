"""Photos without tags: files and folders as they are given."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from datasets import Dataset

from ..config import DataConfig
from ..errors import UserError
from ..text import is_writable
from .photo_files import UNREAD, UNWRITABLE, check_name, photo_suffixes, walk
from .schema import SkippedImage, TaggedImages, features
from .validation import checked_images

# Not the name of a training or score split: no class needs to occur, and no mask is looked for.
_SPLIT = "photos"
# Named where none is found.
_USUAL = (".jpg", ".jpeg", ".png", ".webp", ".tif")


def load_photos(
    paths: Sequence[str | os.PathLike[str]],
    class_names: Sequence[str],
    *,
    strict: bool = False,
    exclude: Sequence[Path] = (),
) -> TaggedImages:
    """Collect photos that are to be labelled by a model which needs no tags.

    Args:
        paths: image files, and folders that are searched at any depth for all that can be opened; what looks like a
            photo and cannot, and links to folders, are listed in `skipped`. The id of a photo is its path without
            suffix, relative to the folder that was given; of a file its name. A file that is reached twice counts
            once.
        class_names: the foreground classes of the model.
        strict: raise at an unreadable photo instead of leaving it out and listing it in `skipped`.
        exclude: folders in which no photos are looked for: those of the results, which may lie among them.

    Returns:
        images in the order of `paths`, each folder's sorted; none has a tag or a mask.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: no photos, a folder without any, two photos with one id, none that is readable, or an unreadable
            one if `strict`.

    Examples:
        >>> import tempfile
        >>> from PIL import Image
        >>> from sbce_hf import load_photos
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("kitchen", "garden"):
        ...         Image.new("RGB", (32, 24), "orange").save(f"{folder}/{name}.jpg")
        ...     photos = load_photos([folder], class_names=["cup", "plate"])
        ...     print(photos.image_ids, photos.image(0).size)
        ['garden', 'kitchen'] (32, 24)
    """
    if not paths:
        raise UserError("photos: got no paths, expected image files or folders")
    found: dict[str, Path] = {}
    seen: set[Path] = set()
    left_out: list[tuple[Path, str]] = []
    for image_id, file in _listed([Path(path) for path in paths], exclude, left_out):
        if file.resolve() in seen:
            continue
        seen.add(file.resolve())
        other = found.setdefault(image_id, file)
        if other is not file:
            raise UserError(
                f"photos: {other} and {file} would both be called {image_id!r}; give the folder that holds both "
                "instead of its parts, or rename one"
            )
    if not found:
        raise _no_photos(paths, left_out)
    columns = {
        "image_id": list(found),
        "image": [str(file) for file in found.values()],
        "labels": [[] for _ in found],
    }
    dataset = Dataset.from_dict(columns, features=features(class_names, with_mask=False))
    skipped = [SkippedImage(str(file), reason) for file, reason in left_out]
    config = DataConfig(data_dir=str(paths[0]), strict=strict)
    return checked_images(dataset, class_names, config, _SPLIT, skipped=skipped)


def require_photos(paths: Sequence[str | os.PathLike[str]]) -> None:
    """See that there is a photo at all, as [`load_photos`] does; none is opened.

    Raises:
        FileNotFoundError: a path before the first photo does not exist.
        UserError: no photos, or a folder without any.
    """
    left_out: list[tuple[Path, str]] = []
    if next(_listed([Path(path) for path in paths], (), left_out), None) is None:
        raise _no_photos(paths, left_out)


def _no_photos(paths: Sequence[str | os.PathLike[str]], left_out: Sequence[tuple[Path, str]]) -> UserError:
    return UserError(f"{os.fspath(paths[0])}: no photos; {left_out[0][0]}: {left_out[0][1]}")


def _listed(
    paths: Sequence[Path], exclude: Sequence[Path], left_out: list[tuple[Path, str]]
) -> Iterator[tuple[str, Path]]:
    """Id and file of every photo; `left_out` gets the others, with the reason."""
    for path in paths:
        if path.is_dir():
            files, others = walk(path, exclude)
            left_out += others
            if not files and not others:
                raise UserError(
                    f"{path}: no photos; expected files ending in {', '.join(_USUAL)} or another that Pillow reads"
                )
            yield from ((file.relative_to(path).with_suffix("").as_posix(), file) for file in files)
        elif not path.is_file():
            raise FileNotFoundError(f"{path}: no such file or folder; expected photos")
        elif (suffix := path.suffix.lower()) in UNREAD and suffix not in photo_suffixes():
            left_out.append((path, UNREAD[suffix]))
        elif not is_writable(path.name):
            left_out.append((path, UNWRITABLE))
        else:
            check_name(path)
            yield path.stem, path
