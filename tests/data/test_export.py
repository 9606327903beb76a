import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sbce_hf.config import DataConfig
from sbce_hf.data import load_images
from sbce_hf.data.export import export_parquet


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def folder(tmp_path):
    """Five images of three formats, of which three have masks with values 0, 1, 2 and 255."""
    (tmp_path / "photos/images/trip").mkdir(parents=True)
    (tmp_path / "photos/masks/trip").mkdir(parents=True)
    generator = np.random.default_rng(0)
    names = ["a.jpg", "b.png", "trip/c.webp", "d.jpg", "trip/e.png"]
    for number, name in enumerate(names):
        pixels = generator.integers(0, 256, (10 + number, 14, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos/images" / name)
        if number < 3:
            mask = generator.choice(np.array([0, 1, 2, 255], np.uint8), (10 + number, 14))
            Image.fromarray(mask).save(tmp_path / f"photos/masks/{name.split('.')[0]}.png")
    rows = ["a.jpg,cat", "b.png,dog;cat", "trip/c.webp,", "d.jpg,dog", "trip/e.png,cat"]
    (tmp_path / "photos/tags.csv").write_text("\n".join(["file,tags", *rows]))
    return tmp_path / "photos"


def source(folder, **values):
    return load_images(DataConfig(source="folder", data_dir=str(folder), **values), "train")


def back(directory, split="train", **values):
    return load_images(DataConfig(source="hub", dataset=str(directory), **values), split)


@pytest.mark.parametrize("num_shards", [None, 3])
def test_round_trip_keeps_everything(folder, tmp_path, num_shards):
    images = source(folder, score_split="train")
    paths = export_parquet(images, tmp_path / "out", "trainaug", num_shards)
    assert [path.name for path in paths][-1] == f"trainaug-{len(paths) - 1:05d}-of-{num_shards or 1:05d}.parquet"
    assert [pq.read_metadata(path).num_rows for path in paths] == ([5] if num_shards is None else [1, 2, 2])
    again = back(tmp_path / "out", "trainaug", score_split="trainaug")
    assert again.image_ids == images.image_ids and again.class_names == images.class_names
    np.testing.assert_array_equal(again.label_matrix(), images.label_matrix())
    for index in range(5):
        file = images.dataset[index]["image"]["path"]
        with open(file, "rb") as stream:
            assert again.dataset[index]["image"]["bytes"] == stream.read()
    masked, expected = again.with_masks(), images.with_masks()
    assert masked.image_ids == expected.image_ids == ["a", "b", "trip/c"]
    for index in range(3):
        np.testing.assert_array_equal(masked.mask(index), expected.mask(index))
    with pytest.raises(ValueError, match="there is none"):
        again.mask(4)


def test_an_export_can_be_exported(folder, tmp_path):
    export_parquet(source(folder), tmp_path / "one", "train")
    export_parquet(back(tmp_path / "one"), tmp_path / "two", "train")
    one, two = (tmp_path / name / "data/train-00000-of-00001.parquet" for name in ("one", "two"))
    assert pq.read_table(one).equals(pq.read_table(two))


def test_without_masks_and_streamed(folder, tmp_path):
    for mask in folder.glob("masks/**/*.png"):
        mask.unlink()
    export_parquet(source(folder), tmp_path / "out", "train", 2)
    stream = datasets.load_dataset(str(tmp_path / "out"), split="train", streaming=True)
    assert stream.n_shards == 2
    rows = list(stream)
    assert [row["image_id"] for row in rows] == ["a", "b", "trip/c", "d", "trip/e"]
    assert "mask" not in rows[0] and rows[1]["image"].size == (14, 11) and rows[1]["labels"] == [0, 1]
    assert stream.features["labels"].feature.names == ["cat", "dog"]


def test_classes_of_a_class_list_may_lack_images(folder, tmp_path):
    images = source(folder, classes=("bird", "cat", "dog"), train_split="other")
    export_parquet(images, tmp_path / "out", "train")
    assert back(tmp_path / "out").class_names == ("bird", "cat", "dog")
    with pytest.raises(ValueError, match="has the tag bird"):
        back(tmp_path / "out", classes=("bird", "cat", "dog"))


def test_mistakes(folder, tmp_path):
    images = source(folder)
    with pytest.raises(ValueError, match="split 'train-aug': expected a name of letters"):
        export_parquet(images, tmp_path / "out", "train-aug")
    with pytest.raises(ValueError, match=r"num_shards: got 6, expected 1 to 5"):
        export_parquet(images, tmp_path / "out", "train", 6)
    export_parquet(images, tmp_path / "out", "train", 2)
    export_parquet(images, tmp_path / "out", "train", 2)
    with pytest.raises(ValueError, match=r"train-00000-of-00002\.parquet: from an export with another number"):
        export_parquet(images, tmp_path / "out", "train")
    export_parquet(images, tmp_path / "out", "val")


def test_nothing_half_written_stays(folder, tmp_path):
    images = source(folder)
    (folder / "images/d.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"d\.jpg"):
        export_parquet(images, tmp_path / "out", "train", 2)
    assert [path.name for path in (tmp_path / "out/data").iterdir()] == ["train-00000-of-00002.parquet"]
