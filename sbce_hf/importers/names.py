"""Which of a file's tensors are the trunk's, and what timm calls them: prefixes, torchvision, timm's own filters."""

import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from ..models.modeling_trunk_weights import flat_name, missing_weights
from .torchvision_names import MARKS, from_torchvision

# Modules around a trunk, as in `model.student.backbone.`; more are somebody's joke.
_MAX_DEPTH = 4
# Of two copies of a network, the running mean is the better one (Caron et al., "Emerging Properties in Self-Supervised
# Vision Transformers", 2021).
_PREFERRED = ("teacher", "ema")


def with_timm_names(
    path: Path, state: Mapping[str, Tensor], trunk: str, model: torch.nn.Module, prefix: str | None = None
) -> tuple[dict[str, Tensor], list[str], bool]:
    """The tensors of a network, by timm's names.

    Args:
        path: the file, for messages.
        state: all its tensors.
        trunk: timm's name of the network.
        model: the trunk.
        prefix: of the tensors that are meant; `None` looks for it.

    Returns:
        the tensors; what was assumed, in words; and whether they are torchvision's.

    Raises:
        ValueError: no tensor has the prefix, or two parts of the file may be meant.
    """
    chosen = _prefix(path, state, model) if prefix is None else f"{prefix.rstrip('.')}."
    found = {name.removeprefix(chosen): tensor for name, tensor in state.items() if name.startswith(chosen)}
    if not found:
        shown = ", ".join(sorted({name.partition(".")[0][:40] for name in state})[:8])
        raise ValueError(f"{path}: --prefix: no tensor's name starts with {chosen!r}; they start with {shown}")
    notes = [f"took the {len(found)} arrays of {chosen!r}, without this prefix"] if chosen else []
    if not missing_weights(model, found):
        return found, notes, False
    with torch.device("meta"):
        plain = timm.create_model(trunk, pretrained=False)
    renamed = from_torchvision(found, plain.state_dict())
    if renamed is not None:
        return renamed, [*notes, "names are torchvision's; fed with ImageNet's mean and deviation"], True
    if not missing_weights(model, filtered := _filtered(found, plain)):
        return filtered, [*notes, "names are those of the network's authors, which timm knows"], False
    return found, notes, False


def _prefix(path: Path, state: Mapping[str, Tensor], model: torch.nn.Module) -> str:
    """The prefix under which most of the trunk's weights are; an empty one if there are none."""
    needed = {flat_name(name) for name in missing_weights(model, ())}
    counts = Counter(prefix for name in state for prefix in _prefixes(name) if _flat(name, prefix) in needed)
    # Half of them are enough: what is missing is told later, by name.
    best = max([*counts.values(), len(needed) / 2])
    found = [prefix for prefix, count in counts.items() if count == best]
    marked = {name.removesuffix(mark) for name in state for mark in MARKS if f".{name}".endswith(f".{mark}")}
    found = found or sorted(marked)
    if "" in found or not found:
        return ""
    if len(found) > 1:
        found = [one for one in found if set(re.split("[._]", one)) & set(_PREFERRED)] or found
    if len(found) > 1:
        shown = ", ".join(repr(one[:80]) for one in sorted(found)[:8])
        raise ValueError(f"{path}: holds the network more than once, as {shown}; say which one: --prefix NAME")
    return found[0]


def _prefixes(name: str) -> Iterable[str]:
    parts = name.split(".", _MAX_DEPTH + 1)
    return ("".join(f"{part}." for part in parts[:depth]) for depth in range(min(len(parts), _MAX_DEPTH + 1)))


def _flat(name: str, prefix: str) -> str:
    return name[len(prefix) :].replace(".", "_")


def _filtered(state: dict[str, Tensor], plain: Any) -> dict[str, Tensor]:
    """What timm makes of the names that the network's authors gave; the same if it cannot."""
    convert = getattr(sys.modules[type(plain).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return state
    try:
        found = convert(dict(state), plain)
    # A stranger's file may have anything under a name; what is missing is told by name.
    except Exception:
        return state
    tensors = {name: value for name, value in found.items() if isinstance(value, Tensor) and not value.is_meta}
    return {name: value.detach() for name, value in tensors.items()}
