"""Reader of a plain folder: `images/`, a tags table, and optionally `masks/`.

`tags.csv` has the header `file,tags` (tags separated by `;`), `metadata.jsonl` one `{"file_name": ..., "tags": [...]}`
per line; both may have a `split`. Files are relative to `images/`. Masks are index PNGs with the same relative path:
0 background, ``c + 1`` class ``c``.
"""

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from ..config import DataConfig
from ..errors import UserError
from .schema import SkippedImage, TaggedImages, features
from .validation import checked_images, class_indices, listing, require_files, require_folder

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
TABLES = ("tags.csv", "metadata.jsonl")


@dataclass(frozen=True)
class _Row:
    file: str
    tags: tuple[str, ...]
    split: str | None
    where: str

    @property
    def image_id(self) -> str:
        return Path(self.file).with_suffix("").as_posix()


def load(config: DataConfig, split: str) -> TaggedImages:
    """Read a folder of images with a tags table.

    Args:
        config: `data_dir`, `tags_file`, `classes` and the limits are used. Without `classes` they are the tags of the
            whole table, sorted, so that all splits agree.
        split: value of the table's `split` column; `"train"` is everything where it has none.

    Raises:
        FileNotFoundError: a folder, the table, or images it lists are missing.
        ValueError: a row that cannot be read, a tag that is no class, an unknown split, or what [`checked_images`]
            rejects. Names the file and line.
    """
    root = require_folder(Path(config.data_dir or ""), "a folder with images/ and tags.csv")
    folder = require_folder(root / "images", f"the images; put them into {root}/images")
    table = _find_table(root, config.tags_file)
    on_disk = {f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.suffix.lower() in SUFFIXES}
    if not on_disk:
        raise UserError(f"{folder}: no images; expected files ending in {', '.join(sorted(SUFFIXES))}")
    rows = list(_read_table(table, on_disk))
    _check_duplicates(rows)
    class_names = config.classes or tuple(sorted({tag for row in rows for tag in row.tags}))
    labels = {row.file: class_indices(row.tags, class_names, f"{row.where}: file {row.file!r}") for row in rows}
    unlisted = sorted(on_disk - labels.keys())
    rows = _select_split(rows, split, table)
    require_files([folder / row.file for row in rows], f"images listed in {table.name}")

    masks = [root / "masks" / f"{row.image_id}.png" for row in rows]
    with_mask = any(mask.is_file() for mask in masks)
    columns: dict[str, list] = {
        "image_id": [row.image_id for row in rows],
        "image": [str(folder / row.file) for row in rows],
        "labels": [labels[row.file] for row in rows],
    }
    if with_mask:
        columns["mask"] = [str(mask) if mask.is_file() else None for mask in masks]
    return checked_images(
        Dataset.from_dict(columns, features=features(class_names, with_mask)),
        class_names,
        config,
        split,
        root=root,
        mask_values=tuple(range(1 + len(class_names))) if with_mask else None,
        mask_known=frozenset(range(1 + len(class_names))) if with_mask else None,
        skipped=[SkippedImage(str(folder / file), f"not listed in {table.name}") for file in unlisted],
    )


def _find_table(root: Path, tags_file: str | None) -> Path:
    found = [path for name in ([tags_file] if tags_file else TABLES) if (path := root / name).is_file()]
    if not found:
        raise FileNotFoundError(
            f"{root / (tags_file or TABLES[0])}: no tags table; expected a CSV file with the header file,tags (tags "
            'separated by ;) or a .jsonl file with lines like {"file_name": "a.jpg", "tags": ["cat"]}'
        )
    if len(found) > 1:
        raise UserError(f"{root}: has both {' and '.join(TABLES)}; choose one with data.tags_file")
    return found[0]


def _read_table(path: Path, on_disk: set[str]) -> Iterator[_Row]:
    records = _read_jsonl(path) if path.suffix == ".jsonl" else _read_csv(path)
    for line, file, tags, split in records:
        where = f"{path}, line {line}"
        if file not in on_disk and file.removeprefix("images/") in on_disk:
            # Tables of the imagefolder convention count from the table's own folder.
            file = file.removeprefix("images/")
        if not Path(file).name or file.startswith("/") or ".." in Path(file).parts:
            raise UserError(f"{where}: file {file!r}: expected a path relative to {path.parent / 'images'}")
        names = (tag.strip() for tag in tags)
        yield _Row(Path(file).as_posix(), tuple(name for name in names if name), split, where)


def _read_csv(path: Path) -> Iterator[tuple[int, str, list[str], str | None]]:
    # utf-8-sig: spreadsheets write a byte order mark.
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream)
        header = [(name or "").strip() for name in reader.fieldnames or []]
        if not {"file", "tags"} <= set(header):
            raise UserError(
                f"{path}, line 1: got the header {','.join(header)!r}, expected file,tags (and maybe split)"
            )
        reader.fieldnames = header
        for row in reader:
            if row.get(None) or row["tags"] is None:
                raise UserError(
                    f"{path}, line {reader.line_num}: expected {len(header)} fields ({','.join(header)}); "
                    "separate tags by ;"
                )
            split = row.get("split")
            yield reader.line_num, row["file"].strip(), row["tags"].split(";"), split.strip() if split else split


def _read_jsonl(path: Path) -> Iterator[tuple[int, str, list[str], str | None]]:
    for line, text in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if not text.strip():
            continue
        try:
            record: Any = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise UserError(f"{path}, line {line}: not valid JSON: {error}") from error
        file, tags, split = map(record.get, ("file_name", "tags", "split")) if isinstance(record, dict) else [None] * 3
        if not isinstance(file, str) or not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
            raise UserError(
                f'{path}, line {line}: expected {{"file_name": "a.jpg", "tags": ["cat"]}}, got {text[:200]}'
            )
        if split is not None and not isinstance(split, str):
            raise UserError(f"{path}, line {line}: split: got {str(split)[:80]}, expected a name")
        yield line, file, tags, split


def _check_duplicates(rows: Sequence[_Row]) -> None:
    seen: dict[str, _Row] = {}
    for row in rows:
        other = seen.setdefault(row.image_id, row)
        if other is not row:
            raise UserError(
                f"{row.where}: image id {row.image_id!r} of {row.file!r} is taken by {other.file!r} ({other.where}); "
                "list every image once and give files different stems"
            )


def _select_split(rows: Sequence[_Row], split: str, table: Path) -> list[_Row]:
    splits = sorted({row.split for row in rows if row.split})
    if not splits and split == "train":
        return list(rows)
    chosen = [row for row in rows if row.split == split]
    if not chosen:
        known = f"splits: {listing(splits)}" if splits else "it has no split column, so there is only 'train'"
        raise UserError(f"{table}: no rows of split {split!r}; {known}")
    return chosen
