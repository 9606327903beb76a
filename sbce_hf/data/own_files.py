"""A data set shows only itself: its rows' bytes, and files in its own folder."""

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

from datasets import Dataset
from huggingface_hub.repocard import REGEX_YAML_BLOCK

from ..config.yaml_text import read_yaml
from ..errors import UserError
from ..files import Folder, parse_json, read_text, require_regular
from ..text import visible


def require_own_paths(paths: Iterable[str | os.PathLike[str] | None], root: Path) -> None:
    """Raise for a file that lies outside of the data set's own folder, before it is opened.

    Args:
        paths: of files; `None` is passed over.
        root: the folder.

    Raises:
        UserError: names the file and the option that allows it.
    """
    own = Folder(root)
    for path in paths:
        if path is not None:
            _require_own(path, own)


def require_own_table(tags_file: str, root: Path) -> None:
    """Raise for the table of `data.tags_file` if a link in the data set's folder leads out of it.

    A name that leads out by itself, absolute or by `..`, is the user's own choice.

    Args:
        tags_file: relative to the folder.
        root: the folder.

    Raises:
        UserError: see [`require_own_paths`].
    """
    path = root / tags_file
    if path.is_relative_to(root) and ".." not in path.relative_to(root).parts:
        require_own_paths([path], root)


def _require_own(path: str | os.PathLike[str], own: Folder) -> None:
    if not own.has(path):
        name = os.fspath(path)
        place = "no path" if "\0" in name else os.path.realpath(name)
        raise UserError(
            f"{visible(name)}: is {place}, expected a file inside of {own.path}. If these data are your own, set "
            "data.outside_files=true"
        )


def require_own_sources(folder: Path) -> None:
    """Check which files a folder with a dataset takes its rows from: none outside, by a link, a list or a pattern.

    Raises:
        UserError: names the file; see [`require_own_paths`]. Or it is none, but a pipe or the like.
    """
    own = Folder(folder)
    for path in folder.rglob("*"):
        # A link to a folder is not entered here, but by what reads the dataset.
        _require_own(path, own)
        if not path.is_dir() and path.exists():
            require_regular(path)
    splits = folder / "dataset_dict.json"
    if splits.is_file():
        content = parse_json(read_text(splits), str(splits))
        names = content.get("splits") if isinstance(content, Mapping) else None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UserError(f"{splits}: got {str(content)[:200]}, expected splits, a list of names")
        require_own_paths((folder / name for name in names), folder)
    for state in folder.rglob("state.json"):
        content = parse_json(read_text(state), str(state))
        files = content.get("_data_files") if isinstance(content, Mapping) else None
        if not isinstance(files, list) or not all(isinstance(file, Mapping) for file in files):
            raise UserError(f"{state}: got {str(content)[:200]}, expected _data_files, a list of objects")
        require_own_paths((state.parent / str(file.get("filename")) for file in files), folder)
    require_own_patterns(folder / "README.md")


def require_own_patterns(card: Path) -> None:
    """Check that a dataset's card names data files of the dataset itself.

    Raises:
        UserError: a pattern that is absolute, goes up, or names another address.
    """
    for pattern in strings_in(card_configs(card)):
        if pattern.startswith(("/", "~")) or "://" in pattern or "::" in pattern or ".." in PurePath(pattern).parts:
            raise UserError(
                f"{card}: configs: got {pattern!r}, expected files of the dataset itself. If these data are your own, "
                "set data.outside_files=true"
            )


def card_configs(card: Path) -> list[Mapping[str, Any]]:
    """What a dataset's card says of its configurations, each an object; nothing where there is no card.

    Raises:
        UserError: the card is no UTF-8, its description no YAML, or more than a description is.
    """
    if not card.is_file():
        return []
    block = REGEX_YAML_BLOCK.search(read_text(card))
    description = read_yaml(block[2], str(card)) if block else None
    configs = description.get("configs") if isinstance(description, Mapping) else None
    if not isinstance(configs, list | None) or not all(isinstance(config, Mapping) for config in configs or ()):
        raise UserError(f"{card}: configs: got {str(configs)[:200]}, expected a list of objects with config_name")
    return configs or []


def strings_in(values: Any) -> Iterator[str]:
    """Every text in nested mappings and lists, keys excepted."""
    if isinstance(values, str):
        yield values
    elif isinstance(values, Mapping | list | tuple):
        for value in values.values() if isinstance(values, Mapping) else values:
            yield from strings_in(value)


def require_own_files(dataset: Dataset, root: Path, columns: Iterable[str] = ("image", "mask")) -> None:
    """Raise for an image or mask that a link, or a path in a row, takes from elsewhere on this machine.

    Args:
        dataset: has `image_id`, and columns of undecoded images.
        root: the data set's own folder.
        columns: those that are looked at; one that is not there is passed over.

    Raises:
        UserError: names the image, its file and the option that allows it.
    """
    own = Folder(root)
    for column in columns:
        if column not in dataset.column_names:
            continue
        for image_id, source in zip(dataset["image_id"], dataset[column], strict=True):
            path = source["path"] if source is not None and source["bytes"] is None else None
            if path is not None and not own.has(path):
                lies = "no path" if "\0" in path else os.path.realpath(path)
                raise UserError(
                    f"{column} of image {image_id!r}: got {path} ({lies}), expected the file's "
                    f"bytes or a path inside of {root}. If these data are your own, set data.outside_files=true"
                )
