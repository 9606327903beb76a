"""The loss of segmentation networks as a pure function of tensors.

Everything is computed in float32 (float64 stays float64) whatever autocast is active.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def segmentation_loss(
    logits: Tensor,
    labels: Tensor,
    ignore_index: int = 255,
    balanced: bool = False,
    reduce: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Cross-entropy per pixel, at the labels' resolution.

    Args:
        logits (`torch.Tensor` of shape `(B, K, h, w)`): upsampled bilinearly to the labels' size.
        labels (`torch.Tensor` of shape `(B, H, W)`): integers; 0 is background, 1 to `K - 1` are foreground classes.
        ignore_index (`int`): label of pixels that do not count.
        balanced (`bool`): average foreground and background pixels apart and take the mean of the two, so that a small
            object weighs as much as the background around it. A side without pixels is left out.
        reduce: as `sum_over_processes`: sums counts over the processes of data-parallel training. The local loss is
            then scaled so that the gradient average taken by DDP is the gradient of the one-process loss.

    Returns:
        Scalar `torch.Tensor`; 0, with zero gradient, if no pixel counts.

    Examples:
        >>> import torch
        >>> from sbce_hf import segmentation_loss
        >>> logits = torch.zeros(1, 2, 4, 4)  # both labels are as probable
        >>> labels = torch.randint(2, (1, 32, 32))
        >>> round(segmentation_loss(logits, labels).item(), 3)
        0.693
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    logits = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
    losses = F.cross_entropy(logits, labels.long(), ignore_index=ignore_index, reduction="none")
    valid = labels != ignore_index
    sides = [valid & (labels > 0), valid & (labels == 0)] if balanced else [valid]
    totals = torch.stack([losses.masked_fill(~side, 0).sum() for side in sides])
    # The last entry becomes the number of processes.
    counts = torch.stack([*(side.sum() for side in sides), valid.new_ones((), dtype=torch.long)])
    if reduce is not None:
        counts = reduce(counts)
    pixels, processes = counts[:-1], counts[-1]
    return (totals * processes / pixels.clamp(min=1)).sum() / (pixels > 0).sum().clamp(min=1)
