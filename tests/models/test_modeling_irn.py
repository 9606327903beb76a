import pytest
import torch
from common_model_tests import CommonModelTests, CompiledModelTests
from torch import nn
from transformers import AutoModel

from sbce_hf import IrnConfig, IrnModel
from sbce_hf.models.losses_irn import boundary_loss

TINY = {"trunk": "test_resnet.r160_in1k", "side_channels": 8, "radius": 4}


class TestBoundaryNetwork(CompiledModelTests):
    model_class = trunk_class = IrnModel
    fields = TINY
    auto_classes = (AutoModel,)
    trunk_overrides = {"out_indices": None}
    pixel_output = "boundary_logits"
    checkpoints_activations = False

    def targets(self):
        return {"labels": torch.arange(64).div(22, rounding_mode="floor").expand(2, 64, 64)}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return IrnModel(IrnConfig(**TINY)).eval()


def test_boundaries_have_a_quarter_of_the_size(model):
    with torch.no_grad():
        output = model(torch.randn(2, 3, 96, 64))
    assert output.boundary_logits.shape == (2, 24, 16) and output.loss is None
    assert output.boundary_logits.std() > 0
    assert len(model.sides) == 5


def test_published_network():
    with torch.device("meta"):
        model = IrnModel(IrnConfig())
    assert [side[0].in_channels for side in model.sides] == [64, 256, 512, 1024, 2048]
    head = sum(parameter.numel() for name, parameter in model.named_parameters() if not name.startswith("trunk."))
    # Five 1x1 convolutions without bias, five group norms, one output with bias.
    assert head == 32 * (64 + 256 + 512 + 1024 + 2048) + 5 * 64 + 161
    assert [parameter.requires_grad for parameter in model.train().trunk.parameters()].count(True) == 0


def test_resnet38_gives_all_its_levels():
    with torch.device("meta"):
        model = IrnModel(IrnConfig(trunk="resnet38", output_stride=8))
        output = model(torch.empty(1, 3, 64, 96))
    assert output.boundary_logits.shape == (1, 16, 24) and len(model.sides) == 7


def test_loss_is_of_the_nearest_labels(model):
    torch.manual_seed(1)
    small = torch.randint(0, 3, (2, 12, 16))
    labels = small.repeat_interleave(4, 1).repeat_interleave(4, 2)
    pixels = torch.randn(2, 3, 48, 64)
    output = model(pixels, labels)
    expected = boundary_loss(output.boundary_logits, small, radius=4)
    assert torch.equal(output.loss, expected.loss)
    assert torch.equal(output.same_loss, expected.same) and torch.equal(output.different_loss, expected.different)
    assert len(model(pixels, labels, return_dict=False)) == 4


def test_only_the_head_learns(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = IrnModel.from_pretrained(tmp_path).train()
    assert not loaded.trunk.training
    labels = torch.randint(0, 2, (1, 64, 64))
    loaded(torch.randn(1, 3, 64, 64), labels).loss.backward()
    for name, parameter in loaded.named_parameters():
        trained = not name.startswith("trunk.")
        assert parameter.requires_grad == trained
        assert (parameter.grad is not None and bool(parameter.grad.abs().max() > 0)) == trained, name


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"side_channels": 6}, "expected a multiple of side_groups"),
        ({"radius": 1}, "expected at least 2"),
        ({"output_stride": 4}, "expected 8, 16, 32 or None"),
        ({"raduis": 3}, "did you mean 'radius'"),
    ],
)
def test_bad_fields(fields, message):
    with pytest.raises(Exception, match=message):
        IrnConfig(**fields)


class TestOnTransformer(CommonModelTests):
    """Layers of one stride, and learned upsampling."""

    model_class = trunk_class = IrnModel
    fields = {"trunk": "test_vit", "output_stride": None, "side_channels": 8, "radius": 4}
    trunk_overrides = {"out_indices": None}
    pixel_output = "boundary_logits"
    checkpoints_activations = False

    def targets(self):
        return {"labels": torch.randint(0, 3, (2, 64, 64), generator=torch.Generator().manual_seed(0))}


@pytest.mark.parametrize(
    ("trunk", "doublings"), [("test_vit", 2), ("vit_small_patch14_dinov2", 2), ("test_resnet", 0)]
)
@pytest.mark.parametrize("size", [(64, 96), (75, 100)])
def test_boundaries_are_at_a_quarter_of_the_size(trunk, doublings, size):
    kwargs = {"embed_dim": 32, "depth": 6, "num_heads": 2} if trunk.startswith("vit") else None
    stride = 16 if trunk == "test_resnet" else None
    model = IrnModel(IrnConfig(trunk=trunk, trunk_kwargs=kwargs, output_stride=stride, side_channels=8, radius=4))
    labels = torch.randint(0, 3, (1, *size))
    output = model(torch.randn(1, 3, *size), labels)
    assert output.boundary_logits.shape == (1, *(-(-side // 4) for side in size))
    ups = [module for module in model.modules() if isinstance(module, nn.ConvTranspose2d)]
    assert len(ups) == doublings * (len(model.sides) if doublings else 1)
    output.loss.backward()
    assert all(up.weight.grad.abs().sum() > 0 for up in ups)
    assert all(parameter.grad is None for parameter in model.trunk.parameters())
