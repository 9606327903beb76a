import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sbce_hf.config import DataConfig, ProportionConfig
from sbce_hf.data import load_images
from sbce_hf.labels.proportions import ProportionTable, clamp_proportions


@pytest.fixture(scope="module")
def images():
    return load_images(DataConfig(source="shapes", shapes_images=4, shapes_size=32), "train")


def table(images, **changes):
    values = {
        "class_names": images.class_names,
        "image_ids": tuple(images.image_ids),
        "proportions": np.random.default_rng(0).random((4, 4)),
        "lost": np.eye(4, dtype=bool),
    }
    return ProportionTable(**{**values, **changes})


def test_clamping():
    q = np.array([[0.0, 0.0, 0.3], [1.0, 0.001, 0.5], [0.96, 0.004, 0.0]])
    labels = np.array([[1, 0, 1], [1, 1, 0], [1, 1, 0]], dtype=np.float32)
    clamped, lost = clamp_proportions(q, labels, ProportionConfig(), num_pixels=1000)
    assert clamped.tolist() == [[0.005, 0, 0.3], [0.95, 0.005, 0], [0.95, 0.005, 0]]
    assert lost.tolist() == [[True, False, False], [False] * 3, [False] * 3]
    few, _ = clamp_proportions(q, labels, ProportionConfig(), num_pixels=50)
    assert few[0, 0] == 1 / 50
    assert q[0, 0] == 0 and q[1, 0] == 1


@pytest.mark.parametrize("bad", [np.nan, -0.1, 1.1, np.inf])
def test_clamping_refuses_what_is_no_proportion(bad):
    q = np.array([[0.5, 0.5], [0.5, bad]])
    with pytest.raises(ValueError, match=r"proportions\[1, 1\]: got"):
        clamp_proportions(q, np.ones((2, 2), np.float32), ProportionConfig(), 100)
    with pytest.raises(ValueError, match="expected the same"):
        clamp_proportions(q, np.ones((2, 3), np.float32), ProportionConfig(), 100)


def test_table_round_trip_is_exact_and_leaves_nothing_else(images, tmp_path):
    written = table(images)
    written.save(tmp_path / "new" / "q.parquet")
    written.save(tmp_path / "new" / "q.parquet")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["q.parquet"]
    read = ProportionTable.load(tmp_path / "new" / "q.parquet")
    assert read.class_names == written.class_names and read.image_ids == written.image_ids
    np.testing.assert_array_equal(read.proportions, written.proportions)
    np.testing.assert_array_equal(read.lost, written.lost)
    assert read.proportions.dtype == np.float64 and read.lost.dtype == bool


def test_join_follows_the_images(images):
    written = table(images)
    np.testing.assert_array_equal(written.join(images.select([2, 0])), written.proportions[[2, 0]])


def test_join_names_the_image(images):
    some = table(images, image_ids=("train_00000", "train_00001", "other", "train_00003"))
    with pytest.raises(ValueError, match="image 'train_00002' has no proportions"):
        some.join(images)
    broken = np.full((4, 4), 0.5)
    broken[3, 1] = np.nan
    with pytest.raises(ValueError, match="image 'train_00003', class 'lantern': got proportion nan"):
        table(images, proportions=broken).join(images)
    with pytest.raises(ValueError, match="proportions are of classes a, b, c, d"):
        table(images, class_names=("a", "b", "c", "d")).join(images)


def test_table_that_does_not_fit(images):
    with pytest.raises(ValueError, match=r"expected \(4, 4\)"):
        table(images, proportions=np.zeros((4, 3)))
    with pytest.raises(ValueError, match="twice"):
        table(images, image_ids=("a", "b", "a", "c"))
    with pytest.raises(ValueError, match="an empty image id"):
        table(images, image_ids=("a", "b", "", "c"))


def test_load_of_something_else(images, tmp_path):
    with pytest.raises(FileNotFoundError, match="no table of proportions"):
        ProportionTable.load(tmp_path / "q.parquet")
    (tmp_path / "q.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(ValueError, match=r"q\.parquet: not a table of proportions"):
        ProportionTable.load(tmp_path / "q.parquet")
    images.dataset.remove_columns(["image", "mask"]).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(ValueError, match=r"other\.parquet: not a table of proportions"):
        ProportionTable.load(tmp_path / "other.parquet")


def test_damage_anywhere_in_the_description_ends_no_process(images, tmp_path):
    """Arrow aborts where the histogram of a column has another length than its kind."""
    path = tmp_path / "q.parquet"
    table(images).save(path)
    whole, refused = path.read_bytes(), 0
    for offset in range(len(whole) - 8 - int.from_bytes(whole[-8:-4], "little"), len(whole)):
        path.write_bytes(whole[:offset] + bytes([whole[offset] ^ 0x10]) + whole[offset + 1 :])
        try:
            ProportionTable.load(path)
        except ValueError as error:
            assert "q.parquet: not a table of proportions" in str(error)
            refused += 1
    assert refused > 100


def test_values_are_counted_before_they_are_read(images, tmp_path, monkeypatch):
    table(images).save(tmp_path / "q.parquet")
    monkeypatch.setattr("sbce_hf.labels.proportions._MAX_VALUES", 35)
    with pytest.raises(ValueError, match="36 values, expected at most 35"):
        ProportionTable.load(tmp_path / "q.parquet")


def test_rows_of_another_length_than_the_classes_are_named(images, tmp_path):
    path = tmp_path / "proportions.parquet"
    columns = {
        "image_id": ["a", "b"],
        "proportions": pa.array([[0.1, 0.2], [0.3]], pa.list_(pa.float64())),
        "lost": pa.array([[False, True], [True]], pa.list_(pa.bool_())),
    }
    pq.write_table(pa.table(columns).replace_schema_metadata({"class_names": '["x", "y"]'}), path)
    with pytest.raises(ValueError, match="another length than the 2 classes"):
        ProportionTable.load(path)


@pytest.mark.parametrize("count", [0, 1, 70])
def test_tables_of_any_size_come_back(tmp_path, count):
    generator = np.random.default_rng(count)
    ids = tuple(f"folder/{index}" for index in range(count))
    values, lost = generator.random((count, 3)), generator.random((count, 3)) < 0.5
    ProportionTable(("x", "y", "z"), ids, values, lost, from_masks=True).save(tmp_path / "table.parquet")
    found = ProportionTable.load(tmp_path / "table.parquet")
    assert found.image_ids == ids and found.from_masks
    assert np.array_equal(found.proportions, values) and np.array_equal(found.lost, lost)
    assert found.proportions.dtype == np.float64 and found.lost.dtype == bool
