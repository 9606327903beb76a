"""Names on the command line that mean a folder of this machine or a repository on the Hub: `user/name@revision`."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

# Never a pickle.
CHECKPOINT_FILES = ("*.json", "*.safetensors")
# Seconds that the Hub has for a first answer.
PATIENCE = 5


def split_revision(name: str) -> tuple[str, str | None]:
    """`"user/model@v1"` to `("user/model", "v1")`; a folder is itself, whatever its name."""
    if os.path.isdir(name) or "@" not in name:
        return name, None
    identifier, _, revision = name.partition("@")
    return identifier, revision or None


def is_cached(name: str, *files: str) -> bool:
    """Whether one of these files of a model was downloaded before; the Hub is not asked."""
    from huggingface_hub import try_to_load_from_cache

    identifier, revision = split_revision(name)
    return any(isinstance(try_to_load_from_cache(identifier, file, revision=revision), str) for file in files)


def require_answer(what: str, name: str, remedy: str) -> None:
    """Ask the Hub once whether it is there: downloading would try again and again for a minute.

    Args:
        what: will be downloaded.
        name: its id.
        remedy: what to do without the Hub.

    Raises:
        FileNotFoundError: no answer came; any other answer than hoped for is told by the download.
    """
    from huggingface_hub import constants, get_session, hf_hub_url
    from huggingface_hub.errors import HTTPError

    try:
        if constants.HF_HUB_OFFLINE:
            raise OSError("offline mode is on, HF_HUB_OFFLINE")
        get_session().head(hf_hub_url(name, "config.json"), timeout=PATIENCE)
    except (OSError, HTTPError) as error:
        raise FileNotFoundError(
            f"{what}: {name} is not in the cache, and the Hub does not answer ({error}); {remedy}"
        ) from error


def local_checkpoint(name: str | os.PathLike[str]) -> Path:
    """A model's folder on this machine; one on the Hub is downloaded, or taken from the cache.

    Args:
        name: a model folder, or a Hub id with an optional `@revision`. A folder wins.

    Raises:
        OSError: see [`download`]; or it is a file.
    """
    path = Path(name)
    if path.is_dir():
        return path
    if path.is_file():
        raise NotADirectoryError(
            f"checkpoint {path}: is a file, expected a model folder or the id of a model on the Hub"
        )
    return download(os.fspath(name), "model", CHECKPOINT_FILES)


def repository_folder(folder: Path) -> Path:
    """The folder in which all files of a checkpoint or a label set lie, those that it links to included.

    Args:
        folder: of it; a snapshot in the Hub's cache links to files of its repository.
    """
    repository = folder.absolute().parent.parent
    is_snapshot = folder.absolute().parent.name == "snapshots" and "--" in repository.name
    return repository if is_snapshot else folder


def download(name: str, kind: Literal["model", "dataset"], patterns: Sequence[str]) -> Path:
    """Download files of a repository, or find them in the cache when the Hub cannot be asked.

    Args:
        name: a Hub id with an optional `@revision`.
        kind: of the repository.
        patterns: of the files, as `fnmatch` reads them.

    Returns:
        the folder of the snapshot, named like its commit.

    Raises:
        FileNotFoundError: no Hub id, no such repository or revision, or offline and not in the cache.
        PermissionError: it may not be read with this token.
        OSError: the Hub does not answer as it should.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        HTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    identifier, revision = split_revision(name)
    what, noun = ("checkpoint", "model") if kind == "model" else ("label maps", "dataset")
    try:
        return Path(snapshot_download(identifier, repo_type=kind, revision=revision, allow_patterns=list(patterns)))
    except HFValidationError as error:
        raise FileNotFoundError(f"{what} {name!r}: neither a folder nor the id of a {noun} on the Hub") from error
    except GatedRepoError as error:
        raise PermissionError(
            f"{what} {name!r}: access is restricted; ask for it at {constants.ENDPOINT}, then log in with `hf auth "
            "login` or set HF_TOKEN"
        ) from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"{what} {name!r}: neither a folder nor a {noun} on the Hub that you may see; check the name, and for a "
            "private one log in with `hf auth login` or set HF_TOKEN"
        ) from error
    except RevisionNotFoundError as error:
        raise FileNotFoundError(
            f"{what} {name!r}: {identifier} has no revision {revision!r}; expected a branch, a tag or a commit"
        ) from error
    except LocalEntryNotFoundError as error:
        why = f"the Hub does not answer ({error.__cause__})"
        if constants.is_offline_mode():
            why = "offline mode is on; unset HF_HUB_OFFLINE"
        raise FileNotFoundError(f"{what} {name!r}: no such folder, and not in the cache either; {why}") from error
    except HTTPError as error:
        raise OSError(
            f"{what} {name!r}: the Hub did not answer as it should: {error}; try again, or check your token"
        ) from error
