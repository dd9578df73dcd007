"""SSH connections that are shared and kept up: who holds one, how its server is reached, what is begun over it."""

from __future__ import annotations

import functools
import logging
import shutil
import time
from importlib import import_module

from ...addresses.hops import Route, on_the_way, over_i2p
from ...addresses.ssh import SSHServer
from ...addresses.values import TCPAddress, is_i2p
from ...carriers import dialer, pool
from ...carriers.carrier import Carrier
from ...carriers.link import Lost
from ...errors import AddressError, CarrierError, ConnectError, RelayError
from ...streams.cancellation import Cancel
from ...streams.dialer import Dialer, Network
from ...streams.promise import Abort, OnResult, Promise
from ...streams.stream import Stream
from ..program_dialer import Programs
from .config.settings import settle
from .connection import KEY_EXCHANGE, LOGIN, Connect, Connection, IncompatibleError, Place, Settings

__all__ = ["Holder", "backend_for", "dial"]

logger = logging.getLogger("relay")

_SLOW = 120.0  # seconds for one attempt over I2P, where a session may have to be made first
_ANSWER = 40.0  # seconds of that for the server itself: I2P has streams that are there and lead nowhere
_DEEPEST = 8  # servers on the way to one that the configuration may name


class Holder(pool.CarrierRef[Connection]):
    """Whoever needs the connection to a server: holds it from the first use until it is closed.

    :param server: which.
    :param below: the network from which the server is reached.
    """

    def __init__(self, server: SSHServer, below: Network) -> None:
        super().__init__(str(server), (server, below.route), functools.partial(_make_carrier, server, below))
        self.server = server


def dial(
    carrier: Carrier[Connection],
    place: Place,
    deadline: float | None,
    done: OnResult,
    *,
    self_contained: bool = False,
    wait_for_reconnect: bool = True,
) -> Abort:
    """Begin to make a stream to a place that the server reaches; see :func:`relay.carriers.dialer.dial`."""

    def begin(link: Connection, told: OnResult) -> Abort:
        return link.open(place, deadline, told, self_contained=self_contained)

    return dialer.dial(carrier, begin, deadline, done, wait_for_reconnect=wait_for_reconnect)


def _make_carrier(server: SSHServer, below: Network) -> Carrier[Connection]:
    name, connector = str(server), _Way(server, below)
    if over_i2p(below.route, server):
        return Carrier(name, connector, server.keepalive, _SLOW)
    return Carrier(name, connector, server.keepalive)


class _Way:
    """Connects to one server, again and again; see :class:`relay.carriers.carrier.Connector`."""

    def __init__(self, server: SSHServer, below: Network) -> None:
        self._server = server
        self._below = below
        self._chosen: str | None = None  # the backend, where another one has proved to be of no use
        self._tried = ""  # the last one
        # Held while this one is, so that the connections below are supervised, too.
        self._dialer: tuple[Route, TCPAddress, Dialer] | None = None

    def connect(self, deadline: float, cancel: Cancel, lost: Lost) -> Connection:
        settings = settle(self._server, behind=bool(self._below.route))
        self._tried = chosen = self._chosen or backend_for(settings)
        connect: Connect = import_module(f".{chosen}.backend", __package__).connect
        if chosen == "openssh" and not self._below.route and not _is_at_i2p(settings):
            self._let_go()
            _refuse_circles(settings, ())
            return connect(settings, None, deadline, cancel, lost)  # it knows the user's jumps and commands itself
        stream = self._stream(settings, deadline, cancel)
        return connect(settings, stream, min(deadline, time.monotonic() + _ANSWER), cancel, lost)

    def alternative(self, error: Exception) -> str:
        """The OpenSSH client, where that is left to us, for what depends on the backend."""
        is_ours = isinstance(error, IncompatibleError) or getattr(error, "stage", "") in (KEY_EXCHANGE, LOGIN)
        if not is_ours or self._tried != "paramiko" or self._server.backend is not None or not shutil.which("ssh"):
            return ""
        self._chosen = "openssh"
        return "the OpenSSH client is tried instead"

    def close(self) -> None:
        self._let_go()

    def _stream(self, settings: Settings, deadline: float, cancel: Cancel) -> Stream:
        """A stream to the server: over the hops that were given, else as the user's configuration says."""
        network = self._below
        if not network.route:
            network = functools.reduce(lambda below, jump: below.beyond(jump), settings.jumps, network)
        route = network.route
        if not route and settings.command is not None:
            self._let_go()
            return _command(settings.command, settings.name)
        if len(route) > _DEEPEST:
            raise AddressError(f"{settings.name}: more than {_DEEPEST} hops are on the way; does one jump in circles?")
        answer: Promise[Stream] = Promise()
        # One attempt, so that whoever waits for one attempt to reach this server need not wait for more.
        give_up = self._to_it(network, settings).dial(deadline, answer.put, wait_for_reconnect=False)
        try:
            stream = answer.get(deadline, cancel)
        except ConnectError as error:
            raise on_the_way(error, self._server, route) from error
        except CarrierError as error:
            error.stage = ""  # that of a hop before, which counts its logins and has its own alternative
            raise
        finally:
            give_up()
        if stream is None:
            over = f" over {route[-1]}" if route else ""
            raise ConnectError(f"{settings.name}: not reached in time{over}", reason="connect_timeout")
        return stream

    def _to_it(self, network: Network, settings: Settings) -> Dialer:
        """Return the dialer for streams to the server, the same as last time if nothing has changed."""
        place = TCPAddress(settings.hostname, settings.port)
        if self._dialer is None or self._dialer[:2] != (network.route, place):
            self._let_go()
            if not self._below.route:
                _refuse_circles(settings, ())
            self._dialer = network.route, place, network.to(place)
        return self._dialer[2]

    def _let_go(self) -> None:
        dialer, self._dialer = self._dialer, None
        if dialer is not None:
            dialer[2].close()


def _is_at_i2p(settings: Settings, depth: int = 0) -> bool:
    """Whether a server, or one on the user's own way to it, is at I2P, of which the client knows nothing."""
    jumps = settings.jumps if depth < _DEEPEST else ()
    return is_i2p(settings.hostname) or any(_is_at_i2p(settle(server), depth + 1) for server in jumps)


def _refuse_circles(settings: Settings, seen: tuple[str, ...]) -> None:
    """The user's configuration may send us from one server to another and back.

    :raises AddressError: if it does.
    """
    place = str(TCPAddress(settings.hostname, settings.port))
    if place in seen or len(seen) > _DEEPEST:
        way = " → ".join((*seen, place))
        raise AddressError(f"{settings.name}: ProxyJump loop ({way}); fix the SSH configuration")
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
    stream = Programs(["/bin/sh", "-c", f"exec {command}"], "the ProxyCommand")()
    stream.target = name
    return stream
