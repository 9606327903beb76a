"""A loss of one's own for the classifier: what it is given, what it may return, and how a stage is known by it."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from accelerate import PartialState
from torch import Tensor, nn

from ..errors import UserError
from ..models.configuration_spatial_bce import SpatialBceConfig
from ..models.losses_phases import Phase
from ..models.losses_spatial_bce import SumOverProcesses
from .device import use_cpu

# What is logged besides, whatever the loss.
TAKEN = ("iteration", "lr", "images_per_second", "logit_scale", "mean_p", "mean_q", "soft_share", "threshold")


class ClassifierLoss(Protocol):
    """A function from what the classifier says of a batch, and what is known of it, to a loss.

    Everything is given by name; what a loss has no use for it takes as `**others`. All maps are float32, whatever the
    precision of training. The loss is a function of its arguments alone: of an object, nothing is trained or saved.
    """

    def __call__(
        self,
        *,
        pixel_logits: Tensor,
        thresholds: Tensor,
        labels: Tensor,
        proportions: Tensor | None,
        label_maps: Tensor | None,
        phase: Phase,
        config: SpatialBceConfig,
        reduce: SumOverProcesses,
    ) -> Tensor | Mapping[str, Tensor]:
        """Compute the loss of one batch.

        Args:
            pixel_logits: `(B, C, h, w)` scaled class maps.
            thresholds: `(B, C)`, in (0, 1).
            labels: `(B, C)`, 1 for a present class.
            proportions: `(B, C)` foreground proportions; `None` in stage 0.
            label_maps: `(B, H, W)` integers, 0 background, `c + 1` class `c`, 255 unknown; `None` unless the stage's
                `targets` are `"labels"`.
            phase: `"bce"` in stage 0, then `"weights"` and `"threshold"` in turn. What has no part in the loss of a
                phase is not trained in it.
            config: the model's.
            reduce: gives the sum of a count over all processes. A plain mean over the batch needs none; a mean over
                something that processes have different numbers of is `total * processes / reduce(count)`, as in
                [`losses_spatial_bce`].

        Returns:
            a scalar with a gradient, or a mapping with this scalar as `"loss"` and others by the names under which
            they are logged; the same names whenever the phase is the same.
        """


def name_of(loss: Callable[..., Any]) -> str:
    """The qualified name of a loss, by which a stage is not continued with another one.

    Args:
        loss: a function, an object, or a `functools.partial`, whose arguments are part of the name.
    """
    if isinstance(loss, functools.partial):
        given = [*map(repr, loss.args), *(f"{key}={value!r}" for key, value in sorted(loss.keywords.items()))]
        return f"{name_of(loss.func)}({', '.join(given)})"
    named = loss if hasattr(loss, "__qualname__") else type(loss)
    return f"{named.__module__}.{named.__qualname__}"


def own_loss(loss: ClassifierLoss, phase: Phase, **given: Any) -> dict[str, Tensor]:
    """Call a loss of one's own.

    Args:
        loss: see [`ClassifierLoss`].
        phase: of the training.
        given: its other arguments.

    Returns:
        `loss`, and what else it returned.

    Raises:
        UserError: it returned something else than a loss.
    """
    found: Any = loss(phase=phase, **given)
    values = dict(found) if isinstance(found, Mapping) else {"loss": found}
    where = f"loss {name_of(loss)} in phase {phase!r}"
    if "loss" not in values:
        raise UserError(f"{where}: got a mapping of {list(values)}, expected 'loss' among them")
    for name, value in values.items():
        if name in TAKEN:
            raise UserError(f"{where}: got a part {name!r}, expected another name than {', '.join(TAKEN)}")
        if not isinstance(value, Tensor) or value.ndim or not value.is_floating_point():
            got = f"a tensor of shape {tuple(value.shape)} and {value.dtype}" if isinstance(value, Tensor) else value
            raise UserError(f"{where}: got {name!r} = {got}, expected a floating-point tensor without dimensions")
    if not values["loss"].requires_grad:
        raise UserError(f"{where}: got a loss without a gradient, expected one that depends on what it is given")
    return values


def try_own_loss(loss: ClassifierLoss, config: SpatialBceConfig, phases: tuple[Phase, ...], with_maps: bool) -> None:
    """Call a loss of one's own once for each phase, on a small drawn batch: mistakes are told before long work starts.

    Args:
        loss: see [`ClassifierLoss`].
        config: the model's.
        phases: of the training.
        with_maps: whether label maps are trained on.

    Raises:
        UserError: it has parameters, raises an error, or returns something else than a loss.
    """
    if isinstance(loss, nn.Module) and any(True for _ in loss.parameters()):
        raise UserError(
            f"loss {name_of(loss)}: has parameters, expected none, because nothing would train or save them; "
            "give the model what is to be learned"
        )
    device, draws = PartialState(cpu=use_cpu()).device, torch.Generator().manual_seed(0)
    classes = int(config.num_labels or 0)
    labels = torch.zeros(2, classes)
    # One image with the first class, one without any.
    labels[0, 0] = 1
    proportions = None if phases == ("bce",) else 0.25 * labels.double()
    label_maps = torch.randint(2, (2, 32, 32), generator=draws) if with_maps else None
    for phase in phases:
        drawn = [torch.randn(2, classes, *shape, generator=draws).to(device) for shape in ((8, 8), ())]
        maps, thresholds = (values.requires_grad_() for values in drawn)
        try:
            own_loss(
                loss,
                phase,
                pixel_logits=maps,
                thresholds=thresholds.sigmoid(),
                labels=labels.to(device),
                proportions=None if proportions is None else proportions.to(device),
                label_maps=None if label_maps is None else label_maps.to(device),
                config=config,
                reduce=torch.clone,
            )
        except UserError:
            raise
        # A function of somebody else's; any error can come of it.
        except Exception as error:
            raise UserError(
                f"loss {name_of(loss)} in phase {phase!r}: {type(error).__name__}: {error}; expected a function of "
                "pixel_logits, thresholds, labels, proportions, label_maps, phase, config and reduce, all by name"
            ) from error
