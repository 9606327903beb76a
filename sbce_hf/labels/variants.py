"""The label stores of one method: the only file that knows how they are called, and which is after the dense CRF."""

from ..config import CrfConfig

_AFTER_CRF = "_crf"


def variants(method: str, crf: CrfConfig | None, folder: str = "") -> tuple[str, ...]:
    """The stores that a method fills: before the dense CRF and, if there is one, after it.

    Of any method's stores the last one is what later steps read, and the one after the CRF, where there is a CRF.

    Args:
        method: gives them their name.
        crf: of the config; `None` without one.
        folder: that the names are to start with.
    """
    names = (method,) if crf is None else (method, f"{method}{_AFTER_CRF}")
    return tuple(f"{folder}/{name}" if folder else name for name in names)
