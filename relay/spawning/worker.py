"""The child's side of a worker: any number of tunnels, which the program opens, asks and closes.

A question about a tunnel names it by a key. Opening and closing may take long, so each has a thread of its own, and the
outcome goes to the program unasked: ``opened``, ``failed`` or ``closed``, each with the key.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterable
from typing import Any

from ..access.options import rules_of
from ..addresses.options import check_variable
from ..engine import changes
from ..engine.options import part_of
from ..engine.outlets import Outlets
from ..engine.records import ConnectionRecord
from ..engine.shared_acceptor import WorkerPlace
from ..engine.worker_table import WorkerTable
from ..engine.worker_tunnel import WorkerTunnel
from ..eventloop import garbage
from ..eventloop.backoff import Backoff
from .ephemeral import EphemeralTunnel
from .recipes import Recipe
from .wire import DescriptorChannel, Message, answer_all, from_error, to_socket

logger = logging.getLogger("relay")

_CALLS = frozenset({"connections", "recent", "metrics", "kill", "pause", "resume", "take_backlog", "turn"}) | {
    "wait_for_client",  # of an EphemeralTunnel
}
_BACKOFF = (0.5, 30.0)  # seconds between attempts to open a tunnel again, at first and at most


class Worker:
    """The tunnels of this process.

    :param control: one end of a socketpair; the program has the other.
    :param report: sends a message to the program unasked. It never waits.
    :param offer: does the same for a message that may be dropped where there are too many.
    :param on_over: called at the end of a tunnel, in a thread of that.
    """

    def __init__(
        self,
        control: socket.socket,
        report: Callable[[Message], object],
        offer: Callable[[Message], object],
        on_over: Callable[[], object] = lambda: None,
    ) -> None:
        self._on_over = on_over
        self._offer = offer
        self._channel = DescriptorChannel(control)
        self._report = report
        self._tunnels: dict[int, HostedTunnel] = {}
        self._outlets = Outlets()
        self._own_calls: dict[str, Callable[..., Any]] = {
            "carriers": _carriers,
            "resumes": _resumes,
            "log_connections": self._log_connections,
            "secrets": add_secrets,
        }

    def serve(self, name: str) -> None:
        """Answer the program until it closes the channel.

        :param name: of this process.
        :raises OSError: if the program is gone.
        """
        self._channel.send({"name": name})
        # One thread answers all questions, in their order. The program takes a worker that does not answer for a stuck
        # one, so that no call may wait for the network: to open and to close a tunnel have threads of their own.
        answer_all(self._channel, self._answer)

    def close(self) -> None:
        """Close all tunnels, and wait for their ends."""
        tunnels = list(self._tunnels.values())
        for tunnel in tunnels:
            tunnel.close(0.0)
        for tunnel in tunnels:
            tunnel.over.wait()

    def _answer(self, request: Message) -> Any:
        call, arguments = request["call"], request["arguments"]
        descriptors = self._channel.take(request["descriptors"])
        if call in self._own_calls:
            return self._own_calls[call](*arguments)
        key, *rest = arguments
        if call == "open":
            forget = functools.partial(self._forget, key)
            self._tunnels[key] = HostedTunnel(key, descriptors, rest[0], self._report, forget, self._outlets)
            try:
                self._tunnels[key].start()
            except RuntimeError:  # the system has no thread left
                del self._tunnels[key]
                for descriptor in descriptors:
                    os.close(descriptor)
                raise
            return None
        tunnel = self._tunnels.get(key)
        if tunnel is None:
            return None  # it has ended, or has never been opened here
        return tunnel.call(call, *rest)

    def _forget(self, key: int) -> None:
        """Remove a tunnel that has ended, in its own thread; a dict needs no lock for that."""
        self._tunnels.pop(key, None)
        self._on_over()

    def _log_connections(self, is_wanted: bool) -> None:
        self._outlets.on_ended = self._offer_ended if is_wanted else None

    def _offer_ended(self, name: str, record: ConnectionRecord) -> None:
        """Send the record of a connection for the access log of the program; on the relay thread."""
        self._offer({"ended": record, "name": name})


class HostedTunnel:
    """One tunnel of this process, from the request to open it until its end.

    :param key: its key.
    :param descriptors: of the table; if there are several workers, of the socket for clients from others, and of those
        to each; perhaps of the listening socket. The tunnel owns them.
    :param request: ``recipe`` (the fields of a :class:`Recipe`), ``number`` and ``workers`` (the place of this
        process), ``options`` (of the :class:`~relay.Tunnel`), ``paused`` and ``again`` (whether it has been open
        before, and so is opened again and again until it is).
    :param report: sends a message to the program unasked.
    :param on_over: called at its end, in its own thread.
    :param outlets: of this process; ``None`` for none.
    """

    def __init__(
        self,
        key: int,
        descriptors: list[int],
        request: Message,
        report: Callable[[Message], object],
        on_over: Callable[[], object],
        outlets: Outlets | None = None,
    ) -> None:
        self.over = threading.Event()
        """Set once it has ended."""
        self._key = key
        self._workers: int = request["workers"]
        self._report = report
        self._tunnel: WorkerTunnel | None = None
        # The program may close the tunnel while another thread opens it. The one that comes second sees what the first
        # one has done: _attempt() that it is closing, close() that there is a tunnel.
        self._closing = threading.Condition()
        self._drain: tuple[float | None, float] | None = None  # how it closes; None before that
        self._logs_in: Any = None  # the factory, while its hops are not up yet
        self._at_end = contextlib.ExitStack()
        self._on_over = on_over
        self._outlets = outlets
        opening = functools.partial(self._open, descriptors, request)
        self._thread = threading.Thread(target=opening, name=f"relay-open-{key}", daemon=True)

    def start(self) -> None:
        """Begin to open it."""
        self._thread.start()

    def call(self, call: str, *arguments: Any) -> Any:
        """Call a member of the tunnel.

        :raises OSError: and others: what that raises.
        """
        if call == "close":
            return self.close(*arguments)
        tunnel = self._tunnel
        if tunnel is None:
            return None  # it is not open, or no longer: the program knows, or will soon
        if call == "update":
            limits = part_of(arguments[0], self._workers)
            rules = rules_of(limits.pop("allow", None), limits.pop("deny", None))
            return changes.replace(tunnel, limits, functools.partial(changes.set_rules, tunnel, rules))
        if call not in _CALLS:
            raise ValueError(f"{call}: the program must not call it")
        return getattr(tunnel, call)(*arguments)

    def close(self, drain: float | None, spread: float = 0.0) -> None:
        """Close it, after its connections or after so many seconds. Does not wait; :attr:`over` tells the end."""
        with self._closing:
            self._drain = drain, spread
            self._closing.notify_all()
            if self._tunnel is not None:
                self._tunnel.start_close(drain, spread)
            logs_in = self._logs_in
        _close(logs_in)  # so that it gives up

    def _open(self, descriptors: list[int], request: Message) -> None:
        place = None
        try:
            place, receive = _place(descriptors, request["number"], request["workers"])
            with receive or contextlib.nullcontext():  # the tunnel has a copy, which it closes when it drains
                tunnel = self._opened(place, receive, request)
        except Exception as error:  # noqa: BLE001  (the program raises it)
            _close(place)
            self._report({"failed": self._key, "error": from_error(error)})
        else:
            if tunnel is None:
                place.close()
                self._report({"closed": self._key, "last": None, "expired": False})
            else:
                garbage.keep_all()
                self._report({"opened": self._key, "address": tunnel.address})
                tunnel.join()
                last = {name: getattr(tunnel, name)() for name in ("metrics", "recent")}
                expired = isinstance(tunnel, EphemeralTunnel) and tunnel.expired
                self._report({"closed": self._key, "last": last, "expired": expired})
        finally:
            self._at_end.close()
            self.over.set()
            self._on_over()

    def _opened(self, place: WorkerPlace, receive: socket.socket | None, request: Message) -> WorkerTunnel | None:
        """Return the open tunnel; ``None`` if it is closed before it has opened."""
        backoff = Backoff(*_BACKOFF)
        while (tunnel := self._attempt(place, receive, request)) is None:
            if self._waited(backoff.next()):
                return None
        return tunnel

    def _attempt(self, place: WorkerPlace, receive: socket.socket | None, request: Message) -> WorkerTunnel | None:
        """Open the tunnel; return ``None`` if that failed and is tried again."""
        listener: Any = None
        make_send: Any = None
        own: socket.socket | None = None
        options = part_of(request["options"], self._workers)
        kind = EphemeralTunnel if "unused" in options else WorkerTunnel
        recipe = Recipe(*request["recipe"])
        try:
            # A copy, which the tunnel closes when it drains; the next attempt needs another one.
            own = None if receive is None else receive.dup()
            make_send, listen = recipe.make(own)
            if recipe.ready:
                self._log_in(make_send, recipe.ready)
            listener = listen(self._at_end)
            tunnel = kind(
                listener,
                make_send,
                place=place,
                outlets=self._outlets,
                paused=request["paused"],
                on_late=self._on_late,
                **options,
            )
        except OSError as error:
            _close(make_send, listener, own)
            if not request["again"]:
                raise
            logger.warning("%s: cannot open it again for now: %s", request["options"]["name"], error)
            return None
        except BaseException:
            _close(make_send, listener, own)
            raise
        with self._closing:
            self._tunnel = tunnel
            if self._drain is not None:
                tunnel.start_close(*self._drain)
        return tunnel

    def _log_in(self, make_send: Any, seconds: float) -> None:
        """Wait until the hops are up, before it listens: a client that connects finds them so.

        :raises OSError: if they do not come up, or the tunnel is closed meanwhile.
        """
        with self._closing:
            if self._drain is not None:
                return  # it is closed as soon as it is open
            self._logs_in = make_send
        make_send.ready(seconds)
        with self._closing:
            self._logs_in = None

    def _on_late(self, number: int) -> None:
        """Report that another worker does not take a client, on the relay thread."""
        self._report({"late": self._key, "worker": number})

    def _waited(self, seconds: float) -> bool:
        with self._closing:
            return self._closing.wait_for(lambda: self._drain is not None, seconds)


def add_secrets(variables: Iterable[str]) -> None:
    """Keep environment variables of the program from the programs that this process starts."""
    for variable in variables:
        check_variable("secrets", variable)


def _place(descriptors: list[int], number: int, workers: int) -> tuple[WorkerPlace, socket.socket | None]:
    """Return the place of this process, and the listening socket if there is one."""
    table, *others = descriptors
    # Those of the place, if there are other workers, and perhaps the listening one.
    sockets = [to_socket(descriptor) for descriptor in others]
    receive = sockets.pop() if len(sockets) in (1, workers + 2) else None
    if receive is not None:
        # First of all: the mode belongs to what all workers share, and dup() sets that of its original. An accept that
        # blocked, for as long as the time until the acceptor is made, would hold up another worker.
        receive.setblocking(False)
    place = WorkerPlace(number, WorkerTable(table, workers), sockets)
    os.close(table)
    return place, receive


def _carriers() -> list[Message]:
    """Return the carriers of this process, for :func:`.wire.to_carrier`."""
    import dataclasses

    from ..carriers.listing import carriers

    return [dataclasses.asdict(each) for each in carriers()]


def _resumes() -> list[int]:
    """Return the figures of the resumable streams of this process."""
    from ..transports.resume.figures import resume_figures

    return [*resume_figures()]


def _close(*things: Any) -> None:
    for thing in things:
        if thing is not None:
            thing.close()
