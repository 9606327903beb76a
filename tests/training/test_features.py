"""Features of a frozen trunk: kept on disk, and as good as looking again."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from sbce_hf.config import AugmentationConfig, DataConfig, TrainingConfig
from sbce_hf.data import load_images
from sbce_hf.data.preprocessing import IMAGENET, Preprocessing
from sbce_hf.data.transforms import TrainingDataset
from sbce_hf.labels.label_maps import MaskLabels
from sbce_hf.training import features as module
from sbce_hf.training import loop
from sbce_hf.training.classifier import ClassifierTask, create_classifier, train_classifier
from sbce_hf.training.crops import LabelledDataset
from sbce_hf.training.features import (
    FeatureDataset,
    View,
    compute_features,
    drawn_sides,
    features_size,
    training_views,
)
from sbce_hf.training.folder import read_metrics

FLIP_ONLY = AugmentationConfig(color_jitter=0.0)
CONFIG = TrainingConfig(
    epochs=2,
    batch_size=4,
    image_size=64,
    lr=0.01,
    num_workers=0,
    log_every=1,
    checkpoint_every=2,
    period=3,
    weights_iterations=2,
    augmentation=FLIP_ONLY,
)
LABELS = replace(CONFIG, targets="labels", min_scale=1.0, max_scale=1.0, feature_sizes=1)
FIELDS = {"embedding_dim": 8, "frozen_reduction": 0, "freeze_batch_norm": False}
TRUNKS = {
    "test_resnet": {"trunk": "test_resnet", "output_stride": 8},
    "test_vit": {"trunk": "test_vit", "output_stride": None},
}


@pytest.fixture(scope="module")
def images():
    data = DataConfig(source="shapes", shapes_images=10, shapes_size=48, score_split="train", train_split="train")
    return load_images(data, "train")


def build(images, trunk="test_resnet", **fields):
    return create_classifier({**FIELDS, **TRUNKS[trunk], "train_trunk": False, **fields}, images.class_names)


def kept(images, model, config, folder, preprocessing=IMAGENET):
    return compute_features(model, images, training_views(config), preprocessing, folder)


def losses(model, images, config, dataset, kind="bce"):
    task = ClassifierTask(kind, config, images.class_names, 6)
    model.train()
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        batch = default_collate([dataset[index] for index in range(6)])
        yield task.loss(model, batch, 0)[0].item()


# --- the trunk ------------------------------------------------------------------------------------------------------


def test_a_frozen_trunk_is_frozen_as_a_whole(images):
    model = build(images).train()
    trunk = model.spatial_bce.trunk
    assert not any(parameter.requires_grad for parameter in trunk.parameters())
    assert not any(part.training for part in trunk.modules())
    assert all(parameter.requires_grad for name, parameter in model.named_parameters() if "trunk" not in name)


def test_features_instead_of_images(images):
    model = build(images).eval()
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        features = model.spatial_bce(pixels).last_hidden_state
        assert torch.equal(model(features=features).pixel_logits, model(pixels).pixel_logits)
    for arguments in ({}, {"pixel_values": pixels, "features": features}):
        with pytest.raises(ValueError, match="expected pixel_values, or features"):
            model(**arguments)


# --- the same losses ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trunk", TRUNKS)
def test_kept_features_give_the_losses_of_the_live_trunk(images, tmp_path, trunk):
    other = Preprocessing((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic")
    model = build(images, trunk)
    dataset = FeatureDataset(images, kept(images, model, CONFIG, tmp_path, other), CONFIG, seed=3)
    live = TrainingDataset(images, 64, FLIP_ONLY, seed=3, preprocessing=other)
    found, expected = (list(losses(model, images, CONFIG, one)) for one in (dataset, live))
    assert expected[0] != pytest.approx(expected[1], rel=1e-6)
    assert found == pytest.approx(expected, rel=2e-3)


def test_with_label_maps_too(images, tmp_path):
    masks = MaskLabels(images)
    config = replace(LABELS, augmentation=AugmentationConfig(flip=False, color_jitter=0.0))
    model = build(images)
    dataset = FeatureDataset(images, kept(images, model, config, tmp_path), config, 3, None, masks)
    live = LabelledDataset(images, masks, config, 3)
    found, expected = (list(losses(model, images, config, one, "spatial")) for one in (dataset, live))
    assert found == pytest.approx(expected, rel=5e-3)
    ours, theirs = dataset[2], live[2]
    assert ours["proportions"].numpy() == pytest.approx(theirs["proportions"].numpy(), abs=1e-6)


def test_mirrored_and_scaled_views_keep_labels_in_place(images, tmp_path):
    """Cells are cut out at the same place of features and label maps: the class of each cell can be read off."""
    config = replace(LABELS, min_scale=0.5, max_scale=2.0, feature_sizes=4)
    assert drawn_sides(config) == [32, 64, 96, 128]
    masks = MaskLabels(images)
    model = build(images)
    files = kept(images, model, config, tmp_path)
    for view, file in files.items():
        # In place of features, what is at each cell.
        for index, image_id in enumerate(images.image_ids):
            label_map = masks.read(image_id)
            label_map = label_map[:, ::-1] if view.mirrored else label_map
            cells = file.shape[-1]
            centres = ((np.arange(cells) + 0.5) / cells * len(label_map)).astype(int)
            file.rows[index] = label_map[np.ix_(centres, centres)][None] + 1
    dataset = FeatureDataset(images, files, config, 0, None, masks)
    padded = agreeing = known = 0
    for epoch in range(12):
        dataset.set_epoch(epoch)
        sample = dataset[epoch % len(images)]
        features, labels = sample["features"], sample["label_maps"]
        assert features.shape[1:] == (8, 8) and labels.shape == (64, 64)
        small = labels[4::8, 4::8]
        inside = small != 255
        assert torch.equal(inside, features[0] > 0)
        padded += bool((~inside).any())
        known += int(inside.sum())
        agreeing += int((features[0][inside] == small[inside] + 1).sum())
    assert padded and agreeing > 0.97 * known


# --- on disk --------------------------------------------------------------------------------------------------------


def test_what_is_kept_is_not_computed_again(images, tmp_path, monkeypatch):
    model = build(images)
    looked = []
    look = module._look
    monkeypatch.setattr(module, "_look", lambda *arguments: looked.append(arguments[2]) or look(*arguments))
    files = kept(images, model, CONFIG, tmp_path)
    assert sorted(index for group in looked for index in group) == sorted([*range(10)] * 2)
    before = {view: file.rows.copy() for view, file in files.items()}
    looked.clear()
    kept(images, model, CONFIG, tmp_path)
    assert not looked
    # A killed process has left some photos out, and one half written.
    file = files[View(64, True)]
    file.done[3:5] = 0
    file.rows[3] = 7
    kept(images, model, CONFIG, tmp_path)
    assert looked == [[3, 4]]
    assert all(np.allclose(file.rows, before[view], atol=1e-2, rtol=1e-2) for view, file in files.items())


def test_whatever_changes_features_has_files_of_its_own(images, tmp_path):
    model = build(images)
    seen = {file.path for file in kept(images, model, CONFIG, tmp_path).values()}
    assert len(seen) == 2
    for other, config, pictures, preprocessing in (
        (
            create_classifier({**FIELDS, **TRUNKS["test_resnet"], "train_trunk": False}, images.class_names, seed=5),
            CONFIG,
            images,
            IMAGENET,
        ),
        (model, replace(CONFIG, image_size=80), images, IMAGENET),
        (model, CONFIG, images.select([0, 1, 2]), IMAGENET),
        (model, CONFIG, images, Preprocessing(interpolation="bicubic")),
    ):
        paths = {file.path for file in kept(pictures, other, config, tmp_path, preprocessing).values()}
        assert not paths & seen
        seen |= paths
    # Heads may differ.
    model.embedding.weight.data.add_(1)
    assert {file.path for file in kept(images, model, CONFIG, tmp_path).values()} <= seen


def test_the_size_on_disk_is_known_before(images, tmp_path):
    model = build(images)
    configs = [CONFIG, replace(LABELS, min_scale=0.5, max_scale=2.0, feature_sizes=3)]
    for config in configs:
        kept(images, model, config, tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == features_size(model, len(images), configs)


def test_what_16_bits_cannot_hold_is_an_error(images, tmp_path):
    model = build(images)
    with torch.no_grad():
        for parameter in model.spatial_bce.trunk.parameters():
            parameter.mul_(100)
    with pytest.raises(ValueError, match="features of .*beyond 16-bit numbers"):
        kept(images, model, CONFIG, tmp_path)


# --- training -------------------------------------------------------------------------------------------------------


def test_training_moves_the_heads_only_and_continues_bit_by_bit(images, tmp_path, monkeypatch):
    model = build(images)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    summary = train_classifier(model, images, CONFIG, "bce", output_dir=tmp_path / "whole")
    assert len(list((tmp_path / "whole" / "features").glob("*.float16"))) == 2
    trained = type(model).from_pretrained(summary.model_dir)
    moved = {name for name, value in trained.state_dict().items() if not torch.equal(value, start[name])}
    assert moved == {"embedding.weight", "class_maps.weight", "logit_scale"}
    # Killed after a checkpoint.
    log = loop._Stage._log
    with monkeypatch.context() as patch:
        patch.setattr(loop._Stage, "_log", lambda self, done, rate: log(self, done, rate) if done < 3 else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train_classifier(build(images), images, CONFIG, "bce", output_dir=tmp_path / "killed")
    train_classifier(build(images), images, CONFIG, "bce", output_dir=tmp_path / "killed")
    ours, theirs = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "killed"))
    assert [line["loss"] for line in ours] == [line["loss"] for line in theirs] and len(ours) == summary.iterations


def test_a_round_on_label_maps(images, tmp_path):
    config = replace(LABELS, epochs=3, min_scale=0.8, max_scale=1.6, feature_sizes=None)
    train_classifier(
        build(images),
        images,
        config,
        "spatial",
        output_dir=tmp_path,
        label_maps=MaskLabels(images),
        features_dir=tmp_path / "shared",
    )
    assert len(list((tmp_path / "shared").glob("*.float16"))) == 8
    assert all(np.isfinite(line["loss"]) for line in read_metrics(tmp_path / "metrics.jsonl"))
