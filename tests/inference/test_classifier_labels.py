import json
import multiprocessing
import signal
import time
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace

import numpy as np
import pytest
import torch

from sbce_hf.config import CrfConfig, LabellingConfig
from sbce_hf.inference import classifier as labeller_module
from sbce_hf.inference import writing
from sbce_hf.inference.classifier import label_images
from sbce_hf.inference.views import class_maps
from sbce_hf.labels.store import LabelStore
from sbce_hf.postprocess.crf import dense_crf
from sbce_hf.postprocess.rules import apply_rule, sigmoid
from sbce_hf.processes import Share
from sbce_hf.progress import LABELLING, Bar

LABELS = [(0,), (1, 2), (), (2,), (0, 1), (1,), (0, 1, 2)]
CONFIG = LabellingConfig(scales=(1.0, 0.5), batch_size=2, crf_workers=1, crf=None)
WITH_CRF = replace(CONFIG, crf=CrfConfig(iterations=2))


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def images(make_images):
    sizes = [(64, 64), (64, 48), (64, 64), (48, 64), (64, 64), (64, 64), (40, 56)]
    return make_images(LABELS, sizes)


@pytest.fixture(scope="module")
def fresh(tiny_model, images, tmp_path_factory):
    """One undisturbed run with a CRF."""
    folder = tmp_path_factory.mktemp("fresh")
    summary = label_images(tiny_model, images, WITH_CRF, output_dir=folder, key="k")
    return folder, summary


def test_one_pass_fills_a_store_before_and_after_the_crf(tiny_model, images, fresh):
    folder, summary = fresh
    assert summary.directories == (folder / "paper", folder / "paper_crf")
    assert summary.num_images == summary.num_labelled == 7 and summary.complete and not summary.skipped
    plain, refined = LabelStore(folder / "paper"), LabelStore(folder / "paper_crf")
    assert plain.complete and refined.complete
    assert plain.meta["crf"] is False and refined.meta["crf"] is True
    assert plain.meta["method"] == "paper" and plain.meta["config"]["scales"] == [1.0, 0.5]
    differs = 0
    for i, image_id in enumerate(images.image_ids):
        (maps,) = class_maps(tiny_model, [images.image(i)], images.labels(i)[None], CONFIG)
        label_map = plain.read(image_id)
        # Batches differ, so pixels on the very threshold may too.
        assert (label_map != apply_rule(maps, CONFIG).label_map).mean() < 0.01
        expected = dense_crf(np.asarray(images.image(i)), label_map, LABELS[i], WITH_CRF.crf)
        assert (refined.read(image_id) == expected).all()
        differs += (label_map != expected).any()
        assert set(np.unique(label_map)) <= {0, *(c + 1 for c in LABELS[i])}
    assert differs, "the CRF changed nothing: the test shows nothing"


def test_records_describe_their_label_map(tiny_model, images, fresh):
    folder, _ = fresh
    for name in ("paper", "paper_crf"):
        store = LabelStore(folder / name)
        lines = (folder / name / "records-00000.jsonl").read_text().splitlines()
        assert [json.loads(line)["image_id"] for line in lines] == images.image_ids
        for i, image_id in enumerate(images.image_ids):
            record, label_map = store.record(image_id), store.read(image_id)
            assert record["classes"] == list(LABELS[i])
            assert record["proportions"] == [float((label_map == c + 1).mean()) for c in LABELS[i]]
            (maps,) = class_maps(tiny_model, [images.image(i)], images.labels(i)[None], CONFIG)
            p = sigmoid(maps.logits)
            assert np.allclose(record["thresholds"], sigmoid(maps.threshold_logits), atol=1e-5)
            assert np.allclose(record["mean_probability"], p.mean(axis=(1, 2)), atol=1e-5)
            assert np.allclose(record["soft_share"], ((p > 0.02) & (p < 0.98)).mean(axis=(1, 2)), atol=0.01)
    ids, table = LabelStore(folder / "paper").proportions()
    assert table.shape == (7, 3) and table.max() > 0


def test_an_image_without_tags_is_all_background(images, fresh):
    for name in ("paper", "paper_crf"):
        label_map = LabelStore(fresh[0] / name).read(images.image_ids[2])
        assert label_map.shape == (64, 64) and not label_map.any()


@pytest.mark.parametrize("rule", ["official", "fixed"])
def test_rule_argument_wins_over_the_config(tiny_model, images, tmp_path, rule):
    summary = label_images(tiny_model, images, replace(CONFIG, rule=rule), output_dir=tmp_path, key="k")
    assert summary.directories == (tmp_path / rule,)
    store = LabelStore(summary.directories[0])
    assert store.meta["method"] == store.meta["config"]["rule"] == rule
    if rule == "fixed":
        assert store.record(images.image_ids[1])["thresholds"] == [0.3, 0.3]


def test_a_complete_store_is_left_alone(tiny_model, images, fresh, monkeypatch):
    folder, _ = fresh
    before = contents(folder)
    monkeypatch.setattr(labeller_module, "iterate_class_maps", lambda *a, **k: pytest.fail("computed again"))
    summary = label_images(tiny_model, images, WITH_CRF, output_dir=folder, key="k")
    assert summary.num_labelled == 0 and summary.complete and contents(folder) == before


@pytest.mark.parametrize("images_before", [1, 2, 3, 6])
def test_stopped_and_continued_ends_with_the_same_bytes(tiny_model, images, tmp_path, monkeypatch, images_before):
    whole = tmp_path / "whole"
    label_images(tiny_model, images, CONFIG, output_dir=whole, key="k")
    write, written = LabelStore.write, []

    def stops(store, image_id, *arguments):
        if len(written) == images_before:
            raise KeyboardInterrupt
        written.append(image_id)
        write(store, image_id, *arguments)

    monkeypatch.setattr(LabelStore, "write", stops)
    with pytest.raises(KeyboardInterrupt):
        label_images(tiny_model, images, CONFIG, output_dir=tmp_path / "again", key="k")
    monkeypatch.undo()
    assert len(LabelStore(tmp_path / "again" / "paper").done_ids()) == images_before
    counted = []
    monkeypatch.setattr(
        "sbce_hf.inference.writing.Bar", lambda *given, **shown: counted.append(given) or Bar(*given, **shown)
    )
    summary = label_images(tiny_model, images, CONFIG, output_dir=tmp_path / "again", key="k")
    # The group that was cut is computed as a whole, the ones before it are not.
    before = images_before // 2 * 2
    assert summary.num_labelled == 7 - before and counted == [(LABELLING, 7, before)]
    assert contents(tmp_path / "again") == contents(whole)


def test_a_group_goes_through_the_network_whole(tiny_model, images, tmp_path, monkeypatch):
    label_images(tiny_model, images, CONFIG, output_dir=tmp_path, key="k")
    store = LabelStore(tmp_path / "paper")
    (tmp_path / "paper" / "meta.json").write_text(json.dumps({**store.meta, "complete": False}))
    store.path(images.image_ids[4]).unlink()
    calls = []

    def spy(model, photos, labels, *, image_ids, **kwargs):
        calls.append(image_ids)
        return class_maps(model, photos, labels, image_ids=image_ids, **kwargs)

    monkeypatch.setattr(labeller_module, "iterate_class_maps", spy)
    label_images(tiny_model, images, CONFIG, output_dir=tmp_path, key="k")
    assert calls == [images.image_ids[4:6]]
    assert store.path(images.image_ids[4]).is_file()


def test_killed_at_any_moment_and_started_again(tiny_model, make_images, tmp_path, monkeypatch):
    """`kill -9` with CRF processes at work; the end is the undisturbed run's, byte for byte."""
    monkeypatch.setattr("sbce_hf.inference.writing.GROUP", 2)
    images = make_images(LABELS * 6, [(80, 96)] * 42)

    def label(folder):
        torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
        label_images(tiny_model, images, WITH_CRF, output_dir=folder, key="k")

    def start(folder):
        process = multiprocessing.get_context("fork").Process(target=label, args=(folder,))
        process.start()
        return process

    records = tmp_path / "killed" / "paper_crf" / "records-00000.jsonl"
    for target in (3, 20):
        process = start(tmp_path / "killed")
        while process.is_alive() and not (records.exists() and records.read_bytes().count(b"\n") >= target):
            time.sleep(0.001)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "it was done before it was killed"
    for folder in (tmp_path / "killed", tmp_path / "whole"):
        process = start(folder)
        process.join()
        assert process.exitcode == 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert LabelStore(tmp_path / "killed" / "paper_crf").complete


def test_processes_share_the_work_and_agree_with_one(tiny_model, images, fresh, tmp_path):
    summaries = [
        label_images(tiny_model, images, WITH_CRF, output_dir=tmp_path, key="k", share=share)
        for share in (Share(1, 2), Share(0, 2))
    ]
    assert [summary.num_labelled for summary in summaries] == [3, 4]
    assert [summary.complete for summary in summaries] == [False, True]
    for name in ("paper", "paper_crf"):
        one, two = LabelStore(fresh[0] / name), LabelStore(tmp_path / name)
        for image_id in images.image_ids:
            assert one.path(image_id).read_bytes() == two.path(image_id).read_bytes()
            assert one.record(image_id) == two.record(image_id)
    with pytest.raises(ValueError, match="rank: got 2"):
        label_images(tiny_model, images, CONFIG, output_dir=tmp_path, key="k", share=Share(2, 2))


def test_unreadable_images_are_skipped_and_listed(tiny_model, make_images, tmp_path):
    images = make_images(LABELS, damaged=(1, 4, 5))
    names = [images.image_ids[i] for i in (1, 4, 5)]
    summary = label_images(tiny_model, images, WITH_CRF, output_dir=tmp_path, key="k")
    assert sorted(summary.skipped) == names and all("unreadable" in reason for reason in summary.skipped.values())
    assert summary.complete and summary.num_labelled == 4
    for name in ("paper", "paper_crf"):
        store = LabelStore(tmp_path / name)
        assert [entry["file"] for entry in store.meta["skipped"]] == names
        assert len(store.proportions()[0]) == 4


def test_strict_stops_at_the_first_unreadable_image(tiny_model, make_images, tmp_path):
    images = make_images(LABELS, damaged=(4,))
    with pytest.raises(ValueError, match=images.image_ids[4]):
        label_images(tiny_model, images, CONFIG, output_dir=tmp_path, key="k", strict=True)
    assert not LabelStore(tmp_path / "paper").complete


def test_predicted_classes_do_not_need_tags(tiny_model, make_images, tmp_path):
    images = make_images([()] * 4)
    config = replace(CONFIG, known_classes="predicted", class_threshold=0.01)
    label_images(tiny_model, images, replace(config, rule="fixed"), output_dir=tmp_path, key="k")
    store = LabelStore(tmp_path / "fixed")
    assert any(store.record(image_id)["classes"] for image_id in images.image_ids)


def test_stores_of_something_else_are_refused(tiny_model, images, fresh):
    with pytest.raises(ValueError, match=r"key 'k'.*'other'.*delete the folder"):
        label_images(tiny_model, images, WITH_CRF, output_dir=fresh[0], key="other")


def test_classes_of_model_and_images_must_agree(tiny_model, images, tmp_path):
    swapped = replace(images, class_names=("bee", "ant", "cat"))
    with pytest.raises(ValueError, match=r"'ant', 'bee', 'cat'.*'bee', 'ant', 'cat'"):
        label_images(tiny_model, swapped, CONFIG, output_dir=tmp_path, key="k")
    with pytest.raises(ValueError, match="same names"):
        label_images(tiny_model, replace(images, class_names=("ant",)), CONFIG, output_dir=tmp_path, key="k")
    assert not list(tmp_path.iterdir())


def test_a_dead_crf_process_is_explained(tiny_model, images, tmp_path, monkeypatch):
    class DeadPool(writing.CrfPool):
        def submit(self, *arguments):
            future = Future()
            future.set_exception(BrokenProcessPool("gone"))
            return future

    monkeypatch.setattr(writing, "CrfPool", DeadPool)
    with pytest.raises(RuntimeError, match=r"crf_workers.*continues where it stopped"):
        label_images(tiny_model, images, WITH_CRF, output_dir=tmp_path, key="k")


def test_what_waits_for_the_crf_is_bounded(tiny_model, make_images, tmp_path, monkeypatch):
    waiting, most = set(), 0

    class SlowPool(writing.CrfPool):
        def submit(self, image, label_map, classes):
            nonlocal most
            future = Future()
            future.set_result(label_map)
            waiting.add(future)
            most = max(most, len(waiting))
            result = future.result
            future.result = lambda: (waiting.discard(future), result())[1]
            return future

    monkeypatch.setattr(writing, "CrfPool", SlowPool)
    label_images(tiny_model, make_images([(0,)] * 20), WITH_CRF, output_dir=tmp_path, key="k")
    assert most <= WITH_CRF.batch_size + 2 * WITH_CRF.crf_workers + 1
    assert not waiting
