import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError

from sbce_hf.config import AugmentationConfig, DataConfig, TrainingConfig
from sbce_hf.data import load_images
from sbce_hf.labels.label_maps import MaskLabels
from sbce_hf.models.configuration_spatial_bce import SpatialBceConfig
from sbce_hf.models.modeling_spatial_bce import SpatialBceForImageClassification
from sbce_hf.training.classifier import IMAGE_TOP_SHARE, ClassifierTask, train_classifier
from sbce_hf.training.folder import read_metrics
from sbce_hf.training.health import ClassHealth, TrainingHealthError
from sbce_hf.training.metrics import Window

CONFIG = {
    "epochs": 3,
    "batch_size": 8,
    "image_size": 48,
    "lr": 1e-3,
    "period": 4,
    "weights_iterations": 2,
    "min_threshold_phases": 1,
    "num_workers": 0,
    "checkpoint_every": 5,
    "log_every": 1,
}


@pytest.fixture(scope="module")
def images():
    return load_images(DataConfig(source="shapes", shapes_images=16, shapes_size=48), "train")


@pytest.fixture(scope="module")
def proportions(images):
    return np.where(images.label_matrix() > 0, 0.2, 0.0)


def build(images, **config):
    torch.manual_seed(0)
    config = {"trunk": "test_resnet", "freeze_batch_norm": False, **config}
    names = dict(enumerate(images.class_names))
    return SpatialBceForImageClassification(
        SpatialBceConfig(id2label=names, label2id={name: i for i, name in names.items()}, **config)
    )


def test_bce_learns_and_leaves_the_threshold_head_alone(tmp_path, images):
    model = build(images)
    head = model.threshold_head.weight.detach().clone()
    summary = train_classifier(
        model, images, TrainingConfig(**{**CONFIG, "epochs": 8, "lr": 5e-3}), "bce", output_dir=tmp_path
    )
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert set(lines[0]) >= {
        "loss",
        "logit_scale",
        "threshold",
        "mean_p",
        "soft_share",
        f"mean_p/{images.class_names[0]}",
    }
    assert not {"mean_q", "spatial_loss", "proportion_loss"} & set(lines[0])
    trained = SpatialBceForImageClassification.from_pretrained(summary.model_dir)
    assert torch.equal(trained.threshold_head.weight, head)
    assert not torch.equal(trained.class_maps.weight, build(images).class_maps.weight)


def test_spatial_logs_each_phase_and_per_class_values(tmp_path, images, proportions):
    config = TrainingConfig(**CONFIG)
    model = build(images)
    summary = train_classifier(model, images, config, "spatial", proportions, output_dir=tmp_path, seed=1)
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [("spatial_loss" in line, "threshold_loss" in line) for line in lines] == [
        (True, False), (True, False), (False, True), (False, True), (True, False), (True, False),
    ]  # fmt: skip
    assert [("proportion_loss" in line) for line in lines] == ["spatial_loss" in line for line in lines]
    weights = [line for line in lines if "spatial_loss" in line]
    for line in weights:
        assert line["loss"] == pytest.approx(line["spatial_loss"] + line["proportion_loss"], rel=1e-5)
    for line in lines:
        assert line["mean_q"] == pytest.approx(0.2)
        per_class = [line[f"mean_p/{name}"] for name in images.class_names if f"mean_p/{name}" in line]
        assert per_class and min(per_class) <= line["mean_p"] <= max(per_class)
        assert 0 <= line["soft_share"] <= 1 and 0 < line["threshold"] < 1
    assert lines[0]["logit_scale"] == pytest.approx(1)
    state = SpatialBceForImageClassification.from_pretrained(summary.model_dir).state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


def test_logged_class_values_are_means_over_present_pairs(images):
    model = build(images).eval()
    task = ClassifierTask("spatial", TrainingConfig(**CONFIG), images.class_names, iterations=6)
    labels = torch.zeros(3, 4)
    labels[0, 1] = labels[2, 1] = labels[1, 0] = 1
    batch = {
        "pixel_values": torch.randn(3, 3, 48, 48),
        "labels": labels,
        "proportions": (labels * torch.tensor([[0.1], [0.2], [0.4]])).double(),
    }
    with torch.no_grad():
        _, values = task.loss(model, batch, 0)
        output = model(batch["pixel_values"])
    p = output.pixel_logits.sigmoid()
    total, weight = values["mean_p"]
    assert weight.tolist() == [1, 2, 0, 0]
    assert total[1] / 2 == pytest.approx(((p[0, 1] + p[2, 1]) / 2).mean().item(), rel=1e-5)
    assert values["mean_q"][0].tolist() == pytest.approx([0.2, 0.5, 0, 0], rel=1e-6)
    soft = ((p > 0.02) & (p < 0.98)).float().mean(dim=(-2, -1))
    assert values["soft_share"][0][1] == pytest.approx((soft[0, 1] + soft[2, 1]).item(), rel=1e-5)


@pytest.mark.parametrize("kind", ["bce", "spatial"])
def test_a_finished_stage_leaves_the_model_as_it_was_given(tmp_path, images, proportions, kind):
    config = TrainingConfig(**{**CONFIG, "epochs": 1})
    arguments = images, config, kind, proportions
    given = 0.37
    trained = build(images, image_top_share=given)
    summary = train_classifier(trained, *arguments, output_dir=tmp_path)
    assert trained.config.image_top_share == IMAGE_TOP_SHARE[kind]

    model = build(images, image_top_share=given).eval()
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    assert train_classifier(model, *arguments, output_dir=tmp_path) == summary
    assert model.config.image_top_share == given and not model.training
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


def test_another_input_in_the_same_folder_is_an_error(tmp_path, images, proportions):
    config = TrainingConfig(**{**CONFIG, "epochs": 1})
    train_classifier(build(images), images, config, "spatial", proportions, output_dir=tmp_path)
    with pytest.raises(ValueError, match=r"inputs\.proportions was"):
        train_classifier(build(images), images, config, "spatial", proportions * 2, output_dir=tmp_path)
    with pytest.raises(ValueError, match=r"inputs\.model\.kl_weight was 1\.0 and is now 2"):
        train_classifier(build(images, kl_weight=2), images, config, "spatial", proportions, output_dir=tmp_path)
    other = load_images(DataConfig(source="shapes", shapes_images=16, shapes_size=48, shapes_seed=1), "train")
    with pytest.raises(ValueError, match=r"inputs\.images was"):
        train_classifier(build(images), other, config, "spatial", other.label_matrix() * 0.2, output_dir=tmp_path)


@pytest.mark.parametrize("value", [0.0, -0.1, 1.1, float("nan")])
def test_impossible_proportions_are_an_error_that_names_the_image(tmp_path, images, proportions, value):
    wrong = proportions.copy()
    row, column = np.argwhere(proportions > 0)[5]
    wrong[row, column] = value
    with pytest.raises(ValueError, match=images.image_ids[row]) as error:
        train_classifier(build(images), images, TrainingConfig(**CONFIG), "spatial", wrong, output_dir=tmp_path)
    assert images.class_names[column] in str(error.value)


def test_proportions_of_absent_classes_are_not_read(tmp_path, images, proportions):
    unknown = np.where(images.label_matrix() > 0, proportions, np.nan)
    fitted = [
        train_classifier(build(images), images, TrainingConfig(**CONFIG), "spatial", table, output_dir=tmp_path / name)
        for name, table in (("known", proportions), ("unknown", unknown))
    ]
    weights = [(summary.model_dir / "model.safetensors").read_bytes() for summary in fitted]
    assert weights[0] == weights[1]


def test_what_does_not_belong_together_is_an_error(tmp_path, images, proportions):
    config = TrainingConfig(**CONFIG)
    with pytest.raises(ValueError, match="expected an array of shape"):
        train_classifier(build(images), images, config, "spatial", output_dir=tmp_path)
    with pytest.raises(ValueError, match=r"\(15, 4\), expected an array of shape \(16, 4\)"):
        train_classifier(build(images), images, config, "spatial", proportions[1:], output_dir=tmp_path)
    model = SpatialBceForImageClassification(SpatialBceConfig(trunk="test_resnet", num_labels=4))
    with pytest.raises(ValueError, match="LABEL_0"):
        train_classifier(model, images, config, "bce", output_dir=tmp_path)


def test_seed_decides_order_and_augmentation(tmp_path, images):
    config = TrainingConfig(**{**CONFIG, "epochs": 1}, augmentation=AugmentationConfig(flip=True))
    losses = []
    for i, seed in enumerate((0, 0, 1)):
        train_classifier(build(images), images, config, "bce", output_dir=tmp_path / str(i), seed=seed)
        losses.append([line["loss"] for line in read_metrics(tmp_path / str(i) / "metrics.jsonl")])
    assert losses[0] == losses[1] != losses[2]


def test_a_collapsed_class_stops_training(tmp_path, images, proportions):
    model = build(images)
    name = images.class_names[2]
    original = model.forward

    def forward(*arguments, **options):
        output = original(*arguments, **options)
        output.pixel_logits = output.pixel_logits.detach().clone()
        output.pixel_logits[:, 2] = -20.0
        return output

    model.forward = forward
    with pytest.raises(TrainingHealthError, match=f"class {name!r} has collapsed") as error:
        train_classifier(
            model, images, TrainingConfig(**{**CONFIG, "epochs": 20}), "spatial", proportions, output_dir=tmp_path
        )
    message = str(error.value)
    assert "a lower spatial.lr; model.normalization=balanced" in message and "0.200" in message


# --- label maps as targets ------------------------------------------------------------------------------------------

LABELS = {**CONFIG, "targets": "labels"}


def true_maps(images):
    return MaskLabels(
        load_images(DataConfig(source="shapes", shapes_images=16, shapes_size=48, score_split="train"), "train")
    )


def test_a_round_learns_where_the_label_maps_say_a_class_is(tmp_path, images):
    config = TrainingConfig(**{**LABELS, "epochs": 40, "lr": 0.02, "weights_iterations": 3, "log_every": 20})
    maps = true_maps(images)
    # A class of two pictures may fade; what counts here is the whole.
    options = {"output_dir": tmp_path, "label_maps": maps, "guarded": True}
    summary = train_classifier(build(images), images, config, "spatial", **options)
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert lines[-1]["spatial_loss"] < 0.6 * lines[0]["spatial_loss"] and "proportion_loss" not in lines[0]
    assert summary.images == 16 and {"mean_q", "mean_p", "soft_share"} <= lines[0].keys()


def test_targets_that_are_labels_need_label_maps(tmp_path, images, proportions):
    with pytest.raises(ValueError, match="label_maps: missing"):
        train_classifier(build(images), images, TrainingConfig(**LABELS), "spatial", proportions, output_dir=tmp_path)


def test_other_label_maps_are_another_training(tmp_path, images):
    class Shifted(MaskLabels):
        def read(self, image_id):
            return np.roll(super().read(image_id), 3, axis=0)

    config, maps = TrainingConfig(**LABELS), true_maps(images)
    train_classifier(build(images), images, config, "spatial", output_dir=tmp_path, label_maps=maps)
    with pytest.raises(ValueError, match="inputs.label_maps was"):
        shifted = Shifted(maps._images)
        train_classifier(build(images), images, config, "spatial", output_dir=tmp_path, label_maps=shifted)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"min_scale": 1.5, "max_scale": 1.0}, "expected min <= max"),
        (
            {"augmentation": AugmentationConfig(randaugment=2, geometric=True)},
            "geometric: got true with targets 'labels'",
        ),
    ],
)
def test_label_maps_and_images_cannot_be_moved_apart(fields, message):
    with pytest.raises(StrictDataclassClassValidationError) as error:
        TrainingConfig(**{**LABELS, **fields})
    assert message in str(error.value)


# --- class health ---------------------------------------------------------------------------------------------------


def window(epoch, p, q, soft, count):
    values = {"mean_p": p, "mean_q": q, "soft_share": soft}
    means = {key: np.array(value, dtype=float) for key, value in values.items()}
    return Window(int(epoch * 10), epoch, means, dict.fromkeys(means, np.array(count, dtype=float)))


def feed(*figures, epochs=4, steps=4, guarded=False):
    health = ClassHealth(["cat", "dog"], guarded)
    for i in range(1, epochs * steps + 1):
        health.update(window(i / steps, *figures))


OK = 0.2


@pytest.mark.parametrize(
    "p, q, soft, verdict",
    [
        (0.01, 0.2, 0.001, "collapsed"),
        (0.95, 0.3, 0.001, "flooded"),
        (0.01, 0.2, 0.10, None),  # small, but still soft: it can recover
        (0.10, 0.2, 0.001, None),  # sharp, but in place
        (0.95, 0.8, 0.001, None),  # large because the object is
        (0.001, 0.01, 0.001, None),  # too small to tell
    ],
)
def test_verdicts(p, q, soft, verdict):
    figures = ([OK, p], [OK, q], [0.5, soft], [5, 5])
    if verdict is None:
        feed(*figures)
        return
    with pytest.raises(TrainingHealthError, match=f"class 'dog' has {verdict}: over its last 20 images") as error:
        feed(*figures)
    assert "'cat'" not in str(error.value)
    assert f"{p:.3f}" in str(error.value) and f"{q:.3f}" in str(error.value) and "0.1%" in str(error.value)


def test_every_failed_class_is_named():
    with pytest.raises(TrainingHealthError, match="'cat' has collapsed.*'dog' has flooded"):
        feed([0.0, 0.99], [OK, OK], [0.0, 0.0], [5, 5])


def test_where_somebody_guards_a_class_may_fail_but_not_all(caplog):
    feed([0.0, OK], [OK, OK], [0.0, 0.5], [5, 5], guarded=True)
    assert [record.message.split(":")[0] for record in caplog.records] == ["class 'cat' has collapsed"]
    with pytest.raises(TrainingHealthError, match="'cat' has collapsed.*'dog' has flooded"):
        feed([0.0, 0.99], [OK, OK], [0.0, 0.0], [5, 5], guarded=True)


def test_nothing_is_judged_in_the_first_epoch_nor_before_enough_images():
    dead = ([0.0, OK], [OK, OK], [0.0, 0.5])
    feed(*dead, [5, 5], epochs=1)
    # 7 images until the end of the second epoch: one too few; judged with the third's.
    health = ClassHealth(["cat", "dog"])
    for epoch in (1.25, 1.5):
        health.update(window(epoch, *dead, [3, 9]))
    health.update(window(2.0, *dead, [1, 9]))
    with pytest.raises(TrainingHealthError, match="over its last 8 images"):
        health.update(window(3.0, *dead, [1, 9]))


def test_a_class_that_has_collapsed_in_the_last_epoch_is_found_at_the_last_iteration():
    health = ClassHealth(["cat", "dog"])
    for epoch in (1.5, 2.0, 2.5):
        health.update(window(epoch, [OK, OK], [OK, OK], [0.5, 0.5], [9, 9]))
    with pytest.raises(TrainingHealthError, match="'cat' has collapsed"):
        health.update(replace(window(2.9, [0.0, OK], [OK, OK], [0.0, 0.5], [900, 9]), last=True))


def test_windows_longer_than_an_epoch_are_all_judged():
    health = ClassHealth(["cat", "dog"])
    with pytest.raises(TrainingHealthError, match="'cat' has collapsed"):
        health.update(window(10.0, [0.0, OK], [OK, OK], [0.0, 0.5], [9, 9]))


def test_a_restart_forgets_nothing():
    dead = ([0.0, OK], [OK, OK], [0.0, 0.5], [5, 5])
    before, after = ClassHealth(["cat", "dog"]), ClassHealth(["cat", "dog"])
    for epoch in (1.25, 1.5, 1.75):
        before.update(window(epoch, *dead))
    after.restore(json.loads(json.dumps(before.state())))
    with pytest.raises(TrainingHealthError, match="'cat' has collapsed: over its last 20 images"):
        after.update(window(2.0, *dead))


def test_a_class_absent_from_a_window_does_not_disturb():
    figures = ([np.nan, 0.01], [np.nan, OK], [np.nan, 0.001], [0, 5])
    with pytest.raises(TrainingHealthError, match="class 'dog'"):
        feed(*figures)


def test_a_recovered_class_is_judged_by_its_last_epoch():
    health = ClassHealth(["cat", "dog"])
    for i in range(5, 9):  # second epoch: fine, third: collapsed
        health.update(window(i / 4, [OK, OK], [OK, OK], [0.5, 0.5], [5, 5]))
    with pytest.raises(TrainingHealthError, match="over its last 20 images"):
        for i in range(9, 13):
            health.update(window(i / 4, [0.0, OK], [OK, OK], [0.0, 0.5], [5, 5]))
