import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    BeitConfig,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    pipeline,
)

import sbce_hf.training.segmenter as module
from sbce_hf.config import DataConfig, SegmenterConfig, SegmenterTrainingConfig, from_mapping
from sbce_hf.data import load_images
from sbce_hf.labels.label_maps import MaskLabels
from sbce_hf.labels.store import LabelStore
from sbce_hf.models.configuration_deeplab import DeepLabConfig
from sbce_hf.models.configuration_spatial_bce import SpatialBceConfig
from sbce_hf.models.modeling_deeplab import DeepLabForSemanticSegmentation
from sbce_hf.models.modeling_spatial_bce import SpatialBceForImageClassification
from sbce_hf.training.folder import read_metrics
from sbce_hf.training.health import TrainingHealthError
from sbce_hf.training.metrics import Window
from sbce_hf.training.optimization import segmenter_parameter_groups
from sbce_hf.training.segmenter import (
    SegmenterTask,
    SingleClassWatch,
    _pixel_values,
    create_segmenter,
    train_segmenter,
)

CONFIG = {
    "epochs": 8,
    "batch_size": 8,
    "lr": 0.005,
    "crop_size": 48,
    "num_workers": 0,
    "checkpoint_every": 5,
    "log_every": 2,
}
TINY = {"depths": [1] * 4, "hidden_sizes": [8] * 4, "num_attention_heads": [1] * 4, "decoder_hidden_size": 16}
DEEPLAB = {"weights": "random", "model": {"trunk": "test_resnet", "freeze_batch_norm": False}}
ARCHITECTURES = ("deeplab", "segformer")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def images():
    return load_images(DataConfig(source="shapes", shapes_images=16, shapes_size=64), "train")


@pytest.fixture(scope="module")
def tiny_config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("segformer")
    # As files from the Hub may be: of other classes and with another ignored label.
    SegformerConfig(**TINY, num_labels=7, semantic_loss_ignore_index=3).save_pretrained(folder)
    return folder / "config.json"


@pytest.fixture(scope="module")
def build(images, tiny_config):
    def create(architecture="deeplab", seed=0, **fields):
        start = DEEPLAB if architecture == "deeplab" else {"from_config": str(tiny_config)}
        section = from_mapping(SegmenterConfig, {"architecture": architecture, **start, **fields})
        return create_segmenter(section, images.class_names, seed=seed)

    return create


def train(model, images, folder, **config):
    config = SegmenterTrainingConfig(**{**CONFIG, **config})
    return train_segmenter(model, images, MaskLabels(images), config, output_dir=folder, seed=1)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def trained(request, images, build, tmp_path_factory):
    """A straight training: its start, model and summary."""
    model = build(request.param)
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    return start, model, train(model, images, tmp_path_factory.mktemp(request.param))


# --- training -------------------------------------------------------------------------------------------------------


def test_loss_falls_and_values_are_logged(trained, images):
    folder = trained[2].model_dir.parent
    lines = read_metrics(folder / "metrics.jsonl")
    assert lines[-1]["loss"] < 0.9 * lines[0]["loss"]
    for line in lines:
        shares = [line[key] for key in ("pixel_accuracy", "foreground_predicted", "foreground_labelled")]
        assert all(0 <= share <= 1 for share in shares) and line["foreground_labelled"] > 0
    assert {f"pixel_accuracy/{name}" for name in ("background", *images.class_names)} <= set().union(*lines)


def test_every_parameter_of_every_group_moves(trained):
    start, model, _ = trained
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = segmenter_parameter_groups(model, SegmenterTrainingConfig().filled("sgd"))
    assert len(groups) == 4
    for group in groups:
        for parameter in group["params"]:
            assert not torch.equal(parameter, start[names[id(parameter)]]), names[id(parameter)]
    assert sum(len(group["params"]) for group in groups) == len(start)


def test_the_model_folder_is_whole(trained, images):
    _, model, summary = trained
    loaded = AutoModelForSemanticSegmentation.from_pretrained(summary.model_dir)
    assert all(torch.equal(loaded.state_dict()[key], value) for key, value in model.state_dict().items())
    assert loaded.config.id2label == dict(enumerate(("background", *images.class_names)))
    assert loaded.config.label2id == {name: label for label, name in loaded.config.id2label.items()}
    # Normalised as in training, at the image's own size.
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    pixels = AutoImageProcessor.from_pretrained(summary.model_dir)(photo, return_tensors="pt")["pixel_values"]
    expected = (np.asarray(photo) / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    np.testing.assert_allclose(pixels[0].permute(1, 2, 0), expected, atol=1e-5)


def test_the_model_works_in_a_pipeline(trained, images):
    segment = pipeline("image-segmentation", str(trained[2].model_dir))
    parts = segment(images.image(0))
    assert sum(np.asarray(part["mask"]) > 0 for part in parts).min() == 1
    assert {part["label"] for part in parts} <= {"background", *images.class_names}
    assert parts[0]["mask"].size == images.image(0).size


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_processor_resizes_as_training_does(architecture, build, images, tmp_path):
    summary = train(build(architecture), images, tmp_path, image_size=100, epochs=1)
    processor = AutoImageProcessor.from_pretrained(summary.model_dir)
    for size, expected in (((200, 50), (25, 100)), ((40, 80), (100, 50))):
        pixels = processor(Image.new("RGB", size), return_tensors="pt")["pixel_values"]
        assert tuple(pixels.shape[-2:]) == expected


def test_a_model_of_one_image_size_gets_square_images():
    processor = module._image_processor(BeitConfig(), SegmenterTrainingConfig(crop_size=224, image_size=500))
    assert processor(Image.new("RGB", (80, 40)), return_tensors="pt")["pixel_values"].shape[-2:] == (224, 224)


# --- resume ---------------------------------------------------------------------------------------------------------


def lines(folder):
    return [
        {k: v for k, v in line.items() if k != "images_per_second"} for line in read_metrics(folder / "metrics.jsonl")
    ]


def test_interrupted_the_result_is_bit_identical(trained, images, build, tmp_path, monkeypatch):
    architecture = "segformer" if isinstance(trained[1], SegformerForSemanticSegmentation) else "deeplab"
    straight = trained[2].model_dir
    original, seen = SegmenterTask.loss, []

    def loss(self, model, batch, iteration):
        seen.append(iteration)
        if len(seen) == 8:
            raise KeyboardInterrupt
        return original(self, model, batch, iteration)

    made, create = [], SegmenterTask.optimizer
    monkeypatch.setattr(SegmenterTask, "loss", loss)
    monkeypatch.setattr(SegmenterTask, "optimizer", lambda self, model: made.append(create(self, model)) or made[-1])
    with pytest.raises(KeyboardInterrupt):
        train(build(architecture), images, tmp_path)
    train(build(architecture), images, tmp_path)
    assert seen == [*range(8), *range(5, 16)]
    assert [type(one) for one in made] == [torch.optim.SGD if architecture == "deeplab" else torch.optim.AdamW] * 2
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path / "model", straight))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert lines(tmp_path) == lines(straight.parent)


def test_other_labels_images_or_models_are_not_continued(images, build, tmp_path):
    class Other(MaskLabels):
        def read(self, image_id):
            values = super().read(image_id)
            values[0, 0] = 1 - min(values[0, 0], 1)
            return values

    summary = train(build(), images, tmp_path, epochs=1)
    assert train(build(), images, tmp_path, epochs=1) == summary
    config = SegmenterTrainingConfig(**{**CONFIG, "epochs": 1})
    with pytest.raises(ValueError, match=r"inputs\.label_maps was"):
        train_segmenter(build(), images, Other(images), config, output_dir=tmp_path, seed=1)
    with pytest.raises(ValueError, match=r"inputs\.checkpoint was None and is now 'a'"):
        train_segmenter(
            build(), images, MaskLabels(images), config, output_dir=tmp_path, seed=1, inputs={"checkpoint": "a"}
        )
    with pytest.raises(ValueError, match=r"inputs\.images was"):
        train(build(), images.select(range(15, -1, -1)), tmp_path, epochs=1)
    balanced = build(model={**DEEPLAB["model"], "balanced_loss": True})
    with pytest.raises(ValueError, match=r"inputs\.model\.balanced_loss was False and is now True"):
        train(balanced, images, tmp_path, epochs=1)


# --- what does not belong together ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda values: np.where(values == 0, 5, values), "got value 5, expected 0 .* to 4"),
        (lambda values: np.full_like(values, 255), "for every pixel"),
        (lambda values: values[:-1], "got 64 x 63 pixels, expected 64 x 64"),
    ],
)
def test_bad_label_maps_stop_before_the_first_iteration(images, build, tmp_path, monkeypatch, change, message):
    store = LabelStore.create(tmp_path / "labels", images.class_names, key="k", num_images=len(images))
    for index, image_id in enumerate(images.image_ids):
        values = images.mask(index)
        store.write(image_id, change(values).astype(np.uint8) if index == 11 else values, {})
    monkeypatch.setattr(SegmenterTask, "loss", lambda *arguments: pytest.fail("an iteration"))
    with pytest.raises(ValueError, match=message) as error:
        config = SegmenterTrainingConfig(**CONFIG)
        train_segmenter(build(), images, store, config, output_dir=tmp_path / "out")
    assert repr(images.image_ids[11]) in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_model_of_other_classes_is_an_error(images, tmp_path):
    model = DeepLabForSemanticSegmentation(DeepLabConfig(trunk="test_resnet", num_labels=5))
    with pytest.raises(ValueError, match="LABEL_0.*expected {0: 'background', 1: "):
        train(model, images, tmp_path)


# --- a step ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_batch_that_is_all_ignored_changes_nothing(architecture, build, images):
    model = build(architecture)
    task = SegmenterTask(SegmenterTrainingConfig(), images.class_names)
    batch = {"pixel_values": torch.randn(2, 3, 64, 64), "labels": torch.full((2, 64, 64), 255)}
    loss, values = task.loss(model, batch, 0)
    loss.backward()
    assert loss == 0
    assert all(parameter.grad is None or (parameter.grad == 0).all() for parameter in model.parameters())
    assert all(weight.sum() == 0 for weight in (values["pixel_accuracy"][1], values["foreground_predicted"][1]))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_ignored_pixels_do_not_count(architecture, build, images):
    model = build(architecture).eval()
    task = SegmenterTask(SegmenterTrainingConfig(), images.class_names)
    labels = torch.randint(0, 5, (2, 64, 64), generator=torch.Generator().manual_seed(0))
    labels[:, :, 20:] = 255
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        loss, _ = task.loss(model, {"pixel_values": pixels, "labels": labels}, 0)
        logits = torch.nn.functional.interpolate(model(pixel_values=pixels).logits, (64, 64), mode="bilinear")
    expected = torch.nn.functional.cross_entropy(logits[..., :20], labels[..., :20])
    torch.testing.assert_close(loss, expected)


def test_logged_values_are_sums_over_valid_pixels():
    predicted = torch.tensor([[0, 1, 1], [2, 0, 0]])
    logits = torch.nn.functional.one_hot(predicted, 4).permute(2, 0, 1)[None].float()
    labels = torch.tensor([[[0, 1, 2], [2, 0, 255]]])
    for scale in (1, 8):
        values = _pixel_values(logits, labels.repeat_interleave(scale, 1).repeat_interleave(scale, 2))
        correct, labelled = values["pixel_accuracy"]
        assert (correct.tolist(), labelled.tolist()) == ([2, 1, 1, 0], [2, 1, 2, 0])
        assert [value.item() for value in values["foreground_predicted"]] == [3, 5]
        assert [value.item() for value in values["foreground_labelled"]] == [3, 5]


# --- health ---------------------------------------------------------------------------------------------------------

NAMES = ("background", "cat", "dog")


def watch(accuracies, per_epoch=1000, step=100, start=0):
    """Iteration at which the watch complains about windows with these accuracies per class, else `None`."""
    watch = SingleClassWatch(NAMES)
    for number, accuracy in enumerate(accuracies, start + 1):
        accuracy = np.array(accuracy, float)
        weights = np.where(np.isnan(accuracy), 0.0, 100.0)
        window = Window(
            number * step, number * step / per_epoch, {"pixel_accuracy": accuracy}, {"pixel_accuracy": weights}
        )
        try:
            watch.update(window)
        except TrainingHealthError as error:
            return window.iteration, str(error)
    return None


NAN = float("nan")


def test_one_class_for_every_pixel_over_an_epoch_is_an_error():
    iteration, message = watch([[1, 0, 0]] * 40)
    assert iteration == 2000 and "one class 'background' for every pixel" in message and "3 classes" in message
    assert watch([[1, 0, NAN], [1, NAN, 0]] * 20)[0] == 2000
    assert watch([[0, 1, 0]] * 40)[1].count("'cat'") == 1
    # A class that no label map has.
    assert watch([[0, 0, NAN]] * 40)[0] == 2000
    # Short epochs: a small set needs its iterations, too.
    assert watch([[1, 0, 0]] * 200, per_epoch=20, step=10)[0] == 520


@pytest.mark.parametrize(
    "accuracies",
    [
        # The first epoch, and as long again but for one window.
        [[1, 0, 0]] * 19,
        # Foreground appears now and then.
        ([[1, 0, 0]] * 9 + [[0.99, 0.1, 0]]) * 5,
        # It is predicted, if at the wrong places.
        [[0.9, 0, 0]] * 40,
        [[0, 0.5, 0]] * 40,
        # Another class at another time.
        ([[1, 0, 0]] * 5 + [[0, 1, 0]] * 5) * 5,
        # There is nothing else.
        [[1, NAN, NAN]] * 40,
        [[NAN, NAN, NAN]] * 40,
    ],
)
def test_the_watch_does_not_cry_wolf(accuracies):
    assert watch(accuracies) is None


def test_the_watch_sees_what_training_logs(images, build, tmp_path, monkeypatch):
    monkeypatch.setattr(SingleClassWatch, "MIN_ITERATIONS", 2)
    model = build()
    for branch in model.head.branches:
        torch.nn.init.zeros_(branch.classifier.weight)
        with torch.no_grad():
            branch.classifier.bias[0] = 100
    with pytest.raises(TrainingHealthError, match="'background' for every pixel"):
        train(model, images, tmp_path, lr=1e-6)


# --- create_segmenter -----------------------------------------------------------------------------------------------


def test_weights_follow_the_seed(build):
    for architecture in ARCHITECTURES:
        states = [build(architecture, seed).state_dict() for seed in (0, 0, 1)]
        assert all(torch.equal(states[0][key], value) for key, value in states[1].items())
        assert any(not torch.equal(states[0][key], value) for key, value in states[2].items())


def test_a_transformers_config_gets_our_classes_fields_and_ignore_index(build, images):
    model = build("segformer", model={"decoder_hidden_size": 24})
    assert isinstance(model, SegformerForSemanticSegmentation)
    assert model.config.num_labels == model.decode_head.classifier.out_channels == 5
    assert model.decode_head.linear_fuse.out_channels == 24
    assert model.config.semantic_loss_ignore_index == 255
    assert model.config.id2label[0] == "background" and model.config.hidden_sizes == [8] * 4


def test_a_checkpoint_gives_all_weights_but_the_classes(images, tmp_path):
    source = SegformerForSemanticSegmentation(SegformerConfig(**TINY, num_labels=7)).half()
    source.save_pretrained(tmp_path)
    section = SegmenterConfig(architecture="segformer", checkpoint=str(tmp_path))
    model = create_segmenter(section, images.class_names)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            assert value.dtype == torch.float32
        if name.startswith("decode_head.classifier"):
            assert len(value) == 5
        else:
            torch.testing.assert_close(value, source.state_dict()[name].to(value.dtype), rtol=0, atol=0)


def test_deeplab_starts_from_the_classifier(images):
    names = dict(enumerate(images.class_names))
    classifier = SpatialBceForImageClassification(
        SpatialBceConfig(trunk="test_resnet", id2label=names, label2id={name: i for i, name in names.items()})
    )
    section = SegmenterConfig(model={"head": "largefov", "head_channels": 8})
    model = create_segmenter(section, images.class_names, classifier=classifier)
    assert model.config.head == "largefov" and model.config.id2label[4] == images.class_names[3]
    ours, theirs = model.deeplab.trunk.state_dict(), classifier.base_model.trunk.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    with pytest.raises(ValueError, match="segmenter.weights: got 'classifier'"):
        create_segmenter(section, images.class_names)


def test_deeplab_reads_a_checkpoint_file_for_its_trunk(build, images, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.safetensors"):
        build(weights=str(tmp_path / "nowhere.safetensors"))


@pytest.mark.parametrize(
    "section, error, message",
    [
        (
            {"architecture": "segfomer", "from_config": "CONFIG"},
            ValueError,
            "got 'segfomer', expected 'deeplab' or .*seg",
        ),
        ({"architecture": "bert", "from_config": "CONFIG"}, ValueError, "got 'bert'"),
        ({"architecture": "beit", "from_config": "CONFIG"}, ValueError, "of model_type 'segformer', expected 'beit'"),
        ({"architecture": "segformer", "from_config": "nowhere"}, FileNotFoundError, "no file or folder nowhere"),
        ({"architecture": "segformer", "from_config": "EMPTY"}, FileNotFoundError, "no readable config.json"),
        ({"architecture": "segformer", "checkpoint": "EMPTY"}, FileNotFoundError, "no readable config.json"),
        (
            {"architecture": "segformer", "from_config": "CONFIG", "model": {"decoder_hiden_size": 3}},
            ValueError,
            "segmenter.model: unknown key 'decoder_hiden_size'; did you mean 'decoder_hidden_size'",
        ),
        (
            {"architecture": "segformer", "from_config": "CONFIG", "model": {"num_labels": 3}},
            ValueError,
            "segmenter.model.num_labels: the classes come from the data",
        ),
        ({"weights": "random", "model": {"trnk": "resnet50"}}, ValueError, "unknown key 'trnk'"),
    ],
)
def test_impossible_sections_are_errors(section, error, message, tiny_config, images, tmp_path):
    places = {"CONFIG": str(tiny_config), "EMPTY": str(tmp_path)}
    section = {key: places.get(value, value) if isinstance(value, str) else value for key, value in section.items()}
    with pytest.raises(error, match=message):
        create_segmenter(SegmenterConfig(**section), images.class_names)


def test_a_config_written_by_hand_may_state_its_number_of_labels(images, tmp_path):
    path = Path(tmp_path) / "config.json"
    path.write_text(json.dumps({"model_type": "segformer", "num_labels": 21, **TINY}))
    model = create_segmenter(SegmenterConfig(architecture="segformer", from_config=str(path)), images.class_names)
    assert model.config.num_labels == 5
