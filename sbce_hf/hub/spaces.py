"""The page of a checkpoint becomes a folder that can be published as a Space."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, SpaceCard

from ..files import write_atomic
from .errors import explained, require_token
from .publish import check_repo_id

PACKAGE = Path(__file__).parent.parent
# Beside the package in a source checkout; an installed package has no such folder.
SPACE = PACKAGE.parent / "space"
# What a push replaces even where the package has no such file any more.
SPACE_FILES = ("sbce_hf/*", "checkpoint.txt")


def check_checkpoint(checkpoint: str) -> tuple[str, str | None]:
    """Split `user/model@revision`.

    Raises:
        ValueError: a folder, which a Space cannot see, or no name of a model on the Hub.
    """
    if Path(checkpoint).is_dir():
        raise ValueError(
            f"--checkpoint {checkpoint}: a folder on this machine, which a Space cannot see; publish it with sbce "
            "push model, and name that repository"
        )
    name, _, revision = checkpoint.partition("@")
    check_repo_id(name)
    return name, revision or None


def require_checkpoint(checkpoint: str) -> None:
    """Raise unless the Hub has the checkpoint: a Space without one would only show an error.

    Raises:
        HubError: see [`explained`].
    """
    name, revision = check_checkpoint(checkpoint)
    require_token(name)
    with explained(checkpoint):
        HfApi().model_info(name, revision=revision)


def render_space_folder(
    repo_id: str, checkpoint: str, folder: Path, *, license: str | None = None, tags: Sequence[str] = ()
) -> None:
    """Write everything that is published: the page, its requirements, the package's source and the checkpoint's name.

    Args:
        repo_id: `user/name` of the Space.
        checkpoint: Hub id of a model, with an optional `@revision`.
        folder: an empty one.
        license: of the Space; by default the package's.
        tags: more tags for the card.

    Raises:
        ValueError: a name that is none.
        FileNotFoundError: the package was not installed from a source checkout.
    """
    check_repo_id(repo_id)
    model, _ = check_checkpoint(checkpoint)
    if not (SPACE / "app.py").is_file():
        raise FileNotFoundError(
            f"{SPACE}: no app.py; the Space's files are in the source checkout, not in the installed package. Clone "
            "it, and install it with pip install -e ."
        )
    for name in ("app.py", "requirements.txt"):
        shutil.copyfile(SPACE / name, folder / name)
    shutil.copytree(PACKAGE, folder / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__", ".*", "*.tmp"))
    shutil.copyfile(PACKAGE.parent / "LICENSE", folder / "LICENSE")
    write_atomic(folder / "checkpoint.txt", f"{checkpoint}\n")
    card = SpaceCard((SPACE / "README.md").read_text(encoding="utf-8"))
    data: Any = card.data
    data.models = [model]
    data.tags = [*(data.tags or []), *tags]
    if license is not None:
        data.license = license
    write_atomic(folder / "README.md", str(card))
