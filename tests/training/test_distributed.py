import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ddp_stage import BATCH, IMAGES, LABELLED, STAGES, FewPositives, boundary, label, run
from safetensors.torch import load_file

from sbce_hf.labels.store import LabelStore
from sbce_hf.training.folder import read_metrics
from sbce_hf.training.sampler import BatchOrder


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = Path(__file__).parent / "ddp_stage.py"
    result = subprocess.run(
        [*launch, str(script), str(folder)], env=environment, capture_output=True, text=True, timeout=400
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return folder


def test_the_set_has_batches_in_which_one_process_has_no_positive_label():
    labels = FewPositives().labels.sum(axis=1)
    shares = [
        [
            sum(labels[index] for _, index in batch) > 0
            for batch in BatchOrder(IMAGES, BATCH, epochs=2, seed=0, processes=2, process=process).batches(0)
        ]
        for process in range(2)
    ]
    one, neither = (sum(sum(pair) == count for pair in zip(*shares, strict=True)) for count in (1, 0))
    assert one >= 5 and neither >= 1


@pytest.mark.parametrize("name", STAGES)
def test_two_processes_give_the_one_process_training(two_processes, tmp_path, name):
    torch.set_num_threads(1)
    run(tmp_path, name)
    kind, *_, iterations = STAGES[name]
    ours, theirs = (read_metrics(path / "metrics.jsonl") for path in (tmp_path, two_processes / name))
    assert len(ours) == iterations >= 20
    # Two of every period of five.
    assert sum("threshold_loss" in line for line in ours) == (iterations // 5 * 2 + max(iterations % 5 - 3, 0)) * (
        kind == "spatial"
    )
    for one, two in zip(ours, theirs, strict=True):
        # Every logged value, per class ones included, is the mean over both processes.
        assert one.keys() == two.keys()
        for key in one.keys() - {"images_per_second"}:
            assert two[key] == pytest.approx(one[key], rel=1e-5, abs=1e-5), (one["iteration"], key)
    a, b = (load_file(path / "model" / "model.safetensors") for path in (tmp_path, two_processes / name))
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-4, atol=1e-5)


def test_two_processes_train_one_boundary_network(two_processes, tmp_path):
    torch.set_num_threads(1)
    boundary(tmp_path)
    ours, theirs = (read_metrics(path / "metrics.jsonl") for path in (tmp_path, two_processes / "boundary"))
    assert len(ours) == 21
    for one, two in zip(ours, theirs, strict=True):
        for key in ("loss", "same_loss", "different_loss"):
            assert two[key] == pytest.approx(one[key], rel=1e-5, abs=1e-5), (one["iteration"], key)


def test_a_batch_that_processes_cannot_share_is_refused_by_each(two_processes):
    for rank in range(2):
        message = (two_processes / f"refused_{rank}.txt").read_text()
        assert "got 5, expected a multiple of processes x gradient_accumulation_steps = 2 x 1" in message
    assert not (two_processes / "refused" / "metrics.jsonl").exists()


def test_two_processes_label_every_image_once_and_like_one(two_processes, tmp_path):
    label(tmp_path)
    alone, together = (LabelStore(folder / "labels" / "paper") for folder in (tmp_path, two_processes))
    assert together.complete and together.done_ids() == alone.done_ids()
    lines = [path.read_text().splitlines() for path in sorted(together.directory.glob("records-*.jsonl"))]
    # Four at a time in turn: 4 + 4 and 4 + 1.
    assert sorted(map(len, lines)) == [5, 8]
    assert sum(map(len, lines)) == len(together.done_ids()) == LABELLED.shapes_images
    for image_id in alone.done_ids():
        assert together.path(image_id).read_bytes() == alone.path(image_id).read_bytes()


def test_the_main_process_decides_what_is_finished(two_processes):
    # The other one, whose folder was empty, would else have trained alone, and waited for ever.
    for rank in range(2):
        assert (two_processes / f"finished_{rank}.txt").read_text() == f"{STAGES['bce'][-1]} False"
    assert not (two_processes / "view_1").exists()
