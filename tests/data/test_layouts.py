"""Folders as people have them: each is understood, or refused with the remedy."""

import json
import os
import re
import signal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sbce_hf.cli import main
from sbce_hf.config import DataConfig
from sbce_hf.data import load_images, tables
from sbce_hf.data.layout import understand
from sbce_hf.errors import UserError
from sbce_hf.runs import plan

TINY = ["--trunk-weights", "random", "--set", "model.trunk=test_resnet", "--set", "irn=null"]
TINY += [text for key in ("bce", "spatial") for text in ("--set", f"{key}.batch_size=2")]
# What is on each photo, in every layout below.
TAGS = {"a": {"cat", "dog"}, "b": {"cat"}, "c": set()}


def photos(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6), (200, 30, 60)).save(path)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def table_beside(root):
    photos(root, "images/a.jpg", "images/b.png", "images/c.jpg")
    write(root / "tags.csv", "file,tags\na.jpg,cat;dog\nb.png,cat\nc.jpg,\n")


def table_among(root):
    photos(root, "a.jpg", "b.png", "c.jpg")
    write(root / "my labels.tsv", "filename\tlabels\na.jpg\tcat;dog\nb.png\tcat\nc.jpg\t\n")


def one_hot_of_a_service(root):
    photos(root, "train/a.jpg", "train/b.jpg", "train/c.jpg", "valid/v.jpg")
    write(root / "train/_classes.csv", "filename, cat, dog\na.jpg, 1, 1\nb.jpg, 1, 0\nc.jpg, 0, 0\n")
    write(root / "valid/_classes.csv", "filename, cat, dog\nv.jpg, 0, 1\n")
    write(root / "README.roboflow.txt", "exported")


def imagefolder_lines(root):
    photos(root, "train/a.jpg", "train/b.jpg", "train/c.jpg")
    rows = [("a.jpg", ["cat", "dog"]), ("b.jpg", ["cat"]), ("c.jpg", [])]
    write(root / "train/metadata.jsonl", "\n".join(json.dumps({"file_name": n, "labels": t}) for n, t in rows))


def imagefolder_csv(root):
    photos(root, "a.jpg", "b.jpg", "c.jpg")
    write(root / "metadata.csv", "file_name,tags\na.jpg,\"['cat', 'dog']\"\nb.jpg,\"['cat']\"\nc.jpg,[]\n")


def imagefolder_parquet(root):
    photos(root, "a.jpg", "b.jpg", "c.jpg")
    table = pa.table({"file_name": ["a.jpg", "b.jpg", "c.jpg"], "tags": [["cat", "dog"], ["cat"], None]})
    pq.write_table(table, root / "metadata.parquet")


def coco(root):
    photos(root, "images/site/a.jpg", "images/b.jpg", "images/c.jpg")
    write(
        root / "annotations/instances_default.json",
        {
            "images": [{"id": n, "file_name": f} for n, f in enumerate(("site/a.jpg", "b.jpg", "c.jpg"))],
            "categories": [{"id": 4, "name": "dog"}, {"id": 5, "name": "cat"}, {"id": 6, "name": "cow"}],
            "annotations": [
                {"id": 1, "image_id": 0, "category_id": 4, "segmentation": [[0, 0, 3, 0, 3, 3]]},
                {"id": 2, "image_id": 0, "category_id": 5},
                {"id": 3, "image_id": 1, "category_id": 5},
            ],
        },
    )


def voc(root):
    photos(root, "JPEGImages/a.jpg", "JPEGImages/b.jpg", "JPEGImages/c.jpg")
    for name, tags in TAGS.items():
        objects = "".join(f"<object><name>{tag}</name><part><name>head</name></part></object>" for tag in sorted(tags))
        write(root / f"Annotations/{name}.xml", f"<annotation><filename>x</filename>{objects}</annotation>")


def voc_among(root):
    voc(root)
    for path in [*root.glob("JPEGImages/*"), *root.glob("Annotations/*")]:
        path.rename(root / path.name)
    for name in ("JPEGImages", "Annotations"):
        (root / name).rmdir()


def label_studio(root):
    photos(root, "images/a.jpg", "images/b.jpg", "images/c.jpg", "images/d.jpg")

    def task(number, image, *answers):
        results = [
            {"result": [{"type": "choices", "value": {"choices": answer}}] if answer else []} for answer in answers
        ]
        return {"id": number, "data": {"image": image}, "annotations": results}

    tasks = [
        task(1, "/data/upload/3/0a1b2c3d-a.jpg", ["cat", "dog"]),
        task(2, "/data/local-files/?d=photos/b.jpg", ["cat"], ["cat"]),
        task(3, "https://example.org/x/c.jpg?token=1", []),
        task(4, "s3://bucket/d.jpg"),
    ]
    write(root / "project-1.json", tasks)


def label_studio_min(root):
    photos(root, "images/a.jpg", "images/b.jpg", "images/c.jpg")
    tasks = [
        {"image": "/data/upload/3/0a1b2c3d-a.jpg", "id": 1, "choice": {"choices": ["cat", "dog"]}},
        {"image": "b.jpg", "id": 2, "choice": "cat"},
        {"image": "c.jpg", "id": 3, "choice": []},
    ]
    write(root / "export.json", tasks)


def label_studio_csv(root):
    photos(root, "images/a.jpg", "images/b.jpg", "images/c.jpg")
    lines = [
        "annotation_id,annotator,choice,created_at,id,image,lead_time,updated_at",
        '1,1,"{""choices"": [""cat"", ""dog""]}",2024-01-01T10:00:00Z,1,/data/upload/1/0a1b2c3d-a.jpg,2.5,2024-01-01',
        "2,1,cat,2024-01-01T10:00:00Z,2,/data/local-files/?d=images/b.jpg,1.5,2024-01-01",
        "3,1,,2024-01-01T10:00:00Z,3,/data/upload/1/0a1b2c3d-c.jpg,1.5,2024-01-01",
    ]
    write(root / "project-1.csv", "\n".join(lines))


def cvat(root):
    photos(root, "images/a.jpg", "images/b.jpg", "images/c.jpg")
    images = "".join(
        f'<image id="{number}" name="{name}.jpg" width="8" height="6">'
        + "".join(f'<tag label="{tag}" source="manual"/>' for tag in sorted(tags))
        + "</image>"
        for number, (name, tags) in enumerate(TAGS.items())
    )
    write(root / "annotations.xml", f"<annotations><version>1.1</version>{images}</annotations>")


def plain_object(root):
    photos(root, "images/a.jpg", "images/b.jpg", "images/c.jpg")
    write(root / "labels.json", {"a.jpg": ["cat", "dog"], "b": ["cat"], "c.jpg": []})


@pytest.mark.parametrize(
    ("make", "reader"),
    [
        (table_beside, "a table of files and tags"),
        (table_among, "a table of files and tags"),
        (one_hot_of_a_service, "a table with a column of 0 and 1 for each class, in folders that are splits"),
        (imagefolder_lines, "lines of JSON, in folders that are splits"),
        (imagefolder_csv, "a table of files and tags"),
        (imagefolder_parquet, "a parquet table of files and tags"),
        (coco, "COCO annotations, of which the categories are the tags"),
        (voc, "VOC's annotations, an XML file for each photo"),
        (voc_among, "VOC's annotations, an XML file for each photo"),
        (label_studio, "an export of Label Studio"),
        (label_studio_min, "an export of Label Studio"),
        (label_studio_csv, "a table of Label Studio"),
        (cvat, "annotations of CVAT"),
        (plain_object, "a JSON object of files and their tags"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_understood(tmp_path, make, reader, capsys, monkeypatch):
    make(tmp_path)
    # How long it would take is asked for once, in the tests of the plan.
    monkeypatch.setattr(plan, "stage_seconds", lambda config, stages, *_: {stage.name: [] for stage in stages})
    assert main(["check", str(tmp_path), *TINY]) == 0
    said = capsys.readouterr().out
    assert f"reader     {reader} (" in said and "to start   sbce run --recipe own-data" in said
    config = DataConfig(source="folder", data_dir=str(tmp_path))
    assert understand(config).reader == reader
    images = load_images(config, "train")
    assert images.class_names == ("cat", "dog")
    found = {
        image_id.rpartition("/")[2]: {images.class_names[c] for c in np.flatnonzero(row)}
        for image_id, row in zip(images.image_ids, images.label_matrix(), strict=True)
    }
    assert found == TAGS
    assert images.image(0).size == (8, 6)


def test_class_folders(tmp_path):
    photos(tmp_path, "cat/1.jpg", "cat/deep/2.jpg", "dog/1.jpg")
    images = load_images(DataConfig(source="folder", data_dir=str(tmp_path)), "train")
    assert images.image_ids == ["cat/1", "cat/deep/2", "dog/1"]
    assert images.label_matrix().tolist() == [[1, 0], [1, 0], [0, 1]]


def test_class_folders_in_splits_and_a_class_that_is_called_like_one(tmp_path):
    photos(tmp_path / "one", "train/cat/1.jpg", "train/dog/1.jpg", "test/cat/2.jpg", "test/dog/1.jpg")
    config = DataConfig(source="folder", data_dir=str(tmp_path / "one"))
    assert load_images(config, "train").image_ids == ["train/cat/1", "train/dog/1"]
    assert load_images(config, "test").image_ids == ["test/cat/2", "test/dog/1"]
    photos(tmp_path / "two", "train/1.jpg", "car/1.jpg")
    images = load_images(DataConfig(source="folder", data_dir=str(tmp_path / "two")), "train")
    assert images.class_names == ("car", "train")


def test_what_a_table_sets_aside_is_said(tmp_path):
    photos(tmp_path, "cat/a.jpg", "dog/b.jpg")
    write(tmp_path / "tags.csv", "file,tags\ncat/a.jpg,cat\ndog/b.jpg,dog\n")
    config = DataConfig(source="folder", data_dir=str(tmp_path))
    assert not understand(config).notes
    write(tmp_path / "tags.csv", "file,tags\ncat/a.jpg,cat\ndog/b.jpg,dog;cat\n")
    write(tmp_path / "labels.csv", "file,tags\ncat/a.jpg,cow\n")
    aside = "labels.csv, the folders cat, dog"
    assert understand(config).notes == [
        f"tags.csv was read, and set aside: {aside}; data.tags_file names another table"
    ]
    # Who names a table knows what else there is; folders that are no tags are places.
    assert not understand(DataConfig(source="folder", data_dir=str(tmp_path), tags_file="tags.csv")).notes
    (tmp_path / "labels.csv").unlink()
    write(tmp_path / "tags.csv", "file,tags\ncat/a.jpg,cow\ndog/b.jpg,hen\n")
    assert not understand(config).notes


def test_what_is_not_annotated_is_listed_and_disagreement_is_said(tmp_path):
    label_studio(tmp_path)
    images = load_images(DataConfig(source="folder", data_dir=str(tmp_path)), "train")
    (skipped,) = images.skipped
    assert skipped.file.endswith("d.jpg") and "not annotated" in skipped.reason and "task 4" in skipped.reason
    tasks = json.loads((tmp_path / "project-1.json").read_text())
    tasks[1]["annotations"][1]["result"][0]["value"]["choices"] = ["dog"]
    write(tmp_path / "project-1.json", tasks)
    found = understand(DataConfig(source="folder", data_dir=str(tmp_path)))
    assert found.rows[1].tags == ("cat", "dog") and "disagree on 1 photos" in found.notes[0]


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"image": "a.jpg", "choice": 5}, "task 0: choices: got 5, expected a list of names"),
        ({"image": "a.jpg", "choice": [["cat"]]}, "task 0: choices: got"),
        ({"image": "a.jpg", "label": [{"rectanglelabels": [7]}]}, r"task 0: choices: got \[7\]"),
        ({"data": {"image": 3}, "annotations": []}, "task 0: no image; expected an object with data.image"),
        (
            {"image": "a.jpg", "annotations": [{"result": 5}, 7, {"result": [3, {"type": "choices"}]}]},
            "no tags at all",
        ),
    ],
)
def test_tasks_that_mean_nothing(tmp_path, task, message):
    photos(tmp_path, "images/a.jpg")
    write(tmp_path / "tasks.json", [task])
    with pytest.raises(UserError, match=message):
        load_images(DataConfig(source="folder", data_dir=str(tmp_path)), "train")


def test_regions_of_label_studio_are_tags_as_well(tmp_path):
    photos(tmp_path, "images/a.jpg", "images/b.jpg")
    region = {"type": "rectanglelabels", "value": {"x": 1, "rectanglelabels": ["cat"]}}
    tasks = [
        {"data": {"image": "a.jpg"}, "annotations": [{"result": [region]}]},
        {"image": "b.jpg", "label": [{"x": 3, "rectanglelabels": ["dog"]}, {"x": 5, "rectanglelabels": ["cat"]}]},
    ]
    write(tmp_path / "tasks.json", tasks)
    images = load_images(DataConfig(source="folder", data_dir=str(tmp_path)), "train")
    assert images.label_matrix().tolist() == [[1, 0], [1, 1]]


def test_notes_of_coco(tmp_path):
    coco(tmp_path)
    notes = understand(DataConfig(source="folder", data_dir=str(tmp_path))).notes
    assert any("1 images have no annotation" in note for note in notes)
    assert any("no image has are no classes: cow" in note for note in notes)


def nothing_but_photos(root):
    photos(root, "images/a.jpg", "images/kitchen/b.jpg")


def flat_photos(root):
    photos(root, "a.jpg", "b.jpg")


def class_folders_among_images(root):
    photos(root, "images/cat/a.jpg", "images/dog/b.jpg")


def one_class_folder(root):
    photos(root, "cat/a.jpg", "cat/b.jpg")


def mixed_folders(root):
    photos(root, "cat/a.jpg", "dog/b.jpg", "c.jpg")


def two_tables(root):
    photos(root, "a.jpg")
    for name in ("one.csv", "two.csv"):
        write(root / name, "file,tags\na.jpg,cat\n")


def video(root):
    photos(root, "a.jpg")
    write(root / "annotations.xml", '<annotations><track id="0" label="cat"/></annotations>')


def entities(root):
    photos(root, "a.jpg")
    write(root / "annotations.xml", '<!DOCTYPE a [<!ENTITY x "cat">]><annotations><image name="a.jpg"/></annotations>')


def other_json(root):
    photos(root, "a.jpg")
    write(root / "labels.json", {"a.jpg": "cat"})


def other_table(root):
    photos(root, "a.jpg")
    write(root / "measurements.csv", "time,temperature\n1,20\n")


def split_without_tags(root):
    photos(root, "train/a.jpg", "valid/b.jpg")
    write(root / "train/tags.csv", "file,tags\na.jpg,cat\n")


def nothing(root):
    write(root / "readme.txt", "soon")


def spreadsheet(root):
    photos(root, "a.jpg")
    write(root / "~$labels.xlsx", "")
    write(root / "my labels.XLSX", "PK")


def text_file(root):
    photos(root, "images/a.jpg")
    write(root / "images/labels.txt", "a.jpg cat")


def broken_parquet(root):
    photos(root, "a.jpg")
    write(root / "metadata.parquet", "PAR1")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (nothing_but_photos, r"no tags table; expected .*`sbce init .*` writes a table to fill in"),
        (flat_photos, "`sbce init"),
        (
            class_folders_among_images,
            "If the folders 'cat, dog' are the classes, move them up into .* and",
        ),
        (one_class_folder, "`sbce init"),
        (mixed_folders, "`sbce init"),
        (two_tables, r"which file has the tags\? It may be one\.csv, two\.csv; name one with data\.tags_file"),
        (video, "got a video's tracks, expected .*export 'CVAT for images'"),
        (entities, r"line 1: declares a document type.*Remove the <!DOCTYPE"),
        (other_json, r"labels\.json: got .*expected COCO's .*Label Studio"),
        (other_table, r"measurements\.csv, line 1: got the header 'time,temperature', expected file,tags"),
        (split_without_tags, r"valid: no tags table, and no folders that are classes; expected tags\.csv"),
        (nothing, "images: no such folder, and no photos in"),
        (spreadsheet, r"my labels\.XLSX: spreadsheets are not read; save it as CSV UTF-8 with columns file and tags"),
        (
            text_file,
            r"labels\.txt: is read only where it is named: --set data\.tags_file=images/labels\.txt; its first",
        ),
        (broken_parquet, r"metadata\.parquet: cannot be read as parquet"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_refused_with_the_remedy(tmp_path, make, message, capsys):
    make(tmp_path)
    with pytest.raises((UserError, FileNotFoundError), match=message):
        load_images(DataConfig(source="folder", data_dir=str(tmp_path)), "train")
    assert main(["check", str(tmp_path), *TINY]) == 1
    assert re.search(f"sbce: error: .*{message}", capsys.readouterr().err)


def test_class_folders_that_were_moved_up_are_read(tmp_path):
    class_folders_among_images(tmp_path)
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).rename(tmp_path / name)
    (tmp_path / "images").rmdir()
    config = DataConfig(source="folder", data_dir=str(tmp_path))
    assert [row.tags for row in understand(config).rows] == [("cat",), ("dog",)]


def test_a_table_instead_of_its_folder(tmp_path, capsys):
    table_beside(tmp_path)
    for command in ("check", "init"):
        assert main([command, str(tmp_path / "tags.csv")]) == 1
        error = capsys.readouterr().err
        assert "tags.csv: is a file; expected" in error and f"Name its folder, {tmp_path}; data.tags_file=" in error


def test_a_named_file_that_is_a_spreadsheet_or_a_text(tmp_path):
    spreadsheet(tmp_path)
    with pytest.raises(UserError, match="spreadsheets are not read"):
        load_images(DataConfig(source="folder", data_dir=str(tmp_path), tags_file="my labels.XLSX"), "train")
    text_file(tmp_path)
    write(tmp_path / "images/labels.txt", "file,tags\na.jpg,cat\n")
    found = load_images(DataConfig(source="folder", data_dir=str(tmp_path), tags_file="images/labels.txt"), "train")
    assert found.class_names == ("cat",) and len(found) == 1


def test_the_file_that_is_named_is_read(tmp_path):
    two_tables(tmp_path)
    photos(tmp_path, "b.jpg")
    write(tmp_path / "two.csv", "file,tags\na.jpg,dog\nb.jpg,cow\n")
    config = DataConfig(source="folder", data_dir=str(tmp_path), tags_file="two.csv")
    assert load_images(config, "train").class_names == ("cow", "dog")


@pytest.fixture
def in_time():
    """Opening a pipe waits for ever: fail instead."""

    def late(*_):
        raise TimeoutError("still waiting")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(
    "name", ["tags.csv", "x.csv", "metadata.parquet", "x.jsonl", "x.json", "images/a.xml", "masks/a.png"]
)
def test_a_pipe_is_not_waited_for(tmp_path, in_time, name):
    photos(tmp_path, "images/a.jpg")
    if name.startswith("masks"):
        write(tmp_path / "tags.csv", "file,tags\na.jpg,cat\n")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=rf"{re.escape(name)}: is a named pipe, expected a file"):
        load_images(DataConfig(data_dir=str(tmp_path), score_split="train"), "train")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.jsonl", '{"file_name": "a.jpg", "tags": ["cat"], "tags": ["dog"]}\n'),
        ("tags.json", '{"a.jpg": ["cat"], "a.jpg": ["dog"]}'),
        ("c.json", '{"categories": [{"id": 1, "name": "a", "name": "b"}], "images": [], "annotations": []}'),
    ],
)
def test_a_key_that_is_given_twice_is_refused(tmp_path, name, content):
    photos(tmp_path, "a.jpg")
    write(tmp_path / name, content)
    with pytest.raises(UserError, match=rf"{name}.*: key '(tags|a\.jpg|name)' is given twice in one object; remove"):
        load_images(DataConfig(data_dir=str(tmp_path)), "train")


def test_a_small_table_of_endless_rows_is_not_read(tmp_path, monkeypatch):
    photos(tmp_path, "a.jpg")
    table = pa.table({"file_name": pa.array(["a.jpg"] * 5000), "tags": pa.array(["cat", "dog"] * 2500)})
    pq.write_table(table, tmp_path / "metadata.parquet")
    assert load_images(DataConfig(data_dir=str(tmp_path)), "train").class_names == ("cat", "dog")
    for name, limit in (("MAX_ROWS", 100), ("MAX_TEXT", 1000)):
        with monkeypatch.context() as patch:
            patch.setattr(tables, name, limit)
            with pytest.raises(UserError, match="got more than .* for 1 photos; keep the rows of these photos"):
                load_images(DataConfig(data_dir=str(tmp_path)), "train")


def test_a_name_of_endless_folders_costs_no_time_and_is_shown_in_part(tmp_path, in_time):
    photos(tmp_path, "images/a.jpg")
    write(tmp_path / "tags.csv", f"file,tags\n{'x/' * 60_000}a.jpg,cat\n")
    (note,) = load_images(DataConfig(data_dir=str(tmp_path)), "train").notes
    assert note.endswith("is a.jpg") and len(note) < 1000


def test_a_listed_photo_that_cannot_be_read_stops_nothing(tmp_path):
    photos(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "b.jpg").rename(tmp_path / "noext")
    (tmp_path / "phone.HEIC").write_bytes(b"")
    write(tmp_path / "tags.csv", "file,tags\na.jpg,cat\nnoext,cat\nphone.HEIC,cat\n")
    images = load_images(DataConfig(source="folder", data_dir=str(tmp_path)), "train")
    reasons = {skipped.file.rpartition("/")[2]: skipped.reason for skipped in images.skipped}
    assert images.image_ids == ["a"] and reasons.keys() == {"noext", "phone.HEIC"}
    assert "rename it" in reasons["noext"]
    write(tmp_path / "tags.csv", "file,tags\na.jpg,cat\nabsent.HEIC,cat\n")
    with pytest.raises(FileNotFoundError, match=r"1 images listed in tags\.csv missing: .*absent\.HEIC"):
        load_images(DataConfig(source="folder", data_dir=str(tmp_path)), "train")


def test_splits_are_told_and_written_one_way(tmp_path, capsys, monkeypatch):
    table_beside(tmp_path)
    masks = tmp_path / "masks" / "a.png"
    masks.parent.mkdir()
    Image.new("L", (8, 6)).save(masks)
    write(tmp_path / "tags.csv", "file,tags,split\na.jpg,cat;dog,train\nb.png,cat,val\nc.jpg,,val\n")
    monkeypatch.setattr(plan, "stage_seconds", lambda config, stages, *_: {stage.name: [] for stage in stages})
    main(["check", str(tmp_path), *TINY])
    said = capsys.readouterr().out
    assert "other splits: val 2" in said and "neither checked nor scored without --set data.score_split=train" in said
    write(tmp_path / "tags.csv", "file,tags,split\na.jpg,cat;dog,train\nb.png,cat,Train\nc.jpg,,val\n")
    assert main(["check", str(tmp_path), *TINY]) == 1
    assert "split 'Train' is also asked for as 'train'; write it one way" in capsys.readouterr().err
