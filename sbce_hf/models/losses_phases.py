"""What the classifier is trained with in each phase: which losses of `losses_spatial_bce`, of what, added up how."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .configuration_spatial_bce import SpatialBceConfig
from .losses_spatial_bce import SumOverProcesses, proportion_kl, spatial_bce_loss, threshold_loss, weights_loss

Phase = Literal["bce", "weights", "threshold"]


def phase_losses(
    *,
    pixel_logits: Tensor,
    thresholds: Tensor,
    labels: Tensor,
    proportions: Tensor | None = None,
    label_maps: Tensor | None = None,
    phase: Phase,
    config: SpatialBceConfig,
    reduce: SumOverProcesses | None = None,
) -> dict[str, Tensor]:
    """The losses of one phase: what [`SpatialBceForImageClassification`] is trained with.

    Its arguments are what a loss of one's own for `train_classifier` is given, which may thus add to it.

    Args:
        pixel_logits (`torch.Tensor` of shape `(B, C, h, w)`): scaled class maps.
        thresholds (`torch.Tensor` of shape `(B, C)`): in (0, 1).
        labels (`torch.Tensor` of shape `(B, C)`): see `forward` of the model, as for the next three.
        proportions (`torch.Tensor` of shape `(B, C)`, *optional*): foreground proportions in [0, 1].
        label_maps (`torch.LongTensor` of shape `(B, H', W')`, *optional*): instead of proportions.
        phase (`str`): `"bce"`, `"weights"` or `"threshold"`.
        config ([`SpatialBceConfig`]): its fields from `normalization` to `kl_in_threshold_phase`.
        reduce: sums counts over processes, see `losses_spatial_bce`; `None` with one process.

    Returns:
        Scalars: `loss`; `spatial_loss`, which is without the proportion term; `proportion_loss`, this term before its
        weight, where there is one.

    Raises:
        ValueError: see `forward` of the model.

    Examples:
        >>> import torch
        >>> from sbce_hf import SpatialBceConfig, phase_losses
        >>> labels, config = torch.tensor([[1.0, 0.0]]), SpatialBceConfig(kl_weight=0.5)
        >>> given = {"pixel_logits": torch.zeros(1, 2, 8, 8), "thresholds": torch.full((1, 2), 0.4), "labels": labels}
        >>> losses = phase_losses(**given, proportions=0.25 * labels, phase="weights", config=config)
        >>> {name: round(loss.item(), 2) for name, loss in losses.items()}
        {'loss': 1.77, 'spatial_loss': 1.69, 'proportion_loss': 0.14}
    """
    if phase not in ("bce", "weights", "threshold"):
        raise ValueError(f"phase: got {phase!r}, expected 'bce', 'weights' or 'threshold'")
    if phase == "bce":
        logits = pixel_logits.float().mean(dim=(-2, -1))
        loss = F.binary_cross_entropy_with_logits(logits, labels.float())
        return {"loss": loss, "spatial_loss": loss}
    if phase == "threshold":
        spatial_loss = threshold_loss(pixel_logits, thresholds, labels, reduce)
        if not config.kl_in_threshold_phase or label_maps is not None:
            return {"loss": spatial_loss, "spatial_loss": spatial_loss}
    elif label_maps is not None:
        spatial_loss = spatial_bce_loss(
            pixel_logits, labels, None, config.normalization, label_maps=label_maps, reduce=reduce
        )
        return {"loss": spatial_loss, "spatial_loss": spatial_loss}
    if proportions is None:
        raise ValueError(
            f"phase {phase!r} needs proportions: a (B, C) tensor of each class's share of the image's pixels, "
            "as rough label maps give them"
        )
    check_proportions(proportions, labels)
    divergence = config.kl_form, config.kl_slope_leak, reduce
    if phase == "weights":
        spatial_loss, proportion_loss = weights_loss(
            pixel_logits, labels, proportions, config.normalization, config.present_loss, *divergence
        )
    else:
        proportion_loss = proportion_kl(pixel_logits, labels, proportions, *divergence)
    loss = spatial_loss + config.kl_weight * proportion_loss
    return {"loss": loss, "spatial_loss": spatial_loss, "proportion_loss": proportion_loss}


def check_proportions(proportions: Tensor, labels: Tensor) -> None:
    """Raise for proportions of present classes outside [0, 1], of which the losses make NaN.

    Only in main memory: on an accelerator it would wait for the device, every step. `train_classifier` checks them all
    before the first one.

    Args:
        proportions (`torch.Tensor` of shape `(B, C)`): foreground proportions.
        labels (`torch.Tensor` of shape `(B, C)`): above 0 for a present class.

    Raises:
        ValueError: one of them is negative, above 1, or NaN.
    """
    # A compiled or exported graph cannot depend on a value.
    if proportions.device.type != "cpu" or torch.compiler.is_compiling():
        return
    present = proportions[labels > 0]
    if not ((present >= 0) & (present <= 1)).all():
        raise ValueError(
            f"proportions: got {present.min().item():.3g} to {present.max().item():.3g} for present classes, expected "
            "0 to 1: shares of the image's pixels, not percent"
        )
