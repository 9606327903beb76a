"""The labels column of a Hugging Face dataset: its feature type, not its numbers, says what it holds."""

from collections.abc import Iterable, Sequence
from typing import Any

from datasets import ClassLabel, Dataset, LargeList, List, Value

from ..errors import UserError
from .tags import check_class_list, check_separators, check_spelling, clean_tag, sorted_tags, split_cell
from .validation import class_indices

Labels = tuple[list[list[int]], tuple[str, ...], list[str]]
# What datasets themselves write where there is no label.
NO_LABEL = -1


def read_labels(dataset: Dataset, column: str, classes: Sequence[str] | None, separator: str | None) -> Labels:
    """Class indices of every image, the class names, and what was decided for the user.

    Args:
        dataset: has the column.
        column: of the labels.
        classes: the classes; `None` for all that the column has.
        separator: of tags within one text; `None` takes each text for one tag.

    Raises:
        UserError: a type that is none of labels, a number that is no class, or a tag that is none; names the row.
    """
    feature = dataset.features[column]
    single = not isinstance(feature, List | LargeList)
    inner = feature if single else feature.feature
    if not isinstance(inner, Value | ClassLabel):
        # Of a picture, reading it would open what it names.
        raise _no_labels(column, feature)
    rows: list[list[Any]] = [[row] if single else list(row or ()) for row in dataset.with_format(None)[column]]
    if isinstance(inner, Value) and not single and inner.dtype not in ("string", "large_string"):
        return _multi_hot(rows, feature, classes, column)
    notes = []
    if empty := sum(any(value in (None, NO_LABEL) for value in row) for row in rows):
        notes.append(f"column {column!r}: {empty} rows have None or -1 among their labels, which is no label")
    rows = [[value for value in row if value not in (None, NO_LABEL)] for row in rows]
    if isinstance(inner, ClassLabel):
        names = [clean_tag(name, f"column {column!r}, name {number}") for number, name in enumerate(inner.names)]
        check_class_list(names, f"column {column!r}")
        tags = [[_name(names, value, f"column {column!r}, row {i}") for value in row] for i, row in enumerate(rows)]
        return _indices(tags, classes or names, column), tuple(classes or names), notes
    if isinstance(inner, Value) and inner.dtype in ("string", "large_string"):
        tags = [_texts(row, separator, f"column {column!r}, row {i}") for i, row in enumerate(rows)]
        found: dict[str, str] = {}
        for number, row in enumerate(tags):
            for tag in row:
                found.setdefault(tag, f"column {column!r}, row {number}")
        check_spelling(found)
        if separator is None:
            check_separators(found, classes or ())
        names = list(classes or sorted_tags(found))
        return _indices(tags, names, column), tuple(names), notes
    raise _no_labels(column, feature)


def _no_labels(column: str, feature: Any) -> UserError:
    return UserError(
        f"data.columns.labels: column {column!r} is {feature}; expected {List(ClassLabel(names=['...']))}, a list of "
        "strings or a multi-hot list"
    )


def _name(names: Sequence[str], value: int, where: str) -> str:
    if not 0 <= value < len(names):
        raise UserError(f"{where}: label {value}: expected 0 to {len(names) - 1}, or -1 for no label")
    return names[value]


def _texts(row: Iterable[str], separator: str | None, where: str) -> list[str]:
    if separator is not None:
        return [tag for text in row for tag in split_cell(text, separator, where)]
    return [tag for text in row if (tag := clean_tag(text, where))]


def _indices(tags: Sequence[Sequence[str]], names: Sequence[str], column: str) -> list[list[int]]:
    return [class_indices(row, names, f"column {column!r}, row {i}") for i, row in enumerate(tags)]


def _multi_hot(rows: Sequence[Sequence[Any]], feature: Any, classes: Sequence[str] | None, column: str) -> Labels:
    if classes is None:
        raise UserError(
            f"data.classes: missing, but the numbers in column {column!r} carry no names; name the classes"
        )
    for i, row in enumerate(rows):
        if len(row) != len(classes) or not set(row) <= {0, 1}:
            raise UserError(
                f"column {column!r}, row {i}: got {row}, expected a multi-hot vector of {len(classes)} zeros and "
                "ones, one per class in data.classes. Lists of class numbers need the type "
                "List(ClassLabel(names=[...])): dataset.cast_column"
            )
    certain = feature.length == len(classes) or feature.feature.dtype.startswith(("bool", "float"))
    if not certain and all(len(set(row)) == len(row) for row in rows):
        raise UserError(
            f"column {column!r}: is {feature}, and its rows may be numbers of classes or zeros and ones; say which "
            "with dataset.cast_column: List(ClassLabel(names=[...])) for numbers, List(Value('bool')) for 0 and 1"
        )
    return [[index for index, value in enumerate(row) if value] for row in rows], tuple(classes), []
