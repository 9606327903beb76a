import doctest
import inspect

import numpy as np
import pytest
import torch
from PIL import Image

import sbce_hf
import sbce_hf.data
from sbce_hf.errors import UserError
from sbce_hf.importers import released
from sbce_hf.models.modeling_trunk import create_trunk

NAMES = [name for name in sbce_hf.__all__ if name != "__version__"]


@pytest.fixture
def beside_a_released_checkpoint(tmp_path, monkeypatch):
    """In a folder with the released program's `checkpoint.pth`, but of a small trunk: its own takes 400 MB."""
    trunk = create_trunk(sbce_hf.SpatialBceConfig(trunk="test_resnet"))
    monkeypatch.setattr(released, "trunk_on_meta", lambda: trunk)
    monkeypatch.setattr(released, "RESNET38", "test_resnet")
    channels = trunk.feature_info.channels()[-1]
    heads = {f"fc_list.{index}.weight": torch.randn(1, 128, 1, 1) for index in range(2)}
    heads |= {"threshold.weight": torch.randn(2, channels, 1, 1), "temperature": torch.randn(2)}
    heads["mask_layer_downsample.weight"] = torch.randn(128, channels, 1, 1)
    torch.save(trunk.state_dict() | heads, tmp_path / "checkpoint.pth")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_public_names_have_an_example_that_works(name, request):
    if name == "import_released":
        request.getfixturevalue("beside_a_released_checkpoint")
    public = getattr(sbce_hf, name)
    assert "\n\nExamples:\n" in inspect.getdoc(public)
    (examples,) = doctest.DocTestFinder(recurse=False).find(public, name, globs={})
    assert any(name in example.source for example in examples.examples)
    assert not doctest.DocTestRunner().run(examples).failed


def test_a_source_of_one_s_own_is_known_by_its_name_and_replaces_none(monkeypatch):
    monkeypatch.setattr(sbce_hf.data, "SOURCES", set(sbce_hf.data.SOURCES))
    with pytest.raises(UserError, match="'voc' is a source of this package"):
        sbce_hf.register_source("voc", lambda config, split: None)
    with pytest.raises(UserError, match="data.source: got 'foldr'; did you mean 'folder'"):
        sbce_hf.load_recipe("own-data", {"data": {"source": "foldr"}})


PHOTOS = [Image.new("RGB", (20, 16), colour) for colour in ("red", "green", "blue")]


@pytest.mark.parametrize(
    ("tags", "options", "message"),
    [
        ([["a"]], {}, "tags: got 1, expected one for each of 3 photos"),
        ([["a"], ["b"], "ab"], {}, "photo '2': got 'ab', expected a list"),
        ([["a"], ["b"], ["c"]], {"class_names": ["a", "b"]}, "photo '2': got 'c'"),
        ([["a"], ["b"], []], {"image_ids": ["x", "x", "y"]}, "occurs twice"),
        ([["a"], ["a"], []], {"class_names": ["a", "b"]}, "no image of split 'train'.*tag b"),
    ],
)
def test_lists_that_do_not_fit(tags, options, message):
    with pytest.raises(UserError, match=message):
        sbce_hf.images_from_lists(PHOTOS, tags, **options)


def test_files_and_pictures_are_the_same_images(tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path, photo in zip(paths, PHOTOS, strict=True):
        photo.save(path)
    tags = [["b", "a"], [], ["b"]]
    for images in (sbce_hf.images_from_lists(paths, tags), sbce_hf.images_from_lists(PHOTOS, tags)):
        assert [np.asarray(images.image(index))[0, 0].tolist() for index in (0, 2)] == [[255, 0, 0], [0, 0, 255]]
        assert images.label_matrix().tolist() == [[1, 1], [0, 0], [0, 1]]


def test_photos_are_labelled_like_a_checkpoint_explains_them(tmp_path):
    config = sbce_hf.SpatialBceConfig(trunk="test_resnet", id2label={0: "a", 1: "b"}, label2id={"a": 0, "b": 1})
    sbce_hf.SpatialBceForImageClassification(config).save_pretrained(tmp_path)
    photo = Image.effect_noise((40, 32), 80).convert("RGB")
    (label_map,) = sbce_hf.label_photos(str(tmp_path), [photo], [["b"]])
    explained = sbce_hf.explain(sbce_hf.load_checkpoint(str(tmp_path)), photo, ["b"], sbce_hf.CrfConfig())
    assert (label_map == explained.label_map).all()
    assert sbce_hf.label_photos(tmp_path, [photo], None)[0].shape == (32, 40)
    (from_loaded,) = sbce_hf.label_photos(sbce_hf.load_checkpoint(str(tmp_path)), [photo], [["b"]])
    assert (from_loaded == label_map).all()
    photo.save(tmp_path / "photo.png")
    (from_file,) = sbce_hf.label_photos(tmp_path, [tmp_path / "photo.png"], [["b"]])
    assert (from_file == label_map).all()
    with pytest.raises(UserError, match="photo absent.jpg"):
        sbce_hf.label_photos(tmp_path, ["absent.jpg"], [["b"]])
    with pytest.raises(UserError, match="photos: got a ndarray, expected Pillow's images or files"):
        sbce_hf.label_photos(tmp_path, [np.asarray(photo)], [["b"]])
    with pytest.raises(UserError, match="photo 0: got .'c'., expected a list of"):
        sbce_hf.label_photos(tmp_path, [photo], [["c"]])


def test_a_run_stands_for_its_classifier(tmp_path):
    run_dir = tmp_path / "run"
    config = sbce_hf.SpatialBceConfig(trunk="test_resnet", id2label={0: "a"}, label2id={"a": 0})
    sbce_hf.SpatialBceForImageClassification(config).save_pretrained(run_dir / "round_1" / "model")
    (run_dir / "config.yaml").write_text("{}")
    (run_dir / "run.json").write_text("{}")
    photo = Image.effect_noise((40, 32), 80).convert("RGB")
    with pytest.raises(FileNotFoundError, match="the run is not finished"):
        sbce_hf.label_photos(run_dir, [photo], [["a"]])
    (run_dir / "run.json").write_text('{"results": {"classifier": "round_1/model"}}')
    expected = sbce_hf.label_photos(run_dir / "round_1" / "model", [photo], [["a"]])[0]
    assert (sbce_hf.label_photos(run_dir, [photo], [["a"]])[0] == expected).all()
    assert (sbce_hf.label_photos(sbce_hf.load_checkpoint(str(run_dir)), [photo], [["a"]])[0] == expected).all()


@pytest.mark.parametrize("model", [3, torch.nn.Identity()])
def test_what_is_no_classifier_labels_nothing(model):
    with pytest.raises(UserError, match=f"model: got a {type(model).__name__}, expected a classifier"):
        sbce_hf.label_photos(model, PHOTOS, None)
