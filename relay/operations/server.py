"""The server of the app: uvicorn, on a thread and a loop of its own. Imported once the tunnels listen.

What a client sends is bounded: the head by 16 KiB, the time until its request is complete by 10 s, and the number of
clients of an endpoint by 128. When there are more, the one that has been without a request for the longest is closed.
A client that takes nothing of its answer for 10 s is closed as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Any

import h11
from anyio.to_thread import current_default_thread_limiter
from uvicorn import Config, Server
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..daemon.instance import Instance
from ..daemon.sockets import BACKLOG, Endpoint
from ..daemon.waiting import Stop
from ..eventloop import reserve
from ..streams.rate_limited_log import RateLog
from .app import LONGEST_HEAD, App, make_app

logger = logging.getLogger("relay.operations")

REQUEST_TIME = 10.0  # seconds from the first chance to send a request until it is complete
ANSWER_TIME = 10.0  # seconds in which a client takes nothing of an answer that waits for it
KEEP_ALIVE = 30  # seconds without another request
DESCRIPTORS = 4  # of the loop, and one for a client
MOST_CLIENTS = 128  # of one endpoint
ACCEPT_TURNS = 3  # of asyncio's loop, until it has shown a client that it has accepted
SEND_BUFFER = 64 << 10  # bytes in the kernel for a client of a status address that reads nothing
LAST_ANSWERS = 1  # seconds at the end for those under way
ROOT = 0
_UCRED = struct.Struct("3i")  # of SO_PEERCRED: process, user, group

HandOver = Callable[[socket.socket, bytes], object]  # with what was read from the connection


def serve(instance: Instance, endpoints: Sequence[Endpoint], stop: Stop) -> None:
    """Serve the app at the endpoints, and close them at the end.

    :param instance: what the app is about.
    :param endpoints: the listening sockets.
    :param stop: ends it.
    :raises OSError: if there are no descriptors for it; the endpoints are open then.
    """
    _take_log()
    app = make_app(instance)
    # All endpoints of a call share one loop on this thread; what answers take runs on others, for it may wait for the
    # main thread, which may wait for this server in turn.
    runner = asyncio.Runner()
    with reserve.lent():
        _check_descriptors(endpoints[0].socket)
        runner.get_loop()  # which opens what it needs
    with runner:
        runner.run(_serve_all(app, instance.hand_over, endpoints, stop))


def _check_descriptors(any_socket: socket.socket) -> None:
    """Check that there are descriptors for the loop; asyncio prints a traceback of its own without them.

    :raises OSError: if there are none.
    """
    with contextlib.ExitStack() as held:
        for _ in range(DESCRIPTORS):
            held.callback(os.close, os.dup(any_socket.fileno()))


async def _serve_all(app: App, hand_over: HandOver, endpoints: Sequence[Endpoint], stop: Stop) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_LoopErrors(stopped))
    stop.use(loop, stopped)
    with reserve.lent():
        servers = [_EndpointServer(app, endpoint, stopped, hand_over) for endpoint in endpoints]
        for server in servers:
            server.config.load()  # uvicorn imports a part of itself here,
        current_default_thread_limiter()  # and anyio here
    logger.debug("operators are served from now on")
    serving = [server.serve([endpoint.socket]) for server, endpoint in zip(servers, endpoints, strict=True)]
    await asyncio.gather(_close(app, stopped), *serving)


async def _close(app: App, stopped: asyncio.Event) -> None:
    await stopped.wait()
    app.close()


class _LoopErrors:
    """Handler of the errors in the loop, which asyncio would print.

    :param stopped: set at the end.
    """

    def __init__(self, stopped: asyncio.Event) -> None:
        self._stopped = stopped
        self._accepting = RateLog(logger, logging.WARNING)

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, OSError) and "socket" in context:
            self._accepting.log(loop.time(), "status server: cannot accept a client: %s", error.strerror)
        elif not self._stopped.is_set():  # asyncio may try to accept once more after that
            logger.error("error in the status server: %s", context["message"], exc_info=error)


class _EndpointServer(Server):
    """The server of one endpoint. It does not poll for its end, as its base class does.

    :param app: the app.
    :param endpoint: where it listens.
    :param stopped: set at the end.
    :param hand_over: takes the connection of a process that is to take the place of this one.
    """

    def __init__(self, app: Any, endpoint: Endpoint, stopped: asyncio.Event, hand_over: HandOver) -> None:
        def make(**arguments: Any) -> asyncio.Protocol:
            return _Client(endpoint, hand_over, **arguments)

        self._endpoint = endpoint
        self._listening = endpoint.socket
        super().__init__(
            Config(
                app,
                http=make,  # type: ignore[arg-type]  # it is only called
                loop="asyncio",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                date_header=False,
                backlog=1,  # asyncio accepts so many at once, and without a descriptor reports so many errors
                h11_max_incomplete_event_size=LONGEST_HEAD,
                timeout_keep_alive=KEEP_ALIVE,
                timeout_graceful_shutdown=LAST_ANSWERS,
            )
        )
        self._stopped = stopped

    async def main_loop(self) -> None:
        """Wait for the end."""
        self._listening.listen(BACKLOG)  # as before asyncio has taken it
        await self.on_tick(0)
        await self._stopped.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more clients, and say so, then wait for the answers under way; no client outlives that."""
        asyncio.get_running_loop().remove_reader(self._listening)
        await _pass_turns(ACCEPT_TURNS)  # asyncio loses, and does not close, a client that it shows to a closed server
        for server in self.servers:
            server.close()
        self._endpoint.has_closed.set()
        await super().shutdown(sockets)
        if tasks := list(self.server_state.tasks):  # those that are cancelled now may have a last answer
            await asyncio.wait(tasks, timeout=LAST_ANSWERS)
        for client in list(self.server_state.connections):  # such as one that takes nothing of its answer
            client.transport.abort()
        await _pass_turns(1)  # the loop closes their sockets


async def _pass_turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)  # noqa: TID251 - no wait


class _Client(H11Protocol):
    """One client of an endpoint.

    :param endpoint: where it has connected.
    :param hand_over: takes its connection if it is a process that is to take the place of this one.
    :param arguments: those of the base class.
    """

    def __init__(self, endpoint: Endpoint, hand_over: HandOver, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._hand_over: HandOver | None = hand_over if endpoint.is_control else None
        self.app_state = {**self.app_state, "endpoint": endpoint}
        self._endpoint = endpoint
        self._is_control = endpoint.is_control
        self._deadline: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._number = next(_numbers)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        super().connection_made(transport)
        self.app_state["transport"] = transport
        connection = transport.get_extra_info("socket")
        if not self._is_control:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        elif not _is_allowed(connection):
            transport.abort()
            return
        self._make_room()
        self._expect_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect_nothing()
        self._forget_stall()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client does not take what it is sent."""
        super().pause_writing()
        self._stalled = self.loop.call_later(ANSWER_TIME, self.transport.abort)

    def resume_writing(self) -> None:
        """The client has taken some of it."""
        super().resume_writing()
        self._forget_stall()

    def data_received(self, data: bytes) -> None:
        # Only what comes first can be a process that takes over: after a request of HTTP the connection is HTTP's.
        hand_over, self._hand_over = self._hand_over, None
        if hand_over is not None and data.startswith(b"{"):  # no request of HTTP begins so
            self._give_to(hand_over, data)
            return
        try:
            super().data_received(data)
        except h11.LocalProtocolError:  # garbage after an answer has begun: it is too late for a status
            self.transport.abort()
        if self._is_waiting():
            self._expect_request()
        else:
            self._expect_nothing()

    def _give_to(self, hand_over: HandOver, data: bytes) -> None:
        """Let another one have the connection, with what was read from it."""
        # asyncio closes its socket whatever happens, so the other thread gets a descriptor of its own.
        known: socket.socket = self.transport.get_extra_info("socket")
        try:
            connection = socket.socket(fileno=os.dup(known.fileno()))
        except OSError as error:
            why = f"the process that runs has no descriptor left for it: {error.strerror}"
            logger.error("upgrade: %s; nothing has changed", why)
            self.transport.write(json.dumps({"failed": why}).encode() + b"\n")
            self.transport.close()
            return
        hand_over(connection, data)
        self.transport.abort()

    def _is_waiting(self) -> bool:
        """Return whether a request has begun, or is to come, and is not complete."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            return self.timeout_keep_alive_task is None
        return bool(cycle.more_body)

    def _expect_request(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(REQUEST_TIME, self.transport.abort)

    def _expect_nothing(self) -> None:
        deadline, self._deadline = self._deadline, None
        if deadline is not None:
            deadline.cancel()

    def _forget_stall(self) -> None:
        stalled, self._stalled = self._stalled, None
        if stalled is not None:
            stalled.cancel()

    def _make_room(self) -> None:
        """Close the oldest client without a request if there are too many."""
        if len(self.connections) <= MOST_CLIENTS:
            return
        others = [one for one in self.connections if isinstance(one, _Client) and one is not self]
        idle = [one for one in others if one.cycle is None or one.cycle.response_complete]
        leaving = min(idle, key=lambda one: one._number) if idle else self
        leaving.transport.abort()
        self.connections.discard(leaving)


_numbers = itertools.count()


def _is_allowed(client: socket.socket) -> bool:
    """Return whether a client of the control socket is of this user, or root. The mode of the file says so as well."""
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    found = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    _, user, _ = _UCRED.unpack(found)
    return user in (ROOT, os.geteuid())


class _Passing(logging.Handler):
    """Handler that passes what uvicorn logs on to the log of relay, at debug level unless it is an error.

    At the end of the program answers that take too long are cancelled, which is none.
    """

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        is_end = isinstance(error, asyncio.CancelledError) or record.getMessage().startswith("Cancel ")
        level = record.levelno if record.levelno >= logging.ERROR and not is_end else logging.DEBUG
        logger.log(level, "status server: %s", record.getMessage(), exc_info=record.exc_info)


def _take_log() -> None:
    theirs = logging.getLogger("uvicorn")
    theirs.propagate = False
    if not any(isinstance(handler, _Passing) for handler in theirs.handlers):
        theirs.addHandler(_Passing())
