"""Columns beside the file and the tags: taken, named in a note, or refused where they have to do with the tags."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sbce_hf.config import DataConfig
from sbce_hf.data import load_images
from sbce_hf.errors import UserError


def read(folder, content, name="tags.csv", split="train"):
    (folder / name).write_text(content)
    return load_images(DataConfig(source="folder", data_dir=str(folder)), split)


def tags_of(images):
    named = [[images.class_names[c] for c in np.flatnonzero(row)] for row in images.label_matrix()]
    return dict(zip(images.image_ids, named, strict=True))


@pytest.mark.parametrize(
    ("content", "unused"),
    [
        ("file,tags,width,place\na.jpg,cat;dog,8,kitchen\nb.jpg,cat,8,\n", "width, place"),
        ("id,file,tags\n1,a.jpg,cat;dog\n2,b.jpg,cat\n", "id"),
        (",file,tags\n0,a.jpg,cat;dog\n1,b.jpg,cat\n", "number 1, without a name"),
        ("file,tags,confidence\na.jpg,cat;dog,1\nb.jpg,cat,0.5\n", "confidence"),
        # Points of a game, not shares.
        ("file,tags,score\na.jpg,cat;dog,0\nb.jpg,cat,7\n", "score"),
        # Repeats what is said.
        ("file,tags,main\na.jpg,cat;dog,dog\nb.jpg,cat,cat\n", "main"),
        ("file,tags,tag2\na.jpg,cat;dog,\nb.jpg,cat,\n", "tag2"),
    ],
)
def test_what_is_not_used_is_said(folder, content, unused):
    images = read(folder, content)
    assert tags_of(images) == {"a": ["cat", "dog"], "b": ["cat"]}
    assert [note for note in images.notes if "not used" in note] == [f"tags.csv: columns that are not used: {unused}"]


def test_all_used_and_numbers_that_count_something(folder):
    assert not read(folder, "file,tags,\na.jpg,cat;dog,\nb.jpg,cat,\n").notes
    assert "not used: turns" in read(folder, "file,tags,turns\na.jpg,1,2\nb.jpg,2,1\n").notes[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "file,tags,tag2,tag3\na.jpg,cat,dog,cow\nb.jpg,cat,,\n",
            "line 1: column 'tag2' holds tags too; put all",
        ),
        ("file,Label,Label_1\na.jpg,cat,dog\nb.jpg,cat,\n", "column 'Label_1' holds tags too"),
        ("file,tags,second\na.jpg,cat,dog\nb.jpg,dog,\n", "column 'second' holds tags too; .*one row for each tag"),
        ("file,tags,\na.jpg,cat,dog\nb.jpg,dog,\n", "column 'number 3, without a name' holds tags too"),
        (
            "file,tag1,tag2\na.jpg,cat,dog\nb.jpg,dog,\n",
            r"line 2: column 'tag1': got 'cat'.*\. Put all tags",
        ),
        ("file,tags,score\na.jpg,cat,0.9\nb.jpg,dog,0.49\n", "rows with a score below 0.5 count as tags; remove them"),
        ("file,tags,is_valid\na.jpg,cat,False\nb.jpg,dog,True\n", "column 'is_valid': .* a column split"),
        ("file,cat,is_test\na.jpg,1,0\nb.jpg,0,1\n", "column 'is_test': .* a column split"),
    ],
)
def test_refused_with_the_remedy(folder, content, message):
    with pytest.raises(UserError, match=message):
        read(folder, content)


@pytest.mark.parametrize(
    ("line", "header"),
    [
        ("TRAIN,gs://bucket/a.jpg,horse", "split,file,tags"),
        ("cat,a.jpg,", "tags,file"),
        ("a.jpg\tcat", r"file tags \(a tab between them\)"),
        ("a.jpg,cat,dog", r"file,tags \(all tags of a photo in one cell\)"),
        ("a.jpg,1,0", "with file and the name of each class"),
    ],
)
def test_the_header_that_is_missing_is_told(folder, line, header):
    with pytest.raises(UserError, match=f"line 1: no header: .*; put a line {header} above it"):
        read(folder, f"{line}\n")


def test_that_header_helps(folder):
    lines = "".join(f"TRAIN,gs://bucket/{name}.jpg,{tag}\n" for name, tag in (("a", "cat"), ("b", "dog")))
    assert tags_of(read(folder, f"split,file,tags\n{lines}", split="TRAIN")) == {"a": ["cat"], "b": ["dog"]}


def test_a_tab_is_shown_as_a_blank(folder):
    (folder / "tags.csv").write_bytes("photo_nr\tanimal\na.jpg\tcat\n".encode("utf-16"))
    with pytest.raises(UserError, match="got the header 'photo_nr animal', expected"):
        load_images(DataConfig(source="folder", data_dir=str(folder)), "train")
    with pytest.raises(UserError, match=r"expected 2 fields \(file tags\), got 3"):
        read(folder, "file\ttags\na.jpg\tcat\tdog\n")


@pytest.mark.parametrize("name", ["subset", "Set", "partition", "usage"])
def test_a_split_by_another_name(folder, name):
    content = f"file,tags,{name}\na.jpg,cat,train\nb.jpg,cat,test\n"
    images = read(folder, content)
    assert images.image_ids == ["a"] and f"column {name!r} was taken for the split" in images.notes[0]
    assert read(folder, content, split="test").image_ids == ["b"]
    # A column of both names, or of other words, is none.
    images = read(folder, f"file,tags,split,{name}\na.jpg,cat,train,test\nb.jpg,cat,train,test\n")
    assert len(images) == 2 and images.notes == (f"tags.csv: columns that are not used: {name}",)
    assert len(read(folder, f"file,tags,{name}\na.jpg,cat,north\nb.jpg,cat,train\n")) == 2


def test_a_split_by_another_name_is_no_class(folder):
    assert read(folder, "file,cat,dog,subset\na.jpg,1,1,train\nb.jpg,1,0,valid\n").image_ids == ["a"]
    assert read(folder, "file,cat,set\na.jpg,1,1\nb.jpg,1,0\n").class_names == ("cat", "set")


def test_lines_and_parquet(folder):
    line = '{{"file_name": "{}.jpg", "tags": ["cat"], "{}": {}}}\n'
    images = read(folder, line.format("a", "width", 8) + line.format("b", "place", '"hall"'), "metadata.jsonl")
    assert images.notes == ("metadata.jsonl: columns that are not used: width, place",)
    with pytest.raises(UserError, match=r"metadata\.jsonl: column 'more' holds tags too"):
        read(
            folder,
            '{"file_name": "a.jpg", "tags": ["cat"], "more": ["dog"]}\n{"file_name": "b.jpg", "tags": ["dog"]}\n',
            "metadata.jsonl",
        )
    (folder / "metadata.jsonl").unlink()
    table = {"file_name": ["a.jpg", "b.jpg"], "label": ["cat", "dog"], "width": [8, 8]}
    pq.write_table(pa.table(table), folder / "metadata.parquet")
    config = DataConfig(source="folder", data_dir=str(folder))
    assert load_images(config, "train").notes == ("metadata.parquet: columns that are not used: width",)
    pq.write_table(pa.table({**table, "label_2": ["cow", None]}), folder / "metadata.parquet")
    with pytest.raises(UserError, match="column 'label_2' holds tags too"):
        load_images(config, "train")
