import json
import logging

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from sbce_hf.config import DataConfig
from sbce_hf.data.coco import COCO_CLASSES, COCO_IDS, load

PERSON, STOP_SIGN, CAT, TOOTHBRUSH = 1, 13, 17, 90
WIDTH, HEIGHT = 12, 10
CATEGORIES = [{"id": i, "name": name} for i, name in zip(COCO_IDS, COCO_CLASSES, strict=True)]


def box(x0, y0, x1, y1):
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def runs(mask):
    """Run lengths down the columns, starting with zeros: the uncompressed encoding, by hand."""
    counts, value = [0], 0
    for pixel in mask.T.ravel().tolist():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return {"size": list(mask.shape), "counts": counts}


def crowd_mask():
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[:, 10:] = 1
    return mask


# Of image 1: a cat, over it a toothbrush in two parts, and a crowd of people, which is not painted.
ANNOTATIONS = [
    {"image_id": 1, "category_id": CAT, "segmentation": [box(1, 1, 7, 6)], "iscrowd": 0},
    {"image_id": 1, "category_id": PERSON, "segmentation": runs(crowd_mask()), "iscrowd": 1},
    {"image_id": 1, "category_id": TOOTHBRUSH, "segmentation": [box(5, 4, 9, 8), box(0, 8, 2, 10)], "iscrowd": 0},
    {"image_id": 2, "category_id": STOP_SIGN, "segmentation": runs(1 - crowd_mask()), "iscrowd": 0},
    {"image_id": 2, "category_id": STOP_SIGN, "segmentation": [[1, 1, 4, 4]], "iscrowd": 0},
]


def expected_mask():
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[1:6, 1:7] = 16
    mask[4:8, 5:9] = 80
    mask[8:10, 0:2] = 80
    return mask


def instances(annotations=ANNOTATIONS, prefix="COCO_train2014_", count=3, **others):
    images = [
        {"id": i, "file_name": f"{prefix}{i:012d}.jpg", "width": WIDTH, "height": HEIGHT} for i in range(1, count + 1)
    ]
    annotations = [{"id": 100 + i, **annotation} for i, annotation in enumerate(annotations)]
    return {"info": {}, "images": images, "annotations": annotations, "categories": CATEGORIES, **others}


@pytest.fixture
def root(tmp_path):
    """Three images, the third without annotations."""
    (tmp_path / "annotations").mkdir()
    (tmp_path / "train2014").mkdir()
    for i in (1, 2, 3):
        Image.new("RGB", (WIDTH, HEIGHT), (90, 20, 40)).save(tmp_path / f"train2014/COCO_train2014_{i:012d}.jpg")
    write(tmp_path, instances())
    return tmp_path


def write(root, data, split="train2014"):
    (root / f"annotations/instances_{split}.json").write_text(data if isinstance(data, str) else json.dumps(data))


def config(root, **values):
    return DataConfig(**{"source": "coco", "data_dir": str(root), "score_split": "train2014", **values})


def test_ids_and_tags(root):
    assert len(COCO_CLASSES) == len(set(COCO_CLASSES)) == len(COCO_IDS) == 80
    assert [COCO_IDS.index(i) + 1 for i in (1, 11, 13, 27, 90)] == [1, 11, 12, 25, 80]
    assert set(range(1, 91)) - set(COCO_IDS) == {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
    images = load(config(root), "train2014")
    # The third has no foreground; the crowd's person is a tag.
    assert images.image_ids == ["COCO_train2014_000000000001", "COCO_train2014_000000000002"]
    names = [[COCO_CLASSES[c] for c in np.flatnonzero(images.labels(i))] for i in (0, 1)]
    assert names == [["person", "cat", "toothbrush"], ["stop sign"]]
    assert images.class_names == COCO_CLASSES and images.skipped == ()


def test_painted_masks(root):
    images = load(config(root), "train2014")
    assert images.with_masks() is images
    assert images.mask(0).tolist() == expected_mask().tolist()
    # An uncompressed encoding; the line of two points has no area.
    assert images.mask(1).tolist() == (12 * (1 - crowd_mask())).tolist()
    assert images.select([1]).mask(0).tolist() == images.mask(1).tolist()


def test_compressed_runs(root):
    region = np.zeros((HEIGHT, WIDTH), np.uint8)
    region[2:5, 3:9] = 1
    code = coco_mask.encode(np.asfortranarray(region))["counts"].decode()
    segmentation = {"size": [HEIGHT, WIDTH], "counts": code}
    write(root, instances([{"image_id": 1, "category_id": CAT, "segmentation": segmentation}]))
    assert load(config(root), "train2014").mask(0).tolist() == (16 * region).tolist()


def test_later_annotations_go_over_earlier_ones(root):
    write(root, instances([ANNOTATIONS[2], ANNOTATIONS[1], ANNOTATIONS[0]]))
    mask = load(config(root), "train2014").mask(0)
    assert mask[4:6, 5:7].tolist() == [[16, 16], [16, 16]] and expected_mask()[5, 6] == 80


def test_masks_are_not_painted_before_they_are_asked_for(root):
    bad = [{"image_id": 1, "category_id": CAT, "segmentation": [[1, 2, 3]]}]
    write(root, instances(bad))
    images = load(config(root, score_split=None), "train2014")
    assert len(images.with_masks()) == len(images) == 1
    with pytest.raises(ValueError, match=r"annotation 100: segmentation \[\[1, 2, 3\]\], expected polygons"):
        images.mask(0)
    with pytest.raises(ValueError, match="annotation 100: segmentation"):
        load(config(root), "train2014")


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ("x", "expected polygons"),
        (None, "expected polygons"),
        ([[1, 1, 4, 4, "a", 5]], "expected polygons"),
        ([[1, 1, 4, 4, float("nan"), 5]], "expected polygons"),
        ({"size": [HEIGHT, WIDTH]}, "expected polygons"),
        ({"size": [HEIGHT, 5], "counts": [50]}, r"image 'COCO_train2014_000000000001': an outline.*size \[10, 5\]"),
        ({"size": [HEIGHT, WIDTH], "counts": [10, 5]}, "expected whole numbers of 120 pixels"),
        ({"size": [HEIGHT, WIDTH], "counts": [-5, 125]}, "an outline"),
        ({"size": [HEIGHT, WIDTH], "counts": ["a"]}, "an outline"),
        ({"size": [HEIGHT, WIDTH], "counts": "oooZZZ"}, "an outline"),
        ({"size": [HEIGHT, WIDTH], "counts": "55"}, "an outline"),
        # Whose last run goes on beyond the text, or longer than a number.
        ({"size": [HEIGHT, WIDTH], "counts": "5o"}, "an outline.*cut off"),
        ({"size": [HEIGHT, WIDTH], "counts": "o" * 1000 + "0"}, "an outline.*compressed runs"),
        ({"size": [HEIGHT, WIDTH], "counts": [60.0, 60.0]}, "an outline.*whole numbers"),
        # Polygons for which gigabytes would be taken.
        ([[0, 0, 1e9, 0, 0, 1e9]], "an outline.*1000000000 pixels away"),
        ([[0, 0, 1e300, 0, 0, 1]], "an outline.*pixels away"),
        ([[0, 0, 12, 10] * 1000], "an outline.*pixels' length"),
        ({"counts": [120]}, "an outline"),
    ],
)
def test_bad_outlines_stop_the_score_split_before_training(root, segmentation, message):
    write(root, instances([{"image_id": 1, "category_id": CAT, "segmentation": segmentation}]))
    with pytest.raises(ValueError, match=rf"instances_train2014\.json.*{message}"):
        load(config(root), "train2014")


def test_image_of_another_size_than_annotated(root):
    Image.new("RGB", (HEIGHT, WIDTH)).save(root / "train2014/COCO_train2014_000000000001.jpg")
    with pytest.raises(ValueError, match="mask of image 'COCO_train2014_000000000001': got 12 x 10 pixels"):
        load(config(root), "train2014")


def test_chosen_classes(root):
    images = load(config(root, classes=("toothbrush", "cat")), "train2014")
    assert images.image_ids == ["COCO_train2014_000000000001"]
    assert images.label_matrix().tolist() == [[1, 1]]
    assert np.unique(images.mask(0)).tolist() == [0, 1, 2] and images.mask(0)[5, 6] == 1 and images.mask(0)[1, 1] == 2
    with pytest.raises(ValueError, match=r"data\.classes: tag 'kat' is no class; did you mean 'cat'"):
        load(config(root, classes=("kat",)), "train2014")


def test_class_without_images_warns_unless_it_was_chosen(root, caplog):
    settings = {"train_split": "train2014", "score_split": None}
    with caplog.at_level(logging.WARNING):
        assert load(config(root, **settings), "train2014").num_classes == 80
    assert "76 of 80 classes have no image in split 'train2014'" in caplog.text
    with pytest.raises(ValueError, match="has the tag dog"):
        load(config(root, classes=("cat", "dog"), **settings), "train2014")


def stuff(root, name, values):
    path = root / "stuffthingmaps" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.resize(np.array(values, np.uint8), (HEIGHT, WIDTH))).save(path)


def test_coco_stuff(root, caplog):
    # person, sign that is no class, stop sign, toothbrush, stuff, stuff, unlabelled
    stuff(root, "train2017/000000000001.png", [0, 11, 12, 89, 91, 181, 255])
    stuff(root, "val2017/000000000002.png", [16])
    stuff(root, "train2017/000000000001_labelTrainIds.png", [200])
    images = load(config(root), "train2014")
    assert images.mask(0).ravel()[:7].tolist() == [1, 0, 12, 80, 0, 0, 255]
    assert np.unique(images.mask(1)).tolist() == [16]
    counted = load(config(root, unlabelled="background"), "train2014")
    assert counted.mask(0).ravel()[:7].tolist() == [1, 0, 12, 80, 0, 0, 0]
    chosen = load(config(root, classes=("toothbrush", "person")), "train2014")
    assert chosen.mask(0).ravel()[:7].tolist() == [2, 0, 0, 1, 0, 0, 255]
    (root / "stuffthingmaps/val2017/000000000002.png").unlink()
    with caplog.at_level(logging.WARNING):
        assert load(config(root), "train2014").with_masks().image_ids == ["COCO_train2014_000000000001"]
    assert "1 of 2 images have a mask" in caplog.text
    stuff(root, "train2017/000000000001.png", [182])
    with pytest.raises(ValueError, match="got value 182"):
        load(config(root), "train2014")


def test_partial_copy(root, caplog):
    (root / "train2014/COCO_train2014_000000000001.jpg").unlink()
    with pytest.raises(
        FileNotFoundError,
        match=r"1 images of split 'train2014' missing: .*1\.jpg; fetch train2014\.zip.*use the 1 that",
    ):
        load(config(root), "train2014")
    with caplog.at_level(logging.WARNING):
        images = load(config(root, partial=True), "train2014")
    assert images.image_ids == ["COCO_train2014_000000000002"] and np.unique(images.mask(0)).tolist() == [0, 12]
    assert "1 images of split 'train2014' missing" in caplog.text
    (root / "train2014/COCO_train2014_000000000002.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="train2014: no images of split 'train2014' here or in another folder"):
        load(config(root, partial=True), "train2014")


def test_image_folder_is_found_by_its_names(root):
    (root / "images").mkdir()
    (root / "train2014").rename(root / "images" / "train2014")
    write(root, instances(), "mine")
    for split in ("train2014", "mine"):
        assert load(config(root), split).dataset[0]["image"]["path"].startswith(str(root / "images/train2014"))
    (root / "images" / "train2014").rename(root / "photos")
    named = config(root, tags_file="annotations/instances_mine.json")
    assert load(named, "whatever").dataset[0]["image"]["path"].startswith(str(root / "photos"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "no list 'images'"),
        ({"images": [], "annotations": [], "info": 1}, "no list 'categories'"),
        (instances([]), "no annotations; COCO's test splits have none"),
        (instances(images=[{"id": 1}]), r"images\[0\]: got .*expected an object with id \(int\), file_name \(str\)"),
        (instances(images=[{"id": 1, "file_name": "../a.jpg"}]), r"images\[0\]: .*name without '\.\.'"),
        (
            instances(images=[{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}]),
            r"images\[1\]: .*id of its own",
        ),
        (instances([{"image_id": 1, "category_id": 12}]), r"annotations\[0\]: unknown category_id 12"),
        (instances([{"image_id": 9, "category_id": 1}]), r"annotations\[0\]: unknown image_id 9"),
        (instances([{"image_id": "1"}]), r"annotations\[0\]: got .*image_id \(int\)"),
        (instances(categories=[{"id": 1, "name": "face"}]), "unknown category_id 17"),
        (instances(categories=[{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]), r"categories\[1\]: id 1 is also"),
        (
            instances(categories=[{"id": 1, "name": "a"}, {"id": 2, "name": "a "}]),
            "more than one category is named 'a'",
        ),
        (instances(categories=[{"id": 1, "name": " "}]), r"categories\[0\]: has no name"),
    ],
)
def test_malformed_annotations(root, data, message):
    write(root, data)
    with pytest.raises(ValueError, match=rf"instances_train2014\.json.*{message}"):
        load(config(root), "train2014")


def test_missing_things_are_named(root):
    with pytest.raises(
        FileNotFoundError, match=r"instances_val2014\.json: no annotations .*splits .*: train2014; fetch"
    ):
        load(config(root), "val2014")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load(config(root / "nowhere"), "train2014")


def test_categories_of_ones_own_and_folders_in_the_names(root):
    """Such files come from annotation programs; ids and their order are theirs."""
    categories = [{"id": 7, "name": "wall"}, {"id": 3, "name": "door "}, {"id": 9, "name": "roof"}]
    images = [{"id": i, "file_name": f"site/{i}.jpg", "width": WIDTH, "height": HEIGHT} for i in (1, 2)]
    annotations = [
        {"image_id": 1, "category_id": 7, "segmentation": [box(1, 1, 7, 6)], "iscrowd": 0},
        {"image_id": 2, "category_id": 3, "segmentation": [box(0, 0, 3, 3)], "iscrowd": 0},
        {"image_id": 2, "category_id": 9, "segmentation": [box(4, 4, 6, 6)], "iscrowd": 0},
    ]
    (root / "site").mkdir()
    for i in (1, 2):
        Image.new("RGB", (WIDTH, HEIGHT), (90, 20, 40)).save(root / f"site/{i}.jpg")
    write(root, instances(annotations, images=images, categories=categories), "train")
    read = load(config(root, train_split="train", score_split="train"), "train")
    assert read.class_names == ("door", "wall", "roof") and read.image_ids == ["site/1", "site/2"]
    assert read.label_matrix().tolist() == [[0, 1, 0], [1, 0, 1]]
    assert np.unique(read.mask(0)).tolist() == [0, 2] and np.unique(read.mask(1)).tolist() == [0, 1, 3]
    assert "the file's own" in read.notes[0]
    chosen = load(config(root, train_split="train", score_split="train", classes=("roof",)), "train")
    assert chosen.image_ids == ["site/2"] and np.unique(chosen.mask(0)).tolist() == [0, 1]


def test_coco128(shared_dir):
    root = shared_dir / "coco128"
    images = load(config(root, train_split="train", score_split="train"), "train")
    assert len(images) == 126 and images.num_classes == 80 and images.skipped == ()
    assert (images.label_matrix().sum(axis=0) > 0).sum() == 71
    data = json.loads((root / "annotations/instances_train.json").read_text())
    for index in range(0, 126, 25):
        number = int(images.image_ids[index])
        size = images.image(index).size
        painted = Image.new("L", size)
        for annotation in data["annotations"]:
            if annotation["image_id"] == number:
                for part in annotation["segmentation"]:
                    ImageDraw.Draw(painted).polygon(part, fill=1 + COCO_IDS.index(annotation["category_id"]))
        # PIL also draws the outline's own pixels, so that only those may differ.
        differing = (np.asarray(painted) != images.mask(index)).mean()
        assert differing < 0.02
        assert set(np.unique(images.mask(index))) - {0} <= set(np.flatnonzero(images.labels(index)) + 1)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((40_000, 40_000), "got 40000 x 40000 pixels, expected 12 x 10"),
        ((-1, 5), "got -1 x 5 pixels"),
        ((float("inf"), 5), "an image without height and width"),
        ((None, 5), "an image without height and width"),
    ],
)
def test_a_size_that_is_not_the_photos_is_refused_before_it_is_made(root, size, message, monkeypatch):
    data = instances()
    for image in data["images"]:
        image["width"], image["height"] = size
    write(root, data)
    zeros = np.zeros

    def small(shape, *arguments, **options):
        assert np.prod(shape) < 10_000
        return zeros(shape, *arguments, **options)

    monkeypatch.setattr(np, "zeros", small)
    with pytest.raises(ValueError, match=message):
        load(config(root), "train2014")
