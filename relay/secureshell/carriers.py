"""SSH connections that are shared and kept up: who holds one, how its server is reached, what is begun over it."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import shutil
import socket
import threading
import weakref
from collections.abc import Callable
from importlib import import_module
from typing import Any

from ..address import SSHServer, TCPAddress
from ..carrier import Carrier, Lost, State, Watcher
from ..dialing import Answer, Done, GiveUp, Steps
from ..errors import AddressError, CarrierError, ConnectError, RelayError
from ..holding import LetGo, hold
from ..process import end, start
from ..race import Cancel, Direct
from ..stream import Stream
from .configuration import settle
from .connection import Connect, Connection, IncompatibleError, Place, Settings

__all__ = ["Directly", "Holder", "Route", "as_oserror", "backend_for", "dial", "wait_for"]

logger = logging.getLogger("relay")

Route = tuple[SSHServer, ...]
Directly = Callable[[str, int], Direct]

_DEEPEST = 8  # servers on the way to one that the configuration may name
_PROMPT = 0.3  # seconds for a proxy command to end before it is killed
_GONE = 0.2  # seconds for the last streams to be over when a holder lets go
_AGAIN = 3  # times that one stream is begun again because the connection was lost under it


class Holder:
    """Whoever needs the connection to a server: holds it from the first use until :meth:`close`.

    :param server: which.
    :param via: the servers on the way to it, the nearest first.
    :param directly: makes the factory that connects over TCP to the first of them.
    """

    def __init__(self, server: SSHServer, via: Route, directly: Directly) -> None:
        self.server = server
        self._make = functools.partial(_make_carrier, server, via, directly)
        self._key = (server, via)
        self._carrier: Carrier[Connection] | None = None
        self._let_go: LetGo = _nothing
        self._watchers: list[Watcher] = []
        self._finalizer: Any = None

    def carrier(self) -> Carrier[Connection]:
        """The connection, which is held from now on.

        :raises OSError: if there is no thread or descriptor to be had.
        """
        carrier = self._carrier
        if carrier is not None and carrier.state is not State.CLOSED:
            return carrier
        with _holders.lock:
            if self._carrier is None or self._carrier.state is State.CLOSED:
                self._release()
                carrier, let_go = hold(self._key, self._make)
                for watcher in self._watchers:
                    carrier.subscribe(watcher)
                self._carrier, self._let_go = carrier, functools.partial(_leave, carrier, let_go, self._watchers)
                self._finalizer = weakref.finalize(self, _let_go_elsewhere, self._let_go)
                self._finalizer.atexit = False  # nothing is left of a process that ends
            return self._carrier

    def subscribe(self, watcher: Watcher) -> None:
        """Have ``watcher(state, error)`` called at each change of the connection, also of one that is taken up later.

        :raises OSError: as :meth:`carrier` does.
        """
        carrier = self.carrier()
        self._watchers.append(watcher)
        carrier.subscribe(watcher)

    @property
    def held(self) -> Carrier[Connection] | None:
        """The connection, if it is held."""
        return self._carrier

    def close(self, patience: float = _GONE) -> None:
        """Hold it no longer. Idempotent; the next use takes it up anew.

        :param patience: seconds to wait for the last streams to be over.
        """
        with _holders.lock:
            self._carrier = None
            let_go = self._release()
        let_go(patience)

    def _release(self) -> LetGo:
        let_go, self._let_go = self._let_go, _nothing
        if self._finalizer is not None:
            self._finalizer.detach()
        return let_go

    def __repr__(self) -> str:
        carrier = self._carrier
        return f"{self.server}, {carrier.state.value if carrier is not None else 'not held'}"


class _Holders:
    """What all holders share."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """In a forked child, where the lock may be held for ever."""
        self.lock = threading.Lock()


_holders = _Holders()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_holders.forget)


def dial(
    carrier: Carrier[Connection],
    place: Place,
    deadline: float | None,
    done: Done,
    *,
    lasting: bool = False,
    patient: bool = True,
) -> GiveUp:
    """Begin to make a stream over a connection: when it is up, and again if it is lost before the stream is there.

    The parameters are those of :meth:`relay.dialing.Dialed.dial`.
    """
    return _Dial(carrier, place, deadline, done, lasting=lasting, patient=patient).begin()


class _Dial:
    """One stream on its way."""

    __slots__ = ("_carrier", "_deadline", "_lasting", "_link", "_lost", "_patient", "_place", "_steps", "_times")

    def __init__(
        self,
        carrier: Carrier[Connection],
        place: Place,
        deadline: float | None,
        done: Done,
        *,
        lasting: bool,
        patient: bool,
    ) -> None:
        self._carrier = carrier
        self._place = place
        self._deadline = deadline
        self._lasting = lasting
        self._patient = patient
        self._steps = Steps(done)
        self._link: Connection | None = None
        self._lost: tuple[Connection, CarrierError] | None = None
        self._times = 0

    def begin(self) -> GiveUp:
        link = self._carrier.link
        if link is None or self._lost is not None:
            self._steps.begin(self._wait, self._up)
        else:
            self._up(link)
        return self._steps.give_up

    def _wait(self, told: Callable[[Connection | Exception], object]) -> GiveUp:
        return self._carrier.wait(told, self._deadline, patient=self._patient, instead_of=self._lost)

    def _up(self, outcome: Connection | Exception) -> None:
        if isinstance(outcome, Exception):
            return self._steps.finish(as_oserror(outcome))
        self._link = outcome
        self._steps.begin(self._open, self._opened)

    def _open(self, told: Done) -> GiveUp:
        assert self._link is not None
        return self._link.open(self._place, self._deadline, told, lasting=self._lasting)

    def _opened(self, outcome: Stream | OSError) -> None:
        if isinstance(outcome, CarrierError) and self._link is not None and self._times < _AGAIN:
            self._lost = self._link, outcome
            self._times += 1
            self.begin()
        else:
            self._steps.finish(outcome)


def wait_for(
    carrier: Carrier[Connection],
    deadline: float | None,
    cancel: Cancel | None,
    *,
    patient: bool,
    instead_of: tuple[Connection, CarrierError] | None = None,
) -> Connection:
    """Wait until a connection is up; the parameters are those of :meth:`relay.carrier.Carrier.wait`.

    :raises OSError: why it is not.
    """
    answer: Answer[Connection] = Answer()
    give_up = carrier.wait(answer.put, deadline, patient=patient, instead_of=instead_of)
    try:
        link = answer.get(deadline, cancel)
    except OSError:
        raise
    except Exception as error:
        raise as_oserror(error) from error
    finally:
        give_up()
    if link is None:
        given_up = cancel is not None and cancel.is_set()
        problem = "the attempt was given up" if given_up else "not connected in time"
        raise ConnectError(f"{carrier.name}: {problem}", reason="connect_timeout")
    return link


def _make_carrier(server: SSHServer, via: Route, directly: Directly) -> Carrier[Connection]:
    return Carrier(str(server), _Way(server, via, directly), server.keepalive)


class _Way:
    """Connects to one server, again and again; see :class:`relay.carrier.Connector`."""

    def __init__(self, server: SSHServer, via: Route, directly: Directly) -> None:
        self._server = server
        self._via = via
        self._directly = directly
        self._chosen: str | None = None  # the backend, where another one has proved to be of no use
        self._hop: tuple[Route, Holder] | None = None  # held while this one is, so that it comes back by itself, too

    def connect(self, deadline: float, cancel: Cancel, lost: Lost) -> Connection:
        settings = settle(self._server)
        chosen = self._chosen or backend_for(settings)
        try:
            return self._connect(chosen, settings, deadline, cancel, lost)
        except IncompatibleError as error:
            if chosen != "paramiko" or self._server.backend is not None or shutil.which("ssh") is None:
                raise
            logger.info("%s; the OpenSSH client is used instead", error)
            self._chosen = "openssh"
            return self._connect(self._chosen, settings, deadline, cancel, lost)

    def _connect(self, chosen: str, settings: Settings, deadline: float, cancel: Cancel, lost: Lost) -> Connection:
        connect: Connect = import_module(f".{chosen}.backend", __package__).connect
        if chosen == "openssh" and not self._via:
            self._leave_hop()
            _refuse_circles(settings, ())
            return connect(settings, None, deadline, cancel, lost)  # it knows the user's jumps and commands itself
        return connect(settings, self._reach(settings, deadline, cancel), deadline, cancel, lost)

    def close(self) -> None:
        self._leave_hop()

    def _reach(self, settings: Settings, deadline: float, cancel: Cancel) -> Stream:
        """A stream to the server: over the hops that were given, else as the user's configuration says."""
        route = self._via or settings.jumps
        if route:
            return self._through(route, settings, deadline, cancel)
        self._leave_hop()
        if settings.command is not None:
            return _command(settings.command, settings.name)
        try:
            return self._directly(settings.hostname, settings.port)(deadline=deadline, cancel=cancel)
        except ConnectError as error:
            raise ConnectError(f"{settings.name}: {error}", reason=error.reason) from error

    def _through(self, route: Route, settings: Settings, deadline: float, cancel: Cancel) -> Stream:
        if len(route) > _DEEPEST:
            raise AddressError(
                f"{settings.name}: more than {_DEEPEST} servers are on the way; does one jump in circles?"
            )
        if self._hop is None or self._hop[0] != route:
            self._leave_hop()
            if not self._via:
                _refuse_circles(settings, ())
            self._hop = route, Holder(route[-1], route[:-1], self._directly)
        answer: Answer[Stream] = Answer()
        place = TCPAddress(settings.hostname, settings.port)
        # One attempt, so that whoever waits for one attempt to reach this server need not wait for more.
        give_up = dial(self._hop[1].carrier(), place, deadline, answer.put, patient=False)
        try:
            stream = answer.get(deadline, cancel)
        except ConnectError as error:
            if str(error).startswith(tuple(f"{server}: " for server in route)):
                raise  # it belongs to that one
            raise ConnectError(f"{settings.name}: {error}", reason=error.reason) from error
        finally:
            give_up()
        if stream is None:
            raise ConnectError(f"{settings.name}: not reached in time over {route[-1]}", reason="connect_timeout")
        return stream

    def _leave_hop(self) -> None:
        hop, self._hop = self._hop, None
        if hop is not None:
            hop[1].close()


def _refuse_circles(settings: Settings, seen: tuple[str, ...]) -> None:
    """The user's configuration may send us from one server to another and back.

    :raises AddressError: if it does.
    """
    place = str(TCPAddress(settings.hostname, settings.port))
    if place in seen or len(seen) > _DEEPEST:
        way = " → ".join((*seen, place))
        raise AddressError(f"{settings.name}: ProxyJump leads round in a circle ({way}); mend the SSH configuration")
    for server in settings.jumps:
        _refuse_circles(settle(server), (*seen, place))


def backend_for(settings: Settings) -> str:
    """Which backend connects: what the caller insists on, else paramiko, unless only the client will do.

    :returns: ``paramiko`` or ``openssh``.
    :raises RelayError: if only the client will do, and there is none.
    """
    chosen = settings.server.backend
    if chosen == "paramiko" or (chosen is None and not settings.needs_client):
        return "paramiko"
    if shutil.which("ssh") is None:
        why = settings.needs_client or "backend=openssh"
        raise RelayError(f"{settings.name}: {why} needs the OpenSSH client, and there is no ssh in PATH; install it")
    return "openssh"


def _command(command: str, name: str) -> Stream:
    """A stream to the standard input and output of the user's ``ProxyCommand`` (ssh_config(5): the shell runs it)."""
    ours, theirs = socket.socketpair()
    try:
        with theirs:
            process = start(["/bin/sh", "-c", f"exec {command}"], stdin=theirs.fileno(), stdout=theirs.fileno())
    except OSError:
        ours.close()
        raise

    def failure() -> CarrierError:
        status = process.poll()
        return CarrierError("the ProxyCommand has ended" + (f" with status {status}" if status is not None else ""))

    ours.setblocking(False)
    return Stream(ours, target=name, failure=failure, on_close=functools.partial(end, process, _PROMPT, group=True))


def as_oserror(error: Exception) -> OSError:
    """An error as callers expect it: a bug or the like becomes a :class:`RelayError`."""
    if isinstance(error, OSError):
        return error
    made = RelayError(f"{type(error).__name__}: {error}")
    made.__cause__ = error
    return made


def _leave(carrier: Carrier[Connection], let_go: LetGo, watchers: list[Watcher], patience: float) -> None:
    let_go(patience)
    for watcher in watchers:
        carrier.unsubscribe(watcher)


def _let_go_elsewhere(let_go: LetGo) -> None:
    """A finalizer runs in whatever thread, which must not wait."""
    with contextlib.suppress(RuntimeError):
        threading.Thread(target=let_go, args=(_GONE,), name="relay letting a connection go", daemon=True).start()


def _nothing(patience: float) -> None:
    pass
