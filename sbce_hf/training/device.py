"""Where training runs: the accelerator, and what makes a CPU usable."""

import contextlib
import ctypes
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin
from timm.layers import convert_sync_batchnorm
from torch import nn

from ..config import LoopConfig

logger = logging.getLogger(__name__)


def tune_allocator() -> bool:
    """Let glibc keep freed memory instead of giving it back to the system after every layer.

    Without it, training and labelling on a CPU spend about half of their time in page faults.

    Returns:
        Whether there was a glibc to tune.
    """
    trim_threshold, top_pad, mmap_max = -1, -2, -4
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    settings = ((mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 2**28))
    applied = [mallopt(parameter, value) == 1 for parameter, value in settings]
    return all(applied)


def start_worker(number: int) -> None:
    """Prepare a process that loads images: each is of megabytes, which would be new memory every time.

    Args:
        number: of the process.
    """
    tune_allocator()


def use_cpu() -> bool:
    """Whether to ask Accelerate for the CPU.

    Without asking, several CPU processes would train apart. MPS lacks the losses' float64.
    """
    return not torch.accelerator.is_available() or torch.backends.mps.is_available()


def share_batch_norm(model: nn.Module, processes: int, device: torch.device) -> None:
    """Let several processes normalise by the statistics of the whole batch, where batch norm is trained.

    Frozen batch norm, the default of the models here, does not depend on the batch.

    Args:
        model: in training mode; changed in place.
        processes: that train together.
        device: that they train on. On CPUs there is no such exchange, and a warning says so.
    """
    trained = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    if processes == 1 or not trained:
        return
    if device.type == "cpu":
        logger.warning(
            "batch norm is trained: on CPUs each of the %d processes takes its statistics over its own part of a "
            "batch, so the result is not that of one process",
            processes,
        )
    else:
        # timm's, because its layers hold their activation.
        convert_sync_batchnorm(model)


def computes_bfloat16() -> bool:
    """Whether what training runs on has instructions for bfloat16; where it is emulated, it is slower than float32."""
    if not use_cpu():
        return not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False)
    # torch has no public name for this; a version without it is taken for a CPU without them.
    known = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile"))
    return any(supported is not None and supported() for supported in known)


def precision_of(wanted: str) -> str:
    """What `"auto"` is here; other precisions, `"no"`, `"bf16"` and `"fp16"`, are themselves."""
    if wanted == "auto":
        return "bf16" if computes_bfloat16() else "no"
    return wanted


def autocast(precision: str, device: str) -> torch.autocast:
    """The context in which a network has a precision, see [`precision_of`], on a kind of device."""
    precision = precision_of(precision)
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device, dtype, enabled=precision != "no")


def resolved(config: LoopConfig) -> LoopConfig:
    """The same config with a precision in the place of `"auto"`."""
    return replace(config, mixed_precision=cast(Any, precision_of(config.mixed_precision)))


def trunk_of(model: nn.Module) -> nn.Module:
    """The part of a model in which nearly all of its time goes; the whole where it has no such part."""
    return getattr(model, "base_model", model)


@contextlib.contextmanager
def compiled(model: nn.Module, wanted: bool | None) -> Iterator[None]:
    """Compile a model's trunk for as long as it is trained; names of weights stay, and afterwards all is as before.

    Not the whole: what a phase of the training gives no gradient would get one of 0 in a compiled model, and the
    optimiser would apply weight decay and momentum to it.
    """
    trunk = trunk_of(model)
    if wanted:
        trunk.compile()
    try:
        yield
    finally:
        trunk._compiled_call_impl = None


def create_accelerator(config: LoopConfig, project_dir: Path) -> Accelerator:
    """Build the accelerator of one training stage.

    Args:
        config: its precision and gradient accumulation.
        project_dir: where trackers write.
    """
    # Its precision is otherwise fixed by the first stage of a process; the process group stays.
    AcceleratorState._reset_state()
    return Accelerator(
        mixed_precision=resolved(config).mixed_precision,
        # A plugin, not the plain argument, which an environment variable of `accelerate launch` would override.
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=config.gradient_accumulation_steps, sync_with_dataloader=False
        ),
        cpu=use_cpu(),
        log_with="tensorboard",
        project_dir=project_dir,
        # Each phase of the alternation leaves some parameters without a gradient.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
