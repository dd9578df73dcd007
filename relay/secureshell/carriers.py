"""SSH connections that are shared and kept up: who holds one, how its server is reached, what is begun over it."""

from __future__ import annotations

import functools
import logging
import shutil
import socket
from collections.abc import Callable
from importlib import import_module

from .. import holding, riding
from ..address import SSHServer, TCPAddress
from ..carrier import Carrier, Lost
from ..dialing import Answer, Done, GiveUp
from ..errors import AddressError, CarrierError, ConnectError, RelayError
from ..process import end, start
from ..race import Cancel, Direct
from ..stream import Stream
from .configuration import settle
from .connection import Connect, Connection, IncompatibleError, Place, Settings

__all__ = ["Directly", "Holder", "Route", "backend_for", "dial"]

logger = logging.getLogger("relay")

Route = tuple[SSHServer, ...]
Directly = Callable[[str, int], Direct]

_DEEPEST = 8  # servers on the way to one that the configuration may name
_PROMPT = 0.3  # seconds for a proxy command to end before it is killed


class Holder(holding.Holder[Connection]):
    """Whoever needs the connection to a server: holds it from the first use until it is closed.

    :param server: which.
    :param via: the servers on the way to it, the nearest first.
    :param directly: makes the factory that connects over TCP to the first of them.
    """

    def __init__(self, server: SSHServer, via: Route, directly: Directly) -> None:
        super().__init__(str(server), (server, via), functools.partial(_make_carrier, server, via, directly))
        self.server = server


def dial(
    carrier: Carrier[Connection],
    place: Place,
    deadline: float | None,
    done: Done,
    *,
    lasting: bool = False,
    patient: bool = True,
) -> GiveUp:
    """Begin to make a stream to a place that the server reaches; see :func:`relay.riding.dial`."""

    def begin(link: Connection, told: Done) -> GiveUp:
        return link.open(place, deadline, told, lasting=lasting)

    return riding.dial(carrier, begin, deadline, done, patient=patient)


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
