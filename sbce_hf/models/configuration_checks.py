"""Checks that every configuration of this package makes: a `config.json` describes an architecture and nothing else.

What arrives here may come from a stranger. A key that steers how transformers or timm load a checkpoint (which file,
which URL, which kernel) is no architecture, and a number decides how much memory is taken before any weight is read.

Longer than 300 lines: these checks are one file of the code that travels with every checkpoint.
"""

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, Literal, get_args

from transformers import PreTrainedConfig

# Keys that `PreTrainedConfig` takes, or `save_pretrained` writes, without declaring a field for them.
_UNDECLARED_KEYS = {
    "attn_implementation",
    "auto_map",
    "custom_pipelines",
    "experts_implementation",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "torch_dtype",
    "use_return_dict",
}
# Keys that choose other files or other code than the checkpoint's own, with what to do instead.
STEERING_KEYS = {
    "configuration_files": "keep one config.json",
    "fusion_config": "leave it out",
    "kernel_config": "leave it out",
    "quantization_config": "save the weights as plain floating-point numbers",
    "transformers_weights": "name the file model.safetensors",
}
# There is no attention in these models that could be replaced; other names are repositories on the Hub, with code.
IMPLEMENTATIONS = (None, "eager", "sdpa")
_DTYPES = ("float16", "bfloat16", "float32", "float64")
# Label maps are 8-bit images, in which 255 is ignored.
MAX_LABELS = 255
_MAX_NAME = 256
# Control characters, ends of lines, marks of direction, halves of surrogate pairs, what is no character.
UNSEEN = re.compile(
    "[\\x00-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069\\ud800-\\udfff\\ufffe\\uffff]"
)

# A timm model, with or without the name of its weights; a ":" or "/" would name a repository or a folder.
TRUNK = re.compile(r"[a-zA-Z0-9_]{1,64}(\.[a-zA-Z0-9_]{1,64})?")
# Arguments of timm's models that describe an architecture. All others of `timm.create_model` choose files or URLs, or
# are decided by this package: pretrained, features_only, out_indices, output_stride, in_chans, num_classes.
TRUNK_ARGUMENTS = frozenset(
    {
        *("act_layer", "norm_layer", "attn_layer", "aa_layer", "se_layer", "pad_type", "stem_type"),
        *("norm_eps", "bn_eps", "bn_momentum"),
        *("drop_rate", "drop_path_rate", "proj_drop_rate", "attn_drop_rate", "pos_drop_rate", "patch_drop_rate"),
        *("img_size", "patch_size", "window_size", "strict_img_size", "dynamic_img_size", "dynamic_img_pad"),
        *("embed_dim", "embed_dims", "depth", "depths", "dims", "layers", "channels", "num_heads", "mlp_ratio"),
        *("mlp_ratios", "kernel_size", "kernel_sizes", "cardinality", "base_width", "stem_width", "stem_chs"),
        *("qkv_bias", "qk_norm", "proj_bias", "init_values", "ls_init_value", "layer_scale_init_value", "pre_norm"),
        *("class_token", "reg_tokens", "no_embed_class", "final_norm", "always_partition"),
        *("avg_down", "replace_stem_pool", "block_reduce_first", "zero_init_last", "conv_mlp", "conv_bias", "use_grn"),
    }
)
# A backbone of transformers, by its model_type; `backbone_config` describes it.
BACKBONE = re.compile(r"hf:[a-z0-9_-]{1,64}")
_DEPTHS = ("depth", "depths", "layers")
MAX_DEPTH, MAX_WIDTH = 512, 16384
# Attention within a window makes tables of its fourth power, some of them in Python.
MAX_WINDOW = 32
# How photos are resized.
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
# Of normalisation: below one grey value a deviation is none of a photo.
MIN_STD = 1 / 256
_WORD = re.compile(r"[a-z0-9_]{0,32}")


class PaletteMixin:
    """A configuration with a `palette`, which goes with the labels it was made for.

    `num_labels=` or `id2label=` of `from_pretrained` replace the labels of a file whose palette is already there. Put
    it before `PreTrainedConfig` among the bases.
    """

    palette: list[list[int]] | None
    # Values of a label map that are no label, such as a classifier's background.
    unlabelled_values = 0

    def default_palette(self) -> list[list[int]] | None:
        """Colours for labels that have none of their own; `None` leaves them out."""
        return None

    def __setattr__(self, key: str, value: Any) -> None:
        before = self.__dict__.get("id2label") if key == "id2label" else None
        super().__setattr__(key, value)
        # Without labels before, or with as many, a palette of another length is a mistake to be told.
        if not isinstance(before, dict) or not isinstance(value, dict) or len(before) == len(value):
            return
        if self.palette is not None and len(self.palette) != len(value) + self.unlabelled_values:
            self.palette = self.default_palette()


def label_names(config: PreTrainedConfig) -> tuple[str, ...]:
    """The names of a configuration's labels in the order of their ids, empty where an id is left out."""
    names: Mapping[Any, str] = config.id2label or {}
    return tuple(names.get(index, "") for index in range(len(names)))


def label_fields(names: Iterable[str]) -> dict[str, Any]:
    """The fields of a configuration that say how its labels are called.

    Args:
        names: in the order of their ids.
    """
    id2label = dict(enumerate(names))
    return {"id2label": id2label, "label2id": {name: index for index, name in id2label.items()}}


def checked_keys(config: PreTrainedConfig, keys: Mapping[str, Any]) -> dict[str, Any]:
    """Look at the keys of a configuration that are no fields of it, before `PreTrainedConfig` acts on them.

    Args:
        config: whose `__post_init__` got the keys.
        keys: with their values.

    Returns:
        the keys to go on with. Unknown ones of a file, which a newer transformers may have written, are left out:
        `PreTrainedConfig` would make attributes of them, and so replace its own methods.

    Raises:
        ValueError: a misspelt key, with the nearest known one; or one that decides what is loaded, or how many labels.
    """
    kind = type(config).__name__
    own = [*type(config).__annotations__, "id2label", "label2id", "num_labels"]
    known = {*own, *(field.name for field in fields(config)), *_UNDECLARED_KEYS}
    kept = {}
    for key, value in keys.items():
        if key in STEERING_KEYS:
            raise ValueError(
                f"{kind}.{key}: got {value!r}; a checkpoint may not decide how it is loaded: {STEERING_KEYS[key]}"
            )
        if key in _UNDECLARED_KEYS:
            kept[key] = value
        if key in kept or key == "model_type":
            continue
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
        # Files carry this version.
        if not key.startswith("_") and (near or config.transformers_version is None):
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(own)}"
            raise ValueError(f"{kind}: unknown key {key!r}; {hint}")
    for key in ("attn_implementation", "experts_implementation"):
        if kept.get(key) not in IMPLEMENTATIONS:
            raise ValueError(f"{kind}.{key}: got {kept[key]!r}, expected one of {IMPLEMENTATIONS}")
    for key, dtype in (("dtype", config.dtype), ("torch_dtype", kept.get("torch_dtype"))):
        if isinstance(dtype, str) and dtype not in _DTYPES:
            raise ValueError(f"{kind}.{key}: got {dtype!r}, expected one of {_DTYPES}")
    check_labels(kind, config.id2label, kept.get("num_labels"))
    return kept


def check_labels(kind: str, id2label: Any, num_labels: Any = None) -> None:
    """Check the labels of a configuration: as many as a label map can hold, numbered from 0, with names to see.

    Args:
        kind: of the configuration, for messages.
        id2label: `None` where the configuration has none yet.
        num_labels: that it asks for.

    Raises:
        ValueError: names what is wrong.
    """
    # `PreTrainedConfig` makes a name for each of them.
    if num_labels is not None and not (isinstance(num_labels, int) and 0 <= num_labels <= MAX_LABELS):
        raise ValueError(
            f"{kind}.id2label: got num_labels {num_labels!r}, expected 0, 1, ... of at most {MAX_LABELS} labels, as "
            "label maps are 8-bit images"
        )
    if id2label is None:
        return
    if not isinstance(id2label, dict) or len(id2label) > MAX_LABELS:
        got = (
            f"a {type(id2label).__name__} of {len(id2label)}" if isinstance(id2label, dict | list) else repr(id2label)
        )
        raise ValueError(f"{kind}.id2label: got {got}, expected a mapping of at most {MAX_LABELS} ids to names")
    if {str(key) for key in id2label} != {str(index) for index in range(len(id2label))}:
        raise ValueError(
            f"{kind}.id2label: got the ids {str(list(id2label))[:200]}, expected 0, 1, ... of at most "
            f"{MAX_LABELS} labels"
        )
    for key, name in id2label.items():
        if not isinstance(name, str) or len(name) > _MAX_NAME or UNSEEN.search(name):
            raise ValueError(
                f"{kind}.id2label: {key}: got {ascii(str(name)[:80])}, expected a name of at most {_MAX_NAME} "
                "characters to see"
            )
    if len(set(id2label.values())) < len(id2label):
        names = list(id2label.values())
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{kind}.id2label: got {twice[:80]!r} twice, expected each name once; rename a label")


def check_trunk(config: Any) -> None:
    """Check the fields that describe a trunk: a model of timm's by its name, and arguments of its architecture.

    Raises:
        ValueError: a value outside its range, or an argument that is none of an architecture.
    """
    kind = type(config).__name__
    is_backbone = isinstance(config.trunk, str) and bool(BACKBONE.fullmatch(config.trunk))
    if not is_backbone and not (isinstance(config.trunk, str) and TRUNK.fullmatch(config.trunk)):
        raise ValueError(
            f"{kind}.trunk: got {str(config.trunk)[:120]!r}, expected the name of a model of timm's such as "
            "'resnet50' or 'convnext_tiny.fb_in22k', or 'hf:' and the model_type of a backbone of transformers; "
            "folders and repositories are not read"
        )
    _check_backbone(config, kind, is_backbone)
    for name, value in (config.trunk_kwargs or {}).items():
        if name not in TRUNK_ARGUMENTS:
            near = difflib.get_close_matches(str(name), TRUNK_ARGUMENTS, n=1, cutoff=0.75)
            hint = f"did you mean {near[0]!r}?" if near else "see sbce_hf.models.configuration_checks.TRUNK_ARGUMENTS"
            raise ValueError(
                f"{kind}.trunk_kwargs: got {str(name)[:80]!r}, which is no argument of an architecture; {hint}"
            )
        high = MAX_DEPTH if name in _DEPTHS else MAX_WINDOW if name == "window_size" else MAX_WIDTH
        _check_argument(f"{kind}.trunk_kwargs.{name}", value, high)
    for name in ("frozen_reduction", "feature_index"):
        value = getattr(config, name, 0)
        if not -64 <= value <= MAX_WIDTH or (name == "frozen_reduction" and value < 0):
            least = 0 if name == "frozen_reduction" else -64
            raise ValueError(f"{kind}.{name}: got {value}, expected {least} to {MAX_WIDTH}")
    share = getattr(config, "frozen_share", None)
    if share is not None and not 0 <= share <= 1:
        raise ValueError(f"{kind}.frozen_share: got {share}, expected 0 to 1")
    check_preprocessing({name: getattr(config, name) for name in ("image_mean", "image_std", "interpolation")}, kind)
    if config.output_stride is not None and config.output_stride not in (8, 16, 32):
        raise ValueError(f"{kind}.output_stride: got {config.output_stride}, expected 8, 16, 32 or None")


def _check_backbone(config: Any, kind: str, is_backbone: bool) -> None:
    """Raise unless a backbone of transformers, and no other trunk, is described by its own configuration."""
    described, own = config.backbone_config, config.trunk.removeprefix("hf:")
    if not is_backbone:
        if described is not None:
            raise ValueError(
                f"{kind}.backbone_config: is for a trunk 'hf:...', got trunk {config.trunk!r}; leave it out"
            )
        return
    if described is not None and described.get("model_type", own) != own:
        raise ValueError(
            f"{kind}.backbone_config: got model_type {str(described['model_type'])[:80]!r}, expected the trunk's, "
            f"{own!r}"
        )
    for name in ("trunk_kwargs", "output_stride"):
        if getattr(config, name) is not None:
            raise ValueError(
                f"{kind}.{name}: got {str(getattr(config, name))[:80]}, expected null: a backbone of transformers is "
                "described by backbone_config"
            )


def check_preprocessing(fields: Mapping[str, Any], where: str) -> None:
    """Check what a trunk's weights are to be fed with; `None` stands for what is usual.

    Args:
        fields: `image_mean`, `image_std` and `interpolation`.
        where: for messages.

    Raises:
        ValueError: a value outside its range.
    """
    for name, low in (("image_mean", 0.0), ("image_std", MIN_STD)):
        numbers = fields[name]
        if numbers is None:
            continue
        plain = isinstance(numbers, list) and all(isinstance(number, int | float) for number in numbers)
        if not plain or len(numbers) != 3 or not all(low <= number <= 1 for number in numbers):
            raise ValueError(f"{where}.{name}: got {str(numbers)[:120]}, expected three numbers of {low:g} to 1")
    known, filter_name = get_args(Interpolation), fields["interpolation"]
    if filter_name is not None and filter_name not in known:
        raise ValueError(f"{where}.interpolation: got {str(filter_name)[:80]!r}, expected one of {', '.join(known)}")


def _check_argument(name: str, value: Any, high: int) -> None:
    """Raise unless a value is plain, and small enough that nothing grows out of bounds with it."""
    if isinstance(value, list | tuple):
        if not 1 <= len(value) <= 64:
            raise ValueError(f"{name}: got {len(value)} values, expected 1 to 64")
        for part in value:
            if isinstance(part, list | tuple):
                raise ValueError(f"{name}: got lists in a list, expected plain numbers or words")
            _check_argument(name, part, high)
        if name.rpartition(".")[2] in _DEPTHS:
            _check_argument(name, sum(part for part in value if isinstance(part, int)), high)
        return
    number = isinstance(value, int | float) and math.isfinite(value) and abs(value) <= high
    word = isinstance(value, str) and bool(_WORD.fullmatch(value))
    if not (number or word or value is None):
        raise ValueError(
            f"{name}: got {str(value)[:120]!r}, expected a number of at most {high}, true, false, or a word such as "
            "'same'"
        )


def check_initializer_range(config: Any) -> None:
    """Check the standard deviation of initial weights.

    Raises:
        ValueError: it is none.
    """
    if not 0 <= config.initializer_range < math.inf:
        raise ValueError(
            f"{type(config).__name__}.initializer_range: got {config.initializer_range}, expected at least 0"
        )


def check_widths(config: Any, names: Iterable[str], low: int = 1, high: int = MAX_WIDTH) -> None:
    """Check integer fields that decide how much memory a layer takes.

    Raises:
        ValueError: a value outside its range.
    """
    for name in names:
        value = getattr(config, name)
        if value is not None and not low <= value <= high:
            raise ValueError(f"{type(config).__name__}.{name}: got {value}, expected at least {low}, at most {high}")
