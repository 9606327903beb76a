import csv

import pytest
from PIL import Image

from sbce_hf.cli import main

TRUNK = ["--set", "model={trunk: test_resnet}", "--trunk-weights", "random"]


@pytest.fixture
def folder(tmp_path):
    for number in range(12):
        path = tmp_path / "images" / "deep" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((40, 32), 60).convert("RGB").save(path)
    return tmp_path


def fill_in(folder, tags):
    """Does what a user does with the table of `sbce init`."""
    with open(folder / "tags.csv", encoding="utf-8-sig", newline="") as file:
        rows = list(csv.reader(file))
    for row, tag in zip(rows[1:], tags, strict=True):
        row[1] = tag
    with open(folder / "tags.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)


def test_from_photos_to_a_plan(folder, capsys):
    assert main(["check", str(folder), *TRUNK]) == 1
    error = capsys.readouterr().err
    assert "no tags table" in error and f"sbce init {folder}" in error
    (folder / "images" / "phone.dng").write_bytes(b"")
    assert main(["init", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "(12 photos)" in printed and "phone.dng: a camera's raw file" in printed and "sbce check" in printed
    # Not filled in yet.
    assert main(["check", str(folder), *TRUNK]) == 1
    assert "no tags at all; tag at least some" in capsys.readouterr().err
    fill_in(folder, ["cat", "cat", "dog", "cat;dog"] * 3)
    (folder / "images" / "deep" / "3.jpg").write_bytes(b"nothing")
    quick = [text for key in ("bce", "spatial") for text in ("--set", f"{key}.min_iterations=3")]
    quick += [text for key in ("bce", "spatial", "labelling") for text in ("--set", f"{key}.image_size=64")]
    quick += [text for key in ("bce", "spatial") for text in ("--set", f"{key}.batch_size=2")]
    assert main(["check", str(folder), *TRUNK, *quick, "--set", "irn=null"]) == 0
    printed = capsys.readouterr().out
    assert "reader     a table of files and tags" in printed and f"photos     11 in {folder / 'images'}" in printed
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    assert "cat 8 photos" in lines and "dog 6 photos" in lines and "in all 11 photos" in lines
    assert any(line.startswith("skipped") and "3.jpg: unreadable image" in line for line in lines)
    assert any(line.startswith("skipped") and "phone.dng" in line for line in lines)
    assert "look at dog: only 6 photos to learn from" in lines
    assert "round_2" in printed and "time: about" in printed and "to start   sbce run --recipe own-data" in printed


def test_a_table_that_is_there_is_not_replaced(folder, capsys):
    (folder / "tags.csv").write_text("mine")
    assert main(["init", str(folder)]) == 1
    assert "is there already" in capsys.readouterr().err and (folder / "tags.csv").read_text() == "mine"


def class_folders(root):
    for name in ("cat", "dog"):
        (root / name).mkdir()
        Image.new("RGB", (8, 6)).save(root / name / "a.jpg")
    return "folders that are named like the class of their photos", root / "images"


def labels_table(root):
    Image.new("RGB", (8, 6)).save(root / "a.jpg")
    (root / "labels.csv").write_text("file,tags\na.jpg,cat,\n")
    return "labels.csv: is there already, and tags.csv would hide it", "fill it in"


def labels_of_another_name(root):
    Image.new("RGB", (8, 6)).save(root / "a.jpg")
    (root / "image_labels.json").write_text('{"a.jpg": ["cat"]}')
    return "image_labels.json: the photos have tags already", "a JSON object of files and their tags"


@pytest.mark.parametrize("make", [class_folders, labels_table, labels_of_another_name])
def test_tags_that_are_there_are_not_hidden(tmp_path, make, capsys):
    told = make(tmp_path)
    assert main(["init", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert all(str(text) in error for text in told) and not (tmp_path / "tags.csv").exists()


def test_what_says_nothing_does_not_stop_a_table(folder):
    (folder / "measurements.csv").write_text("time,temperature\n1,20\n")
    (folder / "a.json").write_text("{}")
    assert main(["init", str(folder)]) == 0 and (folder / "tags.csv").exists()


def test_a_column_for_each_class(folder):
    assert main(["init", str(folder), "--classes", "cat, dog"]) == 0
    lines = (folder / "tags.csv").read_text(encoding="utf-8-sig").splitlines()
    assert lines[0] == "file,cat,dog" and lines[1] == "deep/0.jpg,," and len(lines) == 13


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no such folder"),
        (["."], "no photos to list"),
        (["DIR", "--classes", "cat,Cat"], "tag 'Cat' is also written 'cat'"),
        (["DIR", "--classes", "cat,background"], "is the name of label 0"),
    ],
)
def test_mistakes(folder, arguments, message, capsys, monkeypatch, tmp_path_factory):
    monkeypatch.chdir(tmp_path_factory.mktemp("empty"))
    assert main(["init", *(str(folder) if text == "DIR" else text for text in arguments)]) == 1
    assert message in capsys.readouterr().err and not (folder / "tags.csv").exists()
