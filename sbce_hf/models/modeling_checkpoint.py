"""Loading a checkpoint as data: configuration and safetensors, nothing else, whoever made it.

What is checked here is checked on the files, before transformers acts on them.

Longer than 300 lines: it is one file of the code that travels with every checkpoint.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from .configuration_checks import IMPLEMENTATIONS, STEERING_KEYS, TRUNK
from .modeling_initialization import without_memory

# A configuration is a few kilobytes; an index of weights a few hundred.
MAX_CONFIG, MAX_INDEX = 2**20, 16 * 2**20
# Elements of a model that a checkpoint may lack: a head of other classes, or tables that are not saved.
MAX_LACKING = 2**26
# Numbers of a foreign configuration: above these nothing is a width, a number of parts, or a number of layers in all.
MAX_NUMBER, MAX_PARTS, MAX_LAYERS, MAX_SCALE = 2**20, 1024, 512, 64
# Entries of a list or mapping in it; class names may be more.
MAX_ENTRIES, MAX_NAMES = 256, 10_000
# transformers would read these instead of model.safetensors.
_DISTRIBUTED = "shard-*.safetensors"
# Of `from_pretrained`, for the file that lists the shards of a checkpoint.
_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")

# Keys by which a transformers model names a backbone that lies elsewhere.
_BACKBONE_KEYS = ("backbone", "backbone_kwargs", "use_pretrained_backbone", "base_model_name_or_path")


class DataOnlyMixin:
    """A model whose `from_pretrained` reads safetensors files of the checkpoint itself, and nothing else.

    Put it before `PreTrainedModel` among the bases.
    """

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike | None, *args: Any, **kwargs: Any
    ) -> Any:
        """Like `PreTrainedModel.from_pretrained`, but never from pickles, and only with the checkpoint's own files.

        Raises:
            ValueError: `use_safetensors=False`, or an index that names other files than safetensors beside it.
            OSError: there are no safetensors files.
        """
        if kwargs.get("use_safetensors") is False:
            raise ValueError(f"{cls.__name__}: got use_safetensors=False; only safetensors files are read")
        kwargs["use_safetensors"] = True
        if pretrained_model_name_or_path is not None:
            variant = kwargs.get("variant")
            index = _find(pretrained_model_name_or_path, with_variant(SAFE_WEIGHTS_INDEX_NAME, variant), kwargs)
            if index is not None:
                read_shards(index)
            config = kwargs.get("config")
            if config is None and (found := _find(pretrained_model_name_or_path, CONFIG_NAME, kwargs)) is not None:
                read_json(found)
            folder = Path(pretrained_model_name_or_path, kwargs.get("subfolder") or "")
            if folder.is_dir():
                if not isinstance(config, PreTrainedConfig):
                    config = _read_config(cast(Any, cls).config_class, config or folder)
                check_loadable(cls, config, folder, variant)
        return cast(Any, super()).from_pretrained(pretrained_model_name_or_path, *args, **kwargs)


def _read_config(kind: Any, folder: str | os.PathLike) -> PreTrainedConfig:
    try:
        return kind.from_pretrained(folder)
    except OSError:
        raise
    # Any error can come of a wrong value.
    except Exception as error:
        # A strict dataclass wraps them in its own.
        said = error.__cause__ if isinstance(error, StrictDataclassError) and error.__cause__ else error
        raise ValueError(f"{folder}: {CONFIG_NAME}: {said}") from error


def _find(name: str | os.PathLike, file: str, options: Mapping[str, Any]) -> Path | None:
    """A file of a folder or of a repository on the Hub; `None` where there is none."""
    found = cached_file(
        os.fspath(name),
        file,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        **{key: options[key] for key in _HUB_OPTIONS if options.get(key) is not None},
    )
    return None if found is None else Path(found)


def with_variant(name: str, variant: str | None) -> str:
    """`model.safetensors` to `model.fp16.safetensors`, the way transformers names variants."""
    stem, _, ending = name.rpartition(".")
    return name if variant is None else f"{stem}.{variant}.{ending}"


def weight_files(folder: Path, variant: str | None = None) -> list[Path]:
    """The weights of a checkpoint, in the order in which transformers looks for them.

    Args:
        folder: of the checkpoint.
        variant: of its files' names, such as `"fp16"`.

    Raises:
        FileNotFoundError: there are none, or one of the index is missing.
        ValueError: see [`read_shards`]; or there are shards of another kind, which transformers would read instead.
    """
    others = sorted(folder.glob(_DISTRIBUTED))
    if others:
        raise ValueError(f"{others[0]}: a shard of a distributed checkpoint; expected {SAFE_WEIGHTS_NAME} alone")
    whole, index = (folder / with_variant(name, variant) for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME))
    if own_file(whole).is_file():
        return [whole]
    if not own_file(index).is_file():
        raise FileNotFoundError(
            f"{folder}: no {whole.name} and no {index.name}; expected the model/ folder of a "
            "finished training. Pickled weights (.bin, .pth) are not read: `sbce import` converts them"
        )
    files = [own_file(folder / name) for name in read_shards(index)]
    missing = next((file for file in files if not file.is_file()), None)
    if missing is not None:
        raise FileNotFoundError(f"{index}: names {missing.name}, which is missing; fetch the checkpoint again")
    return files


def own_file(path: Path) -> Path:
    """The path of a file that lies in its folder, or, for a snapshot in the Hub's cache, in its repository's.

    Raises:
        ValueError: it is a link to somewhere else, or a pipe or device, on which a reader may wait for ever.
    """
    folder = path.parent
    if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
        folder = folder.parent.parent
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise ValueError(f"{path}: is a link out of the checkpoint's folder, expected a file; put a copy there")
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ValueError(f"{path}: is no regular file; fetch the checkpoint again")
    return path


def read_shards(index: Path) -> list[str]:
    """Names of the files that an index of weights lists.

    Raises:
        ValueError: it is damaged, or names anything but safetensors files that lie beside it.
    """
    content = read_json(index, MAX_INDEX)
    shards = content.get("weight_map")
    if not isinstance(shards, dict) or not shards or not isinstance(content.get("metadata", {}), dict):
        raise ValueError(f"{index}: weight_map: got a {type(shards).__name__}, expected names of weights to files")
    for name, file in shards.items():
        plain = isinstance(file, str) and file.endswith(".safetensors")
        if not plain or any(part in file for part in ("/", "\\", "\0")) or file.startswith("."):
            raise ValueError(
                f"{index}: weight_map: {name[:80]!r}: got {str(file)[:120]!r}, expected a .safetensors file in the "
                "same folder"
            )
    return sorted(set(shards.values()))


def read_json(path: Path, limit: int = MAX_CONFIG) -> dict[str, Any]:
    """A JSON object from a file of at most `limit` bytes.

    Raises:
        FileNotFoundError: no such file.
        ValueError: too large, or no JSON object.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if path.stat().st_size > limit:
        raise ValueError(f"{path}: has {path.stat().st_size} bytes, expected at most {limit}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    # A deep nesting ends in a RecursionError.
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is no JSON: {error}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: got a {type(content).__name__}, expected an object")
    return dict(content)


def check_foreign_config(values: Mapping[str, Any], where: str) -> None:
    """Check the configuration of a transformers model that is not of this package, before transformers acts on it.

    Args:
        values: content of its `config.json`, with what is nested in it.
        where: for messages.

    Raises:
        ValueError: it names files, repositories or kernels to load, or numbers that take memory out of bounds.
    """
    architectures_of(values, where)
    for key, value in values.items():
        name = f"{where}: {str(key)[:80]}"
        if key in STEERING_KEYS and value:
            raise ValueError(f"{name}: a checkpoint may not decide how it is loaded: {STEERING_KEYS[key]}")
        if str(key).endswith("_implementation") and value not in IMPLEMENTATIONS:
            raise ValueError(f"{name}: got {value!r}, expected one of {IMPLEMENTATIONS}")
        if key in _BACKBONE_KEYS and value:
            # In `timm_backbone` it is a name of timm's.
            plain = key == "backbone" and values.get("model_type") == "timm_backbone" and isinstance(value, str)
            if not plain or not TRUNK.fullmatch(value):
                raise ValueError(
                    f"{name}: got {str(value)[:120]!r}; a backbone may not be loaded from elsewhere: save the model "
                    "with a backbone_config"
                )
        _check_number(name, str(key), value)
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, Mapping):
                check_foreign_config(part, name)


def architectures_of(values: Mapping[str, Any], where: str) -> list[str]:
    """The names of the model classes that a configuration is for; it may leave them out.

    Raises:
        ValueError: no such list.
    """
    found = values.get("architectures")
    if found is not None and not (isinstance(found, list) and all(isinstance(name, str) for name in found)):
        raise ValueError(f"{where}: architectures: got {str(found)[:120]}, expected a list of names of classes")
    return found or []


def _check_number(name: str, key: str, value: Any) -> None:
    entries = MAX_NAMES if key in ("id2label", "label2id") else MAX_ENTRIES
    if isinstance(value, list | Mapping) and len(value) > entries:
        raise ValueError(f"{name}: has {len(value)} entries, expected at most {entries}")
    layers = "layers" in key or "depth" in key
    scale, parts = key.endswith(("scales", "factors")), "num_" in key and key != "num_labels"
    limits = ((scale, MAX_SCALE), (layers, MAX_LAYERS), (parts, MAX_PARTS), (True, MAX_NUMBER))
    high = next(limit for applies, limit in limits if applies)
    numbers = [part for part in (value if isinstance(value, list) else [value]) if isinstance(part, int | float)]
    if "stride" in key and any(number < 1 for number in numbers):
        raise ValueError(f"{name}: got {str(value)[:120]}, expected at least 1")
    for number in [*numbers, sum(numbers)] if layers else numbers:
        if not abs(number) <= high:
            raise ValueError(f"{name}: got {number}, expected at most {high}" + (" in all" if layers else ""))


def read_layout(files: Iterable[Path]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Names of the weights in safetensors files, with type and shape; nothing but their headers is read.

    Raises:
        ValueError: a damaged file.
    """
    layout = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118
                    weight = file.get_slice(name)
                    layout[name] = (weight.get_dtype(), tuple(weight.get_shape()))
        except SafetensorError as error:
            raise ValueError(f"{path}: damaged safetensors file: {error}; fetch the checkpoint again") from error
    return layout


def check_loadable(kind: Any, config: PreTrainedConfig, folder: Path, variant: str | None = None) -> None:
    """Check that a checkpoint's files have most of the weights of a model, before memory is taken for them.

    Args:
        kind: a model class, or an Auto class.
        config: of the model.
        folder: of the checkpoint.
        variant: of its files' names.

    Raises:
        FileNotFoundError: see [`weight_files`].
        ValueError: a damaged file, numbers that make no model, a model with far more weights than the files, or whole
            numbers for weights.
    """
    layout = read_layout(weight_files(folder, variant))
    there = sum(math.prod(shape) for _, shape in layout.values())
    model = check_buildable(kind, config, str(folder), there + MAX_LACKING)
    for name, tensor in model.state_dict().items():
        dtype = layout[name][0] if name in layout else "F32"
        # transformers would take them without a word, whatever was lost when they were made whole.
        if tensor.is_floating_point() and not dtype.startswith(("F", "BF")):
            raise ValueError(
                f"{folder}: weight {name[:120]!r}: got {dtype}, whole numbers, expected floating-point numbers; save "
                "the weights as they were trained"
            )


def check_buildable(kind: Any, config: PreTrainedConfig, where: str, limit: int) -> PreTrainedModel:
    """Check that a configuration describes a model of a bounded size; no memory is taken for it.

    Args:
        kind: a model class, or an Auto class.
        config: of the model.
        where: for messages.
        limit: number of weights.

    Returns:
        the model, without memory for its weights.

    Raises:
        ValueError: numbers that make no model, or too large a model.
    """
    build = getattr(kind, "_from_config", None) or partial(kind.from_config, trust_remote_code=False)
    try:
        with without_memory():
            model = build(config)
    # Any error can come of a number that does not fit the others.
    except Exception as error:
        raise ValueError(f"{where}: config.json describes no model: {error}") from error
    # Buffers, too, that are not saved: they may be tables that grow faster than the weights.
    size = sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
    if size > limit:
        raise ValueError(
            f"{where}: config.json describes a model of {size:.1e} weights, expected at most {limit:.1e}, for which "
            "there are files or memory"
        )
    return model
