import json
import re

import datasets
import numpy as np
import pytest
from PIL import Image

from sbce_hf.cli import main
from sbce_hf.config import DataConfig
from sbce_hf.data import load_images
from sbce_hf.data.prepare import EXPECTED, check_source

CAT, PERSON = 8, 15
XML = "<annotation>{}</annotation>"


@pytest.fixture
def voc(tmp_path):
    """A devkit of four images with all parts but the augmented masks and their list."""
    root = tmp_path / "VOC2012"
    for name in ("JPEGImages", "SegmentationClass", "Annotations", "ImageSets/Segmentation"):
        (root / name).mkdir(parents=True)
    for number, (image_id, name) in enumerate(zip("abcd", ("cat", "cat", "person", "person"), strict=True)):
        Image.new("RGB", (12, 10), (50 * number, 20, 40)).save(root / f"JPEGImages/{image_id}.jpg")
        Image.fromarray(np.full((10, 12), CAT if name == "cat" else PERSON, np.uint8)).save(
            root / f"SegmentationClass/{image_id}.png"
        )
        (root / f"Annotations/{image_id}.xml").write_text(XML.format(f"<object><name>{name}</name></object>"))
    (root / "ImageSets/Segmentation/train.txt").write_text("a\nb\nc\n")
    (root / "ImageSets/Segmentation/val.txt").write_text("d\n")
    return root


@pytest.fixture
def coco(tmp_path):
    root = tmp_path / "coco"
    for split in ("train2014", "val2014"):
        (root / split).mkdir(parents=True)
        Image.new("RGB", (12, 10)).save(root / split / "1.jpg")
        (root / "annotations").mkdir(exist_ok=True)
        data = {
            "images": [{"id": i, "file_name": f"{i}.jpg", "width": 12, "height": 10} for i in (1, 2, 3)],
            "categories": [{"id": 90, "name": "toothbrush"}],
            "annotations": [
                {"id": i, "image_id": i, "category_id": 90, "segmentation": [[0, 0, 6, 0, 6, 5, 0, 5]]} for i in (1, 2)
            ],
        }
        (root / f"annotations/instances_{split}.json").write_text(json.dumps(data))
    return root


def row(output, name):
    """The numbers of one line of a table."""
    return [int(n) for n in re.search(rf"^{name} +([\d ]+)", output, re.M).group(1).split()]


def test_voc_without_the_augmented_part(voc, capsys):
    assert main(["prepare", "voc", str(voc)]) == 1
    output = capsys.readouterr()
    assert "missing: ImageSets/Segmentation/trainaug.txt (list of the split): fetch SegmentationClassAug" in output.out
    assert "missing (optional): SegmentationClassAug" in output.out
    # found, listed, expected, masks
    assert row(output.out, "trainaug") == [0, 0, 10582, 0]
    assert row(output.out, "train") == [3, 3, 1464, 3] and row(output.out, "val") == [1, 1, 1449, 1]
    assert (
        row(output.out, "cat") == [2, 0] and row(output.out, "person") == [1, 1] and row(output.out, "dog") == [0, 0]
    )
    assert "incomplete; --partial" in output.err
    assert main(["prepare", "voc", str(voc), "--partial"]) == 0
    assert "usable with --set data.partial=true" in capsys.readouterr().out


def test_complete_means_everything_that_the_original_has(voc, coco, monkeypatch, capsys):
    (voc / "SegmentationClassAug").mkdir()
    (voc / "ImageSets/Segmentation/trainaug.txt").write_text("a\nb\nc\n")
    monkeypatch.setitem(EXPECTED, "voc", {"trainaug": 3, "train": 3, "val": 1})
    assert main(["prepare", "voc", str(voc)]) == 0
    assert capsys.readouterr().out.rstrip().endswith("complete")
    (voc / "JPEGImages/d.jpg").unlink()
    (voc / "Annotations/a.xml").unlink()
    assert main(["prepare", "voc", str(voc)]) == 1
    output = capsys.readouterr()
    assert row(output.out, "trainaug") == [2, 3, 3, 2]
    assert "val: 1 images of split 'val' missing: " in output.out
    assert EXPECTED["coco"] == {"train2014": 82_081, "val2014": 40_137}


def test_coco_names_the_archives(coco, tmp_path, capsys):
    assert main(["prepare", "coco", str(coco)]) == 1
    output = capsys.readouterr().out
    assert row(output, "train2014") == [1, 2, 82081, 1] and row(output, "toothbrush") == [1, 1]
    assert "painted from annotations" in output and "stuffthingmaps_trainval2017.zip" in output
    (tmp_path / "empty").mkdir()
    assert main(["prepare", "coco", str(tmp_path / "empty"), "--partial"]) == 1
    output = capsys.readouterr().out
    for archive in ("train2014.zip", "val2014.zip", "annotations_trainval2014.zip"):
        assert archive in output
    (tmp_path / "empty/JPEGImages").mkdir()
    assert main(["prepare", "voc", str(tmp_path / "empty")]) == 1
    assert "VOCtrainval_11-May-2012.tar" in capsys.readouterr().out


def test_one_split(coco, capsys):
    Image.new("RGB", (12, 10)).save(coco / "val2014/2.jpg")
    (coco / "annotations/instances_val2014.json").rename(coco / "annotations/instances_mine.json")
    assert main(["prepare", "coco", str(coco), "--split", "mine"]) == 0
    output = capsys.readouterr().out
    assert row(output, "toothbrush") == [2] and not re.search("^missing:", output, re.M)
    assert main(["prepare", "coco", str(coco), "--split", "yours"]) == 1
    assert "instances_yours.json: no annotations" in capsys.readouterr().out


def test_no_folder(tmp_path, capsys):
    assert main(["prepare", "voc", str(tmp_path / "nowhere")]) == 1
    assert "nowhere: no such folder" in capsys.readouterr().err


@pytest.mark.parametrize("source", ["voc", "coco"])
def test_export(source, request, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    root, out = request.getfixturevalue(source), tmp_path / "out"
    assert main(["prepare", source, str(root), "--export", str(out)]) == 1
    assert not out.exists()
    assert main(["prepare", source, str(root), "--partial", "--export", str(out)]) == 0
    splits = ["train", "val"] if source == "voc" else ["train2014", "val2014"]
    files = [str(out / f"data/{split}-00000-of-00001.parquet") for split in splits]
    assert capsys.readouterr().out.splitlines()[-2:] == files
    original = load_images(DataConfig(source=source, data_dir=str(root), partial=True), splits[1])
    again = load_images(DataConfig(source="hub", dataset=str(out), score_split=splits[1]), splits[1])
    assert again.image_ids == original.image_ids and again.class_names == original.class_names
    np.testing.assert_array_equal(again.label_matrix(), original.label_matrix())
    np.testing.assert_array_equal(again.mask(0), original.mask(0))


def test_coco128(shared_dir):
    check = check_source("coco", shared_dir / "coco128", ["train"])
    assert check.complete and check.usable and [part.optional for part in check.missing] == [True]
    assert check.splits[0].found == check.splits[0].masks == 126
    assert sum(count > 0 for count in check.splits[0].class_images) == 71
