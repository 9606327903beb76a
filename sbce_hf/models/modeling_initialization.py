"""Networks without memory, and initial values for what a checkpoint lacks.

transformers loads a checkpoint into a model without memory, gives what the files lack uninitialised memory, and calls
`_init_weights` for every module. What is filled in neither way is left as it was found: NaN, or any other number.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# Set by transformers on what it loaded; its `initialization` and the functions of `torch.nn.init`, which it replaces
# while it initialises, leave such tensors alone.
_LOADED = "_is_hf_initialized"
# What initialisation is made of, in place and from numbers; what is made from tensors shows whether their shapes fit.
_FILLING = ("uniform_", "normal_", "erfinv_", "mul_", "add_", "clamp_", "fill_", "zero_")


class _WithoutValues(TorchFunctionMode):
    """Leaves out what would fill a tensor that has no memory: torch takes as long for its shape as for its numbers."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        of_numbers = not any(isinstance(value, Tensor) for value in (*args[1:], *kwargs.values()))
        if getattr(func, "__name__", "") in _FILLING and args and args[0].is_meta and of_numbers:
            return args[0]
        return func(*args, **kwargs)


@contextlib.contextmanager
def without_memory() -> Iterator[None]:
    """Networks that are built inside have shapes and no values; what the caller's seed gives does not change."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"), _WithoutValues():
        yield


def is_empty(module: nn.Module) -> bool:
    """Whether a module was built without memory, as `from_pretrained` does; its values are then still to come."""
    return any(tensor.is_meta for _, tensor in _tensors(module))


def lacks_values(module: nn.Module) -> bool:
    """Whether a parameter or buffer of a module itself, not of its children, has not been loaded."""
    own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
    return not all(getattr(tensor, _LOADED, False) for tensor in own)


@torch.no_grad()
def fill_missing(module: nn.Module, build: Callable[[], nn.Module]) -> None:
    """Give what a checkpoint lacks of a module the values it has in a newly built one; in place.

    Libraries initialise in many ways: per layer, by name, by depth, or over all layers once the network is complete.
    Building the network again is the only way to get all of them right, and it costs nothing if nothing is missing.

    Args:
        module: built without memory, then loaded.
        build: makes the same module in memory; called at most once.
    """
    computed = set()
    for path, part in module.named_modules(remove_duplicate=False):
        # timm's name for this very purpose. These are in no checkpoint; without it every loading would build twice.
        if hasattr(part, "init_non_persistent_buffers"):
            part.init_non_persistent_buffers()
            computed |= {f"{path}.{name}".removeprefix(".") for name in part._non_persistent_buffers_set}
    tensors = dict(_tensors(module))
    missing = [
        name for name, tensor in tensors.items() if name not in computed and not getattr(tensor, _LOADED, False)
    ]
    if missing:
        # Its memory is needed for a moment only: not on an accelerator that just holds the model.
        with torch.device("cpu"):
            values = dict(_tensors(build()))
        for name in missing:
            tensors[name].copy_(values[name])
    for tensor in tensors.values():
        setattr(tensor, _LOADED, True)


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)
