import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ddp_stage import BATCH, IMAGES, ITERATIONS, FewPositives, run
from safetensors.torch import load_file

from sbce_hf.training.order import BatchOrder
from sbce_hf.training.state import read_metrics


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


@pytest.mark.parametrize(
    "folder, normalization, accumulation",
    [("balanced", "balanced", 1), ("official", "official", 1), ("accumulated", "official", 2)],
)
def test_two_processes_give_the_one_process_training(two_processes, tmp_path, folder, normalization, accumulation):
    torch.set_num_threads(1)
    run(tmp_path, normalization, accumulation)
    ours, theirs = (read_metrics(path / "metrics.jsonl") for path in (tmp_path, two_processes / folder))
    assert len(ours) == ITERATIONS
    assert sum("threshold_loss" in line for line in ours) == 8
    for one, two in zip(ours, theirs, strict=True):
        # Every logged value, per class ones included, is the mean over both processes.
        assert one.keys() == two.keys()
        for key in one.keys() - {"images_per_second"}:
            assert two[key] == pytest.approx(one[key], rel=1e-5, abs=1e-5), (one["iteration"], key)
    a, b = (load_file(path / "model" / "model.safetensors") for path in (tmp_path, two_processes / folder))
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-4, atol=1e-5)
