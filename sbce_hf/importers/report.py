"""What became of a foreign file's arrays."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class ImportReport:
    """What became of a file's arrays.

    Args:
        mapped: names in the file of the arrays that the model uses.
        unused: names in the file of those that it does not.
        missing: names in the model of what the file does not have and the model does not need.
        notes: what was assumed.
        preprocessing: what the weights are to be fed with, if the file says; see `write_trunk`.
    """

    mapped: tuple[str, ...]
    unused: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    preprocessing: Mapping[str, Any] | None = None

    def __str__(self) -> str:
        lines = [f"mapped:  {len(self.mapped)} arrays"]
        lines.append(f"unused:  {len(self.unused)} arrays of the file" + _names(self.unused))
        # One line would be a hundred counters.
        others = [name for name in self.missing if not name.endswith(COUNTER)]
        counters = len(self.missing) - len(others)
        hint = f" ({counters} counters, which stay 0)" if counters else ""
        lines.append(f"missing: {len(self.missing)} arrays of the model{hint}{_names(others)}")
        return "\n".join([*lines, *(f"note:    {note}" for note in self.notes)])


def _names(names: Iterable[str]) -> str:
    names = list(names)
    return ": " + ", ".join(names) if names else ""


def check_shapes(
    path: Path,
    found: Mapping[str, Any],
    expected: Mapping[str, tuple[int, ...]],
    what: str,
    optional: str | None = None,
) -> list[str]:
    """Compare a file's arrays with what a model needs.

    Args:
        path: the file, for messages.
        found: arrays by name; only their `shape` is read.
        expected: shapes by the same names.
        what: the model, for messages.
        optional: a name that may be missing; counters of batch norm always may.

    Returns:
        the expected names that are missing.

    Raises:
        ValueError: an array is missing, or has another shape.
    """
    missing = [name for name in expected if name not in found]
    lost = [name for name in missing if name != optional and not name.endswith(COUNTER)]
    if lost:
        some = ", ".join(lost[:5]) + (", ..." if len(lost) > 5 else "")
        raise ValueError(
            f"{path}: lacks {len(lost)} of the {len(expected)} arrays of {what}: {some}. The file belongs to another "
            "network, or is incomplete"
        )
    for name, shape in expected.items():
        if name in found and tuple(found[name].shape) != tuple(shape):
            raise ValueError(f"{path}: array {name!r}: got shape {tuple(found[name].shape)}, expected {tuple(shape)}")
    return missing
