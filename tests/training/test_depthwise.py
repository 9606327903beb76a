import pytest
import torch
from timm.layers import create_conv2d
from tiny_stage import TinyModel, TinyTask, run
from torch import nn

from sbce_hf.training.depthwise import quick_depthwise

# Kernel, stride and dilation.
SLOW = [(3, 1, 2), (3, 1, 4), (5, 1, 1), (5, 1, 2), (3, 2, 1), (5, 2, 1), (7, 1, 1)]
FAST = (3, 1, 1)


def network(kinds, padding=""):
    """A chain of depthwise convolutions; values as large behind each as before."""
    torch.manual_seed(0)
    chain = [
        create_conv2d(4, 4, kernel, stride=stride, padding=padding, dilation=dilation, depthwise=True, bias=True)
        for kernel, stride, dilation in kinds
    ]
    for layer in chain:
        nn.init.normal_(layer.weight, std=1 / layer.kernel_size[0])
    return nn.Sequential(*chain).to(memory_format=torch.channels_last)


def step(model, pixels, half, quick="no"):
    """Output and gradients, of the images and the weights."""
    model.zero_grad()
    images = pixels.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=half), quick_depthwise(model, quick, "cpu"):
        output = model(images)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(2))
    (output.float() * weights).sum().backward()
    return [output.detach(), images.grad, *(parameter.grad.clone() for parameter in model.parameters())]


def changed(model):
    return ["forward" in vars(module) for module in model.modules() if isinstance(module, nn.Conv2d)]


@pytest.mark.parametrize("padding", ["", "same"])
@pytest.mark.parametrize("kind", SLOW)
@pytest.mark.parametrize("size", [(16, 16), (13, 18)])
def test_results_are_those_of_the_usual_way(kind, padding, size):
    model = network([kind], padding)
    pixels = torch.randn(2, 4, *size, generator=torch.Generator().manual_seed(1))
    found, exact = step(model, pixels, True, "bf16"), step(model, pixels, False)
    assert found[0].dtype == torch.bfloat16
    for ours, reference in zip(found, exact, strict=True):
        assert (ours.float() - reference).abs().max() < 0.02 * reference.abs().max()
    # It is no further from the exact values than the usual way is.
    for ours, usual, reference in zip(found, step(model, pixels, True), exact, strict=True):
        error = (usual.float() - reference).norm()
        assert (ours.float() - reference).norm() <= 1.1 * error + 1e-6


def test_a_whole_chain_learns_the_same():
    model = network([*SLOW, FAST])
    pixels = torch.randn(2, 4, 48, 40, generator=torch.Generator().manual_seed(1))
    for ours, reference in zip(step(model, pixels, True, "bf16"), step(model, pixels, False), strict=True):
        assert (ours.float() - reference).norm() < 0.03 * reference.norm()


def test_what_is_changed_and_for_how_long():
    model = network([FAST, *SLOW])
    model.append(nn.Conv2d(4, 8, 3, padding=2, dilation=2))
    with quick_depthwise(model, "bf16", "cpu"):
        assert changed(model) == [False, *[True] * len(SLOW), False]
        names = list(model.state_dict())
    assert not any(changed(model)) and names == list(model.state_dict())
    for precision, device in (("no", "cpu"), ("fp16", "cpu"), ("bf16", "cuda")):
        with quick_depthwise(model, precision, device):
            assert not any(changed(model))


def test_without_a_gradient_it_is_the_usual_way():
    model = network(SLOW)
    pixels = torch.randn(2, 4, 32, 32, generator=torch.Generator().manual_seed(1))

    def output():
        with torch.autocast("cpu", torch.bfloat16):
            return model(pixels)

    usual = output().detach()
    with quick_depthwise(model, "bf16", "cpu"):
        assert not torch.equal(output().detach(), usual)
        with torch.no_grad():
            assert torch.equal(output(), usual)
        model.requires_grad_(False)
        assert torch.equal(output(), usual)


def test_gradients_reach_what_comes_before_frozen_layers():
    model = network([(3, 1, 2)]).requires_grad_(False)
    pixels = torch.randn(1, 4, 9, 9, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16), quick_depthwise(model, "bf16", "cpu"):
        model(pixels).float().sum().backward()
    assert pixels.grad.abs().sum() > 0


def test_a_compiled_network_is_the_same():
    model = network([(3, 1, 2), (5, 1, 1)])
    pixels = torch.randn(1, 4, 12, 12, generator=torch.Generator().manual_seed(1))
    plain = step(model, pixels, True, "bf16")
    model.compile(backend="aot_eager")
    for ours, reference in zip(step(model, pixels, True, "bf16"), plain, strict=True):
        torch.testing.assert_close(ours, reference)


@pytest.mark.parametrize(("precision", "quick"), [("no", False), ("bf16", True)])
def test_training_uses_it(tmp_path, precision, quick):
    class Watching(TinyTask):
        def loss(self, model, batch, iteration):
            seen.append(changed(model)[1])
            return super().loss(model, batch, iteration)

    seen, model = [], TinyModel()
    model.features.insert(1, nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=6))
    run(tmp_path, Watching(), model=model, mixed_precision=precision, epochs=1)
    assert seen and set(seen) == {quick} and not any(changed(model))
