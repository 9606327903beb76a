"""What a result was made from: hashes, versions, hardware."""

import hashlib
import importlib.metadata
import json
import os
import platform
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
    "pydensecrf2",
)


def digest(values: Mapping[str, Any]) -> str:
    """Hash of plain values, independent of the order of their keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """Hash of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


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
