"""The refinement of a run's last label maps: IRN, its boundary network trained on seeds of the same run.

    irn/seeds/    what is sure in the last round's class maps, the rest ignored
    irn/model/    the boundary network
    irn/labels/   irn and irn_crf: the class maps after the random walk, and after the CRF

No mask is read here.
"""

import time
from typing import TYPE_CHECKING

from accelerate import PartialState

from .config import IrnRefinementConfig, RunConfig, to_mapping
from .labelling.irn import SeedMethod, WalkMethod
from .labelling.store import LabelStore
from .models.modeling_irn import STRIDE, IrnModel
from .provenance import file_digest, weights_digest
from .steps import label_with_checkpoint
from .training.boundary import create_boundary_network, train_boundary
from .training.device import use_cpu

if TYPE_CHECKING:
    from .pipeline import Run

IRN = "irn"
# What the walk depends on besides the boundary network.
WALK = ("walk_radius", "walk_exponent", "walk_steps", "background_threshold")


def create_network(config: RunConfig, section: IrnRefinementConfig) -> IrnModel:
    """The boundary network that a run starts from.

    Raises:
        FileNotFoundError: see [`create_boundary_network`].
        ValueError: a trunk, weights and a crop that do not fit each other; see [`create_boundary_network`].
    """
    weights = section.trunk_weights or config.trunk_weights
    try:
        model = create_boundary_network(section.model, weights, config.seed)
    except ValueError as error:
        raise ValueError(
            f"irn.model and irn.trunk_weights (here {weights}): {error}. The trunk of the boundary network is "
            "irn.model.trunk, and its weights are the run's trunk_weights unless irn.trunk_weights says otherwise"
        ) from error
    radius, crop = model.config.radius, section.training.crop_size
    if -(-crop // STRIDE) < 2 * radius - 1:
        raise ValueError(
            f"irn.training.crop_size: got {crop}, expected at least {STRIDE * (2 * radius - 2) + 1} for "
            f"irn.model.radius {radius}: the boundary map has a quarter of the size"
        )
    return model


def refine(run: "Run", section: IrnRefinementConfig) -> None:
    """Find seeds, train the boundary network, label every image again; each part is done once."""
    config, folder, last = run.config, run.run_dir / IRN, run.stages[-1]
    classifier, labelling, strict = run.run_dir / last / "model", run.labelling(last), config.data.strict
    started = time.perf_counter()
    shares = {"seeds": [section.foreground_share, section.background_share]}
    label_with_checkpoint(classifier, run.images, labelling, folder, strict, method=SeedMethod(section), inputs=shares)
    run.process.wait_for_everyone()
    found = time.perf_counter() - started
    seeds = LabelStore(folder / SeedMethod.name, run.images.class_names)
    network = create_network(config, section)
    start = {"trunk_weights": weights_digest(section.trunk_weights or config.trunk_weights)}
    fitted = train_boundary(
        network, run.images, seeds, section.training, output_dir=folder, seed=config.seed, inputs=start
    )
    started = time.perf_counter()
    model = IrnModel.from_pretrained(fitted.model_dir).to(PartialState(cpu=use_cpu()).device)
    walk = {key: value for key, value in to_mapping(section).items() if key in WALK}
    inputs = {"walk": walk, "boundaries": file_digest(fitted.model_dir / "model.safetensors")}
    summary = label_with_checkpoint(
        classifier,
        run.images,
        labelling,
        folder / "labels",
        strict,
        method=WalkMethod(model, section, crf=run.with_crf),
        inputs=inputs,
    )
    run.process.wait_for_everyone()
    run.note_duration(f"{IRN}: training", fitted.seconds)
    if summary.num_labelled:
        run.note_duration(f"{IRN}: labelling", found + time.perf_counter() - started)
