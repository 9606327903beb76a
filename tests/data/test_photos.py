import pytest
from PIL import Image

from sbce_hf.data.photos import load_photos

NAMES = ("ant", "bee")


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "photos"
    for name in ("b.JPG", "a.png", "deep/er/a.webp", "deep/c.tiff"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 7)).save(root / name)
    (root / "notes.txt").write_text("no photo")
    return root


def test_folders_are_searched_at_any_depth(folder):
    images = load_photos([folder], NAMES)
    assert images.image_ids == ["a", "b", "deep/c", "deep/er/a"]
    assert images.class_names == NAMES and not images.label_matrix().any() and not len(images.with_masks())
    assert images.image(3).size == (9, 7) and not images.skipped


def test_files_come_in_the_given_order_and_once(folder):
    paths = [folder / "deep" / "c.tiff", str(folder / "b.JPG"), folder, folder / "a.png"]
    assert load_photos(paths, NAMES).image_ids == ["c", "b", "a", "deep/er/a"]


def test_two_photos_with_one_id_are_an_error(folder):
    with pytest.raises(ValueError, match=r"a\.png and .*a\.webp would both be called 'a'; give the folder"):
        load_photos([folder / "a.png", folder / "deep" / "er"], NAMES)
    Image.new("RGB", (9, 7)).save(folder / "b.png")
    with pytest.raises(ValueError, match="rename one"):
        load_photos([folder], NAMES)


def test_results_among_the_photos_are_not_photos(folder):
    assert load_photos([folder], NAMES, exclude=[folder / "deep"]).image_ids == ["a", "b"]
    assert load_photos([folder], NAMES, exclude=[folder / "none"]).image_ids == ["a", "b", "deep/c", "deep/er/a"]


def test_unreadable_photos_are_listed(folder):
    damaged = folder / "deep" / "c.tiff"
    damaged.write_bytes(damaged.read_bytes()[:20])
    images = load_photos([folder, folder / "notes.txt"], NAMES)
    assert images.image_ids == ["a", "b", "deep/er/a"]
    assert [image.file for image in images.skipped] == [str(damaged), str(folder / "notes.txt")]
    assert all("unreadable" in image.reason for image in images.skipped)
    with pytest.raises(ValueError, match=r"c\.tiff"):
        load_photos([folder], NAMES, strict=True)
    with pytest.raises(ValueError, match="none of the 1 images"):
        load_photos([damaged], NAMES)


def test_nothing_to_load(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: no photos.*\.jpeg"):
        load_photos([folder, tmp_path / "empty"], NAMES)
    with pytest.raises(ValueError, match="no paths"):
        load_photos([], NAMES)
    with pytest.raises(FileNotFoundError, match=r"none\.jpg: no such file"):
        load_photos([folder / "none.jpg"], NAMES)


def test_the_manifest_follows_files_and_classes(folder):
    before = load_photos([folder], NAMES).manifest_hash
    assert load_photos([folder], NAMES).manifest_hash == before
    assert load_photos([folder], ("ant",)).manifest_hash != before
    Image.new("RGB", (19, 17)).save(folder / "a.png")
    assert load_photos([folder], NAMES).manifest_hash != before
