"""What a result was made from, as far as it may be told: versions, hardware, no local paths."""

import importlib.metadata
import os
import platform
import re
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PACKAGES = (
    "sbce-hf",
    "torch",
    "torchvision",
    "timm",
    "transformers",
    "datasets",
    "accelerate",
    "numpy",
    "numba",
    "pydensecrf2",
)


# A path from the root, from home or from the working directory, inside a longer text.
_LOCAL_PATH = re.compile(r"(?<![\w./\\:~-])(?:~[\w.-]*|\.{1,2}|[A-Za-z]:)?(?:[/\\][^\s/\\'\",;:{}\[\]()=]+)+[/\\]?")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages a result depends on, and the git revision of a source checkout."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    revision = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    if revision.returncode == 0:
        found["git"] = revision.stdout.strip()
    return found


def hardware() -> str:
    """Processor cores, and accelerators where there are any."""
    import torch

    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return f"{os.cpu_count()} {platform.machine()} cores" + (f", {', '.join(names)}" if names else ", no GPU")


def without_local_paths(values: Any) -> Any:
    """Plain values in which every path on this machine is reduced to its last part, for files that leave it.

    Args:
        values: as JSON has them. The value of a key `command` is read as a shell reads it.
    """
    if isinstance(values, Mapping):
        return {key: _public(key, value) for key, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [without_local_paths(value) for value in values]
    return _last_part(values) if isinstance(values, str) else values


def without_folders(text: str) -> str:
    """A message in which every absolute path is reduced to its last part, for strangers."""
    return re.sub(r"(?<![\w:/.])~?/(?:[^\s'\"`,;:()]+/)+", "", text)


def _public(key: str, value: Any) -> Any:
    if key == "data_dir" and isinstance(value, str):
        return Path(value).name
    if key == "command" and isinstance(value, str):
        return shlex.join(_public_word(word) for word in shlex.split(value))
    return without_local_paths(value)


def _public_word(word: str) -> str:
    name, equals, value = word.partition("=")
    return f"{name}={_last_part(value)}" if equals else _last_part(word)


def _last_part(text: str) -> str:
    is_path = re.match(r"(~[\w.-]*|\.{1,2}|[A-Za-z]:)?[/\\]", text) or (
        re.search(r"[/\\]", text) and os.path.exists(text)
    )
    if is_path and "\n" not in text:
        return re.split(r"[/\\]", text.rstrip("/\\"))[-1]
    return _LOCAL_PATH.sub(lambda found: re.split(r"[/\\]", found[0].rstrip("/\\"))[-1], text)
