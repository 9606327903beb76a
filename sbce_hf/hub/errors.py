"""Failures of the Hub's client as messages that say what to do."""

import contextlib
import errno
import json
from collections.abc import Iterator

from huggingface_hub import constants, get_token
from huggingface_hub.errors import (
    BadRequestError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

AGAIN = "Run the same command again: it completes what is missing, and files that arrived are not sent twice."
WHOLE = "A push is one commit, so the repository is either as it was or complete."
LOGIN = (
    "log in with `hf auth login`, or set HF_TOKEN, with a token that may write (create one at {url}/settings/tokens)"
)


class HubError(OSError):
    """Something went wrong between this machine and the Hub; the message names the remedy."""


@contextlib.contextmanager
def explained(repo_id: str) -> Iterator[None]:
    """Turn what the Hub's client raises into messages with a remedy; other errors pass.

    Args:
        repo_id: the repository that is talked about.

    Raises:
        HubError: whatever happened between this machine and the Hub, or a full disk.
        ValueError: a name that is none, or a card that the Hub refuses.
    """
    try:
        yield
    except HubError:
        raise
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r}: no name of a repository, expected user/name: {error}") from error
    except Exception as error:
        message = _message(_cause(error), repo_id)
        if message is None:
            raise
        raise HubError(message) from error


@contextlib.contextmanager
def explained_disk(repo_id: str) -> Iterator[None]:
    """As [`explained`], for what happens before anything is sent: only a full disk is turned into a message."""
    try:
        yield
    except OSError as error:
        message = _disk_full(error, repo_id)
        if message is None:
            raise
        raise HubError(message) from error


def require_token(repo_id: str) -> None:
    """Raise a [`HubError`] if nobody is logged in and the Hub may be asked."""
    if not constants.is_offline_mode() and get_token() is None:
        raise HubError(_no_token(repo_id))


def _cause(error: Exception) -> BaseException:
    # Threads that upload large files wrap what happened to them.
    return error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ is not None else error


def _message(error: BaseException, repo_id: str) -> str | None:
    if isinstance(error, OfflineModeIsEnabled):
        return f"{repo_id}: offline mode is on, so nothing was sent; unset HF_HUB_OFFLINE"
    if isinstance(error, LocalTokenNotFoundError):
        return _no_token(repo_id)
    if isinstance(error, LocalEntryNotFoundError):
        why = error.__cause__ or error
        return f"{repo_id}: a file that is there could not be fetched ({why}). {WHOLE} {AGAIN}"
    if isinstance(error, HfHubHTTPError):
        return _refused(error, repo_id)
    # `HTTPError` without an answer is a lost connection; a proxy's error page is no JSON.
    if isinstance(error, (HTTPError, ConnectionError, TimeoutError)):
        what = str(error) or type(error).__name__
        return f"{repo_id}: the connection to {constants.ENDPOINT} failed or was lost ({what}). {WHOLE} {AGAIN}"
    if isinstance(error, json.JSONDecodeError):
        return f"{repo_id}: {constants.ENDPOINT} did not answer as a Hub does ({error}). {WHOLE} {AGAIN}"
    return _disk_full(error, repo_id)


def _disk_full(error: BaseException, repo_id: str) -> str | None:
    if not isinstance(error, OSError) or error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return None
    where = f" ({error.filename})" if error.filename else ""
    return (
        f"{repo_id}: this disk is full{where}. The repository is as it was. Make room, or set TMPDIR to a folder on "
        "another disk, and run the same command again"
    )


def _refused(error: HfHubHTTPError, repo_id: str) -> str:
    """What an error status means; the Hub's own words are kept."""
    status, said = error.response.status_code, error.server_message or str(error).splitlines()[0]
    said = f"The Hub says: {said.strip().rstrip('.')}."
    if get_token() is None and (status in (401, 403) or isinstance(error, RepositoryNotFoundError)):
        return _no_token(repo_id)
    if isinstance(error, RevisionNotFoundError):
        return f"{repo_id}: there is no such branch. {said} A tag or a commit cannot be written to; name a branch"
    if status == 401 and not isinstance(error, RepositoryNotFoundError):
        remedy = LOGIN.format(url=constants.ENDPOINT)
        return f"{repo_id}: the token is wrong, expired or revoked. {said} To mend it, {remedy}"
    if status in (401, 404):
        return f"{repo_id}: not found, or this token may not see it. {said} Check the name and the token's rights"
    if status in (402, 403):
        return (
            f"{repo_id}: this token may not write there. {said} Use a token with the role 'write' "
            f"({constants.ENDPOINT}/settings/tokens), push to your own namespace or to that of an "
            "organization you are in, or propose the change with --create-pr"
        )
    if status == 409:
        return f"{repo_id}: something else is being done to it. {said} Wait a moment. {AGAIN}"
    if status == 412:
        return (
            f"{repo_id}: someone else changed the branch during this push, so nothing was committed. {said} Look at "
            "what is there now; running the same command again puts this push on top of it"
        )
    if status == 429 or status >= 500:
        trouble = "asks for patience" if status == 429 else "has trouble"
        return f"{repo_id}: the Hub {trouble} (status {status}). {said} {WHOLE} Wait some minutes. {AGAIN}"
    kind = "refused the request" if isinstance(error, BadRequestError) else "refused it"
    return f"{repo_id}: the Hub {kind} (status {status}). {said} {WHOLE}"


def _no_token(repo_id: str) -> str:
    return f"{repo_id}: there is no token, so nothing was sent; {LOGIN.format(url=constants.ENDPOINT)}"
