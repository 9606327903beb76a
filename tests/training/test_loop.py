import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_stage import CONFIG, NoisyDataset, TinyModel, TinyTask, run

from sbce_hf.config import TrainingConfig
from sbce_hf.errors import UserError
from sbce_hf.training.device import tune_allocator
from sbce_hf.training.folder import read_metrics
from sbce_hf.training.health import TrainingHealthError
from sbce_hf.training.sampler import BatchOrder, count_iterations

ITERATIONS = 60  # 6 epochs of 42 // 4


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A stage that nothing interrupted."""
    folder = tmp_path_factory.mktemp("straight")
    task = TinyTask()
    return folder, run(folder, task), task


def weights(folder):
    return load_file(folder / "model" / "model.safetensors")


def lines(folder):
    return [
        {k: v for k, v in line.items() if k != "images_per_second"} for line in read_metrics(folder / "metrics.jsonl")
    ]


def assert_same_stage(folder, other):
    ours, theirs = weights(folder), weights(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert lines(folder) == lines(other)


# --- order ----------------------------------------------------------------------------------------------------------


def draws(order, start=0):
    return list(order.batches(start))


def test_every_epoch_is_another_permutation_without_its_partial_batch():
    order = BatchOrder(42, 4, epochs=3, seed=0)
    assert (order.iterations_per_epoch, order.iterations) == (10, 30)
    epochs = [np.concatenate([order.indices(10 * epoch + i) for i in range(10)]) for epoch in range(3)]
    assert all(len(set(epoch)) == 40 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert len({tuple(BatchOrder(42, 4, epochs=3, seed=seed).indices(0)) for seed in range(5)}) == 5


@pytest.mark.parametrize("processes, accumulation", [(2, 1), (1, 3), (2, 3), (4, 3)])
def test_the_batch_of_an_iteration_is_the_same_set_whatever_the_number_of_processes(processes, accumulation):
    reference = draws(BatchOrder(50, 12, epochs=2, seed=5, accumulation=accumulation))
    shares = [
        draws(BatchOrder(50, 12, epochs=2, seed=5, accumulation=accumulation, processes=processes, process=process))
        for process in range(processes)
    ]
    for micro_batch, parts in zip(reference, zip(*shares, strict=True), strict=True):
        assert len({len(part) for part in parts}) == 1
        assert sorted(sum(parts, [])) == sorted(micro_batch)


@pytest.mark.parametrize(("images", "epochs"), [(5, 50), (12, 50), (40, 17), (1000, 2)])
def test_a_small_set_is_passed_over_until_there_are_enough_iterations(images, epochs):
    order = BatchOrder(images, 12, epochs=2, min_iterations=50, seed=0)
    assert order.epochs == epochs and order.iterations == epochs * order.iterations_per_epoch >= 50
    # No epoch more than it takes.
    assert epochs == 2 or order.iterations - order.iterations_per_epoch < 50
    config = TrainingConfig(epochs=2, min_iterations=50, batch_size=12)
    assert count_iterations(images, config) == order.iterations


def test_a_later_start_continues_the_same_order():
    order = BatchOrder(42, 4, epochs=3, seed=0, accumulation=2)
    assert draws(order, 13) == draws(order)[26:]


def test_the_images_of_an_iteration_do_not_depend_on_what_was_asked_before():
    order = BatchOrder(42, 4, epochs=3, seed=0)
    asked = np.random.default_rng(0).permutation(np.repeat(np.arange(order.iterations), 2))
    for iteration in asked.tolist():
        found = order.indices(iteration)
        assert found.tolist() == BatchOrder(42, 4, epochs=3, seed=0).indices(iteration).tolist()
        # What a caller does with them stays with the caller.
        found[:] = -1


def test_a_set_smaller_than_a_batch_is_the_batch():
    order = BatchOrder(5, 12, epochs=2, seed=0)
    assert (order.batch_size, order.iterations) == (5, 2)
    assert sorted(order.indices(1)) == [0, 1, 2, 3, 4]


def test_a_batch_that_cannot_be_shared_is_an_error():
    with pytest.raises(ValueError, match="got 12, expected a multiple of .* 5 x 1"):
        BatchOrder(50, 12, epochs=1, seed=0, processes=5)
    with pytest.raises(ValueError, match="only 5 images"):
        BatchOrder(5, 12, epochs=1, seed=0, processes=2)
    with pytest.raises(ValueError, match="no images"):
        BatchOrder(0, 12, epochs=1, seed=0)


# --- a stage --------------------------------------------------------------------------------------------------------


def test_summary_files_and_seen_images(straight):
    folder, summary, task = straight
    assert summary.iterations == ITERATIONS and summary.images == 42 and summary.name == "tiny"
    assert summary.model_dir == folder / "model" and summary.values["loss"] < 0.5
    assert sorted(path.name for path in folder.iterdir()) == ["metrics.jsonl", "model", "summary.json", "tensorboard"]
    assert list((folder / "tensorboard").glob("events*"))
    order = BatchOrder(42, 4, epochs=6, seed=3)
    assert task.seen == [(i, sorted(order.indices(i).tolist())) for i in range(ITERATIONS)]
    assert task.epochs == [{i // 10} for i in range(ITERATIONS)]


def test_metrics_are_window_means_at_every_log_and_checkpoint(straight):
    folder, _, task = straight
    logged = lines(folder)
    expected = sorted({*range(3, 61, 3), *range(4, 61, 4)})
    assert [line["iteration"] for line in logged] == expected
    start = 0
    for line in logged:
        seen = [index for i, indices in task.seen[start : line["iteration"]] for index in indices]
        for name, parity in (("even", 0), ("odd", 1)):
            group = [index for index in seen if index % 2 == parity]
            assert line.get(f"index/{name}") == (pytest.approx(np.mean(group)) if group else None)
        assert line["index"] == pytest.approx(np.mean(seen))
        assert line["lr"] == pytest.approx(0.05 * (1 - (line["iteration"] - 1) / 60) ** 0.9)
        start = line["iteration"]
    assert [window.epoch for window in task.windows][-1] == 6


def test_every_group_follows_the_schedule(tmp_path):
    task, seen = TinyTask(), []
    original = task.loss

    def loss(model, batch, iteration):
        seen.append([group["lr"] for group in optimizers[0].param_groups])
        return original(model, batch, iteration)

    optimizers = []
    create = torch.optim.SGD

    class Recorder(create):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            optimizers.append(self)

    task.loss = loss
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim, "SGD", Recorder)
        run(tmp_path, task, epochs=1)
    factors = [(1 - i / 10) ** 0.9 for i in range(10)]
    np.testing.assert_allclose(seen, [[0.05 * f, 0.5 * f] for f in factors])


def test_a_finished_stage_returns_at_once_and_leaves_the_model_alone(straight):
    folder, summary, _ = straight
    task, model = TinyTask(), TinyModel()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert run(folder, task, model=model) == summary
    assert task.seen == []
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    # Settings that change nothing that is learned are free.
    assert run(folder, num_workers=1, log_every=50, checkpoint_every=7) == summary


def test_other_settings_in_the_same_folder_are_an_error_that_names_them(straight):
    folder = straight[0]
    with pytest.raises(
        ValueError, match=r"training\.lr was 0\.05 and is now 0\.1; training\.augmentation\.flip"
    ) as error:
        from sbce_hf.config import AugmentationConfig

        run(folder, lr=0.1, augmentation=AugmentationConfig(flip=False))
    assert str(folder) in str(error.value)
    with pytest.raises(ValueError, match="images was 42 and is now 41"):
        run(folder, dataset=NoisyDataset(41))
    with pytest.raises(ValueError, match="seed was 3 and is now 4"):
        run(folder, seed=4)


def test_training_leaves_nothing_behind_on_the_model(tmp_path):
    model = TinyModel(dropout=0.0)
    run(tmp_path / "a", model=model, epochs=1, mixed_precision="bf16")
    output = model(torch.zeros(2, 3, 8, 8), torch.ones(2))
    assert output["logits"].requires_grad and output["logits"].dtype == torch.float32
    # Another precision in the same process.
    run(tmp_path / "b", model=model, epochs=1, mixed_precision="no")


@pytest.mark.parametrize("has", [True, False])
def test_the_precision_that_auto_was_is_saved_with_the_result(tmp_path, monkeypatch, has):
    monkeypatch.setattr("sbce_hf.training.device.computes_bfloat16", lambda: has)
    run(tmp_path, epochs=1, mixed_precision="auto")
    settings = json.loads((tmp_path / "summary.json").read_text())["settings"]
    assert settings["training"]["mixed_precision"] == ("bf16" if has else "no")
    # Whoever names it continues the same.
    assert run(tmp_path, epochs=1, mixed_precision="bf16" if has else "no").iterations == 10
    with pytest.raises(ValueError, match=r"training\.mixed_precision"):
        run(tmp_path, epochs=1, mixed_precision="no" if has else "bf16")


def test_a_compiled_training_gives_the_same_weights_under_the_same_names(tmp_path, monkeypatch):
    compile_, calls = torch.nn.Module.compile, []

    def without_a_compiler(model):
        calls.append(model)
        compile_(model, backend="aot_eager")

    torch._dynamo.reset()
    monkeypatch.setattr(torch.nn.Module, "compile", without_a_compiler)
    for name in ("plain", "compiled"):
        torch.manual_seed(0)
        model = TinyModel(dropout=0.0)
        run(tmp_path / name, model=model, compile=True if name == "compiled" else None)
    assert calls == [model] and model._compiled_call_impl is None
    ours, plain = weights(tmp_path / "compiled"), weights(tmp_path / "plain")
    assert ours.keys() == plain.keys()
    for key, value in plain.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-4, atol=1e-5)


def test_accumulated_micro_batches_equal_the_whole_batch(tmp_path):
    # Without batch norm and dropout, whose results depend on the micro-batch.
    def model():
        torch.manual_seed(0)
        model = TinyModel(dropout=0.0)
        model.features[1] = torch.nn.Identity()
        return model

    for steps in (1, 2, 4):
        run(tmp_path / str(steps), model=model(), gradient_accumulation_steps=steps, epochs=2)
    for steps in ("2", "4"):
        for key, value in weights(tmp_path / steps).items():
            torch.testing.assert_close(value, weights(tmp_path / "1")[key], rtol=1e-5, atol=1e-6)


def test_gradient_clipping_bounds_the_step(tmp_path):
    torch.manual_seed(0)
    start = TinyModel().state_dict()
    run(tmp_path, epochs=1, max_grad_norm=1e-9, weight_decay=0.0)
    for key, value in weights(tmp_path).items():
        if "running" not in key and "num_batches" not in key:
            torch.testing.assert_close(value, start[key], rtol=0, atol=1e-7)


def test_a_loss_that_is_not_finite_stops_training_before_it_is_saved(tmp_path):
    with pytest.raises(TrainingHealthError, match="the loss is nan at iteration 8.*lower tiny.lr"):
        run(tmp_path, TinyTask(poison_at=7), log_every=1000)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["00000004"]
    assert not (tmp_path / "model").exists()


def test_the_same_training_repeats_its_failure_at_once(tmp_path):
    with pytest.raises(TrainingHealthError) as first:
        run(tmp_path, TinyTask(poison_at=7))
    again = TinyTask()
    with pytest.raises(TrainingHealthError) as second:
        run(tmp_path, again)
    assert str(first.value) in str(second.value) and "other settings start it anew" in str(second.value)
    assert not again.seen


def test_other_settings_start_a_failed_training_anew(tmp_path):
    with pytest.raises(TrainingHealthError):
        run(tmp_path / "failed", TinyTask(poison_at=7))
    task = TinyTask()
    run(tmp_path / "failed", task, momentum=0.5)
    run(tmp_path / "fresh", momentum=0.5)
    assert task.seen[0][0] == 0 and not (tmp_path / "failed" / "failure.json").exists()
    assert weights(tmp_path / "failed").keys() == weights(tmp_path / "fresh").keys()
    for key, value in weights(tmp_path / "failed").items():
        assert torch.equal(value, weights(tmp_path / "fresh")[key])


def test_what_a_task_remembers_survives_a_restart(tmp_path):
    straight = TinyTask()
    run(tmp_path / "straight", straight)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", TinyTask(fail_at=26))
    task = TinyTask()
    run(tmp_path / "killed", task)
    assert len(task.windows) < task.checked == straight.checked == len(straight.windows)
    assert [window.last for window in straight.windows] == [False] * (len(straight.windows) - 1) + [True]


# --- resume ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moments", [(2,), (4,), (25, 26), (59,)])
def test_interrupted_anywhere_the_result_is_bit_identical(tmp_path, straight, moments):
    for moment in moments:
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, TinyTask(fail_at=moment))
    task = TinyTask()
    run(tmp_path, task)
    assert task.seen[0][0] == moments[-1] // 4 * 4
    assert_same_stage(tmp_path, straight[0])


def test_killed_at_random_moments_the_result_is_bit_identical(tmp_path, straight):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    moments = random.Random()
    for reached in (9, 33):
        script = Path(__file__).parent / "tiny_stage.py"
        process = subprocess.Popen([sys.executable, str(script), str(tmp_path)], env=environment)
        deadline = time.monotonic() + 120
        while not any(line["iteration"] >= reached for line in read_metrics(tmp_path / "metrics.jsonl")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.15))
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "summary.json").exists()
    task = TinyTask()
    run(tmp_path, task)
    assert task.seen[0][0] >= 32
    assert_same_stage(tmp_path, straight[0])


def test_leftovers_of_a_process_killed_while_writing_are_removed(tmp_path, straight):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, TinyTask(fail_at=22), checkpoints_total_limit=2)
    checkpoints = tmp_path / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["00000016", "00000020"]
    # A checkpoint that was being written, a model that was being written, a log line that was being written.
    half_written = checkpoints / ".tmp-00000024"
    half_written.mkdir()
    (half_written / "model.safetensors").write_bytes(b"torn")
    (tmp_path / ".tmp-model").mkdir()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"iteration": 24, "loss": 9.0}) + '\n{"iteration": 27, "lo')
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, TinyTask(fail_at=23))
    assert not half_written.exists() and not (tmp_path / ".tmp-model").exists()
    assert max(line["iteration"] for line in lines(tmp_path)) == 21
    run(tmp_path)
    assert_same_stage(tmp_path, straight[0])


def test_killed_between_model_and_summary_the_stage_completes(tmp_path, straight):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, TinyTask(fail_at=59))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "stale").touch()
    run(tmp_path)
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["model.safetensors"]
    assert_same_stage(tmp_path, straight[0])


def test_a_checkpoint_of_other_settings_is_not_continued(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, TinyTask(fail_at=10))
    with pytest.raises(ValueError, match=r"00000008: belongs .* training\.epochs was 6 and is now 7"):
        run(tmp_path, epochs=7)
    progress = tmp_path / "checkpoints" / "00000008" / "progress.json"
    progress.write_text(json.dumps({**json.loads(progress.read_text()), "processes": 2}))
    with pytest.raises(ValueError, match="made by 2 processes, now there are 1"):
        run(tmp_path)


def test_damaged_files_of_a_training_are_told_in_one_line(tmp_path, straight):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, TinyTask(fail_at=10))
    for name, contents in {
        "checkpoints/00000008/progress.json": (
            "{",
            "[1]",
            "{}",
            '{"iteration": "x"}',
            changed(tmp_path, iteration=-1),
            changed(tmp_path, seconds=float("nan")),
            changed(tmp_path, processes=1.5),
            changed(tmp_path, task=[1]),
            changed(tmp_path, task={"a": 1}),
        ),
        "failure.json": ("{", "[1]", "{}", '{"verdict": 5, "settings": {}}', "[" * 100_000),
        "metrics.jsonl": ("{\n", "[1]\n", "{}\n", '{"iteration": "x"}\n', '{"iteration": 2, "loss": "x"}\n'),
    }.items():
        path = tmp_path / name
        whole = path.read_bytes() if path.exists() else None
        for content in contents:
            path.write_text(content)
            told(tmp_path, name)
        path.rename(tmp_path.with_name("elsewhere"))
        path.symlink_to(tmp_path.with_name("elsewhere"))
        told(tmp_path, f"{name}: is a link")
        path.unlink()
        os.mkfifo(path)
        told(tmp_path, f"{name}: is a named pipe")
        path.unlink()
        if whole is not None:
            path.write_bytes(whole)
    (tmp_path / "checkpoints" / "00000008" / "progress.json").rename(tmp_path / "kept")
    told(tmp_path, "progress.json: no such file")
    (tmp_path / "kept").rename(tmp_path / "checkpoints" / "00000008" / "progress.json")
    task = TinyTask()
    run(tmp_path, task)
    assert task.seen[0][0] == 8
    assert_same_stage(tmp_path, straight[0])


def changed(folder, **values):
    """The last checkpoint's progress, with other values."""
    return json.dumps(json.loads((folder / "checkpoints" / "00000008" / "progress.json").read_text()) | values)


def told(folder, name):
    with pytest.raises((UserError, FileNotFoundError)) as caught:
        run(folder)
    message = str(caught.value)
    assert (
        name in message
        and ("remove" in message or "take it away" in message)
        and "\n" not in message
        and len(message) < 700
    )


def test_allocator_is_tuned_on_glibc_and_nowhere_else(monkeypatch):
    glibc = sys.platform == "linux" and "glibc" in " ".join(os.confstr_names) + str(os.confstr("CS_GNU_LIBC_VERSION"))
    assert tune_allocator() is glibc
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert tune_allocator() is False


def test_config_of_the_tests_has_windows_across_epochs_and_checkpoints_within():
    assert 10 % CONFIG["log_every"] and 10 % CONFIG["checkpoint_every"]
