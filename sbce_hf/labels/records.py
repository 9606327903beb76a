"""What a label store's description and its records may hold: the one place that looks at them before anybody reads.

And how records are kept, and what one is as a row of a dataset.
"""

import json
import math
from collections.abc import KeysView, Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import parse_json
from ..text import check_names

# All are shares or probabilities; above this an integer would fit no column.
_MAX_NUMBER = 2**53
# One value for each of a record's classes; those that may be left out, or hold `null`.
_PER_CLASS = {"proportions": False, "thresholds": True, "soft_share": True, "mean_probability": True}


class Records:
    """What is known of each image, kept as lines of JSON: as dictionaries, 100 000 took 150 MB instead of 40."""

    def __init__(self) -> None:
        self._lines: dict[str, bytes] = {}
        self.skipped: dict[str, str] = {}

    def remember(self, record: Mapping[str, Any]) -> None:
        """Take a record; that an image was skipped counts only until it is labelled.

        It may be labelled later than it could not be read, and by another process whose file sorts first.
        """
        name = record["image_id"]
        if "skipped" not in record:
            self._lines[name] = json.dumps(record).encode()
            self.skipped.pop(name, None)
        elif name not in self._lines:
            self.skipped[name] = record["skipped"]

    @property
    def labelled(self) -> KeysView[str]:
        """The images with a label map."""
        return self._lines.keys()

    def __getitem__(self, image_id: str) -> dict[str, Any]:
        if image_id in self.skipped:
            return {"image_id": image_id, "skipped": self.skipped[image_id]}
        return dict(json.loads(self._lines[image_id]))


def checked_meta(text: str, where: str) -> dict[str, Any]:
    """A store's description.

    Args:
        text: JSON.
        where: it is from, for messages.

    Raises:
        UserError: another program wrote it, or it is damaged; names the field.
    """
    values = _parsed(text, where)
    names = values.get("class_names")
    if not isinstance(names, list) or not names:
        raise _wrong(where, "class_names", names, "a list of names")
    check_names(names, f"{where}: class_names")
    expected = {"key": str, "num_images": int, "complete": bool}
    optional = {"config": dict, "crf": bool, "method": str, "rule": str, "checkpoint": str, "skipped": list}
    for name, kind in {**expected, **optional}.items():
        value = values.get(name)
        if value is None and name in optional:
            continue
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise _wrong(where, name, value, f"a value of type {kind.__name__}")
    if not isinstance((values.get("config") or {}).get("note", ""), str):
        raise _wrong(where, "config.note", values["config"]["note"], "text")
    return values


def checked_record(text: str, num_classes: int, where: str) -> dict[str, Any]:
    """A record of one image.

    Args:
        text: a line of JSON.
        num_classes: of the store.
        where: it is from, for messages.

    Raises:
        UserError: see [`checked_meta`].
    """
    record = _parsed(text, where)
    if not isinstance(record.get("image_id"), str) or not record["image_id"]:
        raise _wrong(where, "image_id", record.get("image_id"), "a name")
    if "skipped" in record:
        if not isinstance(record["skipped"], str):
            raise _wrong(where, "skipped", record["skipped"], "a reason in words")
        return record
    classes = record.get("classes")
    if not isinstance(classes, list) or not all(type(c) is int and 0 <= c < num_classes for c in classes):
        raise _wrong(where, "classes", classes, f"a list of numbers from 0 to {num_classes - 1}")
    for name, optional in _PER_CLASS.items():
        values = record.get(name)
        if values is None and optional:
            continue
        if not isinstance(values, list) or len(values) != len(classes):
            raise _wrong(where, name, values, f"a list of {len(classes)} numbers, one for each class")
        for value in values:
            if not (_is_number(value) or (value is None and optional)):
                raise _wrong(where, name, value, "a finite number")
    if not all(0 <= share <= 1 for share in record["proportions"]):
        raise _wrong(where, "proportions", record["proportions"], "shares from 0 to 1")
    return record


def label_row(record: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """An image's columns of [`label_features`].

    Args:
        record: of the image.
        file: of its label map.
    """
    return {
        "image_id": record["image_id"],
        "label_map": str(file),
        "labels": record["classes"],
        "thresholds": record.get("thresholds") or [None] * len(record["classes"]),
        "proportions": record["proportions"],
        # A segmentation network's predictions come without class maps.
        "uncertainty": record.get("soft_share") or [None] * len(record["classes"]),
    }


def _is_number(value: Any) -> bool:
    plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    return plain and math.isfinite(value) and abs(value) <= _MAX_NUMBER


def _parsed(text: str, where: str) -> dict[str, Any]:
    try:
        values = parse_json(text, where)
    except UserError as error:
        raise UserError(f"{error}; {_REMEDY}") from error
    if not isinstance(values, Mapping):
        raise _wrong(where, "the whole", values, "an object of names and values")
    return dict(values)


_REMEDY = "delete the folder and label again"


def _wrong(where: str, field: str, got: Any, expected: str) -> UserError:
    return UserError(f"{where}: {field}: got {str(got)[:80]!r}, expected {expected}; {_REMEDY}")
