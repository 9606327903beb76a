"""Reader of Hugging Face datasets: on the Hub, saved by `save_to_disk`, or a local folder of parquet files."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import datasets
from datasets import ClassLabel, Dataset, DatasetDict, Value
from datasets import Image as ImageFeature
from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name

from ..config import DataConfig, check_keys
from ..errors import UserError
from ..references import download, split_revision
from .hub_labels import read_labels
from .own_files import require_own_files, require_own_patterns, require_own_sources
from .schema import TaggedImages, features
from .validation import checked_images

COLUMNS = ("image_id", "image", "labels", "mask")


def load(config: DataConfig, split: str) -> TaggedImages:
    """Read one split of a Hugging Face dataset.

    The labels column holds, per image, a list of `ClassLabel`, a list of strings, a multi-hot vector (then
    `config.classes` names its entries), or a single `ClassLabel` or string. `None` and -1 are no label. Without
    `image_id` the row number serves. Masks hold 0 for background and ``c + 1`` for class ``c``.

    Args:
        config: `dataset` (with an optional `@revision`), `dataset_config`, `revision`, `columns`, `classes` and the
            limits are used.
        split: name of the split; a `save_to_disk` folder of a single dataset is its own split, or `"train"`.

    Raises:
        ValueError: an unknown split or column, labels of another type, or what [`checked_images`] rejects.
    """
    dataset = _open(config, split)
    columns = _columns(dataset, config)
    ids = _ids(dataset, columns)
    labels, class_names, notes = read_labels(dataset, columns["labels"], config.classes, config.separator)
    feature = dataset.features[columns["labels"]]
    named = isinstance(getattr(feature, "feature", feature), ClassLabel)
    with_mask = "mask" in columns
    schema = features(class_names, with_mask)
    dataset = dataset.select_columns([columns[name] for name in ("image", "mask") if name in columns])
    dataset = dataset.rename_columns({columns[n]: n for n in ("image", "mask") if n in columns and columns[n] != n})
    with _reading(config.dataset or ""):
        for name in dataset.column_names:
            dataset = dataset.cast_column(name, ImageFeature(decode=False))
    dataset = dataset.add_column("image_id", ids, feature=schema["image_id"])
    dataset = dataset.add_column("labels", labels, feature=schema["labels"])
    return checked_images(
        dataset.select_columns(list(schema)),
        class_names,
        config,
        split,
        root=_own_folder(config.dataset or ""),
        mask_values=tuple(range(1 + len(class_names))) if with_mask else None,
        mask_known=frozenset(range(1 + len(class_names))) if with_mask else None,
        fixed_classes=named and config.classes is None,
        notes=notes,
    )


def load_column(config: DataConfig, split: str, name: str) -> Dataset:
    """Read one more column of images of a split.

    Args:
        config: see [`load`]; `columns` names that of the image ids.
        split: see [`load`].
        name: of the column.

    Returns:
        the columns `image_id` and `name`, images undecoded.

    Raises:
        UserError: no such column, one that holds no images, or images that a row takes from elsewhere on this machine.
    """
    dataset = _open(config, split)
    if not isinstance(dataset.features.get(name), ImageFeature):
        pictures = [column for column, kind in dataset.features.items() if isinstance(kind, ImageFeature)]
        raise UserError(
            f"{config.dataset}: column {name!r}: got {dataset.features.get(name, 'none')}, expected one of images: "
            f"{', '.join(pictures)}"
        )
    ids = _ids(dataset, _columns(dataset, config))
    dataset = dataset.select_columns([name]).cast_column(name, ImageFeature(decode=False))
    dataset = dataset.add_column("image_id", ids, feature=Value("string"))
    if not config.outside_files:
        require_own_files(dataset, _own_folder(config.dataset or ""), (name,))
    return dataset


def _ids(dataset: Dataset, columns: Mapping[str, str]) -> list[str]:
    column = columns.get("image_id")
    if column is None:
        return [str(i) for i in range(len(dataset))]
    if not isinstance(dataset.features[column], Value | ClassLabel):
        # Of a picture, reading it would open what it names.
        raise UserError(
            f"data.columns.image_id: column {column!r} is {dataset.features[column]}, expected text or numbers"
        )
    return [str(i) for i in dataset[column]]


def _with_revision(config: DataConfig) -> str:
    name, revision = split_revision(config.dataset or "")
    revision = revision or config.revision
    return f"{name}@{revision}" if revision else name


def _own_folder(name: str) -> Path:
    """Where the files of a dataset lie: a folder of this machine, or its repository in the Hub's cache."""
    if os.path.isdir(name):
        return Path(name)
    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=split_revision(name)[0], repo_type="dataset")


def _open(config: DataConfig, split: str) -> Dataset:
    name = config.dataset or ""
    if not config.outside_files:
        if os.path.isdir(name):
            require_own_sources(Path(name))
        else:
            # What cannot be fetched here is told by what follows.
            with contextlib.suppress(OSError):
                require_own_patterns(download(_with_revision(config), "dataset", ["README.md"]) / "README.md")
    identifier, revision = split_revision(name)
    if revision is not None and config.revision is not None:
        raise UserError(f"data.revision: got {config.revision!r}, but data.dataset {name!r} names one; give it once")
    with _reading(name):
        if (Path(name) / "dataset_dict.json").is_file() or (Path(name) / "state.json").is_file():
            return _saved(name, split)
        revision = revision or config.revision
        return datasets.load_dataset(identifier, config.dataset_config, split=split, revision=revision)


def _saved(name: str, split: str) -> Dataset:
    saved = datasets.load_from_disk(name)
    if isinstance(saved, DatasetDict):
        if split not in saved:
            raise UserError(f"{name}: no split {split!r}; splits: {', '.join(saved)}")
        saved = saved[split]
    elif split not in ("train", str(saved.split)):
        raise UserError(f"{name}: a single dataset without splits; expected split 'train', got {split!r}")
    if set(saved.column_names) != set(saved.features):
        raise UserError(
            f"{name}: has columns {saved.column_names} but describes {list(saved.features)}; save it again"
        )
    # What is mapped into memory is not looked at before it is used, and then followed wherever it points.
    saved.data.validate(full=True)
    # It may also say which columns are shown, and as what.
    return saved.with_format(None)


@contextlib.contextmanager
def _reading(name: str) -> Iterator[None]:
    """Tell what `datasets` makes of damaged files; it has no errors of its own for them."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        # With a number it is the operating system's.
        if isinstance(error, OSError) and (error.errno is not None or isinstance(error, FileNotFoundError)):
            raise
        raise UserError(f"{name}: cannot be read as a dataset: {type(error).__name__}: {error}") from error


def _columns(dataset: Dataset, config: DataConfig) -> dict[str, str]:
    given = config.columns or {}
    check_keys(given, dict.fromkeys(COLUMNS), "data.columns")
    columns = {name: given.get(name, name) for name in COLUMNS}
    for name, column in columns.items():
        if column not in dataset.column_names and (name in given or name in ("image", "labels")):
            raise UserError(
                f"data.columns.{name}: {config.dataset} has no column {column!r}, only "
                f"{', '.join(dataset.column_names)}; name the right one, for example "
                f"--set data.columns.{name}={dataset.column_names[0]}"
            )
    return {name: column for name, column in columns.items() if column in dataset.column_names}
