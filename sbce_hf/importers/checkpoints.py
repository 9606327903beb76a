"""Reads state dicts of PyTorch files and safetensors files without trusting them."""

import argparse
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import clean_state_dict
from torch import Tensor

# What training scripts put around a state dict, in the order of preference.
WRAPPERS = ("state_dict", "model")
# The two copies of a network that DINO and its followers save side by side.
COPIES = ("teacher", "student")
# The pickle holds names and shapes only; that of a network with a thousand arrays has about 150 kB.
MAX_PICKLE = 32 * 2**20
ZIP, PICKLE = b"PK\x03\x04", b"\x80"


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a state dict; nothing in the file is executed, and no memory is taken that the file does not fill.

    Prefixes of DataParallel and `torch.compile` are removed from the names, and so is a mapping around the state dict.
    Where there are a `teacher` and a `student`, names start with these words.

    Args:
        path: a safetensors file, or what `torch.save` wrote.

    Returns:
        the tensors; they may be memory-mapped, so copy what outlives the file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, holds anything but plain tensors, or is neither of the two.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with open(path, "rb") as file:
        start = file.read(16)
    if start[8:9] == b"{" and not start.startswith(ZIP):
        content: Any = _read_safetensors(path)
    elif start.startswith((ZIP, PICKLE)):
        content = _read_torch(path, is_zip=start.startswith(ZIP))
    else:
        raise ValueError(
            f"{path}: byte 0: got {start[:8]!r}, expected the start of a safetensors file or of what torch.save writes"
        )
    return _checked(path, content)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged safetensors file: {error}; fetch it again") from error


def _read_torch(path: Path, is_zip: bool) -> Any:
    if is_zip:
        _check_zip(path)
    try:
        # Restricted to tensors and plain containers: unlike a bare torch.load it runs no code of the file.
        # A Namespace, which many training scripts save as their `args`, is a container as plain as a dict.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(str(path), map_location="cpu", weights_only=True, mmap=is_zip)  # noqa: TID251
    except OSError:
        raise
    # A damaged pickle can make torch raise anything.
    except Exception as error:
        raise ValueError(_explain(path, error)) from error


def _explain(path: Path, error: Exception) -> str:
    text = str(error)
    if "TorchScript" in text or "legacy .tar" in text:
        return f"{path}: got TorchScript or torch's old tar format, expected a state dict written by torch.save"
    if re.search(r"GLOBAL|[Uu]nsupported class|[Uu]nsupported global|unrecognized function|Can only", text):
        found = re.search(r"GLOBAL (\S+)", text)
        return (
            f"{path}: holds Python code or objects{f' ({found[1]})' if found else ''}; only plain state dicts are "
            "read, and code is never run. Load it where you trust it and save model.state_dict() instead of the model"
        )
    reason = next(iter(text.strip().splitlines()), type(error).__name__)[:200]
    # Here torch's own text advises to run the file's code.
    if "weights_only" in text:
        found = re.search(r"WeightsUnpickler error:\s*(.+)|(Unsupported operand \d+)", text)
        reason = (found[1] or found[2]) if found else "its pickle holds more than a state dict"
    return f"{path}: damaged, or not written by torch.save: {reason}; fetch it again"


def _check_zip(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, OverflowError) as error:
        raise ValueError(f"{path}: damaged or cut off zip file: {error}; fetch it again") from error
    # torch.save stores without compression, so that nothing in its files can grow.
    packed = next((entry for entry in entries if entry.compress_type != zipfile.ZIP_STORED), None)
    if packed is not None:
        raise ValueError(f"{path}: {packed.filename!r} is compressed; expected what torch.save writes, which is not")
    pickles = [entry for entry in entries if entry.filename.rpartition("/")[2] == "data.pkl"]
    if len(pickles) != 1 or pickles[0].file_size > MAX_PICKLE:
        sizes = [entry.file_size for entry in pickles]
        raise ValueError(f"{path}: got data.pkl of {sizes} bytes, expected one of at most {MAX_PICKLE}")


def _checked(path: Path, content: Any) -> dict[str, Tensor]:
    if isinstance(content, Mapping):
        content = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), content)
        if copies := {key: content[key] for key in COPIES if isinstance(content.get(key), Mapping)}:
            content = {f"{key}.{name}": tensor for key, one in copies.items() for name, tensor in one.items()}
    if not isinstance(content, Mapping) or not content:
        entries = f" of {len(content)} entries" if isinstance(content, Mapping) else ""
        raise ValueError(f"{path}: got a {type(content).__name__}{entries}, expected a state dict: tensors by name")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ValueError(f"{path}: entry {name!r}: got a {type(tensor).__name__}, expected a tensor with a name")
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise ValueError(
                f"{path}: tensor {name!r}: got {tensor.layout} on {tensor.device}, expected a dense tensor"
            )
    size, claimed = path.stat().st_size, sum(tensor.nbytes for tensor in content.values())
    # Tensors can be views that repeat a few bytes.
    if claimed > size:
        raise ValueError(f"{path}: its tensors have {claimed} bytes, expected at most the file's {size}")
    state = {_bare(name): tensor for name, tensor in content.items()}
    if len(state) != len(content):
        raise ValueError(f"{path}: some names differ only in the prefix that DataParallel adds, expected one of each")
    return {name: tensor.detach() for name, tensor in state.items()}


def _bare(name: str) -> str:
    """A name without the prefixes of DataParallel and `torch.compile`, also behind that of a copy."""
    copy, _, rest = name.partition(".")
    start, rest = (f"{copy}.", rest) if rest and copy in COPIES else ("", name)
    return start + next(iter(clean_state_dict({rest: None})))


def require_finite(path: Path, state: Mapping[str, Tensor]) -> None:
    """Raise a `ValueError` that names the first tensor with a value that is no number."""
    for name, tensor in state.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{path}: tensor {name!r}: got NaN or infinity, expected finite values")
