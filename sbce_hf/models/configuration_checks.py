"""Checks that every configuration of this package makes."""

import difflib
from collections.abc import Iterable
from typing import Any

from transformers import PreTrainedConfig

# Keys that `PreTrainedConfig` takes, or `save_pretrained` writes, without declaring a field or property for them.
_UNDECLARED_KEYS = {
    "attn_implementation",
    "auto_map",
    "custom_pipelines",
    "experts_implementation",
    "quantization_config",
    "torch_dtype",
}


def check_keys(config: PreTrainedConfig, keys: Iterable[str]) -> None:
    """Raise for a misspelt key, which `PreTrainedConfig` would keep as an attribute that nothing reads.

    Args:
        config: whose `__post_init__` got the keys.
        keys: that are no fields of it.

    Raises:
        ValueError: an unknown key; names the nearest known one.
    """
    kind = type(config)
    for key in keys:
        if key.startswith("_") or key in _UNDECLARED_KEYS or hasattr(kind, key):
            continue
        known = [*kind.__annotations__, "id2label", "label2id", "num_labels"]
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
        # Files, which carry this version, may also hold keys of a newer transformers.
        if near or config.transformers_version is None:
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
            raise ValueError(f"{kind.__name__}: unknown key {key!r}; {hint}")


def check_trunk(config: Any) -> None:
    """Check the ranges of the fields that describe a trunk.

    Raises:
        ValueError: a value outside its range.
    """
    name = type(config).__name__
    if config.frozen_reduction < 0:
        raise ValueError(f"{name}.frozen_reduction: got {config.frozen_reduction}, expected at least 0")
    if config.output_stride is not None and config.output_stride not in (8, 16, 32):
        raise ValueError(f"{name}.output_stride: got {config.output_stride}, expected 8, 16, 32 or None")
