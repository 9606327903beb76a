"""Mistakes that can be told before torch is loaded: within a second or two, where loading alone takes ten.

Every check here is made again, and more thoroughly, by what uses the thing; here is only what needs no network.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..config import DataConfig, RunConfig
from ..config.ranges import shortened, shown
from ..errors import UserError
from ..files import is_inside, parse_json, read_small, require_regular
from ..locks import require_free
from ..references import local_checkpoint, repository_folder
from ..training.folder import FAILURE
from .early_networks import check_networks
from .layout import Result, result_of
from .settings import BCE, sections_of
from .stage import another_config, differences, read_record

# Names that stand for no file.
_NO_FILE = frozenset({"random", "pretrained", "classifier"})
# Bytes of a config.json, as where it is read again.
MAX_CONFIG = 2**20
# Of this package's classifiers, in their config.json.
CLASSIFIER = "spatial_bce"
_AGAIN = "fetch the checkpoint again"


def check_run(config: RunConfig, run_dir: Path | None = None) -> None:
    """Look at a run's data, weights and folders as far as that goes without torch.

    Args:
        config: of the run.
        run_dir: where it would write; `None` is not looked at.

    Raises:
        OSError: something is missing, or cannot be written to.
        UserError: something cannot be used, or another process is at work in the run's directory.
    """
    check_networks(config)
    trunk = config.model.get("trunk", "resnet50")
    check_weights("trunk weights", config.trunk_weights, trunk)
    for name, section in (("segmenter", config.segmenter), ("irn", config.irn)):
        weights = getattr(section, "weights", None) or getattr(section, "trunk_weights", None)
        if section is not None and weights is not None:
            check_weights(f"{name} weights", weights, section.model.get("trunk", trunk))
    if run_dir is not None:
        check_writable(run_dir)
        # Of processes that work together the first may have begun.
        if os.environ.get("RANK", "0") == "0":
            require_free(run_dir)
        _check_continued(config, run_dir)
    table = config.proportions.file
    if table is not None and not Path(table).is_file():
        raise FileNotFoundError(f"proportions.file: no file {table}; `sbce proportions` writes one")
    check_data(config.data)


def check_data(config: DataConfig) -> None:
    """Read the tags of a folder, or see that the files of another source are there.

    Raises:
        OSError: something is missing.
        UserError: a table that cannot be read, or tags that cannot be classes.
    """
    root = Path(config.data_dir or "")
    if config.source == "folder":
        from ..data.folder import check_split
        from ..data.layout import understand

        found = understand(config)
        check_split(found, config)
    elif config.source in ("voc", "coco") and not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder; data.data_dir names it")


def check_weights(what: str, weights: str, trunk: str) -> None:
    """See that a file of weights is there, and starts as one.

    Args:
        what: it is, for messages.
        weights: the file, or a word that stands for none.
        trunk: that it is for.

    Raises:
        FileNotFoundError: it is not.
        UserError: it is cut off, or something else.
    """
    if weights in _NO_FILE:
        return
    path = Path(weights)
    if path.is_dir():
        raise FileNotFoundError(f"{what}: {path} is a folder; name the file in it, {path / 'model.safetensors'}")
    if not path.is_file():
        raise FileNotFoundError(f"{what}: no file {path}; give a checkpoint file, 'pretrained' or 'random'")
    if path.suffix != ".safetensors":
        raise UserError(
            f"{what} {path}: expected a .safetensors file; `sbce import {path} --trunk {trunk} --output "
            "FILE.safetensors` checks and converts other files"
        )
    _check_header(path)


def check_checkpoint(name: str, what: Result = "classifier", any_kind: bool = False) -> str:
    """The folder or Hub id that a command takes for a checkpoint, looked at.

    Args:
        name: a model folder, a run directory, a stage's folder, or a Hub id with an optional `@revision`.
        what: of a run's results.
        any_kind: a classifier or a segmentation network, whichever it is.

    Raises:
        OSError: there is none.
        UserError: it is damaged, or of another kind.
    """
    name = result_of(name, what)
    # Where it is no folder: a file, a path that is not there, or a name on the Hub, which is downloaded now.
    folder = local_checkpoint(name)
    path = folder / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; expected the model/ folder of a finished training")
    weights = sorted(folder.glob("*.safetensors"))
    for file in (path, *weights):
        if not is_inside(file, repository_folder(folder)):
            raise UserError(f"{file}: is a link out of the checkpoint's folder, expected a file; put a copy there")
    try:
        described = parse_json(read_small(path, MAX_CONFIG, _AGAIN), str(path))
    except UserError as error:
        raise UserError(f"{error}; {_AGAIN}") from error
    if not weights and not list(folder.glob("*.safetensors.index.json")):
        raise FileNotFoundError(
            f"{folder}: no model.safetensors; expected the model/ folder of a finished training. Pickled weights "
            "(.bin, .pth) are not read: `sbce import` converts them"
        )
    for file in weights:
        _check_header(file)
    if not any_kind:
        _check_kind(folder, described, what)
    return name


def check_labels(name: str) -> str:
    """The label store or Hub id that a command takes for label maps, looked at.

    Args:
        name: a label store, a run directory, or on the Hub `user/name[@revision][:config]`.

    Raises:
        OSError: there is none.
    """
    name = result_of(name, "label_maps")
    # As `open_label_maps` tells them apart.
    on_hub = not os.path.exists(name) and name.partition(":")[0].partition("@")[0].count("/") == 1
    if not on_hub and not (Path(name) / "meta.json").is_file():
        raise FileNotFoundError(
            f"no label store in {name}: meta.json is missing; name a run directory, or a folder such as "
            "RUN/round_2/labels/paper_crf"
        )
    return name


def check_folder(path: str, expected: str) -> None:
    """See that a folder is there.

    Raises:
        FileNotFoundError: it is not.
    """
    if not os.path.isdir(path):
        raise FileNotFoundError(f"{path}: no such folder; expected {expected}")


def check_writable(folder: Path) -> None:
    """See that an output directory is, or can be made, one that can be written to.

    Raises:
        NotADirectoryError: it cannot.
    """
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise NotADirectoryError(f"--output-dir {folder}: {there} is not a folder that can be written to")


def check_paths(paths: list[str]) -> None:
    """See that photos are where a command looks for them.

    Raises:
        FileNotFoundError: they are not.
        UserError: a folder without any.
    """
    for path in paths:
        if not os.path.exists(path):
            raise FileNotFoundError(f"{path}: no such file or folder; expected photos")
    from ..data.photos import require_photos

    require_photos(paths)


def _check_kind(folder: Path, described: Any, what: Result) -> None:
    """See that a checkpoint is a classifier of this package, or a segmentation network with its image processor."""
    kind = described.get("model_type") if isinstance(described, Mapping) else None
    if not isinstance(kind, str):
        raise UserError(f"{folder / 'config.json'}: model_type: got {shown(kind)}, expected a name; {_AGAIN}")
    if what == "classifier" and kind != CLASSIFIER:
        raise UserError(f"{folder}: is a {shortened(kind)}, expected a classifier of this library")
    if what == "segmenter" and kind == CLASSIFIER:
        raise UserError(
            f"{folder}: is a classifier, expected a segmentation network; a classifier's label maps are made by "
            "sbce label"
        )
    if what == "segmenter" and not (path := folder / "preprocessor_config.json").is_file():
        raise FileNotFoundError(f"{path}: missing; save the image processor of the training there")


def _check_header(path: Path) -> None:
    if path.suffix != ".safetensors":
        return
    require_regular(path)
    try:
        with safe_open(path, framework="numpy"):
            pass
    except SafetensorError as error:
        raise UserError(f"{path}: is no whole safetensors file ({error}); {_AGAIN}") from error


def _check_continued(config: RunConfig, run_dir: Path) -> None:
    """Compare the settings of a run's trainings with what its folder says of them; the rest is compared later."""
    for number in range(config.rounds + 1):
        name = f"round_{number}" if number else BCE
        if (run_dir / name / FAILURE).is_file():
            continue
        found, settings = read_record(run_dir / name).get("settings", {}), sections_of(config, number)
        if found and (lines := differences({key: found.get(key) for key in settings}, settings)):
            raise another_config(run_dir, name, lines, f"{name} and what was made after it")
