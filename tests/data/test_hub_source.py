import io

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image

from sbce_hf.config import DataConfig
from sbce_hf.data.hub import load

CLASS_LABELS = List(ClassLabel(names=["cat", "dog"]))


def png(value, mode="RGB"):
    stream = io.BytesIO()
    Image.new(mode, (6, 4), value).save(stream, format="PNG")
    return {"bytes": stream.getvalue(), "path": None}


def make(labels=((0,), (0, 1), ()), feature=CLASS_LABELS, mask=False, **extra):
    count = len(labels)
    columns = {"image": [png((10 * i, 0, 0)) for i in range(count)], "labels": list(labels)}
    schema = {"image": ImageFeature(), "labels": feature}
    if mask:
        columns["mask"], schema["mask"] = [png(i, "L") for i in range(count)], ImageFeature()
    for name, values in extra.items():
        columns[name], schema[name] = values, Value("int64" if isinstance(values[0], int) else "string")
    return Dataset.from_dict(columns, features=Features(schema))


def config(path, **values):
    return DataConfig(source="hub", dataset=str(path), **values)


@pytest.fixture
def saved(tmp_path):
    def save(dataset):
        dataset.save_to_disk(tmp_path / "saved")
        return tmp_path / "saved"

    return save


@pytest.mark.parametrize(
    ("labels", "feature", "classes"),
    [
        ([[0], [0, 1], []], CLASS_LABELS, None),
        ([["cat"], ["dog", "cat"], []], List(Value("string")), None),
        ([["cat"], ["dog", "cat", "cat"], None], List(Value("string")), ("cat", "dog")),
        ([[1, 0], [1, 1], [0, 0]], List(Value("int64")), ("cat", "dog")),
        ([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]], List(Value("float32"), length=2), ("cat", "dog")),
        ([[True, False], [True, True], [False, False]], List(Value("bool")), ("cat", "dog")),
    ],
)
def test_kinds_of_labels(saved, labels, feature, classes):
    images = load(config(saved(make(labels, feature)), classes=classes), "train")
    assert images.class_names == ("cat", "dog")
    assert images.label_matrix().tolist() == [[1, 0], [1, 1], [0, 0]]
    assert images.image_ids == ["0", "1", "2"]
    assert [images.image(i).getpixel((0, 0)) for i in range(3)] == [(0, 0, 0), (10, 0, 0), (20, 0, 0)]
    assert not len(images.with_masks()) and images.skipped == ()


@pytest.mark.parametrize(
    ("labels", "feature"),
    [([0, 1, -1], ClassLabel(names=["cat", "dog"])), (["cat", "dog", None], Value("string"))],
)
def test_one_tag_per_image(saved, labels, feature):
    assert load(config(saved(make(labels, feature))), "train").label_matrix().tolist() == [[1, 0], [0, 1], [0, 0]]


@pytest.mark.parametrize(
    ("labels", "feature"),
    [
        ([[0, -1], [-1], None, [1, None]], CLASS_LABELS),
        ([["cat", None], None, [], ["dog", ""]], List(Value("string"))),
        ([0, -1, None, 1], ClassLabel(names=["cat", "dog"])),
        (["cat", None, " ", "dog"], Value("string")),
    ],
)
def test_nothing_is_no_label_and_never_the_last_class(saved, labels, feature):
    images = load(config(saved(make(labels, feature))), "train")
    assert images.label_matrix().tolist() == [[1, 0], [0, 0], [0, 0], [0, 1]]
    assert "None or -1" in images.notes[0]


def test_a_row_without_image_is_skipped_and_listed(saved):
    dataset = make([[0], [1], [0]]).cast_column("image", ImageFeature(decode=False))
    rows = [{**row, "image": None} if i == 1 else row for i, row in enumerate(dataset)]
    path = saved(Dataset.from_list([*rows, rows[0]], features=dataset.features))
    images = load(config(path, classes=("cat", "dog"), train_split="x"), "train")
    assert images.image_ids == ["0", "2", "3"]
    assert [(s.file, s.reason) for s in images.skipped] == [("1", "has no image")]


def test_numbers_of_classes_are_not_taken_for_zeros_and_ones(saved, tmp_path):
    # A list of two numbers of classes looks like two zeros and ones.
    path = saved(make([[0, 1], [1, 0], [0, 1]], List(Value("int64"))))
    with pytest.raises(ValueError, match=r"may be numbers of classes or zeros and ones; .*cast_column"):
        load(config(path, classes=("cat", "dog")), "train")
    make([[0, 1], [1, 0], [0, 1]], List(Value("int64"), length=2)).save_to_disk(tmp_path / "fixed")
    images = load(config(tmp_path / "fixed", classes=("cat", "dog")), "train")
    assert images.label_matrix().tolist() == [[0, 1], [1, 0], [0, 1]]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["cat,dog", "cat", "dog"], "row 0: tag 'cat,dog': 'cat' is a tag elsewhere; did you mean the separator ','"),
        (["Cat", "cat", "dog"], "row 1: tag 'cat' is also written 'Cat'"),
        (["cat", "background", "dog"], "row 1: tag 'background': is the name of label 0"),
        (['"cat"', "dog", "dog"], "row 0: tag .*has the quote"),
    ],
)
def test_texts_are_cleaned_as_in_a_table(saved, labels, message):
    with pytest.raises(ValueError, match=message):
        load(config(saved(make(labels, Value("string")))), "train")
    if "," in labels[0]:
        images = load(config(saved(make(labels, Value("string"))), separator=","), "train")
        assert images.label_matrix().tolist() == [[1, 1], [1, 0], [0, 1]]


def test_classes_give_the_order(saved):
    images = load(config(saved(make()), classes=("dog", "cat")), "train")
    assert images.label_matrix().tolist() == [[0, 1], [1, 1], [0, 0]]


def test_masks_and_ids(saved):
    dataset = make(mask=True, image_id=[7, 8, 9])
    images = load(config(saved(dataset), score_split="train"), "train")
    assert images.image_ids == ["7", "8", "9"]
    assert [np.unique(images.mask(i)).tolist() for i in range(3)] == [[0], [1], [2]]
    assert images.mask_values == (0, 1, 2)


def test_column_mapping(saved):
    dataset = make(name=["x", "y", "z"]).rename_columns({"image": "photo", "labels": "what"})
    path = saved(dataset)
    columns = {"image": "photo", "labels": "what", "image_id": "name"}
    assert load(config(path, columns=columns), "train").image_ids == ["x", "y", "z"]
    with pytest.raises(ValueError, match=r"data\.columns\.image: .*no column 'image', only photo, what, name"):
        load(config(path), "train")
    with pytest.raises(ValueError, match=r"data\.columns\.mask: .*no column 'masks'"):
        load(config(path, columns={**columns, "mask": "masks"}), "train")
    with pytest.raises(ValueError, match=r"data\.columns: unknown key 'label'; did you mean 'labels'"):
        load(config(path, columns={"label": "what"}), "train")


def test_columns_may_trade_names(saved):
    dataset = make(mask=True).rename_columns({"image": "tmp", "mask": "image"}).rename_columns({"tmp": "mask"})
    images = load(config(saved(dataset), columns={"image": "mask", "mask": "image"}), "train")
    assert images.image(2).getpixel((0, 0)) == (20, 0, 0) and np.unique(images.mask(2)).tolist() == [2]


def test_splits_of_a_saved_dict(saved):
    path = saved(DatasetDict(train=make(), val=make([[1]])))
    assert len(load(config(path), "train")) == 3 and len(load(config(path), "val")) == 1
    with pytest.raises(ValueError, match="no split 'test'; splits: train, val"):
        load(config(path), "test")


def test_single_saved_dataset_is_train(saved):
    with pytest.raises(ValueError, match="expected split 'train', got 'val'"):
        load(config(saved(make())), "val")


def test_parquet_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "parquet").mkdir()
    make(mask=True).to_parquet(tmp_path / "parquet/train-00000-of-00001.parquet")
    make([[1]], mask=True).to_parquet(tmp_path / "parquet/validation-00000-of-00001.parquet")
    images = load(config(tmp_path / "parquet", score_split="train"), "train")
    assert images.class_names == ("cat", "dog") and len(images.with_masks()) == 3
    assert images.label_matrix().tolist() == [[1, 0], [1, 1], [0, 0]]
    assert len(load(config(tmp_path / "parquet"), "validation")) == 1
    with pytest.raises(ValueError, match="test"):
        load(config(tmp_path / "parquet"), "test")


def test_unnamed_or_odd_labels(saved, tmp_path):
    hot = make([[1, 0], [0, 1]], List(Value("int64")))
    path = saved(hot)
    with pytest.raises(ValueError, match=r"data\.classes: missing, .*name the classes"):
        load(config(path), "train")
    with pytest.raises(ValueError, match="row 0: got .* expected a multi-hot vector of 3"):
        load(config(path, classes=("a", "b", "c")), "train")
    make([[1, 2], [0, 1]], List(Value("int64"))).save_to_disk(tmp_path / "indices")
    with pytest.raises(ValueError, match=r"row 0: got \[1, 2\], expected a multi-hot"):
        load(config(tmp_path / "indices", classes=("a", "b")), "train")
    make([1.5, 2.5], Value("float32")).save_to_disk(tmp_path / "floats")
    with pytest.raises(ValueError, match="column 'labels' is .*expected"):
        load(config(tmp_path / "floats"), "train")


def test_tag_that_is_no_class(saved):
    with pytest.raises(ValueError, match="column 'labels', row 1: tag 'dog' is no class; did you mean 'dogs'"):
        load(config(saved(make()), classes=("cat", "dogs")), "train")


def test_bad_rows(saved, tmp_path):
    with pytest.raises(ValueError, match="'x' occurs twice"):
        load(config(saved(make(image_id=["x", "y", "x"]))), "train")
    for number, bad in enumerate(("../x", "/x", "", "a//b")):
        make(image_id=["x", bad, "z"]).save_to_disk(tmp_path / str(number))
        with pytest.raises(ValueError, match="is no relative path"):
            load(config(tmp_path / str(number)), "train")


def test_damaged_bytes_are_skipped_by_id(saved):
    dataset = make().cast_column("image", ImageFeature(decode=False))
    rows = [{**row, "image": {"bytes": b"junk", "path": None}} if i == 2 else row for i, row in enumerate(dataset)]
    path = saved(Dataset.from_list(rows, features=dataset.features))
    images = load(config(path), "train")
    assert images.image_ids == ["0", "1"]
    assert images.skipped[0].file == "2" and "unreadable image" in images.skipped[0].reason
    with pytest.raises(ValueError, match="strict"):
        load(config(path, strict=True), "train")


def test_max_images_and_hash(saved):
    path = saved(make())
    few = load(config(path, max_images=2), "train")
    assert few.image_ids == ["0", "1"] and few.image(1).getpixel((0, 0)) == (10, 0, 0)
    assert few.manifest_hash != load(config(path), "train").manifest_hash
    assert few.manifest_hash == load(config(path, max_images=2), "train").manifest_hash
