"""Tags in the files of annotation programs: Label Studio, CVAT, COCO, VOC, and a plain JSON object of lists."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import parse_json
from .coco_instances import read_listing
from .rows import Row, Table, file_of
from .tables import read_text
from .tags import clean_all, split_cell
from .xml_text import read_xml


def read_json_table(path: Path, separator: str | None) -> Table:
    """Read a JSON file: COCO's instances, an export of Label Studio, or an object of files and their tags.

    Raises:
        UserError: it is none of these; says what was expected.
    """
    text, notes = read_text(path)
    data: Any = parse_json(text, str(path))
    if isinstance(data, Mapping) and {"images", "annotations"} <= data.keys():
        return _coco(path)
    if isinstance(data, list) and all(isinstance(task, Mapping) for task in data) and data:
        return _label_studio(path, data, separator, notes)
    if isinstance(data, Mapping) and data and all(isinstance(tags, list) for tags in data.values()):
        rows = [
            Row(str(file), tuple(clean_all(tags, f"{path}, {file!r}")), None, f"{path}, {file!r}")
            for file, tags in data.items()
        ]
        return Table("a JSON object of files and their tags", path, rows, notes)
    raise UserError(
        f"{path}: got {text.strip()[:60]!r}..., expected COCO's images, annotations and categories, an export of "
        'Label Studio (JSON or JSON-MIN), or {"a.jpg": ["cat"]}'
    )


def _coco(path: Path) -> Table:
    images, names = read_listing(path)
    rows = [
        Row(
            image.file,
            tuple(names[number] for number in sorted(image.categories)),
            None,
            f"{path}, image {image.number}",
        )
        for image in images
    ]
    notes = []
    if bare := sum(not row.tags for row in rows):
        notes.append(f"{path.name}: {bare} images have no annotation; they count as photos without any class")
    used = {tag for row in rows for tag in row.tags}
    if unused := [name for name in names.values() if name not in used]:
        notes.append(f"{path.name}: categories that no image has are no classes: {', '.join(unused)}")
    return Table("COCO annotations, of which the categories are the tags", path, rows, notes)


def _label_studio(path: Path, tasks: Sequence[Mapping[str, Any]], separator: str | None, notes: list[str]) -> Table:
    table, several = Table("an export of Label Studio", path, [], notes), 0
    for index, task in enumerate(tasks):
        where = f"{path}, task {task.get('id', index)}"
        inner = task.get("data")
        data: Mapping[str, Any] = inner if isinstance(inner, Mapping) else task
        file = next(
            (
                data[key]
                for key in ("image", "img", "file_name", "filename", "photo", "url")
                if _is_text(data.get(key))
            ),
            None,
        )
        if file is None:
            raise UserError(
                f"{where}: no image; expected an object with data.image, or image, as Label Studio exports"
            )
        name = file_of(file)
        answers = _answers(task, separator, where)
        if not answers:
            table.left_out.append((name, f"not annotated ({where})"))
            continue
        several += any(set(answer) != set(answers[0]) for answer in answers)
        tags = dict.fromkeys(tag for answer in answers for tag in answer)
        table.rows.append(Row(name, tuple(tags), None, where))
    if several:
        notes.append(f"{path.name}: annotators disagree on {several} photos; all of their tags were taken")
    return table


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _answers(task: Mapping[str, Any], separator: str | None, where: str) -> list[list[str]]:
    """The tags of each annotator; none for a task that nobody has finished."""
    annotations = task.get("annotations", task.get("completions"))
    if annotations is None:
        # JSON-MIN: each question is a key, with a text, a list, or an object of choices.
        known = [
            value for key, value in task.items() if key in ("choice", "choices", "label", "labels", "tags", "tag")
        ]
        return [_choices(value, separator, where) for value in known[:1]]
    answers = []
    for annotation in annotations if isinstance(annotations, list) else ():
        if not isinstance(annotation, Mapping) or annotation.get("was_cancelled"):
            continue
        tags: list[str] = []
        results = annotation.get("result")
        for result in results if isinstance(results, list) else ():
            kind = result.get("type") if isinstance(result, Mapping) else None
            value = result.get("value") if kind else None
            if isinstance(value, Mapping) and isinstance(kind, str) and kind in value and kind != "textarea":
                tags += _choices(value[kind], separator, where)
        answers.append(tags)
    return answers


def _choices(value: Any, separator: str | None, where: str) -> list[str]:
    if isinstance(value, Mapping):
        value = value.get("choices", [])
    if isinstance(value, str):
        return split_cell(value, separator, where)
    if isinstance(value, list) and any(isinstance(entry, Mapping) for entry in value):
        # Regions of JSON-MIN.
        found = [
            entry.get(key) for entry in value if isinstance(entry, Mapping) for key in entry if key.endswith("labels")
        ]
        value = [name for names in found for name in (names if isinstance(names, list) else [names])]
    if isinstance(value, list) and all(isinstance(tag, str) for tag in value):
        return clean_all(value, where)
    raise UserError(f"{where}: choices: got {str(value)[:120]}, expected a list of names")


def read_xml_table(path: Path) -> Table:
    """Read "CVAT for images" XML: the labels of tags and shapes are a photo's tags.

    Raises:
        UserError: it is something else.
    """
    root = read_xml(path)
    images = root.findall("image")
    if root.tag != "annotations" or not images:
        what = "a video's tracks" if root.find("track") is not None else f"<{root.tag}>"
        raise UserError(f"{path}: got {what}, expected <annotations> with <image name=...>; export 'CVAT for images'")
    table = Table("annotations of CVAT", path, [])
    for index, image in enumerate(images):
        where = f"{path}, image {image.get('id', index)}"
        name = image.get("name")
        if not name:
            raise UserError(f"{where}: has no name; export 'CVAT for images' again")
        labels = [child.get("label") for child in image if child.get("label") is not None]
        table.rows.append(Row(name, tuple(dict.fromkeys(clean_all(labels, where))), image.get("subset"), where))
    if all(row.split is None for row in table.rows):
        return table
    # Where some images have a subset, one without says so by an empty one.
    table.rows = [Row(row.file, row.tags, row.split or "", row.where) for row in table.rows]
    return table


def read_voc_folder(folder: Path, files: Sequence[Path]) -> Table:
    """Read VOC's annotations, one XML file for each photo, with any class names.

    Args:
        folder: that holds them, for messages.
        files: the annotations.

    Raises:
        UserError: a file that is none.
    """
    rows = []
    for file in files:
        # Direct children only: a person's <part> has a <name> too.
        names = [element.text or "" for element in read_xml(file).iterfind("object/name")]
        rows.append(Row(file.stem, tuple(dict.fromkeys(clean_all(names, str(file)))), None, str(file)))
    return Table("VOC's annotations, an XML file for each photo", folder, rows)
