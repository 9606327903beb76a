"""Under which licence a trunk's weights came, which decides what may be said of the model that was made from them."""

from dataclasses import dataclass
from typing import Any

import timm
from timm.models import get_arch_pretrained_cfgs

from ..config import RunConfig
from ..errors import UserError
from ..models.modeling_trunk_backbone import PREFIX

# Those that let what is made from a work be under other terms, as the Hub names them.
PERMISSIVE = ("apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0")
# The others that the Hub has a name for; it calls the rest "other", and wants a name and a link.
_KNOWN = (*PERMISSIVE, "cc-by-nc-4.0", "apple-ascl", "apple-amlr", "gemma")
OTHER = "other"
_LINKS = {"dinov3-license": "https://ai.meta.com/resources/models-and-libraries/dinov3-license"}
# Of backbones of transformers, by their `model_type`: there is nothing in their folders that says so.
_BACKBONES = {"dinov2": "apache-2.0", "dinov2_with_registers": "apache-2.0"}
_BACKBONES |= dict.fromkeys(("dinov3_vit", "dinov3_convnext"), "dinov3-license")


@dataclass(frozen=True)
class License:
    """A licence as a card's metadata has it.

    Args:
        id: that the Hub knows, or `"other"`.
        name: of an `"other"` one.
        link: to its text, or to the page of the weights, which says it.
    """

    id: str
    name: str | None = None
    link: str | None = None

    @property
    def is_permissive(self) -> bool:
        """Whether what is made from a work may be under other terms."""
        return self.id in PERMISSIVE

    def __str__(self) -> str:
        return self.name or self.id


def license_of_run(config: RunConfig, kind: str) -> License | None:
    """What the weights came under that a run's classifier or segmenter started from; `None` if that is not known."""
    section = config.segmenter
    if kind == "segmenter" and section is not None and not section.starts_from_classifier:
        if section.architecture != "deeplab":
            return None
        return trunk_license(section.model.get("trunk", "resnet101"), section.weights)
    return trunk_license(config.model.get("trunk", "resnet50"), config.trunk_weights)


def trunk_license(trunk: str, weights: str) -> License | None:
    """What a trunk's weights came under; `None` for random ones, and where nobody says.

    A file may be anybody's training. Of it only the trunk's name is known: it counts if it names certain weights, as
    `vit_small_patch14_dinov2.lvd142m` does, or if all weights that timm knows of this architecture have the same terms
    and these are not permissive, so that no other ones are likely.

    Args:
        trunk: of a model's config.
        weights: `"random"`, `"pretrained"` or a file.
    """
    if weights == "random":
        return None
    if trunk.startswith(PREFIX):
        return _license(_BACKBONES.get(_model_type(trunk)), None)
    architecture, _, tag = trunk.partition(".")
    if not timm.is_model(architecture):
        return None
    known: Any = timm.get_pretrained_cfg(trunk)
    if weights == "pretrained" or tag:
        return None if known is None else _license(known.license, known.hf_hub_id)
    terms = {one.license for one in get_arch_pretrained_cfgs(architecture).values()}
    found = _license(terms.pop(), known and known.hf_hub_id) if len(terms) == 1 else None
    return None if found is None or found.is_permissive else found


def chosen_license(given: str | None, trunk: License | None) -> License | None:
    """What a card says: the publisher's word, or else the trunk's licence.

    Args:
        given: an id that the Hub knows; `None` where the publisher says nothing.
        trunk: see [`trunk_license`].

    Raises:
        UserError: the trunk's licence goes with what is made from its weights, and another one is given.
    """
    if given is None or trunk is None:
        return trunk if given is None else License(given)
    if trunk.is_permissive:
        return License(given)
    if given not in (trunk.id, trunk.name):
        raise UserError(
            f"--license: got {given}, but the trunk's weights are under {trunk}"
            f"{f' ({trunk.link})' if trunk.link else ''}, which goes with what is made from them; "
            f"leave --license out, or say {trunk}"
        )
    return trunk


def _license(name: str | None, hub_id: str | None) -> License | None:
    if name is None or name == "unknown":
        return None
    if name in _KNOWN:
        return License(name)
    return License(OTHER, name, _LINKS.get(name, f"https://huggingface.co/{hub_id}" if hub_id else None))


def _model_type(trunk: str) -> str:
    """Of a backbone's trunk, which a recipe may write as a folder or repository instead: then its name has to do."""
    name = trunk.removeprefix(PREFIX).lower()
    if name in _BACKBONES:
        return name
    last = name.rstrip("/").rpartition("/")[2]
    return "dinov3_vit" if "dinov3" in last else "dinov2" if "dinov2" in last else name
