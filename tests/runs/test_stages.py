"""A run is a list: order, keys, and what a folder is refused for follow from it."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from sbce_hf.config import load_recipe, merge
from sbce_hf.files import read_json
from sbce_hf.runs.run import run
from sbce_hf.runs.scoring import read_scores
from sbce_hf.runs.stage import Refinement, keys_of, require_same, write_record
from sbce_hf.runs.stages import classifier_of, find_run, labels_of, segmenter_of, stages_of

SEGMENTER = {"score_split": "val", "compare": ["bce", "mask"]}
WHOLE = {"rounds": 2, "irn": {}, "segmenter": SEGMENTER}


def config_of(tiny_recipe, **overrides):
    return load_recipe(str(tiny_recipe), overrides)


def test_a_whole_run_in_order(tiny_recipe):
    stages = stages_of(config_of(tiny_recipe, **WHOLE))
    needs = {stage.name: [need.name for need in stage.needs] for stage in stages}
    assert needs == {
        "bce": [],
        "round_1": ["bce"],
        "round_2": ["round_1"],
        "leak_best_constant": ["bce"],
        "irn": ["round_2"],
        "segmenter/adaptive": ["irn", "round_2"],
        "segmenter/bce": ["bce", "round_2"],
        "segmenter/mask": ["round_2"],
    }
    assert list(needs) == [stage.name for stage in stages]
    assert {stage.name for stage in stages if stage.uses_masks} == {"leak_best_constant", "segmenter/mask"}
    assert [part(stages).name for part in (classifier_of, labels_of, segmenter_of)] == [
        "round_2",
        "irn",
        "segmenter/adaptive",
    ]
    assert labels_of(stages).stores == ("labels/irn", "labels/irn_crf")


def test_what_is_not_asked_for_is_no_stage(tiny_recipe):
    stages = stages_of(config_of(tiny_recipe, rounds=1, data={"score_split": None}, labelling={"crf": None}))
    expected = [("bce", ("labels/fixed",), None), ("round_1", ("labels/paper",), None)]
    assert [(stage.name, stage.stores, stage.scored_on) for stage in stages] == expected
    assert segmenter_of(stages) is None and labels_of(stages) is classifier_of(stages)


@pytest.mark.parametrize(
    ("change", "made_again"),
    [
        ({"seed": 1}, "bce round_1 round_2 leak_best_constant irn segmenter/adaptive segmenter/bce segmenter/mask"),
        (
            {"spatial": {"lr": 0.5}},
            "round_1 round_2 irn segmenter/adaptive segmenter/bce segmenter/mask",
        ),
        ({"irn": {"background_threshold": 0.5}}, "irn segmenter/adaptive"),
        ({"final_scales": [1.0, 2.0]}, "round_2 irn segmenter/adaptive segmenter/bce segmenter/mask"),
        ({"segmenter": {"training": {"lr": 0.5}}}, "segmenter/adaptive segmenter/bce segmenter/mask"),
        ({"segmenter": {"compare": ["mask"]}}, ""),
        ({"rounds": 3}, "irn segmenter/adaptive segmenter/bce segmenter/mask"),
        ({"bce": {"num_workers": 1, "log_every": 9}, "labelling": {"crf_workers": 2}, "contact_images": 5}, ""),
        ({"data": {"strict": True, "outside_files": True}}, ""),
        ({"data": {"score_split": "val"}}, "leak_best_constant"),
        ({"data": {"shapes_size": 64}}, "bce round_1 round_2 leak_best_constant irn segmenter/adaptive segmenter/bce "
         "segmenter/mask"),
    ],
)  # fmt: skip
def test_a_change_makes_its_stage_and_all_that_is_made_from_it_again(tiny_recipe, change, made_again):
    before = keys_of(stages_of(config_of(tiny_recipe, **WHOLE)), "images")
    after = keys_of(stages_of(config_of(tiny_recipe, **merge(WHOLE, change))), "images")
    assert [name for name in before if name in after and before[name] != after[name]] == made_again.split()
    assert len(set(before.values())) == len(before)


def test_other_images_make_everything_again(tiny_recipe):
    stages = stages_of(config_of(tiny_recipe, **WHOLE))
    before, after = keys_of(stages, "images"), keys_of(stages, "others")
    assert not set(before.values()) & set(after.values())


def test_the_refusal_names_the_key_and_what_would_be_made_again(tiny_recipe, tmp_path):
    stages = stages_of(config_of(tiny_recipe, **WHOLE))
    keys = keys_of(stages, "images")
    for stage in stages[:5]:
        write_record(tmp_path, stage, keys, "images", finished=stage.name != "irn")
    require_same(tmp_path, stages, "images")
    other = stages_of(config_of(tiny_recipe, **merge(WHOLE, {"spatial": {"lr": 0.5}})))
    expected = r"round_1: spatial\.lr was 0\.01, is 0\.5\..*--output-dir.*remove round_1, round_2 and irn from it"
    with pytest.raises(ValueError, match=expected):
        require_same(tmp_path, other, "images")
    with pytest.raises(ValueError, match=r"bce: the images were images, are others \(manifest hash\)"):
        require_same(tmp_path, stages, "others")
    # Without the folder in which the difference arose, what was made from it still tells.
    shutil.rmtree(tmp_path / "round_1")
    with pytest.raises(ValueError, match=r"round_2: spatial\.lr was 0\.01.*remove round_2 and irn"):
        require_same(tmp_path, other, "images")
    shutil.rmtree(tmp_path / "round_2")
    with pytest.raises(ValueError, match=r"irn: was made from another round_2\..*remove irn from it"):
        require_same(tmp_path, other, "images")


def test_a_refinement_is_an_entry_of_the_table(tiny_recipe, monkeypatch):
    config = config_of(tiny_recipe, **WHOLE)
    table = {"irn": Refinement(print, "first"), "segmenter": Refinement(print, "second")}
    monkeypatch.setattr("sbce_hf.runs.stages.REFINEMENTS", table)
    stages = stages_of(config)
    assert [stage.note for stage in stages[3:6]] == ["", "first", "second"]
    assert [stage.name for stage in stages if stage.kind == "refinement"] == ["irn", "segmenter"]
    # The labels that it refines, and the classifier.
    assert stages[4].needs == (stages[2],) and stages[5].needs == (stages[4], stages[2])
    assert stages[6].needs[0] is stages[5] and stages[6].note == "second"


def test_saliency_comes_last_and_its_maps_content_decides(tiny_recipe):
    def keys(content="a", **change):
        config = config_of(tiny_recipe, **merge({**WHOLE, "saliency": {"maps": "here"}}, change))
        return keys_of(stages_of(config, {"saliency": content}), "images")

    stages = stages_of(config_of(tiny_recipe, **WHOLE, saliency={"maps": "here"}))
    names = {stage.name: [need.name for need in stage.needs] for stage in stages}
    assert list(names)[4:7] == ["irn", "saliency", "segmenter/adaptive"]
    assert names["saliency"] == ["irn", "round_2"] and names["segmenter/adaptive"] == ["saliency", "round_2"]
    assert labels_of(stages).stores == ("labels/saliency", "labels/saliency_crf")
    assert keys() == keys(saliency={"maps": "there"})
    for other in (keys("b"), keys(saliency={"rule": "oaa"}), keys(saliency={"resize": True})):
        assert [name for name, key in keys().items() if other[name] != key] == ["saliency", "segmenter/adaptive"]
    changed = keys(irn={"background_threshold": 0.5})
    expected = ["irn", "saliency", "segmenter/adaptive"]
    assert [name for name, key in keys().items() if changed[name] != key] == expected


def test_a_round_can_be_added_to_a_finished_run(tiny_recipe, tmp_path):
    config = config_of(tiny_recipe, rounds=1)
    run(config, tmp_path)
    weights = tmp_path / "round_1" / "model" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    summary = run(replace(config, rounds=2), tmp_path)
    assert weights.stat().st_mtime_ns == before
    assert summary.label_maps == tmp_path / "round_2" / "labels" / "paper_crf"
    assert find_run(summary.label_maps) == (tmp_path, "round_2")


def test_a_finished_run_is_not_scored_or_drawn_again(tiny_recipe, tmp_path, monkeypatch):
    config = config_of(tiny_recipe, rounds=1)
    first = run(config, tmp_path)
    for name in ("score_store", "stage_quality", "agreement"):
        monkeypatch.setattr(f"sbce_hf.runs.scoring.{name}", lambda *_, **__: pytest.fail("measured again"))
    for name in ("plot_curves", "contact_sheet", "plot_thresholds", "maps_of"):
        monkeypatch.setattr(f"sbce_hf.runs.report.{name}", lambda *_, **__: pytest.fail("drawn again"))
    monkeypatch.setattr("sbce_hf.runs.classify.train_classifier", lambda *_, **__: pytest.fail("trained again"))
    assert run(config, tmp_path).scores == first.scores
    # Scores of another split are other scores.
    monkeypatch.undo()
    assert run(replace(config, data=replace(config.data, score_split=None)), tmp_path).scores == []


SLOW = """
import sys, time
from datetime import timedelta
from accelerate import PartialState
import sbce_hf.evaluation.confusion as confusion
import sbce_hf.processes
from sbce_hf.config import load_recipe
from sbce_hf.runs.run import run

def slow(*arguments):
    # One process has all the slow images, which take longer in all than the others wait.
    time.sleep(1.6 if PartialState().process_index == 1 else 0)
    return count(*arguments)

# Processes of the CRF import this file.
if __name__ == "__main__":
    PartialState(cpu=True, timeout=timedelta(seconds=8))
    count, confusion.confusion_matrix, sbce_hf.processes.STEP = confusion.confusion_matrix, slow, 1
    run(load_recipe(sys.argv[1], {"rounds": 1, "labelling": {"crf": None}}), sys.argv[2])
"""


def test_scores_that_take_longer_than_the_processes_wait_for_each_other(tiny_recipe, tmp_path):
    (tmp_path / "slow.py").write_text(SLOW)
    command = ["torchrun", "--standalone", "--nproc_per_node", "2", str(tmp_path / "slow.py"), str(tiny_recipe)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "ACCELERATE_USE_CPU": "true"}
    finished = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *command[1:], str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert finished.returncode == 0, finished.stderr
    assert len(read_scores(tmp_path / "run" / "bce")) == 1
    assert read_json(tmp_path / "run" / "leak_best_constant" / "stage.json")["finished"]
