"""What a recipe says of its networks, looked at before torch is loaded: their fields, and the names of the trunks.

Ranges, and whether a trunk can do what is asked of it, are checked where the networks are built.
"""

import difflib
from collections.abc import Mapping
from typing import Any

from ..config import RunConfig
from ..config.network_fields import is_of_kind, network_fields, trunk_names, undeclared_keys
from ..config.ranges import shown
from ..errors import UserError

# Before the name of a backbone of transformers.
_ELSEWHERE = "hf:"


def check_networks(config: RunConfig) -> None:
    """Tell a misspelt field of a network, a value of another type, and a trunk that there is not.

    Raises:
        UserError: names the key, and the nearest known one.
    """
    sections = {"model": config.model}
    if config.irn is not None:
        sections["irn.model"] = config.irn.model
    if config.segmenter is not None and config.segmenter.architecture == "deeplab":
        sections["segmenter.model"] = config.segmenter.model
    for section, values in sections.items():
        _check_fields(section, values)
        _check_trunk(section, values.get("trunk"))


def _check_fields(section: str, values: Mapping[str, Any]) -> None:
    known = network_fields(section)
    for key, value in values.items():
        if key in known:
            if not is_of_kind(known[key], value):
                raise UserError(f"{section}.{key}: got {shown(value)}, expected {known[key].kind}")
        elif key not in undeclared_keys():
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
            raise UserError(f"{section}: unknown key {key!r}; {hint}")


def _check_trunk(section: str, trunk: Any) -> None:
    if trunk is None or trunk.startswith(_ELSEWHERE):
        return
    names, earlier = trunk_names()
    # Behind a dot is the name of the weights.
    name = trunk.partition(".")[0]
    if name not in names | earlier:
        near = difflib.get_close_matches(name, names, n=3)
        hint = f"did you mean {', '.join(near)}? " if near else ""
        raise UserError(
            f"{section}.trunk: got {shown(trunk)}, which is no model of timm; {hint}timm.list_models() lists all; "
            "a backbone of transformers is written hf:NAME"
        )
