import pytest
import timm
import torch
from torch import nn

from sbce_hf.models.modeling_initialization import without_memory


def test_a_network_without_memory_has_the_shapes_of_one_in_memory():
    def build():
        return timm.create_model("test_vit", pretrained=False)

    with without_memory():
        empty = build()
    found = {name: tensor.shape for name, tensor in empty.state_dict().items()}
    assert found == {name: tensor.shape for name, tensor in build().state_dict().items()}
    assert all(tensor.is_meta for tensor in (*empty.parameters(), *empty.buffers()))


def test_shapes_that_do_not_fit_are_found_without_memory():
    with without_memory(), pytest.raises(RuntimeError):
        torch.zeros(2, 3).add_(torch.zeros(4))


def test_what_has_memory_is_filled_as_ever_and_the_seed_goes_on():
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    values = torch.zeros(3)
    with without_memory():
        nn.init.ones_(values)
        nn.init.trunc_normal_(nn.Linear(2, 2).weight)
    assert values.tolist() == [1, 1, 1]
    assert torch.equal(torch.rand(2), expected)
