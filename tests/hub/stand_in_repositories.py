"""What the stand-in Hub answers about users, repositories, branches, tags and pull requests."""

from stand_in_access import API, Access, routes
from stand_in_storage import HubError, Repository, card_metadata, lfs_fields
from starlette.responses import JSONResponse, Response


class RepositoryAnswers(Access):
    def routes(self):
        return routes(
            [
                ("GET", "/api/whoami-v2", self.whoami),
                ("POST", "/api/repos/create", self.create),
                ("DELETE", "/api/repos/delete", self.delete),
                ("POST", "/api/validate-yaml", self.validate),
                ("GET", API, self.info),
                ("GET", API + "/revision/{revision}", self.info),
                ("PUT", API + "/settings", self.settings),
                ("GET", API + "/auth-check", self.check),
                ("GET", API + "/auth-check/write", self.check),
                ("GET", API + "/commits/{revision}", self.history),
                ("GET", API + "/refs", self.refs),
                ("POST", API + "/branch/{branch}", self.branch),
                ("DELETE", API + "/branch/{branch}", self.branch),
                ("POST", API + "/tag/{revision}", self.tag),
                ("DELETE", API + "/tag/{revision}", self.tag),
                ("GET", API + "/discussions", self.discussions),
                ("POST", API + "/discussions/{number}/merge", self.merge),
            ]
        )

    async def whoami(self, request):
        user = self.user(request)
        if user is None:
            raise HubError(401, "Invalid username or password.")
        token = {"displayName": "test", "role": user.role}
        organizations = [{"type": "org", "name": name} for name in user.organizations]
        return JSONResponse({"type": "user", "name": user.name, "orgs": organizations, "auth": {"accessToken": token}})

    async def create(self, request):
        wanted = await request.json()
        user = self.writer(request, wanted.get("organization"))
        name, kind = f"{wanted.get('organization') or user.name}/{wanted['name']}", wanted.get("type") or "model"
        private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        if kind == "space" and not wanted.get("sdk"):
            raise HubError(400, "a Space needs an sdk")
        if (kind, name) in self.hub.repositories:
            url = self.web(self.hub.repositories[kind, name])
            raise HubError(409, f"You already created this {kind} repo: {name}", url=url)
        repository = self.hub.repositories[kind, name] = Repository(kind, name, user.name, private, wanted.get("sdk"))
        return JSONResponse({"url": self.web(repository), "name": name, "id": name})

    async def delete(self, request):
        wanted = await request.json()
        user = self.writer(request, wanted.get("organization"))
        key = wanted.get("type") or "model", f"{wanted.get('organization') or user.name}/{wanted['name']}"
        if self.hub.repositories.pop(key, None) is None:
            raise HubError(404, "Repository not found", "RepoNotFound")
        return Response()

    async def settings(self, request):
        repository, wanted = self.open(request, write=True), await request.json()
        repository.private = wanted.get("visibility", "private" if repository.private else "public") == "private"
        repository.gated = wanted.get("gated", repository.gated)
        return JSONResponse({})

    async def check(self, request):
        self.open(request, write=request.url.path.endswith("/write"))
        return JSONResponse({})

    async def validate(self, request):
        try:
            metadata = card_metadata((await request.json())["content"])
        except ValueError as error:
            return JSONResponse({"errors": [{"message": str(error)}], "warnings": []}, 400)
        empty = [] if metadata else [{"message": "empty or missing yaml metadata in repo card"}]
        return JSONResponse({"errors": [], "warnings": empty})

    async def info(self, request):
        repository = self.open(request)
        commit = repository.resolve(request.path_params.get("revision", "main"))
        card = commit.tree.get("README.md")
        metadata = card_metadata(card.content.decode()) if card else {}
        siblings = [{"rfilename": path} for path in sorted(commit.tree)]
        if "blobs" in request.query_params:
            siblings = [
                {"rfilename": path, "size": len(blob.content), "blobId": blob.oid, **lfs_fields(blob)}
                for path, blob in sorted(commit.tree.items())
            ]
        answer = {
            **{name: metadata[name] for name in ("pipeline_tag", "library_name", "sdk") if name in metadata},
            "id": repository.id,
            "author": repository.namespace,
            "sha": commit.sha,
            "private": repository.private,
            "gated": repository.gated,
            "disabled": False,
            "createdAt": repository.created.time,
            "lastModified": commit.time,
            "tags": metadata.get("tags", []),
            "cardData": metadata,
            "siblings": siblings,
        }
        return JSONResponse(answer)

    async def history(self, request):
        commit = self.open(request).resolve(request.path_params["revision"])
        return JSONResponse(
            [
                {
                    "id": one.sha,
                    "title": one.title,
                    "message": one.description,
                    "authors": [{"user": one.author}],
                    "date": one.time,
                }
                for one in commit.history()
            ]
        )

    async def refs(self, request):
        refs = self.open(request).refs
        answer = {"converts": [], "branches": [], "tags": [], "pullRequests": []}
        for ref, commit in refs.items():
            group = {"refs/tags/": "tags", "refs/pr/": "pullRequests"}.get(ref[: ref.rfind("/") + 1], "branches")
            full = ref if ref.startswith("refs/") else f"refs/heads/{ref}"
            name = ref.removeprefix("refs/tags/")
            answer[group].append({"name": name, "ref": full, "targetCommit": commit.sha})
        return JSONResponse(answer)

    async def branch(self, request):
        repository, name = self.open(request, write=True), request.path_params["branch"]
        if request.method == "DELETE":
            if repository.branches.pop(name, None) is None or name == "main":
                raise HubError(400, f"cannot delete {name}")
            del repository.refs[name]
        elif name in repository.refs:
            raise HubError(409, f"Reference already exists: {name}")
        else:
            repository.refs[name] = repository.resolve((await request.json()).get("startingPoint", "main"))
        return JSONResponse({})

    async def tag(self, request):
        repository, revision = self.open(request, write=True), request.path_params["revision"]
        if request.method == "DELETE":
            if repository.refs.pop(f"refs/tags/{revision}", None) is None:
                raise HubError(404, f"no tag {revision}", "RevisionNotFound")
            return JSONResponse({})
        name = f"refs/tags/{(await request.json())['tag']}"
        if name in repository.refs:
            raise HubError(409, f"Tag reference exists already: {name}")
        repository.refs[name] = repository.resolve(revision)
        return JSONResponse({})

    async def discussions(self, request):
        repository = self.open(request)
        found = [
            {
                "num": number,
                "title": pull["title"],
                "author": {"name": pull["author"]},
                "status": pull["status"],
                "isPullRequest": True,
                "createdAt": repository.refs[f"refs/pr/{number}"].time,
                "repo": {"name": repository.id, "type": repository.kind},
            }
            for number, pull in repository.pulls.items()
        ]
        return JSONResponse({"discussions": found, "count": len(found), "start": 0})

    async def merge(self, request):
        repository, number = self.open(request, write=True), int(request.path_params["number"])
        if repository.pulls.get(number, {}).get("status") != "open":
            raise HubError(404, f"no open pull request {number}")
        repository.merge(number, self.user(request).name)
        return JSONResponse({})
