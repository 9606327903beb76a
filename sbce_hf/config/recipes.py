"""Recipe files, and what `official` and `mixed_precision` stand for in them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError
from .parsing import from_mapping, merge
from .ranges import shown
from .run import RunConfig
from .yaml_text import read_yaml_file

RECIPES = Path(__file__).parent.parent / "recipes"

_OFFICIAL_TRAINING = {
    "head_lr_factor": 10.0,
    "scale_lr_factor": 10.0,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "poly_power": 0.9,
    "max_grad_norm": None,
    "augmentation": {
        "flip": False,
        "color_jitter": 0.0,
        "randaugment": 2,
        "randaugment_magnitude": 9,
        "geometric": True,
    },
}

# What the recipe key `official: true` sets: the released program's choices, see [`load_recipe`]. What depends on the
# data set and the machine stays the recipe's: trunk, image size, batch, learning rate, epochs, rounds, and the period
# of the alternation.
OFFICIAL: dict[str, Any] = {
    "model": {
        "embedding_dim": 128,
        "class_map_bias": False,
        "logit_scale_init": 10.0,
        "normalization": "official",
        "present_loss": "ratio",
        "kl_weight": 1.0,
        "kl_form": "bernoulli",
        "kl_slope_leak": 0.0,
        "kl_in_threshold_phase": True,
        "detach_threshold_input": False,
    },
    "bce": _OFFICIAL_TRAINING,
    "spatial": {**_OFFICIAL_TRAINING, "targets": "proportions"},
    "labelling": {
        "rule": "official",
        "scales": [1.0, 0.5, 1.5, 2.0],
        "flip": True,
        "crf": {
            "iterations": 10,
            "gt_prob": 0.7,
            "gaussian_sxy": 3.0,
            "gaussian_compat": 3.0,
            "bilateral_sxy": 40.0,
            "bilateral_srgb": 5.0,
            "bilateral_compat": 10.0,
            "side": None,
            "min_kept": 0.0,
        },
    },
    "proportions": {"lost": "minimum"},
    "guard": None,
    "first_rule": "fixed",
    "final_scales": None,
}


# What a recipe may say beside the fields of its config.
SHORTHANDS = {
    "official": "true or false. All of the released program's choices at once: loss, rule, CRF, views, augmentation, "
    "rate factors. They replace the recipe's values; what is set beside it still wins.",
    "mixed_precision": "no, bf16, fp16 or auto. The precision of every stage's network, trained or labelling, "
    "see bce.mixed_precision. It replaces the recipe's values; what is set beside it still wins.",
}


def recipe_path(name: str) -> Path:
    """The file of a built-in recipe, or the given path itself.

    Raises:
        FileNotFoundError: neither exists.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else RECIPES / f"{name}.yaml"
    if not path.is_file():
        built_in = ", ".join(sorted(p.stem for p in RECIPES.glob("*.yaml")))
        raise FileNotFoundError(f"recipe {name!r}: no file {path}; built-in recipes: {built_in}, or pass a .yaml file")
    return path


def load_recipe(name: str, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """Read a recipe, apply overrides, check everything.

    `official: true`, in the file or the overrides, stands for the values of [`OFFICIAL`]: they replace the file's and
    are replaced by the overrides'. `mixed_precision: auto` likewise stands for that of every stage that there is. The
    config that is returned, and saved by a run, has the values only.

    Args:
        name: a built-in recipe's name or a YAML file.
        overrides: nested mappings, merged over the file.

    Raises:
        FileNotFoundError: no such recipe.
        UserError: invalid YAML, an unknown key or an impossible value.

    Examples:
        >>> from sbce_hf import load_recipe
        >>> config = load_recipe("own-data", {"data": {"data_dir": "photos"}, "rounds": 1, "spatial": {"lr": 0.002}})
        >>> config.data.data_dir, config.rounds, config.spatial.lr
        ('photos', 1, 0.002)
    """
    path = recipe_path(name)
    values, overrides = read_yaml_file(path), dict(overrides or {})
    official, precision = (overrides.pop(name, values.pop(name, None)) for name in SHORTHANDS)
    if not isinstance(official, bool | None):
        raise UserError(f"official: got {shown(official)}, expected true or false")
    if official:
        values = merge(values, OFFICIAL)
    override, section = overrides.get("segmenter"), values.get("segmenter")
    wanted = override.get("architecture") if isinstance(override, Mapping) else None
    if wanted is not None and isinstance(section, Mapping) and wanted != section.get("architecture", "deeplab"):
        # The file's fields are those of another architecture.
        values["segmenter"] = {key: value for key, value in section.items() if key != "model"}
    for key, value in overrides.items():
        # Merging would replace it, and with it the mistake.
        if isinstance(value, Mapping) and not isinstance(values.get(key), Mapping | None):
            raise UserError(f"{path.name}.{key}: got {shown(values[key])}, expected a mapping of fields")
    if precision is not None:
        values = merge(values, _precisions(precision, merge(values, overrides)))
    return from_mapping(RunConfig, merge(values, overrides), where=path.name)


def _precisions(precision: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """A precision for all stages of a recipe with some values."""
    everywhere: dict[str, Any] = {name: {"mixed_precision": precision} for name in ("bce", "spatial", "labelling")}
    for name in ("irn", "segmenter"):
        if values.get(name) is not None:
            everywhere[name] = {"training": {"mixed_precision": precision}}
    return everywhere
