import json
import logging
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from sbce_hf.config import DataConfig
from sbce_hf.data import load_images
from sbce_hf.data.folder import check_split, load
from sbce_hf.data.image_ids import check_ids
from sbce_hf.data.layout import understand
from sbce_hf.errors import UserError


def save(path, size=(24, 16), colour=(200, 30, 60), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)


@pytest.fixture
def folder(tmp_path):
    """Three images, one of them nested, one without tags."""
    for name in ("a.jpg", "trip/b.png", "c.webp"):
        save(tmp_path / "images" / name)
    (tmp_path / "tags.csv").write_text("file,tags\na.jpg, dog ;cat\ntrip/b.png,dog\nc.webp,\n")
    return tmp_path


def config(root, **values):
    return DataConfig(source="folder", data_dir=str(root), **values)


def truncate(path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-400])


def test_csv(folder):
    images = load(config(folder), "train")
    assert images.class_names == ("cat", "dog")
    assert images.image_ids == ["a", "trip/b", "c"]
    # An image without tags is legal.
    assert images.label_matrix().tolist() == [[1, 1], [0, 1], [0, 0]]
    assert images.skipped == () and not len(images.with_masks())
    assert images.image(0).size == (24, 16) and images.image(0).mode == "RGB"
    # Paths stay paths.
    assert images.dataset[1]["image"] == {"bytes": None, "path": str(folder / "images/trip/b.png")}


def test_jsonl_with_either_base_folder(folder):
    (folder / "tags.csv").unlink()
    rows = [("a.jpg", ["dog", "cat"]), ("images/trip/b.png", ["dog", "dog"]), ("c.webp", [])]
    lines = [json.dumps({"file_name": name, "tags": tags, "licence": "x"}) for name, tags in rows]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n\n")
    images = load(config(folder), "train")
    assert images.image_ids == ["a", "trip/b", "c"]
    assert images.label_matrix().tolist() == [[1, 1], [0, 1], [0, 0]]


def test_spreadsheet_csv(folder):
    (folder / "tags.csv").write_bytes(
        '\ufefftags,file\r\ncat,a.jpg\r\n"big dog; cat;;",trip/b.png\r\n,c.webp\r\n'.encode()
    )
    assert load(config(folder), "train").class_names == ("big dog", "cat")


def test_classes_fix_the_order(folder):
    images = load(config(folder, classes=("dog", "cat")), "train")
    assert images.label_matrix().tolist() == [[1, 1], [1, 0], [0, 0]]


def test_masks_by_stem(folder):
    for name, value in (("a", 2), ("trip/b", 1)):
        path = folder / "masks" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((16, 24), value, dtype=np.uint8)).save(path)
    images = load(config(folder, score_split="train"), "train")
    assert images.mask_values == (0, 1, 2)
    assert np.unique(images.mask(0)).tolist() == [2] and np.unique(images.mask(1)).tolist() == [1]
    assert images.with_masks().image_ids == ["a", "trip/b"]
    with pytest.raises(ValueError, match="'c': there is none"):
        images.mask(2)


@pytest.mark.parametrize(("mask", "message"), [((16, 24, 3), "got value 3"), ((24, 16, 1), "got 16 x 24 pixels")])
def test_bad_mask_is_found_at_load_when_scored(folder, mask, message):
    height, width, value = mask
    (folder / "masks").mkdir()
    Image.fromarray(np.full((height, width), value, dtype=np.uint8)).save(folder / "masks/a.png")
    assert len(load(config(folder), "train")) == 3
    with pytest.raises(ValueError, match=f"mask of image 'a': {message}"):
        load(config(folder, score_split="train"), "train")


def test_score_split_without_masks(folder):
    with pytest.raises(ValueError, match=r"data\.score_split: the split has no masks"):
        load(config(folder, score_split="train"), "train")


def test_split_column(folder):
    (folder / "tags.csv").write_text("file,tags,split\na.jpg,dog,train\ntrip/b.png,cat,val\nc.webp,cat,train\n")
    train, val = load(config(folder), "train"), load(config(folder), "val")
    assert train.image_ids == ["a", "c"] and val.image_ids == ["trip/b"]
    # Classes are those of the whole table, so that the splits agree.
    assert train.class_names == val.class_names == ("cat", "dog")
    with pytest.raises(ValueError, match=r"no rows of split 'test'; splits: train, val"):
        load(config(folder), "test")


def test_without_split_column_there_is_only_train(folder):
    with pytest.raises(ValueError, match="no rows of split 'val'; it has no split column"):
        load(config(folder), "val")


def test_missing_images_are_named_before_anything_starts(folder):
    rows = "".join(f"gone{i}.jpg,dog\n" for i in range(8))
    (folder / "tags.csv").write_text("file,tags\na.jpg,dog\n" + rows)
    with pytest.raises(
        FileNotFoundError, match=r"8 images listed in tags\.csv missing: .*gone0\.jpg.*gone4\.jpg and 3 more"
    ):
        load(config(folder), "train")


def test_unlisted_image_is_skipped_and_listed(folder):
    save(folder / "images/new.jpg")
    (folder / "images/notes.txt").write_text("no image")
    images = load(config(folder, strict=True), "train")
    assert len(images) == 3
    assert [(os.path.basename(s.file), s.reason) for s in images.skipped] == [("new.jpg", "not listed in tags.csv")]


def test_truncated_image_is_skipped_and_listed(folder, caplog):
    truncate(folder / "images/a.jpg")
    (folder / "tags.csv").write_text("file,tags\na.jpg,dog\ntrip/b.png,dog\nc.webp,\n")
    with caplog.at_level(logging.WARNING):
        images = load(config(folder), "train")
    assert images.image_ids == ["trip/b", "c"]
    assert images.skipped[0].file == str(folder / "images/a.jpg")
    assert "truncated" in images.skipped[0].reason
    assert "a.jpg" in caplog.text
    with pytest.raises(ValueError, match=r"a\.jpg: unreadable image: .*truncated.*strict"):
        load(config(folder, strict=True), "train")


def test_only_unreadable_images(folder):
    for path in folder.glob("images/**/*.*"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="none of the 3 images of split 'train' is readable"):
        load(config(folder), "train")


def test_class_of_skipped_images_only(folder):
    truncate(folder / "images/a.jpg")
    with pytest.raises(ValueError, match="has the tag cat"):
        load(config(folder), "train")


def test_odd_images_are_legal(folder):
    Image.new("CMYK", (20, 10), (0, 200, 100, 0)).save(folder / "images/a.jpg")
    Image.fromarray(np.full((10, 20), 40_000, dtype=np.uint16)).save(folder / "images/trip/b.png")
    images = load(config(folder, strict=True), "train")
    assert images.image(0).size == (20, 10)
    assert np.unique(np.asarray(images.image(1))).tolist() == [156]


def test_unknown_tag_names_file_line_and_nearest_class(folder):
    with pytest.raises(
        ValueError, match=r"tags\.csv, line 2: file 'a\.jpg': tag 'dog' is no class; did you mean 'dogs'"
    ):
        load(config(folder, classes=("dogs", "cat")), "train")
    with pytest.raises(ValueError, match=r"tag 'dog' is no class; classes: bus, cat"):
        load(config(folder, classes=("bus", "cat")), "train")


def test_a_class_of_another_split_only_has_a_way_out(folder):
    text = "file,tags,split\na.jpg,dog,train\ntrip/b.png,cat;dog;{},valid\nc.webp,cat,train\n"
    (folder / "tags.csv").write_text(text.format("person"))
    with pytest.raises(ValueError, match=r"has the tag person; .*set data\.classes to \['cat', 'dog'\]"):
        load(config(folder), "train")
    chosen = config(folder, classes=("cat", "dog"), score_split=None)
    train, valid = load(chosen, "train"), load(chosen, "valid")
    note = "tags that are not in data.classes were left out: 'person' on 1 of split 'valid'"
    assert train.notes == valid.notes == (note,) and valid.label_matrix().tolist() == [[1, 1]]
    check_split(understand(chosen), chosen)
    # Where it is learned from, it stays a mistake.
    with pytest.raises(ValueError, match=r"line 3: file 'trip/b\.png': tag 'person' is no class"):
        load(config(folder, classes=("cat", "dog"), train_split="valid"), "valid")
    (folder / "tags.csv").write_text(text.format("cow").replace("valid", ""))
    with pytest.raises(ValueError, match="tag 'cow' is no class"):
        load(chosen, "train")


def test_class_nobody_has(folder):
    with pytest.raises(ValueError, match=r"3 images\) has the tag bird; .*set data\.classes to \['cat', 'dog'\]"):
        load(config(folder, classes=("bird", "cat", "dog")), "train")


def test_one_class_is_legal(folder):
    (folder / "tags.csv").write_text("file,tags\na.jpg,dog\ntrip/b.png,\nc.webp,dog\n")
    images = load(config(folder), "train")
    assert images.class_names == ("dog",) and images.label_matrix().tolist() == [[1], [0], [1]]


def test_no_tags_at_all(folder):
    (folder / "tags.csv").write_text("file,tags\na.jpg,\n")
    with pytest.raises(ValueError, match="no tags at all"):
        load(config(folder), "train")


def test_duplicates(folder):
    (folder / "tags.csv").write_text("file,tags,split\na.jpg,dog,train\na.jpg,cat,val\n")
    with pytest.raises(ValueError, match=r"line 3: 'a\.jpg' is in split 'val' here and in 'train' in .*line 2"):
        load(config(folder), "train")
    save(folder / "images/a.png")
    (folder / "tags.csv").write_text("file,tags\na.jpg,dog\na.png,cat\n")
    with pytest.raises(ValueError, match=r"'a\.png' is taken by 'a\.jpg'.*different stems"):
        load(config(folder), "train")


def test_empty_folders(folder):
    shutil.rmtree(folder / "images")
    with pytest.raises(FileNotFoundError, match="images: no such folder"):
        load(config(folder), "train")
    (folder / "images").mkdir()
    with pytest.raises(ValueError, match=r"images: no images; expected files ending in"):
        load(config(folder), "train")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load(config(folder / "nowhere"), "train")


def test_tables(folder):
    (folder / "metadata.jsonl").write_text('{"file_name": "a.jpg", "tags": ["bird"]}')
    with pytest.raises(ValueError, match=r"both tags\.csv and metadata\.jsonl; choose one with data\.tags_file"):
        load(config(folder), "train")
    assert load(config(folder, tags_file="metadata.jsonl"), "train").class_names == ("bird",)
    with pytest.raises(FileNotFoundError, match=r"mine\.csv: no tags table"):
        load(config(folder, tags_file="mine.csv"), "train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name;tags\n", "line 1: got the header 'name;tags', expected file,tags"),
        ("file,tags\na.jpg,cat,dog\n", "line 2: expected 2 fields"),
        ("file,tags\na.jpg\n", "line 2: expected 2 fields"),
        ("file,tags\n../a.jpg,cat\n", "line 2: file '../a.jpg': expected a path relative"),
        ("file,tags\n,cat\n", "line 2: file '': expected a path relative"),
    ],
)
def test_bad_csv(folder, text, message):
    (folder / "tags.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        load(config(folder), "train")


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '{"file_name": "a.jpg"}',
        '{"file_name": "a.jpg", "tags": 1.5}',
        '{"file_name": "a.jpg", "tags": [1.5]}',
    ],
)
def test_bad_jsonl(folder, line):
    (folder / "tags.csv").rename(folder / "old.csv")
    (folder / "metadata.jsonl").write_text('{"file_name": "a.jpg", "tags": ["cat"]}\n' + line)
    with pytest.raises(ValueError, match=r"metadata\.jsonl, line 2: "):
        load(config(folder), "train")


def test_max_images(folder):
    assert load(config(folder, max_images=2), "train").image_ids == ["a", "trip/b"]
    assert len(load(config(folder, max_images=99), "train")) == 3


def test_the_first_photos_keep_the_values_of_all_classes(folder, caplog):
    (folder / "tags.csv").write_text("file,tags\na.jpg,dog\ntrip/b.png,dog\nc.webp,cat\n")
    (folder / "masks").mkdir()
    Image.fromarray(np.full((16, 24), 2, np.uint8)).save(folder / "masks" / "a.png")
    images = load(config(folder, max_images=2), "train")
    assert images.class_names == ("cat", "dog") and images.mask(0).max() == 2
    assert "1 of 2 classes have no image in split 'train' and cannot be learned: cat" in caplog.text
    # A class that is asked for is another thing.
    with pytest.raises(UserError, match="has the tag cat; a class without images cannot be learned"):
        load(config(folder, max_images=2, classes=("cat", "dog")), "train")


def test_manifest_hash_sees_content_tags_and_classes_but_not_the_place(folder, tmp_path_factory):
    def key(root=folder, **values):
        return load(config(root, **values), "train").manifest_hash

    first = key()
    assert key() == first
    moved = tmp_path_factory.mktemp("moved") / "data"
    shutil.copytree(folder, moved)  # keeps modification times
    assert key(moved) == first
    assert key(classes=("dog", "cat")) != first
    assert key(max_images=2) != first
    os.utime(folder / "images/a.jpg", ns=(1, 1))
    touched = key()
    assert touched != first
    (folder / "tags.csv").write_text("file,tags\na.jpg,dog;cat\ntrip/b.png,dog\nc.webp,dog\n")
    assert key() not in (first, touched)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"file_name": ".", "tags": ["a"]}', r"line 1: file '.': expected a path relative"),
        ('{"file_name": "a.png", "tags": ["a"], "split": ["x"]}', r"line 1: split: got \['x'\], expected a name"),
        ('{"file_name": "a.png", "tags": ["a"], "split": 3}', "line 1: split: got 3, expected a name"),
        ("[" * 100_000, "line 1: not valid JSON"),
        ('{"file_name": "a.png", "tags": ["a\\u001b"]}', r"line 1: tag .*control character U\+001B"),
    ],
)
def test_lines_that_mean_nothing(tmp_path, line, message):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "a.png")
    (tmp_path / "metadata.jsonl").write_text(f"{line}\n")
    with pytest.raises(UserError, match=message):
        load_images(DataConfig(source="folder", data_dir=str(tmp_path)), "train")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["n" * 250], "longer than 241 bytes"),
        (["é" * 121], "longer than 241 bytes"),
        (["a", "a.png/b"], "a.png would lie"),
    ],
)
def test_names_under_which_no_label_map_could_be_stored(names, message):
    with pytest.raises(UserError, match=message):
        check_ids(names, "train")
    check_ids(["n" * 241, "a", "b/a", "a.jpg/b"], "train")
