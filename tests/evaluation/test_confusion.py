import io

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

from sbce_hf.data.schema import TaggedImages, features
from sbce_hf.evaluation.confusion import MeanIoU, confusion_matrix, score_store
from sbce_hf.labels.store import NOTHING_SURE, LabelStore

NAMES = ("ant", "bee")


def random_pair(seed, size=(20, 30)):
    generator = np.random.default_rng(seed)
    return (
        generator.choice(np.array([0, 1, 2, 255], np.uint8), size, p=[0.4, 0.3, 0.2, 0.1]),
        generator.choice(np.array([0, 1, 2, 255], np.uint8), size, p=[0.3, 0.3, 0.3, 0.1]),
    )


def iou_by_sets(pairs, label):
    """The definition, pixel by pixel: an independent way to the same number."""
    intersection = union = 0
    for prediction, reference in pairs:
        for p, r in zip(prediction.ravel().tolist(), reference.ravel().tolist(), strict=True):
            if r != 255:
                intersection += p == label and r == label
                union += p == label or r == label
    return intersection / union


def test_by_hand():
    prediction = np.array([[0, 1, 1, 2, 255, 1]], np.uint8)
    reference = np.array([[0, 0, 1, 255, 1, 1]], np.uint8)
    assert confusion_matrix(prediction, reference, 2).tolist() == [[1, 1, 0, 0], [0, 2, 0, 1], [0, 0, 0, 0]]
    result = MeanIoU(NAMES).compute(predictions=[prediction], references=[reference])
    # background 1/2; ant: 2 of (2 right, 1 wrong, 1 without label); bee: nowhere in truth
    assert result["per_class_iou"]["background"] == 1 / 2
    assert result["per_class_iou"]["ant"] == 2 / 4
    assert np.isnan(result["per_class_iou"]["bee"])
    assert result["mean_iou"] == 1 / 2 and result["num_images"] == 1
    assert result["confusion"].dtype == np.int64


def test_agrees_with_the_definition():
    pairs = [random_pair(seed) for seed in range(3)]
    metric = MeanIoU(NAMES)
    for prediction, reference in pairs:
        metric.add(prediction=prediction, reference=reference)
    result = metric.compute()
    expected = [iou_by_sets(pairs, label) for label in range(3)]
    assert np.allclose(list(result["per_class_iou"].values()), expected, rtol=1e-12)
    assert result["mean_iou"] == pytest.approx(np.mean(expected), rel=1e-12)
    assert list(result["per_class_iou"]) == ["background", "ant", "bee"]


def test_counts_are_summed_over_images_not_averaged():
    good = np.ones((10, 10), np.uint8)
    bad, truth = np.zeros((1, 1), np.uint8), np.ones((1, 1), np.uint8)
    result = MeanIoU(NAMES).compute(predictions=[good, bad], references=[good, truth])
    assert result["per_class_iou"]["ant"] == 100 / 101


def test_perfect_and_disjoint():
    _, reference = random_pair(0)
    perfect = np.where(reference == 255, 0, reference)
    assert MeanIoU(NAMES).compute(predictions=[perfect], references=[reference])["mean_iou"] == 1
    wrong = ((perfect + 1) % 3).astype(np.uint8)
    assert MeanIoU(NAMES).compute(predictions=[wrong], references=[reference])["mean_iou"] == 0


def test_what_is_predicted_where_truth_is_unknown_does_not_matter():
    prediction, reference = random_pair(1)
    other = np.where(reference == 255, 2 - prediction % 3, prediction).astype(np.uint8)
    assert (confusion_matrix(prediction, reference, 2) == confusion_matrix(other, reference, 2)).all()


def test_predicting_no_label_is_worse_than_background_never_better():
    reference = np.array([[0, 0, 1, 1]], np.uint8)
    unsure, guess = np.array([[0, 255, 1, 255]], np.uint8), np.array([[0, 0, 1, 255]], np.uint8)
    scores = [MeanIoU(NAMES).compute(predictions=[p], references=[reference])["mean_iou"] for p in (unsure, guess)]
    assert scores == [1 / 2, 3 / 4]


def test_absent_classes_are_left_out_or_count_zero():
    label_map = np.array([[0, 1]], np.uint8)
    out, zero = (
        MeanIoU(NAMES, absent_classes=mode).compute(predictions=[label_map], references=[label_map])
        for mode in ("exclude", "zero")
    )
    assert out["mean_iou"] == 1 and zero["mean_iou"] == pytest.approx(2 / 3)
    assert np.isnan(zero["per_class_iou"]["bee"])
    # predicted but not in truth: present, and wrong
    result = MeanIoU(NAMES).compute(predictions=[np.array([[0, 2]])], references=[label_map])
    assert result["per_class_iou"]["bee"] == 0
    with pytest.raises(ValueError, match="'drop'.*'exclude' or 'zero'"):
        MeanIoU(NAMES, absent_classes="drop")


def test_compute_starts_anew():
    metric = MeanIoU(NAMES)
    pair = random_pair(2)
    first = metric.compute(predictions=[pair[0]], references=[pair[1]])
    kept = first["confusion"].copy()
    second = metric.compute(predictions=[pair[0]], references=[pair[1]])
    assert (first["confusion"] == kept).all() and (second["confusion"] == kept).all()
    assert second["num_images"] == 1


def test_counts_exceed_32_bits():
    metric = MeanIoU(NAMES)
    metric.confusion[0, 0] = 2**40
    metric.add(prediction=np.array([[0, 1]]), reference=np.array([[0, 0]]))
    assert metric.compute()["per_class_iou"]["background"] == (2**40 + 1) / (2**40 + 2)


@pytest.mark.parametrize(
    ("prediction", "reference", "message"),
    [
        (np.zeros((2, 3)), np.zeros((3, 2)), r"\(2, 3\).*\(3, 2\)"),
        (np.full((2, 2), 3), np.zeros((2, 2)), r"label map: got values \[3\], expected 0 to 2"),
        (np.zeros((2, 2)), np.full((2, 2), 254), r"ground truth: got values \[254\]"),
        (np.full((2, 2), -1), np.zeros((2, 2)), r"\[-1\]"),
    ],
)
def test_wrong_label_maps_are_named(prediction, reference, message):
    with pytest.raises(ValueError, match=message):
        MeanIoU(NAMES).add(prediction=prediction.astype(np.int64), reference=reference.astype(np.int64))


def test_nothing_to_score_is_an_error():
    with pytest.raises(ValueError, match="0 images"):
        MeanIoU(NAMES).compute()
    with pytest.raises(ValueError, match="1 images"):
        MeanIoU(NAMES).compute(predictions=[np.zeros((2, 2), np.uint8)], references=[np.full((2, 2), 255, np.uint8)])
    with pytest.raises(ValueError):
        MeanIoU(NAMES).add_batch(predictions=[np.zeros((2, 2))], references=[])


def _png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return {"path": None, "bytes": buffer.getvalue()}


@pytest.fixture
def scored(tmp_path):
    """Five images, the last without a mask; a store with a label map for each."""
    pairs = [random_pair(seed) for seed in range(5)]
    columns = {
        "image_id": [f"{i}" for i in range(5)],
        "image": [_png(np.zeros((20, 30, 3), np.uint8)) for _ in pairs],
        "labels": [[0, 1]] * 5,
        "mask": [_png(reference) for _, reference in pairs[:4]] + [None],
    }
    images = TaggedImages(
        Dataset.from_dict(columns, features=features(NAMES, True)), NAMES, (0, 1, 2), frozenset(range(3)), (), "hash"
    )
    store = LabelStore.create(tmp_path / "store", NAMES, key="k", num_images=5)
    for image_id, (prediction, _) in zip(columns["image_id"], pairs, strict=True):
        store.write(image_id, prediction, {})
    return store, images, pairs


def test_score_of_a_store_is_that_of_its_label_maps(scored):
    store, images, pairs = scored
    result = score_store(store, images)
    expected = MeanIoU(NAMES).compute(predictions=[p for p, _ in pairs[:4]], references=[r for _, r in pairs[:4]])
    assert result["mean_iou"] == expected["mean_iou"] and result["num_images"] == 4
    assert (result["confusion"] == expected["confusion"]).all()


def test_a_part_of_a_stores_images_can_be_scored(scored):
    store, images, pairs = scored
    result = score_store(store, images.select([2, 0]))
    assert result["num_images"] == 2
    assert (result["confusion"] == sum(confusion_matrix(*pairs[i], 2) for i in (0, 2))).all()


def test_skipped_images_are_not_counted(scored, tmp_path):
    _, images, pairs = scored
    store = LabelStore.create(tmp_path / "other", NAMES, key="k", num_images=5)
    store.skip("0", "unreadable image")
    for i in range(1, 5):
        store.write(str(i), pairs[i][0], {})
    assert score_store(store, images)["num_images"] == 3


def test_images_on_which_nothing_is_decided_count_as_wrong(scored, tmp_path):
    _, images, pairs = scored
    store = LabelStore.create(tmp_path / "other", NAMES, key="k", num_images=5)
    store.skip("0", NOTHING_SURE)
    for i in range(1, 5):
        store.write(str(i), pairs[i][0], {})
    assert store.undecided == {"0"} and not store.unreadable
    ignored = np.full_like(pairs[0][0], 255)
    expected = confusion_matrix(ignored, pairs[0][1], 2) + sum(confusion_matrix(*pairs[i], 2) for i in (1, 2, 3))
    result = score_store(store, images)
    assert result["num_images"] == 4 and (result["confusion"] == expected).all()


def test_what_cannot_be_scored_is_named(scored, tmp_path):
    store, images, _ = scored
    with pytest.raises(ValueError, match="no image has a mask"):
        score_store(store, images.select([4]))
    other = LabelStore.create(tmp_path / "other", NAMES, key="k", num_images=5)
    with pytest.raises(ValueError, match=r"'0': no label map.*other"):
        score_store(other, images)
    store.write("1", np.zeros((4, 5), np.uint8), {})
    with pytest.raises(ValueError, match=r"'1'.*\(4, 5\).*\(20, 30\)"):
        score_store(store, images)
    wrong = LabelStore.create(tmp_path / "wrong", ("ant", "cow"), key="k", num_images=5)
    with pytest.raises(ValueError, match="cow.*bee"):
        score_store(wrong, images)
