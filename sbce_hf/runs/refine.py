"""The refinement of a run's last label maps: IRN, its boundary network trained on seeds of the same run.

    irn/seeds/    what is sure in the last round's class maps, the rest ignored
    irn/model/    the boundary network
    irn/labels/   the class maps after the random walk, before and after the CRF

No mask is read here.
"""

import time
from pathlib import Path

from ..config import IrnRefinementConfig, LabellingConfig, RunConfig, deciding
from ..data.preprocessing import Preprocessing
from ..files import file_digest, weights_digest
from ..inference.checkpoints import load_boundary_network, load_classifier
from ..inference.irn import ObjectMap, WalkMethod
from ..inference.irn_seeds import SeedMethod
from ..labels.store import LabelStore
from ..models.modeling_irn import STRIDE, IrnModel
from ..training.boundary import create_boundary_network, train_boundary
from .bench import Bench
from .guard import hold_back
from .settings import BCE, labelling_of
from .single import label_with_checkpoint
from .stage import Refinement, Stage

IRN = "irn"
# Fields of the run's model that go with its trunk's weights.
OF_THE_TRUNK = ("trunk", "trunk_kwargs", "backbone_config", "image_mean", "image_std", "interpolation")
# What the walk depends on besides the boundary network.
WALK = (
    "walk_radius",
    "walk_exponent",
    "walk_steps",
    "background_threshold",
    "map_weight",
    "object_weight",
    "boundary_weight",
)


def create_network(config: RunConfig, section: IrnRefinementConfig) -> IrnModel:
    """The boundary network that a run starts from.

    Raises:
        FileNotFoundError: see [`create_boundary_network`].
        ValueError: a trunk, weights and a crop that do not fit each other; see [`create_boundary_network`].
    """
    weights, fields = section.trunk_weights or config.trunk_weights, dict(section.model)
    if section.trunk_weights is None and "trunk" not in fields:
        # The run's weights are those of its own trunk.
        fields = {key: config.model[key] for key in OF_THE_TRUNK if key in config.model} | fields
    try:
        model = create_boundary_network(fields, weights, config.seed)
    except ValueError as error:
        raise ValueError(
            f"irn.model and irn.trunk_weights (here {weights}): {error}. The trunk of the boundary network is "
            "irn.model.trunk, by default the run's, and its weights are the run's trunk_weights unless "
            "irn.trunk_weights says otherwise"
        ) from error
    radius, crop = model.config.radius, section.training.crop_size
    if -(-crop // STRIDE) < 2 * radius - 1:
        raise ValueError(
            f"irn.training.crop_size: got {crop}, expected at least {STRIDE * (2 * radius - 2) + 1} for "
            f"irn.model.radius {radius}: the boundary map has a quarter of the size"
        )
    return model


def load_walk(
    run_dir: Path, section: IrnRefinementConfig, labelling: LabellingConfig
) -> tuple[WalkMethod, dict[str, str]]:
    """The walk with a run's trained boundary network, and the hash of each network that it asks.

    Args:
        run_dir: of the run.
        section: of its recipe.
        labelling: views of stage 0's look for objects, and the CRF.
    """
    boundaries, first, objects = run_dir / IRN / "model", run_dir / BCE / "model", None
    network = load_boundary_network(boundaries)
    asked = {"boundaries": boundaries}
    if section.object_weight:
        objects = ObjectMap(load_classifier(first), labelling)
        asked["objects"] = first
    walk = WalkMethod(network, section, labelling.crf, Preprocessing.of(network.config), objects)
    return walk, {name: file_digest(folder / "model.safetensors") for name, folder in asked.items()}


def refine(bench: Bench, stage: Stage) -> None:
    """Find seeds, train the boundary network, label every image again; each part is done once."""
    config, folder = bench.config, bench.run_dir / stage.name
    section = config.irn or IrnRefinementConfig()
    classifier, strict = bench.run_dir / stage.needs[0].name / "model", config.data.strict
    labelling = labelling_of(config, config.rounds)
    looked = classifier.parent / "labels"
    started = time.perf_counter()
    shares = {"seeds": [section.foreground_share, section.background_share]}
    seeding = SeedMethod(section)
    label_with_checkpoint(
        classifier, bench.images, labelling, folder, strict, method=seeding, inputs=shares, looked=looked
    )
    bench.process.wait_for_everyone()
    found = time.perf_counter() - started
    seeds = LabelStore(folder / seeding.name, bench.images.class_names)
    network = create_network(config, section)
    start = {"trunk_weights": weights_digest(section.trunk_weights or config.trunk_weights)}
    fitted = train_boundary(
        network, bench.images, seeds, section.training, output_dir=folder, seed=config.seed, inputs=start
    )
    started = time.perf_counter()
    walk, made_from = load_walk(bench.run_dir, section, labelling)
    settings = {key: value for key, value in deciding(section).items() if key in WALK}
    summary = label_with_checkpoint(
        classifier,
        bench.images,
        labelling,
        folder / "labels",
        strict,
        method=walk,
        inputs={"walk": settings, **made_from},
        looked=looked,
    )
    bench.process.wait_for_everyone()
    bench.note_duration(f"{stage.name}: training", fitted.seconds)
    if summary.num_labelled:
        bench.note_duration(f"{stage.name}: labelling", found + time.perf_counter() - started)
    bench.leave_out(LabelStore(folder / stage.stores[0]).skipped)
    hold_back(bench, stage)


REFINEMENT = Refinement(refine, note="IRN random walk", network=create_network)
