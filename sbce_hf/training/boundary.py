"""Training of IRN's boundary network on seeds: label maps that keep what is sure and ignore the rest."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import Tensor

from ..config import BoundaryTrainingConfig
from ..data import TaggedImages
from ..data.preprocessing import Preprocessing
from ..labels.label_maps import LabelMaps, check_label_maps
from ..models.configuration_irn import IrnConfig
from ..models.modeling_irn import IrnModel
from .backbones import load_start, resolve_backbone
from .crops import SegmentationDataset
from .folder import FitSummary
from .loop import fit
from .metrics import Values, Window
from .optimization import sgd


class BoundaryTask:
    """A step of the boundary network.

    Args:
        config: learning rate.
    """

    def __init__(self, config: BoundaryTrainingConfig) -> None:
        self.config = config
        self.class_names: tuple[str, ...] = ()

    def optimizer(self, model: IrnModel) -> torch.optim.Optimizer:
        """SGD on one group: the trunk is frozen, everything else is trained alike."""
        head = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return sgd([{"name": "head", "params": head, "lr": self.config.lr * self.config.head_lr_factor}], self.config)

    def loss(self, model: Any, batch: dict[str, Tensor], iteration: int) -> tuple[Tensor, Values]:
        """Loss of one batch with `pixel_values` and `labels`."""
        output = model(pixel_values=batch["pixel_values"], labels=batch["labels"])
        parts = {"same_loss": output.same_loss, "different_loss": output.different_loss}
        return output.loss, {"loss": output.loss, **parts}

    def check(self, window: Window) -> None:
        """Nothing beyond the loop's own check that the loss is finite."""

    def state(self) -> dict[str, Any]:
        """Nothing is remembered."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Nothing was remembered."""


def create_boundary_network(fields: Mapping[str, Any], trunk_weights: str, seed: int = 0) -> IrnModel:
    """Build the boundary network to start from.

    Args:
        fields: of [`IrnConfig`].
        trunk_weights: see [`load_trunk_weights`]; `"random"` loads nothing.
        seed: of the weights that are not loaded.

    Raises:
        FileNotFoundError: see [`load_trunk_weights`].
        ValueError: see [`IrnConfig`] and [`load_trunk_weights`].
    """
    set_seed(seed)
    fields, trunk_weights = resolve_backbone(fields, trunk_weights)
    model = IrnModel(IrnConfig(**fields))
    load_start(model, trunk_weights)
    return model


def train_boundary(
    model: IrnModel,
    images: TaggedImages,
    seeds: LabelMaps,
    config: BoundaryTrainingConfig,
    *,
    output_dir: Path,
    seed: int = 0,
    inputs: Mapping[str, Any] | None = None,
) -> FitSummary:
    """Train the boundary network; see [`fit`] for resuming.

    Args:
        model: see [`create_boundary_network`].
        images: the training set; those without seeds are left out.
        seeds: their label maps; 255 is neither class nor background.
        config: of the training.
        output_dir: of the stage.
        seed: of order and augmentation.
        inputs: what else a training and its continuation must agree on; plain values.

    Returns:
        The summary; the trained model is in its `model_dir`.

    Raises:
        ValueError: images and seeds do not belong together; see [`check_label_maps`].
        TrainingHealthError: the loss is not finite.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from sbce_hf import DataConfig, IrnConfig, IrnModel, load_images, train_boundary
        >>> from sbce_hf.config import BoundaryTrainingConfig
        >>> from sbce_hf.labels.label_maps import MaskLabels
        >>> images = load_images(DataConfig(source="shapes", shapes_images=8, shapes_size=48), "train")
        >>> model = IrnModel(IrnConfig(trunk="test_resnet", side_channels=8, radius=4))
        >>> config = BoundaryTrainingConfig(epochs=2, batch_size=4, crop_size=48, num_workers=0)
        >>> with tempfile.TemporaryDirectory() as folder:  # true masks, in the place of a `LabelStore`
        ...     fitted = train_boundary(model, images, MaskLabels(images), config, output_dir=Path(folder))
        >>> fitted.iterations, fitted.images
        (4, 8)
    """
    images, seeds_hash = check_label_maps(images, seeds)
    dataset = SegmentationDataset(images, seeds, config, seed, Preprocessing.of(model.config))
    inputs = {
        **(inputs or {}),
        "images": images.manifest_hash,
        "seeds": seeds_hash,
        "model": {name: getattr(model.config, name) for name in type(model.config).__annotations__},
    }
    task = BoundaryTask(config)
    return fit(
        model, task, dataset, config, output_dir=Path(output_dir), seed=seed, name="irn.training", inputs=inputs
    )
