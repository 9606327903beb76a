"""A data set shows only itself: no row and no link of a stranger's takes another file of this machine along."""

import json
import os
import shutil

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image

from sbce_hf.cli import main
from sbce_hf.config import DataConfig
from sbce_hf.data import load_images
from sbce_hf.data.decoding import decode_image
from sbce_hf.errors import UserError
from sbce_hf.hub.models import find_model, render_model_folder
from sbce_hf.inference.checkpoints import load_classifier
from sbce_hf.labels import hub_store
from sbce_hf.labels.hub_store import HubLabelMaps
from sbce_hf.labels.store import LabelStore


def picture(path, seed=0, grey=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    Image.fromarray(generator.integers(0, 2 if grey else 255, (20, 20) if grey else (20, 20, 3), np.uint8)).save(path)
    return path


@pytest.fixture
def secret(tmp_path):
    return picture(tmp_path / "private" / "secret.png", seed=9)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "photos"
    for index in range(3):
        picture(root / "images" / f"{index}.png", index)
        picture(root / "masks" / f"{index}.png", index, grey=True)
    (root / "tags.csv").write_text("file,tags\n0.png,cat\n1.png,cat\n2.png,cat\n")
    return root


def replace_by_link(path, target):
    path.unlink()
    path.symlink_to(target)


@pytest.mark.parametrize("place", ["images/1.png", "masks/1.png"])
def test_a_link_out_of_the_folder_is_refused_unless_the_user_says_so(folder, secret, tmp_path, place):
    target = secret if place.startswith("images") else picture(tmp_path / "private" / "mask.png", grey=True)
    replace_by_link(folder / place, target)
    config = DataConfig(data_dir=str(folder), score_split="train")
    with pytest.raises(UserError, match=r"of image '1'.*expected.*inside of.*data\.outside_files=true"):
        load_images(config, "train")
    assert len(load_images(DataConfig(data_dir=str(folder), outside_files=True), "train")) == 3


def test_a_linked_folder_of_photos_is_refused_unless_the_user_says_so(folder, tmp_path):
    (folder / "images").rename(tmp_path / "elsewhere")
    (folder / "images").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="outside_files"):
        load_images(DataConfig(data_dir=str(folder)), "train")
    assert len(load_images(DataConfig(data_dir=str(folder), outside_files=True), "train")) == 3


def test_links_inside_and_a_linked_data_set_are_its_own(folder, tmp_path):
    replace_by_link(folder / "images" / "1.png", "0.png")
    (tmp_path / "link").symlink_to(folder)
    assert len(load_images(DataConfig(data_dir=str(tmp_path / "link")), "train")) == 3


FEATURES = Features({"image": ImageFeature(), "labels": List(ClassLabel(names=["cat"])), "mask": ImageFeature()})


def write_parquet(path, image, mask=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    own = path.parent / "own.png"
    picture(own)
    grey = picture(path.parent / "grey.png", grey=True)
    rows = {
        "image": [{"bytes": own.read_bytes(), "path": None}, image],
        "labels": [[0], [0]],
        "mask": [{"bytes": grey.read_bytes(), "path": None}, mask or {"bytes": grey.read_bytes(), "path": None}],
    }
    Dataset.from_dict(rows, features=FEATURES).to_parquet(str(path))
    return own, grey


@pytest.mark.parametrize("column", ["image", "mask"])
@pytest.mark.parametrize("path", ["absolute", "relative", "up", "link"])
def test_a_row_that_names_a_file_elsewhere_is_refused(tmp_path, secret, monkeypatch, column, path):
    monkeypatch.chdir(secret.parent)
    (tmp_path / "data").mkdir()
    if path == "link":
        (tmp_path / "data" / "link.png").symlink_to(secret)
    named = {
        "absolute": str(secret),
        "relative": secret.name,
        "up": f"{tmp_path}/data/../private/{secret.name}",
        "link": f"{tmp_path}/data/link.png",
    }[path]
    entry, whole = {"bytes": None, "path": named}, {"bytes": picture(tmp_path / "x.png").read_bytes(), "path": None}
    rows = (entry, None) if column == "image" else (whole, entry)
    write_parquet(tmp_path / "data" / "train.parquet", *rows)
    config = DataConfig(source="hub", dataset=str(tmp_path / "data"), score_split="train")
    # Links are found before any row is read.
    expected = (
        f"{column} of image '1'.*secret.*expected the file's bytes" if path != "link" else "link.png: is .*secret"
    )
    with pytest.raises(UserError, match=expected):
        load_images(config, "train")


def test_a_row_may_name_a_file_of_its_own_data_set(tmp_path):
    own = picture(tmp_path / "data" / "pictures" / "own.png")
    write_parquet(tmp_path / "data" / "train.parquet", {"bytes": None, "path": str(own)})
    assert len(load_images(DataConfig(source="hub", dataset=str(tmp_path / "data")), "train")) == 2


def test_sources_of_a_folder_are_its_own(tmp_path, secret):
    write_parquet(tmp_path / "elsewhere" / "train.parquet", {"bytes": secret.read_bytes(), "path": None})
    for name, make in {
        "link": lambda folder: (folder / "train.parquet").symlink_to(tmp_path / "elsewhere" / "train.parquet"),
        "pattern": lambda folder: card(folder, "../elsewhere/train.parquet"),
        "absolute": lambda folder: card(folder, f"{tmp_path}/elsewhere/train.parquet"),
        "address": lambda folder: card(folder, "http://127.0.0.1:9/train.parquet"),
    }.items():
        (tmp_path / name).mkdir()
        make(tmp_path / name)
        with pytest.raises(UserError, match=r"data\.outside_files=true"):
            load_images(DataConfig(source="hub", dataset=str(tmp_path / name)), "train")


def card(folder, pattern):
    files = f"configs: [{{config_name: default, data_files: [{{split: train, path: '{pattern}'}}]}}]"
    (folder / "README.md").write_text(f"---\n{files}\n---\n")


def test_a_saved_dataset_lists_its_own_files(tmp_path, secret):
    rows = {"image": [{"bytes": secret.read_bytes(), "path": None}], "labels": [[0]]}
    features = Features({name: FEATURES[name] for name in rows})
    for name in ("own", "elsewhere"):
        Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / name))
    config = DataConfig(source="hub", dataset=str(tmp_path / "own"))
    assert len(load_images(config, "train")) == 1
    state = json.loads((tmp_path / "own" / "state.json").read_text())
    (file,) = (tmp_path / "elsewhere").glob("*.arrow")
    for name in (f"../elsewhere/{file.name}", "a\0.arrow"):
        state["_data_files"] = [{"filename": name}]
        (tmp_path / "own" / "state.json").write_text(json.dumps(state))
        with pytest.raises(UserError, match=r"expected a file inside of .*data\.outside_files=true"):
            load_images(config, "train")


def test_a_name_that_is_a_picture_is_refused(tmp_path, secret):
    picture_column = Features({**FEATURES, "image_id": ImageFeature()})
    own = {"bytes": secret.read_bytes(), "path": None}
    rows = {"image": [own], "labels": [[0]], "mask": [own], "image_id": [own]}
    (tmp_path / "data").mkdir()
    Dataset.from_dict(rows, features=picture_column).to_parquet(str(tmp_path / "data" / "train.parquet"))
    with pytest.raises(UserError, match="image_id: column 'image_id' is Image.*expected text or numbers"):
        load_images(DataConfig(source="hub", dataset=str(tmp_path / "data")), "train")


def test_a_published_label_map_that_names_a_file_is_refused(tmp_path, secret, monkeypatch):
    features = Features(
        {
            "image_id": Value("string"),
            "label_map": ImageFeature(),
            "labels": List(ClassLabel(names=["cat"])),
            "proportions": List(Value("float64")),
        }
    )
    rows = {
        "image_id": ["a"],
        "label_map": [{"bytes": None, "path": str(secret)}],
        "labels": [[0]],
        "proportions": [[1.0]],
    }
    Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "train.parquet"))
    monkeypatch.setattr(hub_store, "_download", lambda reference: ([tmp_path / "train.parquet"], {}))
    with pytest.raises(ValueError, match="image 'a'.*expected the bytes of a PNG"):
        HubLabelMaps("user/labels").read("a")


@pytest.mark.parametrize("column", ["image_id", "proportions"])
def test_published_label_maps_with_pictures_for_numbers_are_refused(tmp_path, secret, monkeypatch, column):
    own = {"bytes": secret.read_bytes(), "path": None}
    features = {"image_id": Value("string"), "label_map": ImageFeature(), "labels": List(ClassLabel(names=["cat"]))}
    features |= {"proportions": List(Value("float64"))}
    rows = {"image_id": ["a"], "label_map": [own], "labels": [[0]], "proportions": [[1.0]]}
    if column == "image_id":
        features["image_id"], rows["image_id"] = ImageFeature(), [own]
    else:
        features["proportions"], rows["proportions"] = List(ImageFeature()), [[own]]
    Dataset.from_dict(rows, features=Features(features)).to_parquet(str(tmp_path / "train.parquet"))
    monkeypatch.setattr(hub_store, "_download", lambda reference: ([tmp_path / "train.parquet"], {}))
    with pytest.raises(ValueError, match="expected image_id, label_map"):
        HubLabelMaps("user/labels")


def test_tags_are_not_read_from_a_mask_elsewhere(tmp_path):
    root = tmp_path / "voc"
    picture(root / "JPEGImages" / "a.jpg")
    (root / "SegmentationClass").mkdir()
    (root / "SegmentationClass" / "a.png").symlink_to(picture(tmp_path / "private" / "m.png", grey=True))
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text("a\n")
    with pytest.raises(UserError, match=r"SegmentationClass/a.png: is .*outside_files"):
        load_images(DataConfig(source="voc", data_dir=str(root)), "train")


def voc_folder(root):
    picture(root / "JPEGImages" / "a.jpg")
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text("a\n")
    return root / "image_labels.json", {"a": ["cat"]}


def coco_folder(root):
    picture(root / "train" / "a.png")
    (root / "annotations").mkdir()
    categories, annotation = [{"id": 1, "name": "cup"}], {"id": 1, "image_id": 1, "category_id": 1}
    table = {
        "images": [{"id": 1, "file_name": "a.png", "width": 20, "height": 20}],
        "annotations": [annotation | {"bbox": [1, 1, 5, 5], "segmentation": [[1, 1, 6, 1, 6, 6]], "iscrowd": 0}],
        "categories": categories,
    }
    return root / "annotations" / "instances_train.json", table


@pytest.mark.parametrize(("source", "make"), [("voc", voc_folder), ("coco", coco_folder)])
def test_tables_of_voc_and_coco_lie_in_the_folder_or_where_the_user_says(tmp_path, source, make):
    path, table = make(tmp_path / "own")
    (tmp_path / "private").mkdir()
    elsewhere = tmp_path / "private" / "secret.json"
    # Opened, it would be told as no JSON.
    elsewhere.write_text("secret")
    path.symlink_to(elsewhere)
    named = str(path.relative_to(tmp_path / "own"))
    options = {"source": source, "data_dir": str(tmp_path / "own")}
    if source == "voc":
        options["classes"] = ("cat",)
    for tags_file in (None, named):
        with pytest.raises(UserError, match=rf"{path.name}: is .*secret.json, expected .*outside_files"):
            load_images(DataConfig(**options, tags_file=tags_file), "train")
    # A folder of the path may be the link as well.
    if source == "coco":
        path.parent.rename(tmp_path / "private" / "annotations")
        path.parent.symlink_to(tmp_path / "private" / "annotations")
        with pytest.raises(UserError, match="expected a file inside of"):
            load_images(DataConfig(**options), "train")
    elsewhere.write_text(json.dumps(table))
    for tags_file in (str(elsewhere), "../private/secret.json"):
        assert len(load_images(DataConfig(**options, tags_file=tags_file), "train")) == 1
    assert len(load_images(DataConfig(**options, outside_files=True), "train")) == 1


def test_lists_of_voc_are_its_own(tmp_path):
    voc_folder(tmp_path / "own")
    lists = tmp_path / "own" / "ImageSets" / "Segmentation"
    lists.rename(tmp_path / "lists")
    lists.symlink_to(tmp_path / "lists")
    with pytest.raises(UserError, match=r"train.txt: is .*lists/train.txt, expected a file inside of"):
        load_images(DataConfig(source="voc", data_dir=str(tmp_path / "own")), "train")


def test_no_other_program_is_started_for_a_picture(tmp_path):
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    with pytest.raises(UserError, match="cannot identify image file"):
        decode_image(tmp_path / "a.png")


def test_a_label_map_that_is_a_link_is_refused_and_not_published(tmp_path, secret):
    store = LabelStore.create(tmp_path / "store", ("cat",), key="k", num_images=1)
    store.write("a", np.zeros((20, 20), np.uint8), {"classes": [0], "thresholds": [0.5], "proportions": [0.0]})
    store.mark_complete()
    replace_by_link(store.path("a"), secret)
    for use in (store.read, store.row, store.file):
        with pytest.raises(ValueError, match="label map of image 'a': is a link to .*secret"):
            use("a")
    assert main(["push", "labels", str(tmp_path / "store"), "user/labels", "--dry-run"]) == 1


def test_files_of_a_model_that_are_links_are_neither_loaded_nor_published(tmp_path, secret):
    from sbce_hf.models.configuration_spatial_bce import SpatialBceConfig
    from sbce_hf.models.image_processing_spatial_bce import SpatialBceImageProcessor
    from sbce_hf.models.modeling_spatial_bce import SpatialBceForImageClassification

    model = SpatialBceForImageClassification(SpatialBceConfig(trunk="test_resnet", embedding_dim=8, num_labels=1))
    model.save_pretrained(tmp_path / "model")
    SpatialBceImageProcessor().save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "modeling_extra.py").symlink_to(secret)
    with pytest.raises(ValueError, match="modeling_extra.py: is a link out of"):
        load_classifier(tmp_path / "model")
    (tmp_path / "out").mkdir()
    (tmp_path / "snapshots").mkdir()
    with pytest.raises(ValueError, match="modeling_extra.py: is a link out of"):
        render_model_folder(find_model(tmp_path / "model"), "user/model", tmp_path / "out")
    assert not (tmp_path / "out" / "modeling_extra.py").exists()
    (tmp_path / "model" / "modeling_extra.py").unlink()
    # A folder that is only called like the cache's is not the cache's.
    weights = (tmp_path / "model").rename(tmp_path / "snapshots" / "model") / "model.safetensors"
    weights.rename(tmp_path / "elsewhere.safetensors")
    weights.symlink_to(tmp_path / "elsewhere.safetensors")
    for load in (load_classifier, SpatialBceForImageClassification.from_pretrained):
        with pytest.raises(ValueError, match="model.safetensors: is a link out of"):
            load(weights.parent)


def test_a_snapshot_of_the_hubs_cache_may_link_to_its_blobs(tmp_path):
    from sbce_hf.models.configuration_spatial_bce import SpatialBceConfig
    from sbce_hf.models.modeling_spatial_bce import SpatialBceForImageClassification

    model = SpatialBceForImageClassification(SpatialBceConfig(trunk="test_resnet", embedding_dim=8, num_labels=1))
    snapshot = tmp_path / "models--user--model" / "snapshots" / "0123"
    model.save_pretrained(snapshot)
    (tmp_path / "models--user--model" / "blobs").mkdir()
    for file in list(snapshot.iterdir()):
        blob = tmp_path / "models--user--model" / "blobs" / file.name
        file.rename(blob)
        file.symlink_to(blob)
    assert json.loads((snapshot / "config.json").read_text())["trunk"] == "test_resnet"
    load_classifier(snapshot)


def saved(folder, secret, splits=("train",)):
    rows = {"image": [{"bytes": secret.read_bytes(), "path": None}], "labels": [[0]]}
    part = Dataset.from_dict(rows, features=Features({name: FEATURES[name] for name in rows}))
    DatasetDict(dict.fromkeys(splits, part)).save_to_disk(str(folder))
    return folder


def test_a_saved_dataset_has_no_split_elsewhere(tmp_path, secret):
    elsewhere = saved(tmp_path / "private" / "ds", secret)
    own = saved(tmp_path / "own", secret)
    config = DataConfig(source="hub", dataset=str(own))
    assert len(load_images(config, "train")) == 1
    for name in ("../private/ds/train", str(elsewhere / "train")):
        (own / "dataset_dict.json").write_text(json.dumps({"splits": ["train", name]}))
        with pytest.raises(UserError, match=r"private/ds/train, expected a file inside of .*outside_files=true"):
            load_images(config, name)
    shutil.rmtree(own / "train")
    (own / "train").symlink_to(elsewhere / "train")
    (own / "dataset_dict.json").write_text('{"splits": ["train"]}')
    with pytest.raises(UserError, match=r"own/train: is .*private/ds/train, expected a file inside of"):
        load_images(config, "train")
    (own / "dataset_dict.json").write_text('{"splits": "train"}')
    (own / "train").unlink()
    with pytest.raises(UserError, match="expected splits, a list of names"):
        load_images(config, "train")


def test_a_linked_folder_of_parquet_files_is_refused(tmp_path, secret):
    write_parquet(tmp_path / "private" / "pq" / "train.parquet", {"bytes": secret.read_bytes(), "path": None})
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "data").symlink_to(tmp_path / "private" / "pq")
    card(tmp_path / "own", "data/train.parquet")
    with pytest.raises(UserError, match=r"own/data: is .*private/pq, expected a file inside of"):
        load_images(DataConfig(source="hub", dataset=str(tmp_path / "own")), "train")


def test_a_linked_split_is_not_looked_into(tmp_path):
    for folder in ("photos/train", "private"):
        picture(tmp_path / folder / "a.png")
        (tmp_path / folder / "tags.csv").write_text(f"file,tags\na.png,{folder.replace('/', ' ')}\n")
    (tmp_path / "photos" / "valid").symlink_to(tmp_path / "private")
    with pytest.raises(UserError, match=r"photos/valid: is .*private, expected a file inside of"):
        load_images(DataConfig(data_dir=str(tmp_path / "photos")), "train")


def test_linked_annotations_are_refused_before_they_are_opened(tmp_path, folder):
    (tmp_path / "private").mkdir(exist_ok=True)
    # Opened, it would be told as no XML.
    (tmp_path / "private" / "key.xml").write_text("secret")
    (folder / "tags.csv").unlink()
    (folder / "Annotations").mkdir()
    (folder / "Annotations" / "0.xml").symlink_to(tmp_path / "private" / "key.xml")
    with pytest.raises(UserError, match=r"Annotations/0.xml: is .*key.xml, expected a file inside of"):
        load_images(DataConfig(data_dir=str(folder)), "train")
    (folder / "images").rename(folder / "JPEGImages")
    picture(folder / "JPEGImages" / "0.jpg")
    (folder / "ImageSets" / "Segmentation").mkdir(parents=True)
    (folder / "ImageSets" / "Segmentation" / "train.txt").write_text("0\n")
    with pytest.raises(UserError, match=r"Annotations/0.xml: is .*key.xml, expected a file inside of"):
        load_images(DataConfig(source="voc", data_dir=str(folder)), "train")


def test_a_pipe_among_a_datasets_files_is_not_waited_for(tmp_path, secret):
    write_parquet(tmp_path / "own" / "train.parquet", {"bytes": secret.read_bytes(), "path": None})
    os.mkfifo(tmp_path / "own" / "more.parquet")
    with pytest.raises(UserError, match=r"more\.parquet: is a named pipe, expected a file"):
        load_images(DataConfig(source="hub", dataset=str(tmp_path / "own")), "train")
