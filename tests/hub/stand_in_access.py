"""Who may do what on the stand-in Hub; errors as the Hub words them."""

import re

from stand_in_storage import HubError
from starlette.responses import JSONResponse
from starlette.routing import Route

KINDS = {"models": "model", "datasets": "dataset", "spaces": "space"}
API = "/api/{kind}/{namespace}/{name}"


class Access:
    """Base of the answers.

    Args:
        hub: has `url`, `repositories` and `tokens`.
    """

    def __init__(self, hub):
        self.hub = hub

    def user(self, request):
        header = request.headers.get("authorization")
        if header is None:
            return None
        user = self.hub.tokens.get(header.removeprefix("Bearer "))
        if user is None:
            raise HubError(401, "Invalid credentials in Authorization header")
        return user

    def writer(self, request, namespace=None):
        user = self.user(request)
        if user is None:
            raise HubError(401, "Invalid username or password.")
        if user.role != "write" or namespace not in (None, user.name, *user.organizations):
            raise HubError(403, f"You don't have the required permissions to write to {namespace or user.name}")
        return user

    def find(self, request):
        values = request.path_params
        kind = KINDS.get(values.get("kind", "models"))
        return self.hub.repositories.get((kind, f"{values['namespace']}/{values['name']}"))

    def open(self, request, write=False):
        """The repository that the path names, if the client may see it (and write to it)."""
        user, repository = self.user(request), self.find(request)
        insider = user and repository and repository.namespace in (user.name, *user.organizations)
        if repository is None or (repository.private and not insider):
            raise HubError(404 if user else 401, "Repository not found", "RepoNotFound")
        if write:
            self.writer(request, repository.namespace)
        elif repository.gated and not insider and re.search("/resolve/|/auth-check", request.url.path):
            raise HubError(403 if user else 401, f"Access to {repository.id} is restricted", "GatedRepo")
        return repository

    def web(self, repository):
        return f"{self.hub.url}/{'' if repository.kind == 'model' else repository.kind + 's/'}{repository.id}"


def routes(table):
    """Routes of a table of (method, path, endpoint)."""
    return [Route(path, endpoint, methods=[method]) for method, path, endpoint in table]


async def nothing(request):
    repository = re.match(r"/api/(models|datasets|spaces)/|/.+/resolve/", request.url.path)
    raise HubError(404, f"{request.url.path}: not found", "RepoNotFound" if repository else None)


async def refuse(request, error):
    headers = {"X-Error-Message": error.message.encode("ascii", "replace").decode().replace("\n", " ")}
    if error.code:
        headers["X-Error-Code"] = error.code
    return JSONResponse({"error": error.message, **error.extra}, error.status, headers)
