"""Which parts of a trunk are frozen: by the stride of its levels, or by a share of its layers."""

from torch import nn


def names_of(trunk: nn.Module) -> list[str]:
    """Of modules, with a dot at the end, and of parameters, in order: many a level is a module without parameters."""
    return [
        f"{path}.{name}".removeprefix(".")
        for path, module in trunk.named_modules()
        for name in ("", *dict(module.named_parameters(recurse=False)))
    ][1:]


def count_frozen(names: list[str], levels: list[dict], frozen_reduction: int) -> int:
    """How many of the trunk's names, in order, belong to the levels of at most `frozen_reduction` stride."""
    frozen = 0
    for level in levels:
        if level["reduction"] > frozen_reduction:
            continue
        prefix = level["module"].replace(".", "_") + "_"
        # Adapters hold timm's model as `model`.
        inner = [name.removeprefix("model.").replace(".", "_") for name in names]
        frozen = max([frozen, *(i + 1 for i, name in enumerate(inner) if name.startswith(prefix))])
    return frozen


def count_share(names: list[str], share: float) -> int:
    """How many of the trunk's names, in order, belong to the first `share` of its layers, each frozen as a whole."""
    layers = [name.rpartition(".")[0] for name in names if not name.endswith(".")]
    order = list(dict.fromkeys(layers))
    last = set(order[: round(share * len(order))])
    return max([0, *(i + 1 for i, name in enumerate(names) if name.rpartition(".")[0] in last)])


def batch_norms(module: nn.Module) -> list[nn.Module]:
    """All batch norm layers of a module."""
    return [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
