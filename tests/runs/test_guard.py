"""The guard: what it calls harm, what it makes of it, and that it survives being killed."""

from dataclasses import replace

import numpy as np
import pytest

from sbce_hf.config import GuardConfig, load_recipe
from sbce_hf.files import read_json, write_json
from sbce_hf.labels.proportions import ProportionTable
from sbce_hf.labels.store import LabelStore
from sbce_hf.runs.guard import GUARD, harmed_classes, kept_classes, kept_note, kept_together, merge
from sbce_hf.runs.run import run

NAMES = ("cat", "dog", "cow")
LIMITS = GuardConfig(max_lost=0.1, min_coverage=0.5, max_coverage=2.0, least_flood=0.3, least_images=2)


def store_of(folder, shares, names=NAMES):
    """Label maps that do not matter, with the shares of each image's classes."""
    store = LabelStore.create(folder, names, key="k", num_images=len(shares))
    for number, values in enumerate(shares):
        record = {"classes": list(values), "proportions": list(values.values())}
        store.write(f"{number:02d}", np.zeros((2, 2), np.uint8), record)
    return store


@pytest.mark.parametrize(
    ("after", "reason"),
    [
        ([0.2] * 10, None),
        ([0.11] * 10, None),
        ([0.09] * 10, "extinguished: covers 0.45 times as much as before"),
        ([0.39] * 10, None),
        ([0.41] * 10, "flooded: covers 2.05 times as much as before"),
        ([0.41] * 9 + [0.2], None),
        ([0.0] + [0.2] * 9, None),
        ([0.0] * 2 + [0.2] * 8, "extinguished: lost from 2 of its 10 photos"),
        # Twice as much in the mean, but on the photos that are left of it.
        ([0.0] * 5 + [0.4] * 5, "extinguished: lost from 5 of its 10 photos"),
    ],
)
def test_what_harm_is(tmp_path, after, reason):
    before = store_of(tmp_path / "a", [{0: 0.2, 1: 0.3} for _ in range(10)])
    after = store_of(tmp_path / "b", [{0: share, 1: 0.3} for share in after])
    assert harmed_classes(before, after, LIMITS) == ({} if reason is None else {"cat": reason}, False)


def test_a_refinement_may_trim_more(tmp_path):
    before = store_of(tmp_path / "a", [{0: 0.2, 1: 0.2}] * 4)
    after = store_of(tmp_path / "b", [{0: 0.09, 1: 0.05}] * 4)
    limits = replace(LIMITS, min_refined=0.33)
    assert list(harmed_classes(before, after, limits).classes) == ["cat", "dog"]
    assert list(harmed_classes(before, after, limits, refined=True).classes) == ["dog"]


def test_what_was_lost_before_is_no_harm(tmp_path):
    before = store_of(tmp_path / "a", [{0: 0.0, 1: 0.0}, {0: 0.4, 1: 0.0}])
    after = store_of(tmp_path / "b", [{0: 0.0, 1: 0.5}, {0: 0.4, 1: 0.5}])
    assert harmed_classes(before, after, LIMITS) == ({}, False)


def test_what_was_next_to_nothing_may_grow_and_few_photos_tell_nothing(tmp_path):
    before = store_of(tmp_path / "a", [{0: 0.01, 1: 0.2}, {0: 0.01}])
    after = store_of(tmp_path / "b", [{0: 0.25, 1: 0.01}, {0: 0.25}])
    assert harmed_classes(before, after, LIMITS) == ({}, False)
    strict = replace(LIMITS, least_flood=0.2, least_images=1)
    assert set(harmed_classes(before, after, strict).classes) == {"cat", "dog"}


@pytest.mark.parametrize(("harmed", "max_harmed", "all_kept"), [(3, 0.7, True), (3, 0.75, False), (2, 0.0, False)])
def test_a_stage_that_has_harmed_many_classes_has_harmed_all(tmp_path, harmed, max_harmed, all_kept):
    names = (*NAMES, "owl", "emu")
    # Of emus there was nothing, so nothing can be kept.
    before = store_of(tmp_path / "a", [{0: 0.2, 1: 0.2, 2: 0.2, 3: 0.2, 4: 0.0}] * 4, names)
    left = [0.01 if index < harmed else 0.2 for index in range(4)]
    after = store_of(tmp_path / "b", [{**dict(enumerate(left)), 4: 0.3}] * 4, names)
    found, everything = harmed_classes(before, after, replace(LIMITS, max_harmed=max_harmed))
    assert everything == all_kept and list(found) == list(names[:4] if all_kept else names[:harmed])
    assert found["cat"] == "extinguished: covers 0.05 times as much as before"
    if all_kept:
        assert found["owl"] == "as all classes are: 3 of 4 have been extinguished or flooded"


def test_images_that_only_one_stage_could_read_do_not_count(tmp_path):
    before = store_of(tmp_path / "a", [{0: 0.2}, {0: 0.2}, {0: 0.9}])
    after = store_of(tmp_path / "b", [{0: 0.2}, {0: 0.2}])
    assert harmed_classes(before, after, LIMITS) == ({}, False)
    nothing = LabelStore.create(tmp_path / "c", NAMES, key="k", num_images=0)
    assert harmed_classes(before, nothing, LIMITS) == ({}, False)


def test_merging_leaves_other_classes_alone():
    before = np.array([[1, 1, 0, 2], [3, 0, 2, 255]], np.uint8)
    after = np.array([[0, 2, 1, 2], [2, 0, 0, 1]], np.uint8)
    # Class 1 is kept: its pixels of before return, those that it has now become what they were.
    assert merge(before, after, [1]).tolist() == [[1, 1, 0, 2], [2, 0, 0, 255]]
    assert merge(before, after, [1, 2, 3]).tolist() == before.tolist()
    assert merge(before, after, []).tolist() == after.tolist()


def recipe(tiny_recipe, **overrides):
    # So narrow that it takes any change for harm, each class by itself.
    narrow = {
        "max_harmed": 1.0,
        "max_lost": 0.0,
        "min_coverage": 1.0,
        "max_coverage": 1.0,
        "least_flood": 0.0,
        "least_images": 1,
    }
    return load_recipe(str(tiny_recipe), {"rounds": 2, "guard": narrow, **overrides})


def test_what_a_round_has_harmed_is_kept_from_before(tiny_recipe, tmp_path):
    summary = run(recipe(tiny_recipe), tmp_path)
    folder = tmp_path / "round_1"
    found, kept = kept_classes(folder), LabelStore(folder / "labels" / "kept")
    names = [name for name, _, _ in found]
    assert names and kept.complete and {source for _, source, _ in found} == {"bce"}
    first, new = LabelStore(tmp_path / "bce" / "labels" / "fixed_crf"), LabelStore(folder / "labels" / "paper_crf")
    indices = [kept.class_names.index(name) for name in names]
    for image_id in first.done_ids():
        expected = merge(first.read(image_id), new.read(image_id), [index + 1 for index in indices])
        assert (kept.read(image_id) == expected).all()
        record = kept.record(image_id)
        assert record["proportions"] == [float((expected == c + 1).mean()) for c in record["classes"]]
    # The next round gets what was kept, and is compared with it.
    tables = [ProportionTable.load(tmp_path / name / "proportions.parquet") for name in ("bce", "round_1")]
    assert (tables[0].proportions[:, indices] == tables[1].proportions[:, indices]).all()
    assert read_json(tmp_path / "round_2" / "guard.json")["before"] == "round_1"
    # Scores and quality are those of the label maps that are used.
    rows = [row for row in summary.scores if row.stage == "round_1"]
    assert [row.crf for row in rows] == [False, True, True]
    assert rows[2].note == kept.note == "; ".join(f"{name} kept from bce" for name in names) and not rows[1].note
    quality = {stage: {c.name: c for c in summary.qualities[stage].classes} for stage in ("bce", "round_1")}
    for name in names:
        assert quality["bce"][name].coverage_mean == pytest.approx(quality["round_1"][name].coverage_mean)
    report = (tmp_path / "report.md").read_text()
    for names, _, reason in kept_together(folder):
        said = f"{names}: round_1 keeps the label maps of bce ({reason})"
        assert said in summary.concerns and said in report


def test_classes_kept_for_one_reason_are_told_in_one_line(tmp_path):
    others = "as all classes are: 3 of 5 have been extinguished or flooded"
    classes = {"cat": "flooded: covers 2.05 times as much as before", "dog": others, "cow": others}
    write_json(tmp_path / GUARD, {"before": "bce", "classes": classes, "all": True})
    assert kept_together(tmp_path) == [("cat", "bce", classes["cat"]), ("dog, cow", "bce", others)]
    assert kept_note(tmp_path) == "all classes kept from bce"
    write_json(tmp_path / GUARD, {"before": "bce", "classes": {"cat": "lost", "dog": "lost"}, "all": False})
    assert kept_note(tmp_path) == "cat kept from bce; dog kept from bce"


def test_without_a_guard_nothing_is_kept(tiny_recipe, tmp_path):
    summary = run(replace(recipe(tiny_recipe), guard=None), tmp_path)
    assert summary.label_maps == tmp_path / "round_2" / "labels" / "paper_crf"
    assert not (tmp_path / "round_1" / "guard.json").exists()


def test_a_killed_guard_goes_on(tiny_recipe, tmp_path, monkeypatch):
    config = recipe(tiny_recipe, rounds=1)
    run(config, tmp_path / "straight")
    write = LabelStore.write

    def killed_at_the_fifth(store, image_id, *arguments):
        if store.directory.name == "kept" and len(list(store.directory.rglob("*.png"))) == 5:
            raise KeyboardInterrupt
        write(store, image_id, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(LabelStore, "write", killed_at_the_fifth)
        run(config, tmp_path / "run")
    assert not read_json(tmp_path / "run" / "round_1" / "stage.json")["finished"]
    assert len(LabelStore(tmp_path / "run" / "round_1" / "labels" / "kept").done_ids()) == 5
    run(config, tmp_path / "run")
    files = [path for path in (tmp_path / "straight" / "round_1" / "labels" / "kept").rglob("*") if path.is_file()]
    # One per image, records and description.
    assert len(files) == 12 + 2
    for path in files:
        assert path.read_bytes() == (tmp_path / "run" / path.relative_to(tmp_path / "straight")).read_bytes()


def test_other_limits_are_another_run(tiny_recipe, tmp_path):
    run(recipe(tiny_recipe, rounds=1), tmp_path)
    with pytest.raises(ValueError, match=r"round_1: guard.max_lost was 0.0, is 0.5"):
        run(recipe(tiny_recipe, rounds=1, guard={"max_lost": 0.5}), tmp_path)
