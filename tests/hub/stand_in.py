"""A stand-in for the Hugging Face Hub: a real HTTP server on the loopback interface, for the real client libraries.

The fixtures are in `conftest.py`:

- `hub`: the running [`StandInHub`], empty at the start of every test. While a test uses it, this process
  (huggingface_hub, datasets, transformers) talks to it, online, with the write token of user `"user"` and empty caches
  in a temporary `HF_HOME`; afterwards everything is as before: offline, other caches. Retries do not wait.
- `hub_environment`: the environment of a subprocess that shall do the same (`subprocess.run(env=hub_environment)`).
  Its retries do wait: 1, 2, 4, 8, 8 s. Another machine is the same environment with another `HF_HOME`.

What a test can look at and do:

- `hub.url`; `hub.repository("user/name", "dataset")`: a [`stand_in_storage.Repository`] with `.files(revision)`
  (path -> bytes), `.refs`, `.commits`, `.pulls`, `.private`, `.gated`; `hub.repositories`: all of them by (kind, id).
  As on the Hub, a new repository has one commit with `.gitattributes`, a Space with a `README.md` as well.
- Tokens: `hub.tokens` maps token -> `User(name, role, organizations)`. `WRITE_TOKEN` and `READ_TOKEN` belong to
  `"user"`, who is in the organization `"lab"`, `STRANGER_TOKEN` to another user; any other token is invalid, and
  deleting one from `hub.tokens` revokes it. `hub.login(token)` changes the token of this process; None is no token.
- Failures, see [`stand_in_faults.Faults`]: `hub.fail(path, status=503, times=2)`,
  `hub.fail(path, cut="request", after=1000)`, `hub.fail(path, delay=2.0)`. An outage, in which no connection works any
  more, begins with `hub.cut_after(bytes)` or `hub.cut_at_request(number)`. `hub.heal()` ends all of them.
- The log: `hub.requests`, `hub.count(path, method)`, `hub.received` and `hub.sent` (bytes of bodies).

LFS objects arrive by `PUT /lfs/...`, everything that changes a branch by `POST /api/.../commit/<branch>`. `requests`
and `repositories` are written by the server's thread: look at them between calls.
"""

import os
import re
import socket
import threading
import time
from dataclasses import dataclass
from urllib.parse import quote, unquote

import uvicorn
from stand_in_access import nothing, refuse
from stand_in_faults import Faults
from stand_in_files import FileAnswers
from stand_in_repositories import RepositoryAnswers
from stand_in_storage import HubError
from starlette.applications import Starlette
from starlette.routing import Route

WRITE_TOKEN, READ_TOKEN, STRANGER_TOKEN = "hf_write", "hf_read", "hf_stranger"


@dataclass(frozen=True)
class User:
    """Whom a token belongs to; `role` is `"write"` or `"read"`."""

    name: str
    role: str = "write"
    organizations: tuple = ()


class StandInHub:
    """The server; see the module's text."""

    def __init__(self):
        routes = [*RepositoryAnswers(self).routes(), *FileAnswers(self).routes()]
        routes.append(Route("/{path:path}", nothing, methods=["GET", "POST", "PUT", "DELETE"]))
        app = Starlette(routes=routes, exception_handlers={HubError: refuse})
        self.faults = Faults(_EncodedPaths(app), self._drop)
        self.reset()
        for name in ("fail", "heal", "cut_after", "cut_at_request", "count"):
            setattr(self, name, getattr(self.faults, name))
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        config = uvicorn.Config(
            self.faults, http="h11", ws="none", lifespan="off", loop="asyncio", log_config=None, timeout_keep_alive=60
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), daemon=True)

    def start(self):
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)

    def stop(self):
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(timeout=10)

    def reset(self):
        """Forget every repository, rule and request."""
        self.repositories = {}
        self.tokens = {
            WRITE_TOKEN: User("user", organizations=("lab",)),
            READ_TOKEN: User("user", "read", ("lab",)),
            STRANGER_TOKEN: User("stranger"),
        }
        self.faults.reset()

    requests = property(lambda self: self.faults.requests)
    received = property(lambda self: self.faults.received)
    sent = property(lambda self: self.faults.sent)

    def repository(self, name, kind="model"):
        """A repository, KeyError without it."""
        return self.repositories[kind, name]

    def login(self, token):
        """Use another token in this process; the fixture restores the first one."""
        if token is None:
            os.environ.pop("HF_TOKEN", None)
        else:
            os.environ["HF_TOKEN"] = token

    def _drop(self, client):
        """Drop the connection of a client, all connections if None, without a word."""
        for connection in list(self._server.server_state.connections):
            if client is None or connection.client == client:
                connection.transport.abort()


class _EncodedPaths:
    """Lets routes see the path as it was sent, so that `refs%2Fpr%2F1` is one segment; then decodes its parts."""

    def __init__(self, app):
        self.app = app
        for route in app.routes:
            route.app = _DecodedParameters(route.app)

    async def __call__(self, scope, receive, send):
        path = scope["raw_path"].decode()
        path = re.sub(r"/refs/(pr|heads|tags)/[^/]+", lambda found: "/" + quote(found[0][1:], safe=""), path)
        await self.app({**scope, "path": path}, receive, send)


class _DecodedParameters:
    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        scope["path_params"] = {name: unquote(value) for name, value in scope["path_params"].items()}
        await self.app(scope, receive, send)
