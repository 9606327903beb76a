"""What the stand-in Hub answers about files: listings, downloads, uploads and commits."""

import base64
import json
import re
from urllib.parse import parse_qs

from stand_in_access import API, Access, routes
from stand_in_storage import HubError, git_sha, lfs_fields, upload_mode
from starlette.responses import JSONResponse, Response


class FileAnswers(Access):
    def routes(self):
        table = [
            ("PUT", "/lfs/{kind}/{namespace}/{name}/{oid}", self.upload),
            ("POST", API + "/preupload/{revision}", self.preupload),
            ("POST", API + "/commit/{revision}", self.commit),
            ("GET", API + "/tree/{revision}", self.tree),
            ("GET", API + "/tree/{revision}/{path:path}", self.tree),
            ("POST", API + "/paths-info/{revision}", self.paths),
        ]
        for place in ("/{kind}/{namespace}/{name}", "/{namespace}/{name}"):
            table += [
                ("POST", place + ".git/info/lfs/objects/batch", self.batch),
                ("GET", place + "/resolve/{revision}/{path:path}", self.resolve),
            ]
        return routes(table)

    async def preupload(self, request):
        repository, files = self.open(request, write=True), (await request.json())["files"]
        tree = repository.resolve(request.path_params["revision"]).tree
        answer = []
        for file in files:
            mode = upload_mode(file["path"], file["size"], base64.b64decode(file["sample"]))
            known = tree.get(file["path"])
            # As on the Hub, of an LFS file this is the object's sha256, not the pointer's git SHA.
            oid = known.etag if known else None
            answer.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return JSONResponse({"files": answer})

    async def batch(self, request):
        repository, answer = self.open(request, write=True), []
        prefix = f"{self.hub.url}/lfs/{repository.kind}s/{repository.id}/"
        for wanted in (await request.json())["objects"]:
            known = wanted["oid"] in repository.objects
            actions = {} if known else {"actions": {"upload": {"href": prefix + wanted["oid"], "header": {}}}}
            answer.append({"oid": wanted["oid"], "size": wanted["size"], **actions})
        return JSONResponse({"transfer": "basic", "objects": answer})

    async def upload(self, request):
        # As on the Hub, the link itself is the permission: clients send no token with it.
        repository = self.find(request)
        if repository is None:
            raise HubError(403, "the link has expired")
        repository.store_object(request.path_params["oid"], await request.body())
        return Response()

    async def commit(self, request):
        repository, revision = self.open(request, write=True), request.path_params["revision"]
        lines = [json.loads(line) for line in (await request.body()).splitlines() if line]
        header = next(line["value"] for line in lines if line["key"] == "header")
        operations = [(line["key"], line["value"]) for line in lines if line["key"] != "header"]
        for key, value in operations:
            if key == "file":
                value["content"] = base64.b64decode(value["content"])
        create_pr = request.query_params.get("create_pr") == "1"
        author = self.user(request).name
        commit, number = repository.commit(revision, header, operations, author, create_pr)
        answer = {
            "success": True,
            "commitOid": commit.sha,
            "commitUrl": f"{self.web(repository)}/commit/{commit.sha}",
        }
        if number:
            answer["pullRequestUrl"] = f"{self.web(repository)}/discussions/{number}"
        return JSONResponse(answer)

    async def tree(self, request):
        repository = self.open(request)
        commit = repository.resolve(request.path_params["revision"])
        folder = request.path_params.get("path", "").strip("/")
        prefix = f"{folder}/" if folder else ""
        inside = sorted(path for path in commit.tree if path.startswith(prefix))
        if folder and not inside:
            raise HubError(404, f"{folder} does not exist on {commit.sha}", "EntryNotFound")
        names = set(inside)
        for path in inside:
            parts = path.split("/")
            names |= {"/".join(parts[:depth]) for depth in range(prefix.count("/") + 1, len(parts))}
        if not _flag(request.query_params.get("recursive")):
            names = {name for name in names if "/" not in name[len(prefix) :]}
        expand = _flag(request.query_params.get("expand"))
        return JSONResponse([_entry(commit, name, expand) for name in sorted(names)])

    async def paths(self, request):
        repository, form = self.open(request), parse_qs((await request.body()).decode())
        commit = repository.resolve(request.path_params["revision"])
        names = [name.strip("/") for name in form.get("paths", [])]
        expand = _flag(form.get("expand", [""])[0])
        return JSONResponse([_entry(commit, name, expand) for name in names if commit.content(name)])

    async def resolve(self, request):
        repository = self.open(request)
        commit, blob = repository.file(request.path_params["revision"], request.path_params["path"])
        size = len(blob.content)
        headers = {"ETag": f'"{blob.etag}"', "X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
        if blob.lfs:
            headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(size)}
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", ""))
        if wanted is None:
            return Response(blob.content, 200, headers, "application/octet-stream")
        first, last = wanted.groups()
        start = int(first) if first else max(0, size - int(last))
        stop = min(size, int(last) + 1) if first and last else size
        if start >= size:
            return Response(b"", 416, {**headers, "Content-Range": f"bytes */{size}"})
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        return Response(blob.content[start:stop], 206, headers, "application/octet-stream")


def _flag(text):
    return (text or "").lower() in ("1", "true")


def _entry(commit, path, expand):
    """A file or a folder of a tree, as the Hub lists it."""
    blob = commit.tree.get(path)
    if blob is None:
        inside = "".join(f"{name}\0{one.oid}" for name, one in sorted(commit.content(path).items()))
        entry = {"type": "directory", "path": path, "size": 0, "oid": git_sha("tree", inside.encode())}
    else:
        entry = {"type": "file", "path": path, "size": len(blob.content), "oid": blob.oid, **lfs_fields(blob)}
    if expand:
        last = commit.last_change(path)
        entry["lastCommit"] = {"id": last.sha, "title": last.title, "date": last.time}
    return entry
