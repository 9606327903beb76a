"""Mistakes that can be told before torch is loaded: within a second or two, where loading alone takes ten.

Every check here is made again, and more thoroughly, by what uses the thing; here is only what needs no network.
"""

import difflib
import os
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ..config import DataConfig, RunConfig
from ..config.network_fields import network_fields
from ..errors import UserError
from ..files import is_inside, parse_json, read_small, require_regular
from ..locks import require_free
from ..references import local_checkpoint, repository_folder
from .layout import Result, result_of

# Names that stand for no file.
_NO_FILE = frozenset({"random", "pretrained", "classifier"})
# Bytes of a config.json, as where it is read again.
MAX_CONFIG = 2**20
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
    _check_model_keys(config)
    check_weights("trunk weights", config.trunk_weights)
    for name, section in (("segmenter", config.segmenter), ("irn", config.irn)):
        weights = getattr(section, "weights", None) or getattr(section, "trunk_weights", None)
        if weights is not None:
            check_weights(f"{name} weights", weights)
    if run_dir is not None:
        _check_writable(run_dir)
        # Of processes that work together the first may have begun.
        if os.environ.get("RANK", "0") == "0":
            require_free(run_dir)
    check_data(config.data)


def check_data(config: DataConfig) -> None:
    """Read the tags of a folder, or see that the files of another source are there.

    Raises:
        OSError: something is missing.
        UserError: a table that cannot be read, or tags that cannot be classes.
    """
    root = Path(config.data_dir or "")
    if config.source == "folder":
        from ..data.folder import classes_of, rows_of
        from ..data.layout import understand

        found = understand(config)
        classes_of(found, config)
        rows_of(found, config.train_split)
    elif config.source in ("voc", "coco") and not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder; data.data_dir names it")


def check_weights(what: str, weights: str) -> None:
    """See that a file of weights is there, and starts as one.

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
    _check_header(path)


def check_checkpoint(name: str, what: Result = "classifier") -> str:
    """The folder or Hub id that a command takes for a checkpoint, looked at.

    Args:
        name: a model folder, a run directory, a stage's folder, or a Hub id with an optional `@revision`.
        what: of a run's results.

    Raises:
        OSError: there is none.
        UserError: it is damaged.
    """
    name = result_of(name, what)
    folder = Path(name)
    if not folder.is_dir():
        # A file, a path that is not there, or a name on the Hub, which is downloaded now and read later.
        local_checkpoint(name)
        return name
    path = folder / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; expected the model/ folder of a finished training")
    weights = sorted(folder.glob("*.safetensors"))
    for file in (path, *weights):
        if not is_inside(file, repository_folder(folder)):
            raise UserError(f"{file}: is a link out of the checkpoint's folder, expected a file; put a copy there")
    try:
        parse_json(read_small(path, MAX_CONFIG, _AGAIN), str(path))
    except UserError as error:
        raise UserError(f"{error}; {_AGAIN}") from error
    for file in weights:
        _check_header(file)
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


def check_paths(paths: list[str]) -> None:
    """See that photos are where a command looks for them.

    Raises:
        FileNotFoundError: they are not.
    """
    for path in paths:
        if not os.path.exists(path):
            raise FileNotFoundError(f"{path}: no such file or folder; expected photos")


def _check_header(path: Path) -> None:
    if path.suffix != ".safetensors":
        return
    require_regular(path)
    try:
        with safe_open(path, framework="numpy"):
            pass
    except SafetensorError as error:
        raise UserError(f"{path}: is no whole safetensors file ({error}); {_AGAIN}") from error


def _check_model_keys(config: RunConfig) -> None:
    """Tell a misspelt key of `model`."""
    known = network_fields("model")
    for key in config.model:
        # Others may be transformers' own.
        if key not in known and (near := difflib.get_close_matches(key, known, n=1, cutoff=0.75)):
            raise UserError(f"model: unknown key {key!r}; did you mean {near[0]!r}?")


def _check_writable(folder: Path) -> None:
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise NotADirectoryError(f"--output-dir {folder}: {there} is not a folder that can be written to")
