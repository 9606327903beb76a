"""What can go wrong between a client and the stand-in Hub: error statuses, delays and lost connections.

A lost connection is a TCP connection that the server drops without an HTTP answer.
"""

import asyncio
import json
import re
from dataclasses import dataclass
from urllib.parse import unquote

from starlette.requests import ClientDisconnect


@dataclass
class Request:
    """One request as it was seen: `status` is None where the client got no answer, or not the whole of one."""

    method: str
    path: str
    query: str
    headers: dict
    received: int = 0
    sent: int = 0
    status: int | None = None

    def matches(self, path, method=None):
        return (method is None or method == self.method) and re.search(path, self.path) is not None


@dataclass
class Fault:
    """What happens to some requests; made by [`Faults.fail`]."""

    path: str
    method: str | None
    at: int
    times: int | None
    status: int | None
    code: str | None
    message: str
    headers: dict
    cut: str | None
    after: int
    delay: float
    seen: int = 0

    def hits(self, request):
        if not request.matches(self.path, self.method):
            return False
        self.seen += 1
        return self.seen >= self.at and (self.times is None or self.seen < self.at + self.times)


class Faults:
    """Log of requests and rules of failure, as an ASGI application around another one.

    Args:
        app: the ASGI application that answers.
        drop: drops the connection of the client (address, port) it is given, all connections if None.
    """

    def __init__(self, app, drop):
        self.app, self.drop = app, drop
        self.reset()

    def reset(self):
        self.requests = []
        self.heal()

    def heal(self):
        """End every rule and outage; the log stays."""
        self._faults, self._outage = [], None
        self.down, self._budget = False, {"request": None, "response": None}

    def fail(
        self,
        path="",
        *,
        method=None,
        at=1,
        times=1,
        status=None,
        code=None,
        message="injected failure",
        headers=None,
        cut=None,
        after=0,
        delay=0.0,
    ):
        """Let requests fail; all rules see every request, the first that hits decides.

        Args:
            path: regular expression, searched in the request's decoded path (`/api/models/user/name/commit/main`).
            method: of the requests, None for any.
            at: the rule begins with the request number `at` of those that match, counted from 1.
            times: how many requests it hits before it expires, None for ever.
            status: answer with this status. The request has no other effect.
            code: `X-Error-Code` of the answer.
            message: error message of the answer.
            headers: more headers of the answer, such as `{"Retry-After": "0"}`.
            cut: lose the connection after `after` bytes of the `"request"` body, or of the `"response"` body. A
                request that was cut has no effect, one whose response was cut has been carried out.
            after: see `cut`; 0 means before the first byte of the body (and of the response at all).
            delay: seconds to wait before anything else; alone, the request is only slow.
        """
        if (status is None and cut is None and not delay) or cut not in (None, "request", "response"):
            raise ValueError(f"got status {status}, cut {cut!r}, expected a status, 'request'/'response', or a delay")
        self._faults.append(Fault(path, method, at, times, status, code, message, headers or {}, cut, after, delay))

    def cut_after(self, total, of="request"):
        """Lose every connection once `total` more body bytes have passed, and answer nobody until `heal()`.

        Args:
            total: bytes, counted over all connections from now.
            of: `"request"` bodies (uploads) or `"response"` bodies (downloads).
        """
        self._budget[of] = total

    def cut_at_request(self, number, path="", *, method=None, answered=False):
        """Lose every connection at a request, and answer nobody until `heal()`.

        Args:
            number: 1 is the next request that matches.
            path: as in `fail`.
            method: as in `fail`.
            answered: whether that request is carried out; the client misses its answer either way.
        """
        self._outage = (number, path, method, answered)

    def count(self, path="", method=None):
        """Number of requests so far whose path matches."""
        return sum(request.matches(path, method) for request in list(self.requests))

    @property
    def received(self):
        """Bytes of request bodies so far."""
        return sum(request.received for request in list(self.requests))

    @property
    def sent(self):
        """Bytes of response bodies so far."""
        return sum(request.sent for request in list(self.requests))

    async def __call__(self, scope, receive, send):
        headers = {name.decode(): value.decode("latin1") for name, value in scope["headers"]}
        path = unquote(scope["raw_path"].decode())
        request = Request(scope["method"], path, scope["query_string"].decode(), headers)
        self.requests.append(request)
        fault = next((fault for fault in [fault for fault in self._faults if fault.hits(request)]), None)
        exchange = _Exchange(self, request, fault, scope["client"], receive, send)
        if self._outage and request.matches(self._outage[1], self._outage[2]):
            self._outage = (self._outage[0] - 1, *self._outage[1:])
            if self._outage[0] == 0:
                exchange.mute = self._outage[3]
                self.down = not exchange.mute
        if self.down:
            return await self._end(exchange)
        if fault and fault.delay:
            await asyncio.sleep(fault.delay)
        try:
            if fault and fault.status:
                await exchange.refuse()
            elif fault and fault.cut == "request" and fault.after == 0:
                exchange.lose()
            else:
                await self.app(scope, exchange.receive, exchange.send)
        except ClientDisconnect:
            pass
        if exchange.mute or exchange.lost:
            self.down = self.down or exchange.mute
            await self._end(exchange)

    async def _end(self, exchange):
        exchange.lose()
        # The server notices a dropped connection in the next turn of its loop; before, it would try to answer.
        await asyncio.sleep(0)


class _Exchange:
    """`receive` and `send` of one request, counted and cut."""

    def __init__(self, faults, request, fault, client, receive, send):
        self.faults, self.request, self.fault, self.client = faults, request, fault, client
        self._receive, self._send = receive, send
        self.lost = self.mute = False

    def lose(self):
        self.lost = True
        self.request.status = None
        self.faults.drop(None if self.faults.down else self.client)

    def _allowed(self, of, size, done):
        """How many of the next `size` bytes may pass before the connection is lost."""
        allowed = size
        if self.fault and self.fault.cut == of:
            allowed = min(allowed, self.fault.after - done)
        budget = self.faults._budget[of]
        if budget is not None:
            self.faults.down = budget < min(size, allowed)
            allowed = min(allowed, budget)
            self.faults._budget[of] = budget - allowed
        return allowed

    async def receive(self):
        if self.lost or self.faults.down:
            return {"type": "http.disconnect"}
        message = await self._receive()
        if message["type"] == "http.request" and message.get("body"):
            size = len(message["body"])
            allowed = self._allowed("request", size, self.request.received)
            self.request.received += allowed
            if allowed < size:
                self.lose()
                return {"type": "http.disconnect"}
        return message

    async def send(self, message):
        if self.faults.down and not self.lost:
            self.lose()
        if self.lost or self.mute:
            return
        if message["type"] == "http.response.start":
            self.request.status = message["status"]
            if self.fault and self.fault.cut == "response" and self.fault.after == 0:
                return self.lose()
        elif (body := message.get("body")) and self.request.method != "HEAD":
            allowed = self._allowed("response", len(body), self.request.sent)
            self.request.sent += allowed
            if allowed < len(body):
                await self._send({**message, "body": body[:allowed], "more_body": True})
                return self.lose()
        await self._send(message)

    async def refuse(self):
        """Read the request to its end, as a proxy in front of a failing server does, and answer with the error."""
        more = True
        while more:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            more = message.get("more_body", False)
        headers = {"content-type": "application/json", "x-error-message": self.fault.message, **self.fault.headers}
        if self.fault.code:
            headers["x-error-code"] = self.fault.code
        encoded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": self.fault.status, "headers": encoded})
        await self.send({"type": "http.response.body", "body": json.dumps({"error": self.fault.message}).encode()})
