"""torchvision's names of weights become timm's.

ResNets, VGGs and DenseNets have the same names in both. Here are those that have not: ViT, ConvNeXt and Swin by rules,
and the families of MobileNet and EfficientNet, which both libraries build in the same order, by this order.
"""

import re
from collections.abc import Mapping

from torch import Tensor

# A name that only this family of torchvision's has, and the rules, of which each is tried in turn.
_VIT = (
    (r"class_token", "cls_token"),
    (r"encoder\.pos_embedding", "pos_embed"),
    (r"conv_proj\.", "patch_embed.proj."),
    (r"encoder\.layers\.encoder_layer_", "blocks."),
    (r"encoder\.ln\.", "norm."),
    (r"heads\.head\.", "head."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.self_attention\.in_proj_", ".attn.qkv."),
    (r"\.self_attention\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.(?:0|linear_1)\.", ".mlp.fc1."),
    (r"\.mlp\.(?:3|linear_2)\.", ".mlp.fc2."),
)
_CONVNEXT = (
    (r"classifier\.0\.", "head.norm."),
    (r"classifier\.2\.", "head.fc."),
    (r"features\.0\.", "stem."),
    (r"features\.([246])\.", lambda found: f"stages.{int(found[1]) // 2}.downsample."),
    (r"features\.([1357])\.(\d+)\.", lambda found: f"stages.{int(found[1]) // 2}.blocks.{found[2]}."),
    (r"\.block\.0\.", ".conv_dw."),
    (r"\.block\.2\.", ".norm."),
    (r"\.block\.3\.", ".mlp.fc1."),
    (r"\.block\.5\.", ".mlp.fc2."),
    (r"\.layer_scale", ".gamma"),
)
_SWIN = (
    (r"^head\.", "head.fc."),
    (r"features\.0\.0\.", "patch_embed.proj."),
    (r"features\.0\.2\.", "patch_embed.norm."),
    (r"features\.([246])\.", lambda found: f"layers.{int(found[1]) // 2}.downsample."),
    (r"features\.([1357])\.(\d+)\.", lambda found: f"layers.{int(found[1]) // 2}.blocks.{found[2]}."),
    (r"\.mlp\.0\.", ".mlp.fc1."),
    (r"\.mlp\.3\.", ".mlp.fc2."),
)
FAMILIES = {
    "encoder.layers.encoder_layer_0.ln_1.weight": _VIT,
    "features.1.0.layer_scale": _CONVNEXT,
    "features.1.0.attn.qkv.weight": _SWIN,
}
# What both libraries' MobileNets and EfficientNets start with.
_IN_ORDER = "features.0.0.weight"
# Names by which a file of torchvision's is known.
MARKS = (*FAMILIES, _IN_ORDER)
# Of either library: what the class scores are made with.
_HEADS = ("classifier.", "head.", "fc.")


def from_torchvision(state: Mapping[str, Tensor], plain: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """A state dict of torchvision's with timm's names; `None` for one that is not torchvision's, or needs no renaming.

    Args:
        state: by names without a wrapper's prefix.
        plain: of timm's whole network, for names and shapes.
    """
    for mark, rules in FAMILIES.items():
        if mark in state:
            renamed = {_by_rules(name, rules): tensor for name, tensor in state.items()}
            return {name: _fitted(tensor, plain.get(name)) for name, tensor in renamed.items()}
    if _IN_ORDER not in state or _IN_ORDER in plain:
        return None
    theirs, ours = ([name for name in names if not name.startswith(_HEADS)] for names in (state, plain))
    # Any network of the same order and shapes would do; the same order is what makes them these families.
    if [state[name].shape for name in theirs] != [plain[name].shape for name in ours]:
        return None
    return {ours_name: state[name] for name, ours_name in zip(theirs, ours, strict=True)}


def _by_rules(name: str, rules: tuple) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _fitted(tensor: Tensor, ours: Tensor | None) -> Tensor:
    """A layer scale of ConvNeXt is `(D, 1, 1)` there and `(D,)` here."""
    if ours is not None and tensor.shape != ours.shape and tensor.squeeze().shape == ours.shape:
        return tensor.squeeze()
    return tensor
