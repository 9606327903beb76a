"""Which files of a repository a push has written, and which would be lost by the next one.

A push leaves `sbce_files.json` with the hashes of what it wrote. A file that is not in it, or is no longer what it
was, is somebody else's work: nothing replaces or deletes it without being told to.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.repocard import REGEX_YAML_BLOCK

from ..files import parse_json, write_atomic

MANIFEST = "sbce_files.json"
CARD = "README.md"
# A card above this line is made by the program; below it, it is its reader's.
KEPT_BELOW = "<!-- sbce push writes what is above this line, and keeps what is below -->"
# All that the Hub itself writes below the metadata of a new Space's card.
_NEW_SPACE = "Check out the configuration reference at https://huggingface.co/docs/hub/spaces-config-reference"
# As older versions wrote it on label maps.
_OLDER_MARK = "<!-- sbce push labels writes what is above this line, and keeps what is below -->"


def split_card(text: str) -> tuple[str, str | None]:
    """A card's text above the mark, and below it; `None` without a mark."""
    for mark in (KEPT_BELOW, _OLDER_MARK):
        above, found, below = text.partition(mark)
        if found:
            return above.rstrip(), below.strip()
    return text.rstrip(), None


def join_card(above: str, kept: str) -> str:
    """A card with the mark, and what is kept below it."""
    return f"{above.rstrip()}\n\n{KEPT_BELOW}\n" + (f"\n{kept}\n" if kept else "")


class Ownership:
    """What a branch of a repository holds, and who wrote it.

    Args:
        api: of the Hub.
        repo_id: of the repository.
        repo_type: of it.
        commit: that is looked at.
    """

    def __init__(self, api: HfApi, repo_id: str, repo_type: str, commit: str) -> None:
        self._type = repo_type
        self._where: dict[str, Any] = {"repo_id": repo_id, "repo_type": repo_type, "revision": commit}
        tree = api.list_repo_tree(repo_id, recursive=True, revision=commit, repo_type=repo_type)
        self.files = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
        self.written = self._manifest() if MANIFEST in self.files else {}

    def card(self) -> str | None:
        """The repository's card; `None` without one."""
        return self._text(CARD) if CARD in self.files else None

    def foreign(self, folder: Path, stale: Collection[str]) -> list[str]:
        """Files that a push would replace or delete, and that none has written as they are.

        Args:
            folder: that is pushed.
            stale: files of the repository that it deletes.
        """
        found = []
        for path, entry in sorted(self.files.items()):
            target = folder / path
            if path in (MANIFEST, ".gitattributes") or not (path in stale or target.is_file()):
                continue
            there = entry.lfs.sha256 if entry.lfs else entry.blob_id
            if target.is_file() and there in _hashes(target.read_bytes()):
                continue
            if there not in self.written.get(path, ()) and not (path == CARD and self._card_is_ours(target)):
                found.append(path)
        return found

    def _card_is_ours(self, target: Path) -> bool:
        """Whether only the reader's part of the card has changed, which the new one keeps."""
        above, kept = split_card(self._text(CARD))
        if self._type == "space" and _body(above) in ("", _NEW_SPACE):
            return True
        # Metadata of data sets are merged, those of other cards are made anew.
        words = _body(above) if self._type == "dataset" else above.strip()
        if kept is None:
            # Somebody's own card: nothing is lost where the new one has it below its mark.
            return target.is_file() and words in (split_card(target.read_text(encoding="utf-8"))[1] or "")
        return _hash(words if self._type == "dataset" else above) in self.written.get(CARD, ())

    def _manifest(self) -> Mapping[str, Sequence[str]]:
        try:
            values = parse_json(self._text(MANIFEST), MANIFEST)
            files = values["files"]
            if not isinstance(files, dict):
                return {}
            return {str(path): [str(one) for one in hashes] for path, hashes in files.items()}
        except (ValueError, TypeError, KeyError):
            # Somebody has edited it: what it said of others is not known any more.
            return {}

    def _text(self, path: str) -> str:
        return Path(hf_hub_download(filename=path, **self._where)).read_text(encoding="utf-8")


def write_manifest(folder: Path, before: Mapping[str, Sequence[str]], gone: Collection[str]) -> None:
    """Write `sbce_files.json` of a folder that is pushed: what it holds, and what pushes before it wrote and is left.

    Args:
        folder: that is pushed.
        before: what the repository's said.
        gone: what the push deletes.
    """
    files = {path: list(hashes) for path, hashes in before.items() if path not in gone}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if name != MANIFEST:
            files[name] = _hashes(path.read_bytes())
    if (folder / CARD).is_file():
        above, _ = split_card((folder / CARD).read_text(encoding="utf-8"))
        files[CARD] += [_hash(_body(above)), _hash(above)]
    note = "Written by sbce push, which replaces no other files, and none of these that have been changed since."
    write_atomic(folder / MANIFEST, json.dumps({"note": note, "files": dict(sorted(files.items()))}, indent=1) + "\n")


def _hashes(content: bytes) -> list[str]:
    """As git and as Git LFS name a file."""
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    return [blob, hashlib.sha256(content).hexdigest()]


def _body(card: str) -> str:
    """A card without its metadata; a rule above words is no beginning of any."""
    # What is between two rules is metadata: the Hub takes no card where it is not.
    metadata = REGEX_YAML_BLOCK.match(card)
    return card[metadata.end() if metadata else 0 :].strip()


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
