"""Saliency maps that somebody's network has made, from a folder or a dataset's column; checked before anything starts.

A map is a PNG with one channel of 8 bits, of its upright image's size. Nothing else is opened, and of a folder no file
that lies elsewhere.
"""

import hashlib
import io
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from PIL import Image

from ..config import DataConfig, SaliencyConfig
from ..errors import UserError
from ..files import read_bytes
from .decoding import UnreadableError, reading
from .hub import load_column
from .own_files import require_own_paths
from .schema import TaggedImages
from .validation import listing, require_folder

# The last chunk of every PNG: without it the file was cut off.
_END = b"IEND\xaeB`\x82"


class SaliencyMaps:
    """Saliency maps by image id.

    Args:
        config: says where they are.
        data: of the images; with `outside_files`, links may lead out of the folder.
        split: of the images, for a column.

    Raises:
        FileNotFoundError: no such folder.
        UserError: a column of a source that has none, or no such column.
    """

    def __init__(self, config: SaliencyConfig, data: DataConfig, split: str) -> None:
        self.resize, self.outside_files = config.resize, data.outside_files
        self.folder: Path | None = None
        self.column = str(config.column)
        self._rows: Mapping[str, int] = {}
        self._dataset: Dataset | None = None
        if config.maps is not None:
            self.folder = require_folder(Path(config.maps), "saliency maps, as saliency.maps says")
            self.where = f"saliency.maps {self.folder}"
        else:
            if data.source != "hub":
                raise UserError(
                    f"saliency.column: is a column of a Hugging Face dataset, but data.source is {data.source!r}; "
                    "name a folder with saliency.maps instead"
                )
            self._dataset = load_column(data, split, self.column)
            self._rows = {image_id: row for row, image_id in enumerate(self._dataset["image_id"])}
            self.where = f"saliency.column {config.column}"

    def name(self, image_id: str) -> str:
        """What messages call a map."""
        return f"saliency map of image {image_id!r}" if self.folder is None else str(self.folder / f"{image_id}.png")

    def png(self, image_id: str) -> bytes | None:
        """The bytes of an image's map; `None` where there is none.

        Raises:
            UserError: a link out of the folder.
        """
        if self._dataset is not None:
            source = self._dataset[self._rows[image_id]][self.column] if image_id in self._rows else None
            if source is None or source["bytes"] is not None:
                return None if source is None else bytes(source["bytes"])
            # It lies in the dataset's own folder, or the user has allowed it.
            return read_bytes(Path(source["path"]))
        path = Path(self.name(image_id))
        if not os.path.lexists(path):
            return None
        if not self.outside_files and self.folder is not None:
            require_own_paths([path], self.folder)
        return read_bytes(path) if path.exists() else None

    def read(self, image_id: str, size: tuple[int, int]) -> NDArray[np.uint8]:
        """The saliency of an image, `(H, W)` uint8 from 0 to 255.

        Args:
            image_id: of the image.
            size: height and width of the upright image.

        Raises:
            UserError: no map, one that is no PNG with one channel of 8 bits, or of another size without
                `saliency.resize`; names it.
        """
        png, name = self.png(image_id), self.name(image_id)
        if png is None:
            raise UserError(f"{name}: no such saliency map")
        with _open(png, name) as image:
            if image.size != size[::-1]:
                if not self.resize:
                    raise UserError(f"{name}: {_sizes(image.size, size[::-1])}; set saliency.resize=true to resize it")
                image = image.resize(size[::-1], Image.Resampling.BILINEAR)
            with reading(f"saliency map {name}"):
                return np.asarray(image)


def check_saliency_maps(maps: SaliencyMaps, images: TaggedImages) -> str:
    """Look at every image's map: its header is enough, so that ten thousand take seconds.

    Args:
        maps: of the images.
        images: all of them need a map.

    Returns:
        hash of the maps' bytes and images.

    Raises:
        UserError: missing or wrongly sized maps, all at once: how many, the first names, what to do; or one that is no
            PNG with one channel of 8 bits.
    """
    ids = images.image_ids

    def look(index: int) -> tuple[str | None, str | None]:
        image_id = ids[index]
        png = maps.png(image_id)
        if png is None:
            return None, None
        with _open(png, maps.name(image_id)) as image:
            size, expected = image.size, images.upright_size(index)
        differs = size != expected and not maps.resize
        wrong = f"{maps.name(image_id)} ({_sizes(size, expected)})" if differs else None
        return hashlib.sha256(png).hexdigest(), wrong

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        looks = list(pool.map(look, range(len(ids))))
    missing = [maps.name(image_id) for image_id, (content, _) in zip(ids, looks, strict=True) if content is None]
    wrong = [size for _, size in looks if size is not None]
    problems = []
    if missing:
        where = "" if maps.folder is None else " Put <image_id>.png there"
        problems.append(f"{len(missing)} of {len(ids)} images have no saliency map: {listing(missing)}.{where}")
    if wrong:
        problems.append(
            f"{len(wrong)} maps are not of their image's size: {listing(wrong)}. Make them from these images, or set "
            "saliency.resize=true"
        )
    if problems:
        raise UserError(f"{maps.where}: {'; '.join(problems)}")
    return hashlib.sha256(json.dumps([[i, c] for i, (c, _) in zip(ids, looks, strict=True)]).encode()).hexdigest()[:16]


def _open(png: bytes, name: str) -> Image.Image:
    """Read the header of a map; pixels follow when they are asked for."""
    try:
        with reading("PNG"):
            image = Image.open(io.BytesIO(png), formats=("PNG",))
    except UnreadableError as error:
        raise UserError(f"{name}: {error}; expected a saliency map as a grey PNG") from error
    if image.mode != "L":
        raise UserError(
            f"{name}: got a PNG of mode {image.mode}, expected a saliency map with one channel of 8 bits (mode L: "
            "grey, 0 to 255); convert it, for example with PIL's convert('L')"
        )
    if _END not in png:
        raise UserError(f"{name}: the file is cut off; make it again")
    return image


def _sizes(got: tuple[int, int], expected: tuple[int, int]) -> str:
    return f"got {got[0]} x {got[1]} pixels, expected {expected[0]} x {expected[1]} like its image"
