from dataclasses import replace

import pytest
import torch
from PIL import Image

from sbce_hf.cli import main
from sbce_hf.cli.plan_text import render_plan
from sbce_hf.config import LoopConfig, load_recipe
from sbce_hf.errors import UserError
from sbce_hf.runs.plan import make_plan
from sbce_hf.runs.run import open_bench
from sbce_hf.runs.stage import keys_of, write_record
from sbce_hf.runs.stages import stages_of
from sbce_hf.text import duration
from sbce_hf.training.classifier import create_classifier
from sbce_hf.training.memory import estimate_memory


@pytest.fixture(scope="module")
def plan(tiny_recipe, tmp_path_factory):
    return make_plan(load_recipe(str(tiny_recipe)), tmp_path_factory.mktemp("plan") / "run")


def test_plan_tells_data_stages_and_parameters(plan):
    assert plan.problems == () and plan.state == "new" and len(plan.class_names) == 4
    assert [stage.name for stage in plan.stages] == ["bce", "round_1", "round_2"]
    for stage in plan.stages:
        # 12 images in batches of 4, 2 epochs.
        assert (stage.images, stage.iterations, stage.size, stage.frozen) == (12, 6, 48, 0)
    fields = {"trunk": "test_resnet", "embedding_dim": 8}
    model = create_classifier(fields, plan.class_names)
    assert plan.stages[0].trained == sum(parameter.numel() for parameter in model.parameters())


def test_frozen_parameters_are_counted_apart(tiny_recipe, tmp_path, plan):
    config = load_recipe(str(tiny_recipe), {"model": {"freeze_batch_norm": True, "frozen_reduction": 4}})
    stage = make_plan(config, tmp_path / "run").stages[0]
    assert stage.frozen > 0 and stage.trained + stage.frozen == plan.stages[0].trained
    assert stage.memory.gradients == stage.memory.optimizer == 4 * stage.trained
    assert stage.memory.weights == plan.stages[0].memory.weights
    assert stage.memory.activations < plan.stages[0].memory.activations


def test_rendered_plan_shows_every_stage(plan):
    text = render_plan(plan)
    assert all(stage.name in text for stage in plan.stages)
    assert "12 images to train on and to label" in text and "problem" not in text


def test_plan_tells_how_long_each_stage_takes(plan, tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("sbce_hf.training.device.computes_bfloat16", lambda: False)
    assert all(stage.seconds > 0 for stage in plan.stages) and plan.others.keys() == {"leak_best_constant"}
    assert "time: about" in render_plan(plan) and "leak_best_constant" in render_plan(plan).splitlines()[-1]
    # The same settings are timed once.
    assert plan.stages[1].seconds == plan.stages[2].seconds
    refined = {"irn": {"training": {"epochs": 1, "crop_size": 132}}, "segmenter": {"model": {"trunk": "test_resnet"}}}
    refined["segmenter"] |= {"weights": "random", "score_split": "train", "training": {"crop_size": 48}}
    longer = make_plan(load_recipe(str(tiny_recipe), refined), tmp_path / "run")
    assert longer.problems == () and [stage.name for stage in longer.stages[3:]] == ["irn", "segmenter/adaptive"]
    assert all(stage.seconds > 0 for stage in longer.stages)


def test_the_time_of_several_seeds_is_told(plan):
    seconds = sum(stage.seconds for stage in plan.stages) + sum(plan.others.values())
    assert f"3 seeds one after another: about {duration(3 * seconds)}" in render_plan(plan, seeds=3)
    assert render_plan(plan, seeds=1) == render_plan(plan)


@pytest.mark.parametrize("has", [True, False])
def test_plan_says_what_would_be_faster(plan, monkeypatch, has):
    monkeypatch.setattr("sbce_hf.training.device.computes_bfloat16", lambda: has)
    assert ("--set mixed_precision=auto" in render_plan(plan)) == has
    stages = [replace(stage, training=replace(stage.training, mixed_precision="bf16")) for stage in plan.stages]
    assert "mixed_precision=auto" not in render_plan(replace(plan, stages=tuple(stages)))


def test_what_cannot_run_is_not_timed(tiny_recipe, tmp_path):
    plan = make_plan(load_recipe(str(tiny_recipe), {"trunk_weights": str(tmp_path / "absent")}), tmp_path / "run")
    assert plan.problems and plan.others == {} and {stage.seconds for stage in plan.stages} == {None}
    assert "time: about" not in render_plan(plan)


def test_every_problem_is_listed_and_nothing_is_written(tiny_recipe, tmp_path, capsys):
    (tmp_path / "taken").write_text("")
    command = ["run", "--dry-run", "--recipe", str(tiny_recipe), "--trunk-weights", str(tmp_path / "absent")]
    command += ["--set", "data={source: voc, data_dir: nowhere, score_split: val}"]
    command += ["--set", "segmenter={architecture: segformer, from_config: no.json}"]
    assert main([*command, "--output-dir", str(tmp_path / "taken" / "run")]) == 1
    printed = capsys.readouterr().out
    assert "4 problems:" in printed
    problems = [line for line in printed.splitlines() if line.startswith("- ")]
    expected = ("nowhere: no such folder", "no file", "no.json", "not a folder that can be written to")
    assert len(problems) == 4
    assert all(any(part in problem for problem in problems) for part in expected)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_state_of_the_run_directory(tiny_recipe, tmp_path):
    config = load_recipe(str(tiny_recipe))
    bench, stages = open_bench(config, tmp_path / "run"), stages_of(config)
    keys = keys_of(stages, bench.manifest_hash)
    write_record(tmp_path / "run", stages[0], keys, bench.manifest_hash, finished=True)
    write_record(tmp_path / "run", stages[1], keys, bench.manifest_hash, finished=False)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert make_plan(config, tmp_path / "run").state == "continues a run; finished so far: bce"
    other = make_plan(replace(config, seed=1), tmp_path / "run")
    assert other.state == "holds another run"
    assert len(other.problems) == 1 and "seed was 0, is 1" in other.problems[0]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_skipped_images_and_an_impossible_batch(tmp_path):
    (tmp_path / "images").mkdir()
    rows = ["file,tags"]
    for index in range(3):
        Image.new("RGB", (32, 32)).save(tmp_path / "images" / f"{index}.png")
        rows.append(f"{index}.png,cat")
    (tmp_path / "images" / "broken.png").write_bytes(b"nothing")
    (tmp_path / "tags.csv").write_text("\n".join([*rows, "broken.png,cat"]))
    overrides = {
        "data": {"data_dir": str(tmp_path)},
        "model": {"trunk": "test_resnet"},
        "trunk_weights": "random",
        "bce": {"batch_size": 16, "gradient_accumulation_steps": 2},
    }
    plan = make_plan(load_recipe("own-data", overrides), tmp_path / "run")
    assert plan.splits == ("train: 3 images to train on and to label, 1 skipped",)
    assert len(plan.problems) == 1 and "the set has only 3 images" in plan.problems[0]
    assert plan.stages[0].iterations is None and plan.stages[1].iterations == 80


def test_a_stage_is_as_long_as_its_least_number_of_iterations(tiny_recipe, tmp_path):
    config = load_recipe(str(tiny_recipe), {"bce": {"min_iterations": 100}, "spatial": {"min_iterations": 4}})
    stages = make_plan(config, tmp_path / "run").stages
    assert [(stage.epochs, stage.iterations) for stage in stages] == [(34, 102), (2, 6), (2, 6)]


def test_a_round_that_trains_no_threshold_is_a_problem_and_does_not_start(tiny_recipe, tmp_path):
    config = load_recipe(str(tiny_recipe), {"spatial": {"epochs": 1}})
    (problem,) = make_plan(config, tmp_path / "run").problems
    assert "spatial: 3 iterations" in problem and "raise spatial.min_iterations" in problem
    with pytest.raises(UserError, match="train no threshold"):
        open_bench(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_segmenter_is_planned_with_its_yardsticks(tiny_recipe, tmp_path):
    section = {
        "compare": ["mask"],
        "score_split": "train",
        "training": {"crop_size": 64, "batch_size": 6, "epochs": 3},
    }
    plan = make_plan(load_recipe(str(tiny_recipe), {"segmenter": section}), tmp_path / "run")
    assert plan.problems == ()
    assert "12 images with masks, to score segmenters on" in "\n".join(plan.splits)
    stages = {stage.name: stage for stage in plan.stages[3:]}
    assert list(stages) == ["segmenter/adaptive", "segmenter/mask"]
    for stage in stages.values():
        assert (stage.iterations, stage.size) == (6, 64) and stage.memory.total > stage.memory.activations > 0


def test_a_frozen_trunk_needs_room_on_disk(tiny_recipe, tmp_path, monkeypatch):
    config = load_recipe(str(tiny_recipe), {"model": {"train_trunk": False}, "spatial": {"targets": "labels"}})
    plan = make_plan(config, tmp_path / "run")
    (line,) = [need for need in plan.needs if need.startswith("features of the frozen trunk: ")]
    assert "GiB on disk in" in line and str(tmp_path / "run" / "features") in line
    assert plan.problems == () and plan.stages[0].trained < 0.2 * plan.stages[0].frozen
    assert all(stage.seconds > 0 for stage in plan.stages)
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("sbce_hf.runs.needs.shutil.disk_usage", lambda path: usage)
    (problem,) = make_plan(config, tmp_path / "run").problems
    assert "features of the frozen trunk" in problem and "lower bce.image_size" in problem


def test_pretrained_weights_that_cannot_be_had(tiny_recipe, tmp_path):
    for trunk, message in (("mobilenetv2_035", "No pretrained weights"), ("test_resnet", "is not in the cache")):
        config = load_recipe(str(tiny_recipe), {"trunk_weights": "pretrained", "model": {"trunk": trunk}})
        assert any(message in problem for problem in make_plan(config, tmp_path / "run").problems)


def test_estimated_activations_are_what_autograd_keeps():
    real, meta = (create_classifier({"trunk": "test_resnet"}, ["a"]).train() for _ in range(2))
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    images = torch.zeros(2, 3, 64, 64)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = real(images)
    own = {tensor.untyped_storage().data_ptr() for tensor in (*real.parameters(), *real.buffers())}
    counted = sum(size for pointer, size in kept.items() if pointer not in own)
    estimate = estimate_memory(meta, 2, 64, LoopConfig())
    assert estimate.activations - images.nbytes == pytest.approx(counted, rel=0.1)
    del output
    half = estimate_memory(meta, 2, 64, LoopConfig(mixed_precision="bf16", momentum=0.0))
    assert half.activations < 0.6 * estimate.activations and half.weights > estimate.weights and half.optimizer == 0
