import json
import logging

import numpy as np
import pytest
from PIL import Image

from sbce_hf.config import DataConfig
from sbce_hf.data import palette
from sbce_hf.data.voc import VOC_CLASSES, load

CAT, DOG, PERSON = 8, 12, 15


def annotation(*objects):
    body = "".join(
        f"<object><name>{name}</name><truncated>{flag}</truncated><difficult>{flag}</difficult>"
        f"<part><name>head</name></part></object>"
        for name, flag in objects
    )
    return f"<annotation><filename>x.jpg</filename>{body}</annotation>"


@pytest.fixture
def devkit(tmp_path):
    """Three images; masks for the first two; annotations for all."""
    for name in ("JPEGImages", "SegmentationClass", "Annotations", "ImageSets/Segmentation"):
        (tmp_path / name).mkdir(parents=True)
    for image_id in ("a", "b", "c"):
        Image.new("RGB", (12, 10), (90, 20, 40)).save(tmp_path / f"JPEGImages/{image_id}.jpg")
    for image_id, value in (("a", CAT), ("b", PERSON)):
        indices = np.zeros((10, 12), dtype=np.uint8)
        indices[2:6], indices[6] = value, 255
        mask = Image.fromarray(indices, mode="P")
        mask.putpalette(palette())
        mask.save(tmp_path / f"SegmentationClass/{image_id}.png")
    (tmp_path / "Annotations/a.xml").write_text(annotation(("cat", 0), ("cat", 0), ("sofa", 0)))
    (tmp_path / "Annotations/b.xml").write_text(annotation(("person", 1), ("dog", 1)))
    (tmp_path / "Annotations/c.xml").write_text(annotation())
    (tmp_path / "ImageSets/Segmentation/train.txt").write_text("a\nb\nc\n")
    (tmp_path / "ImageSets/Segmentation/val.txt").write_text("/JPEGImages/c.jpg /SegmentationClassAug/c.png\n")
    return tmp_path


def config(root, **values):
    return DataConfig(**{"source": "voc", "data_dir": str(root), "classes": ("cat", "dog", "person"), **values})


def test_tags_of_annotations_with_difficult_and_truncated_objects(devkit):
    images = load(config(devkit), "train")
    assert images.image_ids == ["a", "b", "c"]
    # The sofa of "a" is another VOC class, the parts' names are no tags, "c" has no objects and is kept.
    assert images.label_matrix().tolist() == [[1, 0, 0], [0, 1, 1], [0, 0, 0]]


def test_masks_hold_vocs_values(devkit):
    images = load(config(devkit), "train")
    assert images.mask_values == (0, CAT, DOG, PERSON) and images.mask_known == frozenset(range(21))
    assert [np.unique(images.mask(i)).tolist() for i in (0, 1)] == [[0, 1, 255], [0, 3, 255]]
    assert images.mask(0)[2:6].tolist() == [[1] * 12] * 4
    assert images.with_masks().image_ids == ["a", "b"]
    without = load(config(devkit), "val")
    assert not len(without.with_masks()) and without.mask_values is None


def test_masks_of_the_augmented_set_come_first(devkit):
    (devkit / "SegmentationClassAug").mkdir()
    Image.fromarray(np.full((10, 12), DOG, dtype=np.uint8)).save(devkit / "SegmentationClassAug/a.png")
    images = load(config(devkit), "train")
    assert np.unique(images.mask(0)).tolist() == [2]
    assert np.unique(images.mask(1)).tolist() == [0, 3, 255]


def test_twenty_classes_by_default(devkit):
    images = load(config(devkit, classes=None, train_split="other"), "train")
    assert images.class_names == VOC_CLASSES and len(VOC_CLASSES) == 20
    assert images.mask_values == tuple(range(21))
    assert np.flatnonzero(images.labels(0)).tolist() == [CAT - 1, VOC_CLASSES.index("sofa")]


def test_class_nobody_has_is_an_error_for_training_only(devkit):
    with pytest.raises(ValueError, match=r"tag horse; .*set data\.classes to \['cat'\]"):
        load(config(devkit, classes=("cat", "horse")), "train")
    assert load(config(devkit, classes=("cat", "horse"), train_split="trainaug"), "train").num_classes == 2


def test_tags_file_is_found_without_annotations_and_wins_when_named(devkit):
    (devkit / "image_labels.json").write_text(json.dumps({"a": ["dog"], "b": ["cat", "person"], "c": []}))
    expected = [[0, 1, 0], [1, 0, 1], [0, 0, 0]]
    assert load(config(devkit), "train").label_matrix().tolist() != expected
    assert load(config(devkit, tags_file="image_labels.json"), "train").label_matrix().tolist() == expected
    (devkit / "Annotations").rename(devkit / "elsewhere")
    assert load(config(devkit), "train").label_matrix().tolist() == expected


def test_tags_of_masks_as_a_last_resort_warn(devkit, caplog):
    (devkit / "Annotations").rename(devkit / "elsewhere")
    (devkit / "ImageSets/Segmentation/two.txt").write_text("a\nb\n")
    with caplog.at_level(logging.WARNING):
        images = load(config(devkit), "two")
    assert images.label_matrix().tolist() == [[1, 0, 0], [0, 0, 1]]
    assert "tags are taken from the masks" in caplog.text
    with pytest.raises(FileNotFoundError, match=r"1 masks missing: .*c\.png"):
        load(config(devkit), "train")


def test_missing_things_are_named(devkit):
    with pytest.raises(FileNotFoundError, match=r"trainval\.txt: no list of split 'trainval'; .*train, val"):
        load(config(devkit), "trainval")
    with pytest.raises(FileNotFoundError, match="expected a VOC devkit folder"):
        load(config(devkit / "nowhere"), "train")
    with pytest.raises(FileNotFoundError, match="JPEGImages: no such folder"):
        load(config(devkit / "ImageSets"), "train")
    with pytest.raises(FileNotFoundError, match=r"1 tags file missing: .*tags\.json"):
        load(config(devkit, tags_file="tags.json"), "train")
    (devkit / "Annotations/b.xml").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 annotations missing: .*b\.xml"):
        load(config(devkit), "train")
    (devkit / "JPEGImages/b.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 images of split 'train' missing: .*b\.jpg"):
        load(config(devkit), "train")


def test_classes_of_ones_own(devkit, caplog):
    for image_id, names in (("a", ("helmet", "vest")), ("b", ("vest",)), ("c", ())):
        (devkit / f"Annotations/{image_id}.xml").write_text(annotation(*((name, 0) for name in names)))
    for image_id, value in (("a", 1), ("b", 2)):
        Image.fromarray(np.full((10, 12), value, np.uint8)).save(devkit / f"SegmentationClass/{image_id}.png")
    images = load(config(devkit, classes=None, score_split="train"), "train")
    assert images.class_names == ("helmet", "vest") and images.label_matrix().tolist() == [[1, 1], [0, 1], [0, 0]]
    assert np.unique(images.mask(1)).tolist() == [2] and "the data set's own" in images.notes[0]
    images = load(config(devkit, classes=("vest", "helmet"), score_split="train"), "train")
    assert images.label_matrix().tolist() == [[1, 1], [1, 0], [0, 0]] and np.unique(images.mask(0)).tolist() == [1]
    # Half of VOC's and half of one's own may be a slip: the remedy that is named works.
    (devkit / "Annotations/b.xml").write_text(annotation(("person", 0)))
    with pytest.raises(ValueError, match=r"tag 'helmet' is no class; .*data\.classes=\[helmet, person, vest\]"):
        load(config(devkit, classes=None), "train")
    images = load(config(devkit, classes=("helmet", "person", "vest")), "train")
    assert images.label_matrix().tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize(
    "text",
    [
        '<!DOCTYPE a [<!ENTITY x "cat">]><annotation><object><name>&x;</name></object></annotation>',
        '<!DOCTYPE a SYSTEM "file:///etc/hostname"><annotation/>',
    ],
)
def test_annotations_declare_nothing(devkit, text):
    (devkit / "Annotations/b.xml").write_text(text)
    with pytest.raises(ValueError, match=r"b\.xml, line 1: declares a document type"):
        load(config(devkit), "train")


def test_wrong_names_get_the_nearest_class(devkit):
    with pytest.raises(ValueError, match=r"data\.classes: tag 'persn' is no class; did you mean 'person'"):
        load(config(devkit, classes=("persn",)), "train")
    (devkit / "Annotations/b.xml").write_text(annotation(("hrose", 0)))
    with pytest.raises(ValueError, match="image 'b': tag 'hrose' is no class; did you mean 'horse'"):
        load(config(devkit), "train")
    (devkit / "Annotations/b.xml").write_text("<annotation>")
    with pytest.raises(ValueError, match=r"b\.xml: not valid XML"):
        load(config(devkit), "train")


def test_partial_copy(devkit, caplog):
    (devkit / "JPEGImages/a.jpg").unlink()
    (devkit / "Annotations/c.xml").unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.jpg; .*VOCtrainval_11-May-2012\.tar.*data\.partial .*the 2 that"):
        load(config(devkit), "train")
    with caplog.at_level(logging.WARNING):
        images = load(config(devkit, partial=True, classes=None), "train")
    assert images.image_ids == ["b"] and np.unique(images.mask(0)).tolist() == [0, PERSON, 255]
    assert "1 images of split 'train' missing" in caplog.text and "1 annotations missing" in caplog.text
    (devkit / "JPEGImages/b.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="1 annotations missing"):
        load(config(devkit, partial=True), "train")
    (devkit / "JPEGImages/c.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"3 images of split 'train' missing: [^;]*; VOC's are in [^;]*$"):
        load(config(devkit, partial=True), "train")


def test_augmented_list_has_to_be_fetched(devkit):
    with pytest.raises(FileNotFoundError, match=r"no list of split 'trainaug'; .*train, val\. Fetch .*SBD.*[^;]*$"):
        load(config(devkit), "trainaug")
    (devkit / "SegmentationClassAug").mkdir()
    with pytest.raises(FileNotFoundError, match="without the list: the names of the masks in SegmentationClassAug"):
        load(config(devkit), "trainaug")


def test_class_without_images_warns_where_classes_are_vocs_own(devkit, caplog):
    with caplog.at_level(logging.WARNING):
        assert load(config(devkit, classes=None), "train").num_classes == 20
    assert "16 of 20 classes have no image in split 'train'" in caplog.text


@pytest.mark.parametrize(
    ("text", "message"), [("{", "not valid JSON"), ("[]", "JSON object"), ('{"a": []}', "no tags for 2 images: b, c")]
)
def test_bad_tags_file(devkit, text, message):
    (devkit / "tags.json").write_text(text)
    with pytest.raises(ValueError, match=rf"tags\.json: .*{message}"):
        load(config(devkit, tags_file="tags.json"), "train")


def test_bad_mask_stops_the_score_split_before_training(devkit):
    Image.fromarray(np.full((10, 12), 77, dtype=np.uint8)).save(devkit / "SegmentationClass/b.png")
    assert len(load(config(devkit), "train")) == 3
    with pytest.raises(ValueError, match="mask of image 'b': got value 77"):
        load(config(devkit, score_split="train"), "train")


def test_duplicate_id_in_the_list(devkit):
    (devkit / "ImageSets/Segmentation/train.txt").write_text("a\nb\na\n")
    with pytest.raises(ValueError, match="'a' occurs twice"):
        load(config(devkit), "train")


def test_animals_of_voc(shared_dir):
    root = shared_dir / "voc_animals"
    classes = ("cat", "cow", "dog", "horse", "person", "sheep")
    settings = config(root, classes=classes, train_split="trainaug", score_split="val", max_images=120)
    train, val = load(settings, "trainaug"), load(settings, "val")
    table = json.loads((root / "image_labels.json").read_text())
    assert train.mask_values == (0, 8, 10, 12, 13, 15, 17)
    for index in range(0, 120, 17):
        names = {classes[c] for c in np.flatnonzero(train.labels(index))}
        assert names == set(table[train.image_ids[index]])
    values = set(np.unique(np.concatenate([val.mask(i).ravel() for i in range(40)])).tolist())
    assert values == {0, 1, 2, 3, 4, 5, 6, 255}
    assert not set(train.image_ids) & set(val.image_ids)
