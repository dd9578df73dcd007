"""The app of operators, HTTP with JSON: the same one on the control socket and at the status addresses.

The server puts two facts into the state of each request: the endpoint at which its client has connected, and the
transport of the connection. At an endpoint that only shows, nothing but GET is allowed.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import dataclasses
import enum
import functools
import hmac
import itertools
import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..addresses.printable import printable
from ..addresses.values import is_ip_address
from ..daemon.change.upgrade_channel import UpgradeError
from ..daemon.failures import ConflictError, NotFoundError, ReloadError
from ..daemon.instance import Instance
from ..daemon.sockets import Endpoint
from ..daemon.status import LOG_LEVELS
from ..eventloop import reserve
from .events import Events
from .health import DRAINING, Health, liveness, readiness
from .metrics import CONTENT_TYPE, MetricsPage
from .overview import Overview
from .page import FILES, HEADERS, content
from .tables import PAGE, View, offset
from .turns import Shared, Threads

logger = logging.getLogger("relay.operations")

LONGEST_HEAD = 16 << 10  # bytes of a request line and its headers
LONGEST_BODY = 64 << 10  # bytes of a request's body
# Threads of the requests. Those that may take long get a few, so that others find one free.
ACTIONS = 40
RELOADS = 4  # one runs, the others become the next one
UPGRADES = 2  # one runs, the others are refused
CHECKS = 4  # of each kind of health check
SHOWN = 2  # at the status addresses
SHARED = 0.1  # seconds at least for which clients of the status addresses get the same answer
CHUNK = 64 << 10  # bytes of an answer that are given to the transport at once
CHUNKS = 8  # of long answers in one turn of the loop, so that a health check soon has its turn

Answer = Callable[[Request], Any]


def make_app(instance: Instance) -> App:
    """Return the app.

    :param instance: what it shows and controls.
    """
    threads = Threads(ACTIONS)
    operations = _Operations(instance, threads)
    events = Events(Overview(instance), Threads(1).run)
    _act = functools.partial(_action, threads=threads)
    _get = functools.partial(_shown, threads=threads, shared=Shared(Threads(SHOWN), SHARED))
    live, ready = Shared(Threads(CHECKS), 0.0), Shared(Threads(CHECKS), 0.0)
    metrics = MetricsPage(instance)
    routes = [
        *(_file(path) for path in FILES),
        Route("/events", functools.partial(_events, events), methods=["GET"]),
        _get("/instance", lambda request: instance.status(figures=True)),
        _get("/tunnels", operations.tunnels),
        _get("/tunnels/{name}", operations.tunnel),
        _get("/connections", operations.connections),
        _get("/connections/recent", operations.recent),
        _get("/bans", operations.bans),
        _get("/quotas", operations.quotas),
        _act("/bans", functools.partial(operations.clear, "bans"), "DELETE"),
        _act("/quotas", functools.partial(operations.clear, "quotas"), "DELETE"),
        _get("/carriers", lambda request: {"carriers": instance.carriers()}),
        _check("/livez", lambda request: _health(liveness(instance)), live),
        _check("/readyz", lambda request: _health(readiness(instance)), ready),
        _check("/readyz/{name}", operations.ready, ready),
        _get("/metrics", lambda request: Response(metrics.render(), media_type=CONTENT_TYPE)),
        _get("/openapi.json", lambda request: _document()),
        _act("/tunnels/{name}/pause", lambda request: instance.pause(request.path_params["name"])),
        _act("/tunnels/{name}/resume", lambda request: instance.resume(request.path_params["name"])),
        _act("/tunnels/{name}/drain", lambda request: instance.drain(request.path_params["name"])),
        _act("/tunnels/{name}/enable", lambda request: instance.enable(*_target(request))),
        _act("/tunnels/{name}/disable", lambda request: instance.disable(*_target(request))),
        _act("/connections/{id}", lambda request: instance.kill(request.path_params["id"]), "DELETE"),
        _act("/reload", operations.reload, threads=Threads(RELOADS)),
        _act("/upgrade", lambda request: instance.upgrade(), threads=Threads(UPGRADES)),
        _act("/reopen", lambda request: instance.reopen_logs()),
        _act("/stop", lambda request: instance.stop()),
        Route("/log-level", operations.set_log_level, methods=["PUT"]),
    ]
    return App(Starlette(routes=routes, exception_handlers=_HANDLERS), events)


class _Operations:
    """The answers that need more than one line.

    :param instance: what they are about.
    :param threads: for those that run on none yet.
    """

    def __init__(self, instance: Instance, threads: Threads) -> None:
        self._instance = instance
        self._threads = threads

    def tunnels(self, request: Request) -> Any:
        return _page(request, "tunnels", lambda first, most: self._instance.tunnels()[first:][:most])

    def tunnel(self, request: Request) -> Any:
        name = request.path_params["name"]
        tunnels = self._instance.tunnels()
        for tunnel in tunnels:
            if tunnel.name == name:
                return tunnel
        raise NotFoundError(f"{name}: there is no such tunnel; known are {_listed([one.name for one in tunnels])}")

    def connections(self, request: Request) -> Any:
        name = request.query_params.get("tunnel")
        return _page(request, "connections", lambda first, most: self._instance.connections(name, first, most))

    def recent(self, request: Request) -> Any:
        name = request.query_params.get("tunnel")
        return _page(request, "connections", lambda first, most: self._instance.recent(name)[first:][:most])

    def bans(self, request: Request) -> Any:
        name = request.query_params.get("tunnel")
        return _page(request, "bans", lambda first, most: self._instance.bans(name)[first:][:most])

    def quotas(self, request: Request) -> Any:
        name = request.query_params.get("tunnel")
        return _page(request, "quotas", lambda first, most: self._instance.quotas(name)[first:][:most])

    def clear(self, kind: str, request: Request) -> Any:
        if not (key := request.query_params.get("key")):
            raise HTTPException(400, "key: expected the clients that count together, as the list has them")
        return {"cleared": self._instance.clear(kind, key, request.query_params.get("tunnel"))}

    def ready(self, request: Request) -> Any:
        return _health(readiness(self._instance, request.path_params["name"]))

    def reload(self, request: Request) -> Any:
        wish = request.query_params.get("dry_run", "false")
        if wish not in ("true", "false"):
            raise HTTPException(400, "dry_run: expected true or false")
        return self._instance.reload(dry_run=wish == "true")

    async def set_log_level(self, request: Request) -> Response:
        try:
            value = json.loads(await request.body())
        except (ValueError, RecursionError):
            value = None
        level = value.get("level") if isinstance(value, dict) else None
        if level not in LOG_LEVELS:
            raise HTTPException(400, f'expected {{"level": …}} with one of {", ".join(LOG_LEVELS)}')
        await self._threads.run(functools.partial(self._instance.set_log_level, level))
        return Response(status_code=204)


def _target(request: Request) -> tuple[str, str]:
    """Return the names of a tunnel and of one of its targets."""
    target = request.query_params.get("target")
    if target is None:
        raise HTTPException(400, "target: expected the name of a target, as in the status of the tunnel")
    return request.path_params["name"], target


def _page(request: Request, name: str, rows: Callable[[int, int | None], Sequence[Any]]) -> Any:
    """Return the rows that a client gets: all of them at the control socket, else one page, and whether there are more.

    :param rows: returns them, after so many, at most so many.
    """
    if request.state.endpoint.is_control:
        return {name: rows(0, None)}
    try:
        first = offset(request.query_params.get("from", "0"), "from")
    except ValueError as error:
        raise HTTPException(400, str(error)) from error
    found = rows(first, PAGE + 1)
    return {name: found[:PAGE], "more": len(found) > PAGE}


def _shown(path: str, answer: Answer, *, threads: Threads, shared: Shared) -> Route:
    """Return the route of an answer that clients of the status addresses share, of which relay computes few at a time.

    The clients of the control socket are the operator's: each gets one of its own.
    """

    async def respond(request: Request) -> Response:
        if request.state.endpoint.is_control:
            return await threads.run(functools.partial(_work, answer, request))
        return await shared.get(_question(request), functools.partial(_work, answer, request))

    return Route(path, respond, methods=["GET"])


def _check(path: str, answer: Answer, shared: Shared) -> Route:
    """Return the route of a health check, which never waits for other answers."""

    async def respond(request: Request) -> Response:
        return await shared.get(_question(request), functools.partial(_work, answer, request))

    return Route(path, respond, methods=["GET"])


def _question(request: Request) -> str:
    return f"{request.scope['path']}?{request.scope['query_string'].decode('latin-1')}"


def _action(path: str, act: Answer, method: str = "POST", *, threads: Threads) -> Route:
    async def respond(request: Request) -> Response:
        return await threads.run(functools.partial(_work, act, request))

    return Route(path, respond, methods=[method])


def _file(path: str) -> Route:
    async def respond(request: Request) -> Response:
        data, kind = content(path)
        return Response(data, media_type=kind, headers={"Cache-Control": "no-cache"})

    return Route(path, respond, methods=["GET"])


async def _events(events: Events, request: Request) -> Response:
    """Return the server-sent events of the status page."""
    if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        raise HTTPException(403, "a page of another site asks for it")
    try:
        view = View.parse(request.query_params)
    except ValueError as error:
        raise HTTPException(400, str(error)) from error
    if request.method == "HEAD":
        return Response(media_type="text/event-stream")
    endpoint: Endpoint = request.state.endpoint
    token = endpoint.token
    serve = functools.partial(events.serve, view, lambda: endpoint.token == token)
    return _Stream(serve, request.state.transport)


class _Stream(Response):
    """A response that is sent until its client leaves.

    :param serve: sends it.
    :param transport: of the connection.
    """

    def __init__(self, serve: Callable[..., Awaitable[None]], transport: Any) -> None:
        super().__init__()
        self._serve = serve
        self._transport = transport

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._serve(receive, send, self._transport)


def _work(answer: Answer, request: Request) -> Response:
    """Call a function on a thread, because it may wait for another one, and turn its value into JSON."""
    try:
        value = answer(request)
    except (HTTPException, NotFoundError, ConflictError, ReloadError, OSError):
        raise
    except Exception:
        logger.exception("%s %s failed", request.method, request.url.path)
        return _error(500, "relay has a bug here; its log has a traceback")
    if isinstance(value, Response):
        return value
    return Response(status_code=204) if value is None else _json(200, as_json(value))


def as_json(value: Any) -> Any:
    """Return what JSON has for a value: an object for a dataclass or a named tuple, by the names of its fields.

    Fields of a dataclass whose metadata have ``json`` false are left out, such as the counters for ``/metrics``.
    """
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value) if field.metadata.get("json", True)]
        return {name: as_json(getattr(value, name)) for name in names}
    if hasattr(value, "_asdict"):
        return {name: as_json(each) for name, each in value._asdict().items()}
    if isinstance(value, (list, tuple)):
        return [as_json(each) for each in value]
    if isinstance(value, dict):
        return {str(name): as_json(each) for name, each in value.items()}
    return value.value if isinstance(value, enum.Enum) else value


def _health(health: Health) -> Response:
    problems = dict(health.problems)
    status = "ok" if health.is_ok else "draining" if health.draining else "failed"
    error = {"error": DRAINING} if health.draining else {}
    return _json(200 if health.is_ok else 503, {"status": status, "problems": problems, **error})


def _json(status: int, value: Any, **headers: str) -> Response:
    text = json.dumps(value, separators=(",", ":"))  # ASCII: a path that is not UTF-8 has no other form
    return Response(text, status, {"Cache-Control": "no-store", **headers}, "application/json")


def _error(status: int, text: str, **headers: str) -> Response:
    return _json(status, {"error": printable(text)}, **headers)  # it may repeat a part of the request


def _document() -> Any:
    with reserve.lent():  # few ask for it, so it is imported then
        from .openapi import document

        return document()


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:20])
    return f"{shown} and {len(names) - 20} more" if len(names) > 20 else shown or "none"


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    text = error.detail if error.status_code == 400 else f"{request.method} {request.url.path}: {error.detail.lower()}"
    return _error(error.status_code, text, **(dict(error.headers) if error.headers else {}))


def _handler(status: int) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def handle(request: Request, error: Exception) -> Response:
        text = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
        return _error(status, text)

    return handle


async def _rejected(request: Request, error: Exception) -> Response:
    assert isinstance(error, (ReloadError, UpgradeError))
    is_of_system = isinstance(error, UpgradeError) or error.status == 1
    return _json(500 if is_of_system else 422, {"error": str(error), "problems": error.lines})


class _TooLongError(Exception):
    """A body that is longer than allowed."""


async def _too_long_body(request: Request, error: Exception) -> Response:
    return _body_too_long()


_HANDLERS: Any = {
    HTTPException: _http_error,
    _TooLongError: _too_long_body,
    NotFoundError: _handler(404),
    ConflictError: _handler(409),
    ReloadError: _rejected,
    UpgradeError: _rejected,
    OSError: _handler(500),
}


class App:
    """The app behind a check of each request: its size, the method, the host, the token.

    :param app: gets the requests that pass.
    :param events: of the status page.
    """

    def __init__(self, app: ASGIApp, events: Events) -> None:
        self._app = app
        self._events = events
        self._turns = asyncio.Semaphore(CHUNKS)

    def close(self) -> None:
        """End the answers that would never end."""
        self._events.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request (ASGI)."""
        assert scope["type"] == "http", "no other protocol is on"
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        endpoint: Endpoint = scope["state"]["endpoint"]
        send = _Answer(send, self._turns)
        response = _too_long(scope) or _rejection(endpoint, scope["method"], headers)
        if response is not None:
            return await response(scope, receive, send)
        counted = _Counted(receive)
        try:
            return await self._app(scope, counted, send)
        except ClientDisconnect:
            return None
        except asyncio.CancelledError:  # the program ends before the answer is there
            if send.has_begun:
                raise
            status = 503 if scope["method"] in ("GET", "HEAD") else 409
            response = _error(status, "relay is ending; start it again", Connection="close")
            return await response(scope, receive, send)


def _too_long(scope: Scope) -> Response | None:
    """Return that the head is too long, if it is: h11 only limits heads that come in several pieces."""
    fields = sum(map(len, itertools.chain.from_iterable(scope["headers"])))
    if len(scope["raw_path"]) + len(scope["query_string"]) + fields <= LONGEST_HEAD:
        return None
    return _error(431, f"the request line and its headers have more than {LONGEST_HEAD} bytes", Connection="close")


def _rejection(endpoint: Endpoint, method: str, headers: dict[bytes, str]) -> Response | None:
    """Return why a request does not get to the app."""
    if not endpoint.is_control:
        if method not in ("GET", "HEAD"):
            return _error(405, "only GET is allowed here; relay ctl uses the control socket", Allow="GET, HEAD")
        host = headers.get(b"host", "localhost")  # a balancer may send none (HTTP/1.0); each browser sends one
        if not endpoint.path and not endpoint.is_public and not _is_own_name(host):
            return _error(421, "unknown host; use the address of the status server, such as 127.0.0.1 or localhost")
        if endpoint.token is not None and not _has_token(headers.get(b"authorization", ""), endpoint.token):
            return _unauthorized()
    length = headers.get(b"content-length", "0")
    if not length.isdecimal() or len(length) > 9 or int(length) > LONGEST_BODY:
        return _body_too_long()
    return None


def _body_too_long() -> Response:
    return _error(413, f"the body has more than {LONGEST_BODY} bytes", Connection="close")


def _unauthorized() -> Response:
    """Return the request for the token: a browser asks its user for a name, which is not used, and a password."""
    response = _error(401, "expected Authorization: Bearer with the token of status_token_file")
    response.headers.append("WWW-Authenticate", 'Basic realm="relay: the token is the password", charset="UTF-8"')
    response.headers.append("WWW-Authenticate", 'Bearer realm="relay"')
    return response


class _Answer:
    """An answer, with the headers that keep a browser from doing what the page does not need.

    :param send: sends its messages (ASGI).
    :param turns: of the pieces of long answers.
    """

    def __init__(self, send: Send, turns: asyncio.Semaphore) -> None:
        self.has_begun = False
        self._send = send
        self._turns = turns

    async def __call__(self, message: Message) -> None:
        self.has_begun = True
        body = message.get("body", b"")
        begin = 0
        while len(body) - begin > CHUNK:  # a client that takes nothing holds no more than that
            async with self._turns:
                await asyncio.sleep(0)  # noqa: TID251 - no wait: the next turn of the loop
            piece = body[begin : begin + CHUNK]
            await self._send({"type": "http.response.body", "body": piece, "more_body": True})
            begin += CHUNK
        if begin:
            message = {**message, "body": body[begin:]}
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=list(message["headers"]))
            headers.update(HEADERS)
            message = {**message, "headers": headers.raw}
        await self._send(message)


def _is_own_name(host: str) -> bool:
    """Return whether a Host header is an IP address or localhost, which DNS rebinding cannot make a browser send."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    return is_ip_address(name) or name.lower() == "localhost"


def _has_token(header: str, token: str) -> bool:
    """Return whether a request has the token: as ``Bearer``, or as the password of ``Basic`` (RFC 7617)."""
    kind, _, value = header.partition(" ")
    sent = value.strip().encode()
    if kind.lower() == "basic":
        try:
            sent = base64.b64decode(sent, validate=True).partition(b":")[2]
        except binascii.Error:
            return False
    elif kind.lower() != "bearer":
        return False
    return hmac.compare_digest(sent, token.encode())


class _Counted:
    """The messages of a request, as long as its body is short enough."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._count = 0

    async def __call__(self) -> Message:
        message = await self._receive()
        self._count += len(message.get("body", b""))
        if self._count > LONGEST_BODY:
            raise _TooLongError
        return message
