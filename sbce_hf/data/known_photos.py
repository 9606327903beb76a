"""Which photos can be read, and which could be before, so that a start decodes only what is new or has changed."""

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset
from filelock import FileLock
from huggingface_hub.constants import HF_HOME
from PIL import __version__ as pillow_version

from ..files import digest, write_atomic
from ..progress import Bar
from .decoding import OWN_RANGE, UnreadableError, decode_image, open_formats, reading
from .schema import SkippedImage

# Small, and without names: each photo is 15 bytes of a hash and one that says whether it was scaled by its own range.
FOLDER = Path(HF_HOME) / "sbce_hf" / "known_photos"
_SIZE = 16
# Images that are looked at together.
_BLOCK = 256


class KnownPhotos:
    """The photos of one place that have been decoded without an error.

    Whoever changes a photo's content changes its size or its times; what decodes it is part of the file's name.

    Args:
        place: that the photos have in common, such as their folder.
    """

    def __init__(self, place: str) -> None:
        named = {"place": place, "pillow": pillow_version, "formats": list(open_formats())}
        self.path = FOLDER / digest(named)
        self._known: dict[bytes, bool] = {}
        self._new: dict[bytes, bool] = {}

    @contextlib.contextmanager
    def opened(self) -> Iterator["KnownPhotos"]:
        """Read what is known, and write what was added; of processes that start together, one looks and others wait.

        Where it cannot be kept, as on a read-only disk, photos are looked at each time.
        """
        with contextlib.ExitStack() as stack:
            # NotImplementedError: a file system without locks.
            with contextlib.suppress(OSError, NotImplementedError):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(FileLock(self.path.with_suffix(".lock")))
                content = self.path.read_bytes()
                if len(content) % _SIZE == 0:
                    entries = (content[start : start + _SIZE] for start in range(0, len(content), _SIZE))
                    self._known = {entry[:-1]: bool(entry[-1]) for entry in entries}
            yield self
            if self._new:
                entries = (key + bytes([scaled]) for key, scaled in (self._known | self._new).items())
                with contextlib.suppress(OSError):
                    write_atomic(self.path, b"".join(entries))

    def find(self, key: bytes) -> bool | None:
        """Whether a photo was scaled by its own range; `None` for one that is not known."""
        return self._known.get(key)

    def add(self, key: bytes, own_range: bool) -> None:
        """Remember a photo that could be read."""
        self._new[key] = own_range


def photo_key(source: Mapping[str, Any]) -> tuple[bytes, list[Any]]:
    """What tells a photo, or a mask, from others and from its earlier states.

    Args:
        source: `bytes` and `path` of an undecoded `datasets.Image`; one of them is there.

    Returns:
        for [`KnownPhotos`]; and what a manifest has of it, which must not depend on where the photo lies.

    Raises:
        OSError: there is no such file.
    """
    if source["bytes"] is not None:
        content = hashlib.sha256(source["bytes"])
        return content.digest()[: _SIZE - 1], [content.hexdigest()]
    stat = os.stat(source["path"])
    # The time of its status tells when somebody has taken away the right to read it.
    known = f"{os.path.abspath(source['path'])}\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ctime_ns}"
    return hashlib.sha256(known.encode(errors="surrogatepass")).digest()[: _SIZE - 1], [stat.st_size, stat.st_mtime_ns]


def look_at_images(dataset: Dataset) -> tuple[dict[int, list[Any]], dict[int, SkippedImage], list[str]]:
    """Find out which images can be read; those that could before, and have not changed, are not decoded again.

    Args:
        dataset: columns of [`schema.features`].

    Returns:
        by index, of every readable image what a manifest has of it; by index, the unreadable ones; and the ids of what
        was scaled by its own range, sorted.

    Raises:
        OSError: the machine, not a file, is at fault.
    """
    identities: dict[int, list[Any]] = {}
    unreadable, stretched = {}, set()
    images = dataset.select_columns(["image_id", "image"])
    progress = Bar("checking images", len(images))
    with KnownPhotos(_place(dataset)).opened() as known, ThreadPoolExecutor(os.cpu_count() or 1) as pool, progress:
        # A block at a time: images that lie in the data set itself are read with it.
        for start in range(0, len(images), _BLOCK):
            block = images[start : start + _BLOCK]
            looks = pool.map(partial(_look, known), block["image_id"], block["image"])
            for index, look in enumerate(looks, start):
                if look.problem is not None:
                    unreadable[index] = SkippedImage(look.file, look.problem, block["image_id"][index - start])
                else:
                    identities[index] = look.identity
                    if look.own_range:
                        stretched.add(look.identity[0])
            progress.update(len(block["image_id"]))
    return identities, unreadable, sorted(stretched)


@dataclass(frozen=True)
class _Look:
    """What was seen of an image: its part of the manifest, or the file and what is wrong with it."""

    identity: list[Any]
    own_range: bool = False
    file: str = ""
    problem: str | None = None


def _look(known: KnownPhotos, image_id: str, source: Mapping[str, Any] | None) -> _Look:
    if source is None or (source["bytes"] is None and not source["path"]):
        return _Look([], file=image_id, problem="has no image")
    file = source["path"] or image_id
    try:
        with reading("image"):
            key, identity = photo_key(source)
        own_range = known.find(key)
        if own_range is None:
            # The smallest JPEG scale still reads the whole file, in half the time.
            own_range = bool(decode_image(source, min_side=1).info.get(OWN_RANGE))
            known.add(key, own_range)
    except UnreadableError as error:
        return _Look([], file=file, problem=str(error))
    except (OSError, MemoryError) as error:
        error.add_note(f"while reading image {file}")
        raise
    return _Look([image_id, *identity], own_range)


def _place(dataset: Dataset) -> str:
    """What the first images of a data set have in common, and no other data set's."""
    sources = [source for source in dataset[:_BLOCK]["image"] if source is not None and source["bytes"] is None]
    folders = {os.path.dirname(os.path.abspath(source["path"])) for source in sources if source["path"]}
    return os.path.commonpath(folders) if folders else str(dataset._fingerprint)
