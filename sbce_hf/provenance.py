"""What a result was made from: hashes, versions, hardware."""

import hashlib
import importlib.metadata
import json
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
    "pydensecrf2",
)


# A path from the root, from home or from the working directory, inside a longer text.
_LOCAL_PATH = re.compile(r"(?<![\w./\\:~-])(?:~[\w.-]*|\.{1,2}|[A-Za-z]:)?(?:[/\\][^\s/\\'\",;:{}\[\]()=]+)+[/\\]?")


def digest(values: Mapping[str, Any]) -> str:
    """Hash of plain values, independent of the order of their keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def file_digest(path: Path) -> str:
    """Hash of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def weights_digest(weights: str) -> str:
    """What weights a training starts from: the hash of their file, or `"random"` and `"pretrained"` as they are."""
    return file_digest(Path(weights)) if Path(weights).is_file() else weights


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


# What a run makes: stages, and yardsticks. Other folders that lie in a run directory are somebody's own.
_PARTS_OF_A_RUN = re.compile(r"(bce|round_\d+|irn|leak_best_constant|segmenter/(?:adaptive|bce|mask))(?:/|$)")


def find_run(directory: Path) -> tuple[Path, str] | tuple[None, None]:
    """The run directory that a folder is a part of, and the stage; `None` twice for any other folder.

    Args:
        directory: a stage's folder, or one in it.
    """
    directory = directory.resolve()
    for run_dir in directory.parents[:5]:
        if (run_dir / "config.yaml").is_file() and (run_dir / "run.json").is_file():
            found = _PARTS_OF_A_RUN.match(directory.relative_to(run_dir).as_posix())
            return (run_dir, found[1]) if found else (None, None)
    return None, None


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
