"""Deterministic weights in the layout of the released ResNet-38 program, without any weight file.

`fill(shapes)` turns {parameter name: shape} (resnet38_layout.json) into {name: float32 array}. The same
weights produced resnet38_forward.npz, so an importer and a re-implementation can be checked end to end.
"""

import math

import numpy as np


def fill(shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """Returns one array per name; convolutions are scaled by sqrt(2 / fan_in), variances stay positive."""
    weights = {}
    for index, name in enumerate(sorted(shapes)):
        shape = tuple(shapes[name])
        if name.endswith("num_batches_tracked"):
            weights[name] = np.zeros(shape, dtype=np.int64)
            continue
        phase = np.arange(math.prod(shape), dtype=np.float64) * 12.9898 + index * 78.233
        wave = (np.modf(np.sin(phase) * 43758.5453)[0]).reshape(shape)  # pseudo-random in (-1, 1)
        if name.endswith("running_var"):
            values = 1.0 + 0.5 * wave**2
        elif name == "temperature":
            values = math.log(10.0) + 0.1 * wave
        elif len(shape) == 4:
            values = wave * math.sqrt(2.0 / math.prod(shape[1:]))
        elif name.endswith("weight"):
            values = 1.0 + 0.1 * wave
        else:
            values = 0.1 * wave
        weights[name] = values.astype(np.float32)
    return weights
