"""What a run needs besides its recipe, and whether it is there: lines of a plan."""

import shutil
from pathlib import Path

import timm

from ..models.modeling_trunk_backbone import PREFIX
from ..models.modeling_trunk_weights import preprocessing_record
from ..references import is_cached, require_answer
from ..training.backbones import CONFIG, TIMM_FILES, WEIGHTS, is_elsewhere


class Needs:
    """Collects one line per thing that has to be there.

    Args:
        problems: gets what keeps the run from starting.
    """

    def __init__(self, problems: list[str]) -> None:
        self.lines: list[str] = []
        self._problems = problems

    def folder(self, what: str, path: str) -> None:
        """Note a folder or file."""
        self.lines.append(f"{what}: {path} ({_found(path)})")

    def weights(self, what: str, weights: str, trunk: str) -> str:
        """Note where a trunk's weights come from, and what they are fed with; returns those that a plan can load."""
        if is_elsewhere(trunk):
            return self._backbone(what, weights, trunk.removeprefix(PREFIX))
        loaded = self._weights(what, weights, trunk)
        try:
            record = {} if weights == "random" else preprocessing_record(trunk, weights)
        # Loading them tells.
        except ValueError:
            return loaded
        if record:
            said = ", ".join(f"{key} {value}" for key, value in record.items() if value is not None)
            self.lines.append(f"{what}: are fed with {said}, unless the model's fields say otherwise")
        return loaded

    def _backbone(self, what: str, weights: str, name: str) -> str:
        files = (CONFIG, WEIGHTS) if weights == "pretrained" else (CONFIG,)
        if Path(name).is_dir():
            missing = [file for file in files if not (Path(name) / file).is_file()]
            self.lines.append(f"{what}: {weights}, backbone {name} ({'MISSING' if missing else 'found'})")
        else:
            self.downloaded(f"{what}: {weights}, backbone", name, *files)
        return weights

    def _weights(self, what: str, weights: str, trunk: str) -> str:
        if weights != "pretrained":
            self.lines.append(f"{what}: {weights}" + (f" ({_found(weights)})" if weights != "random" else ""))
            return weights
        known = timm.get_pretrained_cfg(trunk) if timm.is_model(trunk.split(".")[0]) else None
        if known is None or not known.has_weights:
            # Nothing to download: loading them says what to do.
            self.lines.append(f"{what}: pretrained (MISSING)")
            return weights
        if known.hf_hub_id is None:
            self.lines.append(f"{what}: pretrained, from {known.url}")
            return "random"
        downloaded = self.downloaded(what, known.hf_hub_id, *TIMM_FILES)
        return weights if downloaded else "random"

    def space(self, what: str, size: int, folder: Path) -> None:
        """Note what will be kept on disk, in bytes, and whether there is room for what is not there yet."""
        there = sum(path.stat().st_size for path in folder.glob("*")) if folder.is_dir() else 0
        parent = next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())
        free = shutil.disk_usage(parent).free
        self.lines.append(f"{what}: {size / 2**30:.2f} GiB on disk in {folder}, {free / 2**30:.1f} GiB are free")
        if size - there > free:
            self._problems.append(
                f"{what}: {(size - there) / 2**30:.2f} GiB are needed in {folder}, {free / 2**30:.2f} GiB are free; "
                "lower bce.image_size and spatial.image_size, or spatial.feature_sizes, or train the trunk"
            )

    def downloaded(self, what: str, repo: str, *files: str) -> bool:
        """Note a repository, and whether it is in the cache."""
        if is_cached(repo, *files):
            self.lines.append(f"{what}: {repo} (found, downloaded before)")
            return True
        self.lines.append(f"{what}: {repo} (to be downloaded when the run starts)")
        try:
            require_answer(what, repo, "connect to it once, or give a file: --trunk-weights FILE")
        except FileNotFoundError as error:
            self._problems.append(str(error))
        return False


def _found(path: str) -> str:
    return "found" if Path(path).exists() else "MISSING"
