import io
import os

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

from sbce_hf.config import DataConfig
from sbce_hf.data import known_photos, load_images
from sbce_hf.data.known_photos import look_at_images
from sbce_hf.data.schema import features


def picture(index, mode="RGB"):
    values = np.random.default_rng(index).integers(0, 255, (12, 16, 3), np.uint8)
    if mode == "I;16":
        return Image.fromarray(values[..., 0].astype(np.uint16))
    return Image.fromarray(values)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(known_photos, "FOLDER", tmp_path / "memory")
    photos = tmp_path / "photos"
    (photos / "images").mkdir(parents=True)
    for index in range(4):
        picture(index).save(photos / "images" / f"{index}.jpg")
    picture(4, "I;16").save(photos / "images" / "4.png")
    whole = (photos / "images" / "0.jpg").read_bytes()
    (photos / "images" / "5.jpg").write_bytes(whole[: len(whole) // 2])
    rows = [f"{index}.{'png' if index == 4 else 'jpg'},cup" for index in range(6)]
    (photos / "tags.csv").write_text("\n".join(["file,tags", *rows]))
    return photos


def load(folder):
    return load_images(DataConfig(source="folder", data_dir=str(folder), score_split=None), "train")


@pytest.fixture
def decoded(monkeypatch):
    """Files that were decoded."""
    files, decode = [], known_photos.decode_image

    def noting(source, **arguments):
        files.append(os.path.basename(source["path"] or "bytes"))
        return decode(source, **arguments)

    monkeypatch.setattr(known_photos, "decode_image", noting)
    return files


def seen(images):
    return images.manifest_hash, images.image_ids, dict(images.digests), images.skipped, images.notes


def test_a_second_start_decodes_only_what_could_not_be_read_and_sees_the_same(folder, decoded):
    first = load(folder)
    assert sorted(decoded) == ["0.jpg", "1.jpg", "2.jpg", "3.jpg", "4.png", "5.jpg"]
    assert len(first) == 5 and first.skipped[0].file.endswith("5.jpg")
    assert any("own range" in note for note in first.notes)
    decoded.clear()
    assert seen(load(folder)) == seen(first)
    assert decoded == ["5.jpg"]


@pytest.mark.parametrize("keep_times", [False, True])
def test_a_photo_that_has_become_unreadable_is_found(folder, decoded, keep_times):
    first, photo = load(folder), folder / "images" / "2.jpg"
    before = photo.stat()
    photo.write_bytes(b"x" * before.st_size)
    if keep_times:
        os.utime(photo, ns=(before.st_atime_ns, before.st_mtime_ns))
    decoded.clear()
    images = load(folder)
    assert images.image_ids == [name for name in first.image_ids if name != "2"]
    assert sorted(decoded) == ["2.jpg", "5.jpg"]


def test_new_photos_alone_are_decoded(folder, decoded):
    load(folder)
    picture(9).save(folder / "images" / "9.jpg")
    with open(folder / "tags.csv", "a") as file:
        file.write("\n9.jpg,plate")
    decoded.clear()
    assert "9" in load(folder).image_ids
    assert sorted(decoded) == ["5.jpg", "9.jpg"]


def test_another_pillow_looks_again(folder, decoded, monkeypatch):
    load(folder)
    monkeypatch.setattr(known_photos, "pillow_version", "0")
    decoded.clear()
    load(folder)
    assert len(decoded) == 6


def test_a_damaged_memory_is_no_memory(folder, decoded):
    first = load(folder)
    for path in known_photos.FOLDER.iterdir():
        if path.suffix != ".lock":
            path.write_bytes(b"damaged")
    decoded.clear()
    assert seen(load(folder)) == seen(first)
    assert len(decoded) == 6
    decoded.clear()
    load(folder)
    assert decoded == ["5.jpg"]


def test_where_nothing_can_be_kept_everything_is_looked_at(folder, decoded, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(known_photos, "FOLDER", tmp_path / "file" / "memory")
    first = load(folder)
    decoded.clear()
    assert seen(load(folder)) == seen(first)
    assert len(decoded) == 6


def test_images_in_the_data_set_are_known_by_their_bytes(folder, decoded):
    stream = io.BytesIO()
    picture(0).save(stream, "PNG")
    rows = {"image_id": ["a", "b"], "labels": [[0], [0]]}
    rows["image"] = [{"bytes": stream.getvalue(), "path": None}, {"bytes": b"no image", "path": None}]
    results = []
    for _ in range(2):
        decoded.clear()
        dataset = Dataset.from_dict(rows, features=features(["cup"], with_mask=False))
        results.append((look_at_images(dataset), list(decoded)))
    assert [len(files) for _, files in results] == [2, 1]
    (identities, unreadable, _), (again, unreadable_again, _) = (result for result, _ in results)
    assert again == identities and list(unreadable_again) == list(unreadable)
    assert list(identities) == [0] and list(unreadable) == [1]
