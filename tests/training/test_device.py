import logging

import pytest
import torch
from torch import nn

from sbce_hf.config import LoopConfig
from sbce_hf.models.configuration_spatial_bce import SpatialBceConfig
from sbce_hf.models.modeling_spatial_bce import SpatialBceForImageClassification
from sbce_hf.training import device as device_module
from sbce_hf.training.device import computes_bfloat16, resolved, share_batch_norm

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def build(trained):
    torch.manual_seed(0)
    # Its batch norms hold their activation.
    config = SpatialBceConfig(trunk="test_efficientnet", num_labels=2, freeze_batch_norm=not trained)
    return SpatialBceForImageClassification(config).train()


def synchronised(model):
    return [module for module in model.modules() if isinstance(module, nn.SyncBatchNorm)]


@pytest.mark.parametrize(
    ("trained", "processes", "device"), [(False, 2, GPU), (False, 2, CPU), (True, 1, GPU), (True, 1, CPU)]
)
def test_nothing_is_shared_where_there_is_nothing_to_share(trained, processes, device, caplog):
    model = build(trained)
    share_batch_norm(model, processes, device)
    assert not synchronised(model) and not caplog.records


def test_trained_batch_norm_is_synchronised_on_accelerators(caplog):
    model, plain = build(True), build(True)
    count = sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in plain.modules())
    share_batch_norm(model, 2, GPU)
    assert len(synchronised(model)) == count > 0 and not caplog.records
    # The same network: names, values, and without other processes answers.
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    for before, after in zip(plain.named_parameters(), model.named_parameters(), strict=True):
        assert before[0] == after[0] and torch.equal(before[1], after[1])
    torch.testing.assert_close(model.eval()(pixels).pixel_logits, plain.eval()(pixels).pixel_logits)
    # Freezing finds them, too.
    assert all(module.training for module in synchronised(model.train()))


def test_on_cpus_a_warning_says_that_it_is_not(caplog):
    model = build(True)
    with caplog.at_level(logging.WARNING):
        share_batch_norm(model, 2, CPU)
    assert not synchronised(model) and "each of the 2 processes" in caplog.text


@pytest.mark.parametrize(("has", "expected"), [(True, "bf16"), (False, "no")])
def test_auto_is_bfloat16_where_there_are_instructions_for_it(monkeypatch, has, expected):
    monkeypatch.setattr(device_module, "computes_bfloat16", lambda: has)
    assert resolved(LoopConfig(mixed_precision="auto")).mixed_precision == expected
    for asked in ("no", "bf16", "fp16"):
        assert resolved(LoopConfig(mixed_precision=asked)).mixed_precision == asked
    assert LoopConfig().mixed_precision == "no"


@pytest.mark.parametrize("instructions", [(), ("avx512_bf16",), ("amx_tile",)])
def test_instructions_of_a_cpu(monkeypatch, instructions):
    monkeypatch.setattr(device_module, "use_cpu", lambda: True)
    for name in ("avx512_bf16", "amx_tile"):
        monkeypatch.setattr(torch.cpu, f"_is_{name}_supported", lambda name=name: name in instructions)
    assert computes_bfloat16() is bool(instructions)
    # A torch that cannot tell.
    for name in ("avx512_bf16", "amx_tile"):
        monkeypatch.delattr(torch.cpu, f"_is_{name}_supported")
    assert computes_bfloat16() is False


@pytest.mark.parametrize("emulated", [True, False])
def test_a_gpu_that_emulates_it_does_not_count(monkeypatch, emulated):
    monkeypatch.setattr(device_module, "use_cpu", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation or not emulated
    )
    assert computes_bfloat16() is not emulated
