import logging

import pytest
import torch
from torch import nn

from sbce_hf.models.configuration_spatial_bce import SpatialBceConfig
from sbce_hf.models.modeling_spatial_bce import SpatialBceForImageClassification
from sbce_hf.training.device import share_batch_norm

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
