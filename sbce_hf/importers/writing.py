"""Writes what was imported, whole or not at all."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from ..models.image_processing_spatial_bce import SpatialBceImageProcessor
from ..models.modeling_trunk_weights import RECORD, RECORDED


def check_output(path: str | Path, is_trunk: bool) -> Path:
    """Check where the result will go, before long work starts.

    Args:
        path: a `.safetensors` file for a trunk, a folder for a classifier.
        is_trunk: which of the two.

    Raises:
        ValueError: the path is for the other of the two.
        FileExistsError: the folder has files in it.
    """
    path = Path(path)
    if is_trunk and (path.suffix != ".safetensors" or path.is_dir()):
        raise ValueError(f"output: got {path}, expected a file FILE.safetensors, as the input is a trunk")
    if not is_trunk and path.suffix == ".safetensors":
        raise ValueError(
            f"output: got {path}, expected a folder, as the input is a checkpoint of the released program"
        )
    if not is_trunk and path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"output: {path} exists and is not empty; delete it or choose another folder")
    return path


def write_trunk(state: Mapping[str, Tensor], path: str | Path, preprocessing: Mapping[str, Any] | None = None) -> None:
    """Write a trunk file.

    Args:
        state: its weights.
        path: of the file.
        preprocessing: what they are to be fed with, by the names of [`RECORDED`]; `None` leaves it to the trunk's
            name.

    Raises:
        ValueError: see [`check_output`].
        OSError: it cannot be written.
    """
    path = check_output(path, is_trunk=True)
    with _replacing(path) as temporary:
        record = {} if preprocessing is None else {RECORD: json.dumps({key: preprocessing[key] for key in RECORDED})}
        save_file(dict(state), temporary, metadata={"format": "pt"} | record)


def write_classifier(model: PreTrainedModel, path: str | Path) -> None:
    """Write a checkpoint with its image processor (369 x 369, as the released program was trained).

    Raises:
        FileExistsError: see [`check_output`].
        OSError: it cannot be written.
    """
    path = check_output(path, is_trunk=False)
    with _replacing(path) as temporary:
        model.save_pretrained(temporary)
        SpatialBceImageProcessor().save_pretrained(temporary)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary path that becomes `path` if all goes well; what a killed process left over is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    _remove(temporary)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        _remove(temporary)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
