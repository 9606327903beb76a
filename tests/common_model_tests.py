"""What every model of this package has to do, whatever it computes: tests to subclass."""

import contextlib
import copy
import json
import shutil
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModel

from sbce_hf.models.modeling_trunk import create_trunk
from sbce_hf.training.device import trunk_of

LABELS = {"id2label": {0: "ant", 1: "bee", 2: "cat"}, "label2id": {"ant": 0, "bee": 1, "cat": 2}}


@contextlib.contextmanager
def nan_memory():
    """Fill what is allocated without a value with NaN and the largest integers, so that nothing passes by luck."""
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def tensors(model):
    """All parameters and buffers, those too that are in no checkpoint."""
    return {**model.state_dict(), **dict(model.named_buffers())}


def is_trunk(name):
    return name.startswith("trunk.") or ".trunk." in name


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert not different


def assert_close(ours, theirs, **tolerances):
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], **tolerances)


def assert_like_new(name, value, new):
    """A value is drawn as that of a newly built model; what is constant there, such as a norm's, is equal."""
    assert value.dtype == new.dtype and value.isfinite().all(), name
    value, new = value.double(), new.double()
    if value.numel() == 1 or new.std() == 0:
        # A lone bias is drawn, too.
        assert torch.equal(value, new) or (value.numel() == 1 and value.abs() < 1), name
        return
    few = value.numel() < 64
    assert (0.3 if few else 0.7) < value.std() / new.std() < (3 if few else 1.4), name
    assert value.abs().max() < 3 * new.abs().max(), name
    assert (value.mean() - new.mean()).abs() < 6 * new.std() / value.numel() ** 0.5, name


MISSING = {
    "heads": lambda index, name: not is_trunk(name),
    "trunk": lambda index, name: is_trunk(name),
    "running statistics": lambda index, name: name.endswith(("running_mean", "running_var", "num_batches_tracked")),
    "every other": lambda index, name: index % 2 == 1,
    "all but one": lambda index, name: index > 0,
}


class CommonModelTests:
    """Subclass it as `Test...` and say which model it is.

    Attributes:
        model_class: to test.
        fields: of its config; a tiny network.
        auto_classes: that load its checkpoints as this class.
        trunk_class: what `AutoModel` makes of its checkpoints; the class itself, if it has no other base.
        trunk_overrides: with which it calls `create_trunk`.
        pixel_output: the output that has the shape of the image.
        checkpoints_activations: whether it supports that.
    """

    model_class: ClassVar[type]
    fields: ClassVar[dict]
    auto_classes: ClassVar[tuple] = ()
    trunk_class: ClassVar[type]
    trunk_overrides: ClassVar[dict] = {}
    pixel_output: ClassVar[str]
    checkpoints_activations: ClassVar[bool] = True

    def build(self, seed=0, **fields):
        torch.manual_seed(seed)
        return self.model_class(self.model_class.config_class(**{**self.fields, **LABELS, **fields})).eval()

    def build_trained(self):
        """No value is an initial one, and every branch of the trunk contributes."""
        model = self.build()
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                if name.endswith("num_batches_tracked"):
                    tensor.fill_(7)
                elif name.endswith("running_var") or tensor.unique().numel() == 1:
                    tensor.uniform_(0.5, 1.5, generator=generator)
                else:
                    tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=0.05)
        return model

    def targets(self):
        """Further arguments of `forward` that make it compute a loss, for two images of 64 x 64; none without one."""
        return {}

    @pytest.fixture
    def pixels(self):
        return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))

    @pytest.fixture(scope="class")
    def saved(self, tmp_path_factory):
        """A checkpoint and the model that was saved there; not to be changed."""
        folder, model = tmp_path_factory.mktemp("saved"), self.build_trained()
        # The layout in which models are trained.
        copy.deepcopy(model).to(memory_format=torch.channels_last).save_pretrained(folder)
        return SimpleNamespace(folder=folder, model=model)

    @torch.no_grad()
    def outputs(self, model, pixels, **arguments):
        return dict(model(pixels, **arguments).items())

    # --- initial values ---------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("missing", MISSING)
    def test_what_a_checkpoint_lacks_gets_its_initial_value(self, saved, tmp_path, pixels, missing):
        state = load_file(saved.folder / "model.safetensors")
        kept = {name: value for index, (name, value) in enumerate(state.items()) if not MISSING[missing](index, name)}
        if len(kept) == len(state):
            pytest.skip(f"the model has no {missing}")
        # A file without any weight is none.
        save_file(kept or {"other": torch.zeros(1)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
        shutil.copy(saved.folder / "config.json", tmp_path)
        with nan_memory():
            loaded = self.model_class.from_pretrained(tmp_path)
        new = tensors(self.build(seed=2))
        for name, value in tensors(loaded).items():
            if name in kept:
                assert torch.equal(value, kept[name])
            else:
                assert_like_new(name, value, new[name])
        assert all(value.isfinite().all() for value in self.outputs(loaded, pixels).values())

    def test_a_missing_trunk_is_drawn_as_timm_draws_it(self, saved, tmp_path):
        state = load_file(saved.folder / "model.safetensors")
        heads = {name: value for name, value in state.items() if not is_trunk(name)}
        save_file(heads or {"other": torch.zeros(1)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
        shutil.copy(saved.folder / "config.json", tmp_path)
        torch.manual_seed(5)
        with nan_memory():
            loaded = self.model_class.from_pretrained(tmp_path)
        torch.manual_seed(5)
        trunk = create_trunk(loaded.config, **self.trunk_overrides)
        assert_equal(tensors(loaded.base_model.trunk), tensors(trunk))

    def test_a_complete_checkpoint_draws_nothing(self, saved):
        torch.manual_seed(5)
        expected = torch.rand(1)
        torch.manual_seed(5)
        self.model_class.from_pretrained(saved.folder)
        assert torch.equal(torch.rand(1), expected)

    def test_the_same_seed_gives_the_same_model(self):
        assert_equal(tensors(self.build(seed=3)), tensors(self.build(seed=3)))

    # --- saving and loading -----------------------------------------------------------------------------------------

    @pytest.mark.parametrize("shards", [{}, {"max_shard_size": "40KB"}], ids=["one file", "shards"])
    def test_saved_and_loaded_alike(self, saved, tmp_path, pixels, shards):
        saved.model.save_pretrained(tmp_path, **shards)
        assert (len(list(tmp_path.glob("*.safetensors"))) > 2) is bool(shards)
        with nan_memory():
            loaded = self.model_class.from_pretrained(tmp_path)
        assert not loaded.training
        assert_equal(tensors(loaded), tensors(saved.model))
        assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in self.build().parameters()]
        # Not bit by bit: weights in a file lie at other addresses, and vector instructions add in another order there.
        assert_close(self.outputs(loaded, pixels), self.outputs(saved.model, pixels), atol=1e-5, rtol=1e-5)

    def test_auto_classes(self, saved):
        assert type(AutoConfig.from_pretrained(saved.folder)) is self.model_class.config_class
        for auto in self.auto_classes:
            loaded = auto.from_pretrained(saved.folder)
            assert type(loaded) is self.model_class
            assert_equal(tensors(loaded), tensors(saved.model))
            assert f"{self.model_class.__module__.split('.')[-1]}.{self.model_class.__name__}" in json.dumps(
                json.loads((saved.folder / "config.json").read_text())["auto_map"]
            )

    def test_auto_model_is_the_trunk(self, saved):
        loaded = AutoModel.from_pretrained(saved.folder)
        assert type(loaded) is self.trunk_class
        assert_equal(tensors(loaded), tensors(saved.model.base_model))

    def test_the_trunks_checkpoint_is_a_start(self, saved, tmp_path):
        saved.model.base_model.save_pretrained(tmp_path)
        with nan_memory():
            loaded = self.model_class.from_pretrained(tmp_path)
        assert_equal(tensors(loaded.base_model), tensors(saved.model.base_model))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision(self, saved, pixels, dtype):
        loaded = self.model_class.from_pretrained(saved.folder, dtype=dtype)
        assert loaded.dtype == dtype and {p.dtype for p in loaded.parameters()} == {dtype}
        state = saved.model.state_dict().items()
        expected = {name: value.to(dtype) if value.is_floating_point() else value for name, value in state}
        assert_equal(loaded.state_dict(), expected)
        halves, wholes = self.outputs(loaded, pixels.to(dtype)), self.outputs(saved.model, pixels)
        assert halves.keys() == wholes.keys()
        for name, whole in wholes.items():
            error = (halves[name].float() - whole).abs().max() / whole.abs().max()
            assert error < 0.1, name

    def test_device_map(self, saved):
        loaded = self.model_class.from_pretrained(saved.folder, device_map={"": "cpu"})
        assert {p.device.type for p in loaded.parameters()} == {"cpu"}
        assert_equal(tensors(loaded), tensors(saved.model))

    def test_a_config_without_arguments_survives_a_file(self, tmp_path):
        config = self.model_class.config_class()
        config.save_pretrained(tmp_path)
        loaded = AutoConfig.from_pretrained(tmp_path)
        assert type(loaded) is type(config)
        # Where it came from is the one thing that differs.
        loaded.name_or_path = config.name_or_path
        assert loaded.to_dict() == config.to_dict()

    # --- forward ----------------------------------------------------------------------------------------------------

    def test_a_batch_of_two_is_two_of_one(self, saved, pixels):
        both = self.outputs(saved.model, pixels)
        apart = [self.outputs(saved.model, pixels[index : index + 1]) for index in range(2)]
        assert_close(both, {name: torch.cat([one[name] for one in apart]) for name in both}, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(both[self.pixel_output][0], both[self.pixel_output][1], atol=1e-3)

    def test_tuples_on_request(self, saved, pixels):
        arguments = {"pixel_values": pixels, **self.targets()}
        output = saved.model(**arguments)
        expected = output.to_tuple()
        # Trainer and others take the first entry for the loss.
        assert "loss" not in output or expected[0] is output.loss
        asked = saved.model(**arguments, return_dict=False)
        configured = self.build(return_dict=False)
        configured.load_state_dict(saved.model.state_dict())
        for found in (asked, configured(**arguments)):
            assert isinstance(found, tuple) and len(found) == len(expected)
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        assert_equal(dict(configured(**arguments, return_dict=True).items()), dict(output.items()))

    def test_hidden_states_are_the_trunks_levels(self, saved, pixels):
        assert "hidden_states" not in saved.model(pixels)
        with torch.no_grad():
            levels = saved.model.base_model.trunk(pixels)
            output = saved.model(pixels, output_hidden_states=True)
            configured = self.build(output_hidden_states=True)
            configured.load_state_dict(saved.model.state_dict())
            with_loss = saved.model(pixels, **self.targets(), output_hidden_states=True)
            for found in (output, with_loss, configured(pixels)):
                assert len(found.hidden_states) == len(levels)
                assert all(torch.equal(a, b) for a, b in zip(found.hidden_states, levels, strict=True))
            assert "hidden_states" not in configured(pixels, output_hidden_states=False)

    def test_gradient_checkpointing_keeps_less_and_changes_nothing(self, saved, pixels):
        if not self.checkpoints_activations:
            with pytest.raises(ValueError, match="does not support"):
                self.build().activation_checkpointing_enable()
            return
        # All is trained, and no statistics are, which would be updated twice.
        model = self.build(frozen_reduction=0, freeze_batch_norm=True).train()
        model.load_state_dict(saved.model.state_dict())
        kept, gradients = {}, {}
        for way in ("plain", "checkpointed", "plain again"):
            if way == "checkpointed":
                model.activation_checkpointing_enable()
            elif way == "plain again":
                model.activation_checkpointing_disable()
            assert model.is_gradient_checkpointing is (way == "checkpointed")
            sizes = []
            model.zero_grad()
            with torch.autograd.graph.saved_tensors_hooks(
                lambda tensor, sizes=sizes: sizes.append(tensor.numel()) or tensor, lambda tensor: tensor
            ):
                output = model(pixels, **self.targets())
            (output.loss if "loss" in output else output[0].square().mean()).backward()
            kept[way] = sum(sizes)
            gradients[way] = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        assert kept["checkpointed"] < 0.8 * kept["plain"] and kept["plain again"] == kept["plain"]
        assert any(is_trunk(name) for name in gradients["plain"])
        assert_close(gradients["checkpointed"], gradients["plain"])

    def test_trunk_layers_are_as_the_config_says_after_loading(self, saved):
        loaded = self.model_class.from_pretrained(saved.folder).train()
        built = self.build().train()
        for (name, ours), (_, theirs) in zip(loaded.named_modules(), built.named_modules(), strict=True):
            assert ours.training is theirs.training, name
            if isinstance(ours, nn.BatchNorm2d):
                assert ours.momentum == theirs.momentum and ours.eps == theirs.eps, name


class CompiledModelTests(CommonModelTests):
    """The same, and graphs; apart, because they take seconds."""

    def other_sizes(self):
        return [(3, 96, 128), (1, 77, 101)]

    def test_exports_with_dynamic_sizes(self, saved, pixels):
        dynamic = torch.export.Dim.DYNAMIC
        shapes = {"pixel_values": {0: dynamic, 2: dynamic, 3: dynamic}}
        program = torch.export.export(saved.model, (), {"pixel_values": pixels}, dynamic_shapes=shapes)
        for batch, height, width in self.other_sizes():
            image = torch.randn(batch, 3, height, width)
            found = program.module()(pixel_values=image)
            assert_close(dict(found.items()), self.outputs(saved.model, image), atol=1e-4, rtol=1e-4)

    def test_compiles_as_one_graph(self, saved, pixels):
        # All models share the code object of transformers' decorator, and with it the limit of recompilations.
        torch._dynamo.reset()
        compiled = torch.compile(saved.model, fullgraph=True, backend="eager")
        arguments = {"pixel_values": pixels, **self.targets()}
        with torch.no_grad():
            assert_close(dict(compiled(**arguments).items()), dict(saved.model(**arguments).items()))
        batch, height, width = self.other_sizes()[0]
        image = torch.randn(batch, 3, height, width)
        assert_close(self.outputs(compiled, image), self.outputs(saved.model, image))

    def test_compiled_training_has_the_same_gradients(self, saved, pixels):
        torch._dynamo.reset()
        # Random numbers of dropout would differ.
        gradients, model = [], self.model_class.from_pretrained(saved.folder).eval()
        for compiled in (False, True):
            if compiled:
                trunk_of(model).compile(backend="aot_eager")
            model.zero_grad()
            output = model(pixel_values=pixels, **self.targets())
            (output.loss if "loss" in output else output[0].square().mean()).backward()
            gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        assert gradients[0] and gradients[0].keys() == gradients[1].keys()
        assert list(model.state_dict()) == list(saved.model.state_dict())
        for name, gradient in gradients[0].items():
            assert (gradients[1][name] - gradient).abs().max() <= 1e-4 * gradient.abs().max() + 1e-7, name
