"""One rendered folder becomes one commit.

A push that is cut anywhere leaves the branch as it was, and the same push again completes it: files that arrived are
not sent twice, a commit that is there is not made twice, and a tag that is missing is set.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.utils import filter_repo_objects, validate_repo_id

from ..errors import UserError
from ..files import write_atomic
from .errors import AGAIN, HubError, explained, require_token
from .ownership import CARD, MANIFEST, Ownership, join_card, split_card, write_manifest

RepoType = Literal["model", "dataset", "space"]


@dataclass(frozen=True)
class Published:
    """A finished push.

    Args:
        url: where to look at it.
        commit: its SHA.
        tag: that points to the commit; `None` without one.
        pull_request: number of the pull request that waits to be merged; `None` after a push to a branch.
    """

    url: str
    commit: str
    tag: str | None
    pull_request: int | None


def check_repo_id(repo_id: str) -> None:
    """Check a name before anything is rendered.

    Raises:
        ValueError: not of the form `user/name`.
    """
    with explained(repo_id):
        validate_repo_id(repo_id)
    if "/" not in repo_id:
        raise ValueError(f"{repo_id!r}: expected user/name or organization/name")


def folder_files(folder: Path) -> list[Path]:
    """Every file of a rendered folder, relative to it, sorted."""
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def folder_digest(folder: Path) -> str:
    """Hash of a folder's names and contents: 12 hexadecimal digits."""
    found = hashlib.sha256()
    for name in folder_files(folder):
        if name.as_posix() == MANIFEST:
            continue
        with open(folder / name, "rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        found.update(f"{name.as_posix()}\0{content}\n".encode())
    return found.hexdigest()[:12]


def publish_folder(
    folder: Path,
    repo_id: str,
    repo_type: RepoType,
    *,
    message: str,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    parent_commit: str | None = None,
    space_sdk: str | None = None,
    delete_patterns: Sequence[str] = (),
    tag: str | None = None,
    overwrite: bool = False,
) -> Published:
    """Send a folder to the Hub as exactly one commit; none if the branch holds these files already.

    Args:
        folder: its files are sent under their relative names.
        repo_id: `user/name`; made if there is none.
        repo_type: of the repository.
        message: first line of the commit; the folder's hash is added.
        private: make it private. `None` is the account's default, or what the repository is.
        revision: branch, made from `main` if there is none; default `main`.
        create_pr: open a pull request instead of changing the branch, or find the one that holds this very folder.
        parent_commit: the push is refused if the branch has moved on from this commit; by default from where it is
            when the push starts.
        space_sdk: of a Space.
        delete_patterns: files of the repository that go if they match and are not in the folder.
        tag: set on the commit; of no effect for a pull request, whose commit is not the one that gets merged.
        overwrite: replace and delete what no push has written, or what was changed since.

    Raises:
        HubError: see [`explained`].
        UserError: the push would replace or delete files of somebody else; names them.
        ValueError: see [`explained`]; or the folder is absent or empty; or the name belongs to a repository of
            another type; or it shall be private and is not.
    """
    if not folder_files(folder):
        raise ValueError(f"{folder}: not a directory, or no file in it; expected the rendered files of a repository")
    check_repo_id(repo_id)
    require_token(repo_id)
    api = HfApi()
    with explained(repo_id):
        _make_repository(api, repo_id, repo_type, private, space_sdk)
        if revision not in (None, constants.DEFAULT_REVISION) and not str(revision).startswith("refs/"):
            api.create_branch(repo_id, branch=str(revision), repo_type=repo_type, exist_ok=True)
        if parent_commit is None:
            parent_commit = api.repo_info(repo_id, repo_type=repo_type, revision=revision).sha
        stale = _prepare(api, repo_id, repo_type, str(parent_commit), folder, delete_patterns, overwrite)
        title = f"{message} ({folder_digest(folder)})"
        if create_pr and (found := _open_pull_request(api, repo_id, repo_type, title)):
            return found
        # Not upload_folder: where Xet is installed, it commits a large folder in several parts.
        commit = api.create_commit(
            repo_id=repo_id,
            repo_type=repo_type,
            operations=_operations(folder, stale),
            commit_message=title,
            revision=revision,
            create_pr=create_pr,
            parent_commit=parent_commit,
        )
    if create_pr:
        return Published(commit.pr_url or str(commit.repo_url), commit.oid, None, commit.pr_num)
    if tag is not None:
        _set_tag(api, repo_id, repo_type, tag, commit.oid)
    branch = "" if revision in (None, constants.DEFAULT_REVISION) else f"/tree/{revision}"
    return Published(f"{commit.repo_url}{branch}", commit.oid, tag, None)


def _make_repository(
    api: HfApi, repo_id: str, repo_type: RepoType, private: bool | None, space_sdk: str | None
) -> None:
    try:
        info = api.repo_info(repo_id, repo_type=repo_type)
    except RepositoryNotFoundError:
        for other in get_args(RepoType):
            if other != repo_type and api.repo_exists(repo_id, repo_type=other):
                raise ValueError(
                    f"{repo_id}: is a {other} on the Hub, expected a {repo_type}, or a name that is free; "
                    "choose another"
                ) from None
        try:
            api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True, space_sdk=space_sdk)
        except KeyError as error:
            # Of every conflict the client takes the repository's address, which only that of an existing one has.
            raise HubError(f"{repo_id}: something else is being done to it. Wait a moment. {AGAIN}") from error
    else:
        if private and not info.private:
            raise ValueError(
                f"{repo_id}: exists and is public, and --private does not change that; make it private in its "
                "settings first, choose another name, or leave out --private"
            )


def _prepare(
    api: HfApi,
    repo_id: str,
    repo_type: RepoType,
    commit: str,
    folder: Path,
    delete_patterns: Sequence[str],
    overwrite: bool,
) -> list[str]:
    """Keep what is the repository's own; returns the files that go.

    The reader's part of a card is added to the folder's, and what the push writes is noted in the folder.
    """
    there = Ownership(api, repo_id, repo_type, commit)
    names = {name.as_posix() for name in folder_files(folder)}
    others = [name for name in there.files if name not in names and name not in (".gitattributes", MANIFEST)]
    stale = list(filter_repo_objects(others, allow_patterns=list(delete_patterns))) if delete_patterns else []
    if (folder / CARD).is_file():
        (above, own), kept = split_card((folder / CARD).read_text(encoding="utf-8")), split_card(there.card() or "")[1]
        write_atomic(folder / CARD, join_card(above, own or kept or ""))
    if not overwrite and (lost := there.foreign(folder, stale)):
        raise UserError(
            f"{repo_id}: the push would replace or delete files that no push of sbce has written, or that were "
            f"changed since: {', '.join(lost)}. Choose another repository; or keep what you need of them, and give "
            "--overwrite"
        )
    write_manifest(folder, there.written, stale)
    return stale


def _operations(folder: Path, stale: Sequence[str]) -> list[CommitOperationAdd | CommitOperationDelete]:
    """What turns the files of a repository into the folder's."""
    names = [name.as_posix() for name in folder_files(folder)]
    added = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in names]
    return [*(CommitOperationDelete(path_in_repo=name) for name in stale), *added]


def _open_pull_request(api: HfApi, repo_id: str, repo_type: RepoType, title: str) -> Published | None:
    """A pull request with this title, which has the folder's hash: the answer to it may have been lost."""
    for pull in api.get_repo_discussions(
        repo_id, repo_type=repo_type, discussion_type="pull_request", discussion_status="open"
    ):
        if pull.title == title and pull.status == "open":
            commit = api.repo_info(repo_id, repo_type=repo_type, revision=f"refs/pr/{pull.num}").sha
            return Published(pull.url, str(commit), None, pull.num)
    return None


def _set_tag(api: HfApi, repo_id: str, repo_type: RepoType, tag: str, commit: str) -> None:
    try:
        with explained(repo_id):
            api.create_tag(repo_id, tag=tag, revision=commit, repo_type=repo_type, exist_ok=True)
    except HubError as error:
        raise HubError(
            f"{repo_id}: commit {commit[:12]} is there and complete, but its tag {tag}, which the card names, could "
            f"not be set; run the same command again, which sets it. What happened: {error}"
        ) from error
