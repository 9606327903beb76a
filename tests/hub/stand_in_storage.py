"""Repositories of the stand-in Hub, held in memory: blobs, commits with whole trees, branches, tags, pull requests."""

import hashlib
import re
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import PurePosixPath

import yaml

# The Hub decides by size, by `.gitattributes` and by content what is kept outside git.
LFS_BYTES = 10 * 1024 * 1024
LFS_SUFFIXES = (".arrow", ".bin", ".ckpt", ".gz", ".h5", ".npy", ".npz", ".onnx", ".parquet", ".pkl", ".pt", ".pth")
LFS_SUFFIXES += (".safetensors", ".tar", ".zip", ".zst")
GITATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()
SHA = re.compile(r"[0-9a-f]{7,40}")
FRONT_MATTER = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)(?:\r?\n)?---[ \t]*(?:\r?\n|\Z)", re.DOTALL)


class HubError(Exception):
    """Becomes an HTTP answer.

    Args:
        status: HTTP status.
        message: what the client's exception says.
        code: value of `X-Error-Code`, by which clients choose their exception.
        extra: more fields of the JSON body.
    """

    def __init__(self, status, message, code=None, **extra):
        super().__init__(message)
        self.status, self.message, self.code, self.extra = status, message, code, extra


def git_sha(kind, content):
    return hashlib.sha1(f"{kind} {len(content)}\0".encode() + content).hexdigest()


def upload_mode(path, size, sample):
    """How the Hub wants a file: as `"lfs"` object or as `"regular"` git blob; `sample` is the start of its content."""
    binary = b"\0" in sample
    return "lfs" if binary or size > LFS_BYTES or PurePosixPath(path).suffix.lower() in LFS_SUFFIXES else "regular"


def card_metadata(text):
    """Metadata at the top of a `README.md`, {} without any.

    Raises:
        ValueError: it is no YAML mapping, or a field has the wrong type.
    """
    match = FRONT_MATTER.match(text)
    if match is None:
        return {}
    try:
        metadata = yaml.safe_load(match[1]) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"invalid YAML: {error}") from error
    if not isinstance(metadata, dict):
        raise ValueError("metadata must be a mapping")
    for name in ("library_name", "license_name", "license_link", "pipeline_tag", "sdk", "title"):
        if name in metadata and not isinstance(metadata[name], str):
            raise ValueError(f'"{name}" must be a string')
    for name in ("configs", "model-index", "tags", "task_categories"):
        if name in metadata and not isinstance(metadata[name], list):
            raise ValueError(f'"{name}" must be an array')
    if not all(isinstance(tag, str) for tag in metadata.get("tags", [])):
        raise ValueError('"tags" must hold strings')
    return metadata


@dataclass(frozen=True)
class Blob:
    """Content of one file; of an LFS file the repository's tree only knows the pointer."""

    content: bytes
    lfs: bool

    @cached_property
    def sha256(self):
        return hashlib.sha256(self.content).hexdigest()

    @property
    def pointer(self):
        text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n"
        return text.encode()

    @cached_property
    def oid(self):
        return git_sha("blob", self.pointer if self.lfs else self.content)

    @property
    def etag(self):
        return self.sha256 if self.lfs else self.oid


def lfs_fields(blob):
    """What answers say of an LFS file besides path and size, nothing of a regular one."""
    if not blob.lfs:
        return {}
    size = len(blob.content)
    return {"lfs": {"oid": blob.sha256, "sha256": blob.sha256, "size": size, "pointerSize": len(blob.pointer)}}


@dataclass(frozen=True, eq=False)
class Commit:
    """A commit with the whole tree it stands for, path -> blob."""

    parent: "Commit | None"
    tree: dict
    title: str
    description: str
    author: str
    date: float = field(default_factory=time.time)

    @cached_property
    def sha(self):
        files = "".join(f"{path}\0{blob.oid}\n" for path, blob in sorted(self.tree.items()))
        parent = self.parent.sha if self.parent else ""
        text = f"{parent}\n{self.title}\n{self.description}\n{self.author} {self.date}\n{files}"
        return git_sha("commit", text.encode())

    @property
    def time(self):
        return datetime.fromtimestamp(self.date, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"

    def history(self):
        commit = self
        while commit is not None:
            yield commit
            commit = commit.parent

    def last_change(self, path):
        """The commit that gave `path`, a file or a folder, the content it has here."""
        for commit in self.history():
            if commit.parent is None or commit.content(path) != commit.parent.content(path):
                return commit

    def content(self, path):
        return {name: blob for name, blob in self.tree.items() if name == path or name.startswith(f"{path}/")}


class Repository:
    """One repository: `refs` maps branch names, `refs/tags/<tag>` and `refs/pr/<number>` to commits."""

    def __init__(self, kind, name, author, private=False, sdk=None):
        self.kind, self.id, self.private, self.gated = kind, name, private, False
        self.objects = {}
        self.pulls = {}
        tree = {".gitattributes": Blob(GITATTRIBUTES, lfs=False)}
        if sdk:
            card = f"---\ntitle: {name.split('/')[1]}\nsdk: {sdk}\napp_file: app.py\n---\n"
            tree["README.md"] = Blob(card.encode(), lfs=False)
        self.created = Commit(None, tree, "initial commit", "", author)
        self.commits = {self.created.sha: self.created}
        self.refs = {"main": self.created}

    @property
    def namespace(self):
        return self.id.split("/")[0]

    @property
    def branches(self):
        return {name: commit for name, commit in self.refs.items() if not name.startswith("refs/")}

    def resolve(self, revision):
        """The commit a branch, a tag, a commit's SHA (7 digits suffice) or `refs/pr/<number>` stands for."""
        for name in (revision, f"refs/tags/{revision}", revision.removeprefix("refs/heads/")):
            if name in self.refs:
                return self.refs[name]
        if SHA.fullmatch(revision):
            for sha, commit in self.commits.items():
                if sha.startswith(revision):
                    return commit
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def file(self, revision, path):
        commit = self.resolve(revision)
        if path not in commit.tree:
            raise HubError(404, "Entry not found", "EntryNotFound")
        return commit, commit.tree[path]

    def files(self, revision="main"):
        """Content of every file, path -> bytes; for comparisons in tests."""
        return {path: blob.content for path, blob in self.resolve(revision).tree.items()}

    def commit(self, revision, header, operations, author, create_pr=False):
        """Apply `operations` as one commit, all of them or none.

        Args:
            revision: a branch or `refs/pr/<number>`; with `create_pr` what the pull request starts from.
            header: `{"summary", "description", "parentCommit"}`.
            operations: `(key, value)` of the Hub's commit request.
            author: user name.
            create_pr: open a pull request instead of moving the branch.

        Returns:
            The commit, and the number of the pull request or None.
        """
        head = self.resolve(revision)
        if not create_pr and revision not in self.refs or revision.startswith("refs/tags/"):
            raise HubError(404, f"{revision} is no branch", "RevisionNotFound")
        parent = header.get("parentCommit")
        if parent and create_pr:
            head = self.resolve(parent)
        elif parent and not head.sha.startswith(parent):
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        tree = dict(head.tree)
        for key, value in operations:
            self._apply(tree, key, value)
        if "README.md" in tree and tree["README.md"] != head.tree.get("README.md"):
            try:
                card_metadata(tree["README.md"].content.decode())
            except ValueError as error:
                raise HubError(400, f"Your card metadata is not valid: {error}") from error
        commit = Commit(head, tree, header["summary"], header.get("description", ""), author)
        self.commits[commit.sha] = commit
        if create_pr:
            return commit, self.open_pull(commit, header["summary"], author, revision)
        self.refs[revision] = commit
        return commit, None

    def open_pull(self, commit, title, author, base="main"):
        number = len(self.pulls) + 1
        self.pulls[number] = {"title": title, "author": author, "base": base, "status": "open", "merged": None}
        self.refs[f"refs/pr/{number}"] = commit
        return number

    def merge(self, number, author):
        """Merge a pull request: its changes since it branched off are applied to the branch it is for."""
        pull, tip = self.pulls[number], self.refs[f"refs/pr/{number}"]
        head = self.refs[pull["base"]]
        known = {commit.sha for commit in head.history()}
        start = next(commit for commit in tip.history() if commit.sha in known)
        tree = {path: blob for path, blob in head.tree.items() if path in tip.tree or path not in start.tree}
        tree |= {path: blob for path, blob in tip.tree.items() if start.tree.get(path) != blob}
        merged = Commit(head, tree, f"{pull['title']} (#{number})", "", author)
        self.commits[merged.sha] = self.refs[pull["base"]] = merged
        pull.update(status="merged", merged=merged.sha)

    def store_object(self, oid, content):
        if hashlib.sha256(content).hexdigest() != oid:
            raise HubError(400, f"LFS object {oid}: the content has another sha256")
        self.objects[oid] = content

    def _apply(self, tree, key, value):
        path = value["path"]
        if key == "file":
            tree[path] = Blob(value["content"], lfs=False)
        elif key == "lfsFile":
            if value["oid"] not in self.objects:
                raise HubError(400, f"LFS pointer pointed to a file that does not exist: {path}")
            tree[path] = Blob(self.objects[value["oid"]], lfs=True)
        elif key == "copyFile":
            tree[path] = self.file(value.get("srcRevision", "main"), value["srcPath"])[1]
        elif key == "deletedFile":
            if tree.pop(path, None) is None:
                raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
        elif key == "deletedFolder":
            inside = [name for name in tree if name.startswith(path.rstrip("/") + "/")]
            if not inside:
                raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
            for name in inside:
                del tree[name]
        else:
            raise HubError(400, f"unknown operation {key}")
