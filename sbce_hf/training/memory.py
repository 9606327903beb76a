"""How much memory training will take, told before it starts."""

from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from ..config import LoopConfig


@dataclass(frozen=True)
class MemoryEstimate:
    """Memory of one process while it trains, in bytes; see [`estimate_memory`].

    Args:
        weights: of the whole model, with their 16-bit copies in mixed precision.
        gradients: of what is trained.
        optimizer: what it keeps: momentum, or AdamW's two moments.
        activations: what the forward pass keeps for the backward pass, and the images.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """Their sum, an upper bound of the four: activations go while gradients come."""
        return self.weights + self.gradients + self.optimizer + self.activations


def estimate_memory(model: PreTrainedModel, batch: int, size: int, training: LoopConfig) -> MemoryEstimate:
    """Estimate what training takes, by a forward pass without numbers (on torch's meta device).

    Counted is what autograd keeps. Not counted are the loss, work space of single operations, what the allocator keeps
    in reserve, and the libraries themselves. In mixed precision activations are taken as half of the float32 ones.

    Args:
        model: moved to the meta device: its weights are gone afterwards.
        batch: images of one forward pass.
        size: their height and width in pixels.
        training: its precision and optimiser.

    Raises:
        RuntimeError: the model uses an operation that the meta device does not have.
    """
    model.to(cast(Any, "meta"))
    model.train()
    # Kept as well, but counted as weights.
    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    images = torch.empty(batch, 3, size, size, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(pixel_values=images)
    del output
    half = training.mixed_precision != "no"
    parameters = list(model.parameters())
    trained = sum(parameter.nbytes for parameter in parameters if parameter.requires_grad)
    weights = sum(tensor.nbytes for tensor in (*parameters, *model.buffers()))
    return MemoryEstimate(
        weights=weights + (weights // 2 if half else 0),
        gradients=trained,
        optimizer=trained * training.optimizer_states,
        activations=images.nbytes + sum(kept.values()) // (2 if half else 1),
    )
