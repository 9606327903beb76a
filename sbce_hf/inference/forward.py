"""A batch of photos through a segmentation network, which may be any of transformers."""

from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

_FOREIGN = "transformers."


def logits_of(model: PreTrainedModel, batch: Tensor, flip: bool) -> Tensor:
    """Logits `(B, K, h, w)`, float32, of a batch and, if `flip`, then of its mirror images.

    Args:
        model: any whose output has `logits`; in evaluation mode.
        batch: `(B, 3, H, W)`, as the model wants it.
        flip: look at the mirror images, too.

    Raises:
        ValueError: the output has no such logits, or they are not finite; or a network of another library fails.
    """
    pixels = torch.cat([batch, batch.flip(-1)]) if flip else batch
    try:
        output = model(pixel_values=pixels, return_dict=True)
    except Exception as error:
        # Of a network of ours it is a defect; of others, a configuration that fits no photo, or none of this size.
        if not type(model).__module__.startswith(_FOREIGN) or isinstance(error, MemoryError | torch.OutOfMemoryError):
            raise
        height, width = batch.shape[-2:]
        raise ValueError(
            f"{type(model).__name__} cannot be run on a photo of {width}x{height} pixels: {error}; set image_size as "
            "in its training, or fetch another checkpoint: its config.json may be damaged"
        ) from error
    logits, num_labels = getattr(output, "logits", None), cast(Any, model.config).num_labels
    if logits is None or logits.ndim != 4 or logits.shape[1] != num_labels:
        got = "none" if logits is None else f"shape {tuple(logits.shape)}"
        raise ValueError(
            f"logits of {type(model).__name__}: got {got}, expected (batch, {num_labels}, height, width), as models "
            "for semantic segmentation return them"
        )
    if not bool(logits.isfinite().all()):
        raise ValueError(
            f"logits of {type(model).__name__}: not finite; its training diverged, or its weights are damaged"
        )
    return logits.float()
