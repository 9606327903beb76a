"""Label maps drawn over their photos, as files to page through."""

import contextlib
import io
from pathlib import Path

from accelerate import PartialState
from PIL import Image

from ..data import TaggedImages
from ..data.decoding import UnreadableError
from ..evaluation.overlay import overlay
from ..files import read_fields, write_atomic, write_json
from ..labels.store import LabelStore
from ..processes import shared
from ..progress import Bar
from ..training.device import use_cpu

# In the folder: the key of the label store that is drawn.
DRAWN = "drawn.json"


def draw_overlays(images: TaggedImages, store: LabelStore, directory: Path) -> None:
    """Draw every label map that has not been drawn; all processes call, and share the work.

    Args:
        images: the photos; those without a label map are left out.
        store: their label maps.
        directory: gets `<image_id>.jpg`.
    """
    process = PartialState(cpu=use_cpu())
    remedy = "remove it and give the same command again, which draws anew"
    known = (read_fields(directory / DRAWN, {"key": str}, remedy) or {}).get("key") == store.meta["key"]
    process.wait_for_everyone()
    ids = images.image_ids
    drawn = [index for index in range(len(ids)) if ids[index] in store]
    with Bar("overlays", len(drawn), shown=process.is_main_process) as bar:
        for position in shared(len(drawn), process):
            index = drawn[position]
            path, label_map = directory / f"{ids[index]}.jpg", store.path(ids[index])
            if not (known and path.is_file() and path.stat().st_mtime >= label_map.stat().st_mtime):
                # A photo that can no longer be read keeps its label map, and has no overlay.
                with contextlib.suppress(UnreadableError):
                    drawn_over = overlay(images.image(index), store.read(ids[index]), store.class_names)
                    write_atomic(path, jpeg(drawn_over))
            bar.update(process.num_processes)
    if process.is_main_process:
        write_json(directory / DRAWN, {"key": store.meta["key"]})


def jpeg(picture: Image.Image, quality: int = 90) -> bytes:
    """A picture as the bytes of a JPEG file."""
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, format="JPEG", quality=quality)
    return buffer.getvalue()
