"""Logged values: summed on the device, averaged over a window and all processes when they are written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

# Scalars, or sums with the weights to divide them by once all processes' are added up.
Values = Mapping[str, Tensor | tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Window:
    """Logged values since the last log, over all processes.

    Args:
        iteration: optimiser steps done.
        epoch: passes over the training set done, with fraction.
        means: weighted means; arrays of shape `()` or `(C,)`, NaN where the weight is 0.
        weights: what each mean is over, in the same shapes.
        last: no other follows.
    """

    iteration: int
    epoch: float
    means: dict[str, np.ndarray]
    weights: dict[str, np.ndarray]
    last: bool = False

    def total(self, key: str) -> np.ndarray:
        """The sum that a mean was made of, to be added to others; 0 where the weight is 0."""
        return np.nan_to_num(self.means[key] * self.weights[key], posinf=np.inf, neginf=-np.inf)

    def flat(self, class_names: Sequence[str]) -> dict[str, float]:
        """Name every figure: per-class values as `key/<class>`, and their mean over all classes as `key`.

        Figures without weight are left out.
        """
        line: dict[str, float] = {}
        for key, mean in self.means.items():
            weight = self.weights[key]
            if weight.sum() > 0:
                line[key] = float(self.total(key).sum() / weight.sum())
            if mean.ndim:
                pairs = zip(class_names, mean, strict=True)
                line |= {f"{key}/{name}": float(value) for name, value in pairs if not np.isnan(value)}
        return line


class WindowMeans:
    """Running sums of logged values; nothing leaves the device before they are needed."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Tensor, Tensor]] = {}

    def add(self, values: Values) -> None:
        """Add one micro-batch's values."""
        for key, value in values.items():
            total, weight = value if isinstance(value, tuple) else (value, torch.ones_like(value))
            total, weight = total.detach().double(), weight.detach().double()
            if key in self._sums:
                total, weight = self._sums[key][0] + total, self._sums[key][1] + weight
            self._sums[key] = total, weight

    def reduce(self, accelerator: Accelerator) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Means and weights over all processes, in one exchange; starts a new window."""
        parts = [part for pair in self._sums.values() for part in pair]
        flat = accelerator.reduce(torch.cat([part.reshape(-1) for part in parts]), reduction="sum")
        arrays = iter(
            array.cpu().numpy().reshape(part.shape)
            for array, part in zip(flat.split([part.numel() for part in parts]), parts, strict=True)
        )
        means, weights = {}, {}
        for key in self._sums:
            total, weight = next(arrays), next(arrays)
            with np.errstate(invalid="ignore"):
                means[key], weights[key] = np.asarray(total / weight), weight
        self._sums = {}
        return means, weights


def brief(line: Mapping[str, float]) -> str:
    """A line of values for a log, without those of single classes."""
    return ", ".join(f"{key} {value:.4g}" for key, value in line.items() if key != "iteration" and "/" not in key)
