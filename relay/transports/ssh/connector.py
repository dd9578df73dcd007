"""Shared SSH connections: connecting to a server over the network below it, and opening streams."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import shutil
import time
from importlib import import_module

from ...addresses.hops import Route, is_slow, with_hop
from ...addresses.ssh import SSHServer
from ...addresses.values import TCPAddress, is_i2p, refuse_onion
from ...carriers import dialer, pool, redial
from ...carriers.carrier import ATTEMPT_TIMEOUT, Carrier
from ...carriers.carrier_set import SharedCarrier, make_carriers
from ...carriers.link import Lost
from ...carriers.renewal import renew
from ...errors import AddressError, CarrierError, ConnectError, RelayError
from ...streams.connect import SocketDialer
from ...streams.dialer import Dialer, Network
from ...streams.promise import Abort, Cancel, OnResult, Promise
from ...streams.stream import Stream
from ...streams.trace import SILENT, Stage, Trace, report_to
from ..program_dialer import Programs
from .config.settings import resolve_settings
from .confinement import is_confined
from .connection import KEY_EXCHANGE, LOGIN, Adapt, Connect, Connection, IncompatibleError, Place, Settings

logger = logging.getLogger("relay")

_SLOW = 120.0  # seconds for one attempt over I2P, which may include the creation of a session
_ANSWER = 40.0  # seconds of that for the server itself: an I2P stream may open and never carry data
_DEEPEST = 8  # servers of ProxyJump before a server


class Holder(pool.CarrierRef[Connection]):
    """A reference to the shared connection to a server, from the first use until it is closed.

    :param server: the server.
    :param below: the network from which the server is reached.
    :param adapt: changes the settings of each attempt; only references with the same one share a connection.
    """

    def __init__(self, server: SSHServer, below: Network, adapt: Adapt | None = None) -> None:
        key = server, below.route, below.trace, adapt
        super().__init__(str(server), key, functools.partial(_make_carriers, server, below, adapt))
        self.server = server


def dial(
    carrier: SharedCarrier[Connection],
    place: Place,
    deadline: float | None,
    done: OnResult,
    *,
    self_contained: bool = False,
    confirmed: bool = False,
    wait_for_reconnect: bool = True,
    trace: Trace = SILENT,
    number: int = 1,
) -> Abort:
    """Begin to open a stream to a target that the server can reach; see :func:`relay.carriers.dialer.dial`.

    :param number: of the server on the route.
    """
    numbers = number, number + 1

    def begin(link: Connection, on_result: OnResult) -> Abort:
        if trace is not SILENT:
            on_result = report_to(trace.begin(Stage.CHANNEL, str(place), server=carrier.name), on_result)
        return link.open(place, deadline, on_result, self_contained=self_contained, confirmed=confirmed)

    return dialer.dial(carrier, begin, deadline, done, wait_for_reconnect=wait_for_reconnect, numbers=numbers)


def _make_carriers(server: SSHServer, below: Network, adapt: Adapt | None) -> SharedCarrier[Connection]:
    addresses = _Addresses()
    seconds = _SLOW if is_slow(below.route, server) else ATTEMPT_TIMEOUT

    def make(number: int | None) -> Carrier[Connection]:
        connector = _SSHConnector(server, below, addresses, adapt)
        carrier = Carrier(
            str(server), connector, server.keepalive, seconds, kind="ssh", number=number, probe=server.probe
        )
        renew(carrier, server.renew_after)
        return carrier

    return make_carriers(server.carriers, make)


class _Addresses:
    """The addresses of one server that its connections use, so that another connection prefers another address."""

    def __init__(self) -> None:
        self._used: dict[_SSHConnector, object] = {}

    def dialer(self, user: _SSHConnector, dialer: Dialer) -> Dialer:
        """Return a dialer that tries the addresses which others use last, where relay itself looks up the name."""
        if not isinstance(dialer, SocketDialer) or dialer.name is None:
            return dialer
        return dialer.avoiding(
            # Read in the thread of a look-up, while other connections change it: tuple() of a dict is one step.
            lambda address: any(user is not other and address == used for other, used in tuple(self._used.items()))
        )

    def connected(self, user: _SSHConnector, stream: Stream) -> None:
        """Note the address of a connection."""
        with contextlib.suppress(OSError):
            self._used[user] = stream.socket.getpeername()


class _SSHConnector:
    """Connects to one server, each time that its carrier requests it; see :class:`relay.carriers.carrier.Connector`."""

    def __init__(self, server: SSHServer, below: Network, addresses: _Addresses, adapt: Adapt | None = None) -> None:
        self._server = server
        self._below = below
        self._addresses = addresses
        self._adapt = adapt
        self._chosen: str | None = None  # the backend, after another one has failed
        self._tried = ""  # the last backend
        # Held while this one is, so that the connections below are supervised, too.
        self._dialer: tuple[Route, TCPAddress, Dialer] | None = None

    def connect(self, deadline: float, cancel: Cancel, lost: Lost) -> Connection:
        trace = self._below.trace
        # Read anew for each attempt, as ssh does: a user mends the configuration while relay tries again.
        settings = resolve_settings(self._server, behind=bool(self._below.route))
        settings = dataclasses.replace(settings, read_only=trace.changes_nothing)
        if self._adapt is not None:
            settings = self._adapt(settings)
        self._tried = chosen = self._chosen or backend_for(settings)
        if chosen == "openssh":
            _check_programs(settings, "the OpenSSH client")
        connect: Connect = import_module(f".{chosen}.backend", __package__).connect
        if chosen == "openssh" and not self._below.route and not _is_at_i2p(settings):
            self._close_dialer()
            _reject_loops(settings, ())
            _refuse_onion(settings)
            # ssh follows ProxyJump and ProxyCommand itself.
            return connect(settings, None, deadline, cancel, lost, trace)
        stream = self._stream(settings, deadline, cancel)
        # From here on only the server has to answer; what was left of a long deadline was for the hops.
        deadline = min(deadline, time.monotonic() + _ANSWER)
        try:
            return connect(settings, stream, deadline, cancel, lost, trace)
        except BaseException:
            stream.reset()  # a close would first let a hop that is a program read all that was sent
            raise

    def alternative(self, error: Exception) -> str:
        """Choose the OpenSSH client, if the caller leaves that to relay and the error may depend on the backend."""
        depends = isinstance(error, IncompatibleError) or getattr(error, "stage", "") in (KEY_EXCHANGE, LOGIN)
        # A rejected login is no reason: the other client would offer the same keys again, and servers ban for that.
        if not depends or self._tried != "paramiko" or self._server.backend is not None or not shutil.which("ssh"):
            return ""
        if is_confined():
            return ""
        self._chosen = "openssh"
        return "trying the OpenSSH client instead"

    def close(self) -> None:
        self._close_dialer()

    def _stream(self, settings: Settings, deadline: float, cancel: Cancel) -> Stream:
        """Open a stream to the server: over the given hops, else as the user's configuration requires."""
        network = self._below
        # ProxyJump of the configuration only where the caller has given no hops: theirs replace it, as `-J` does for
        # ssh.
        if not network.route:
            network = functools.reduce(lambda below, jump: below.beyond(jump), settings.jumps, network)
        route = network.route
        if not route and settings.command is not None:
            self._close_dialer()
            _check_programs(settings, "ProxyCommand")
            return _command(settings.command, settings.name)
        if len(route) > _DEEPEST:
            raise AddressError(f"{settings.name}: more than {_DEEPEST} hops; check ProxyJump for a loop")
        answer: Promise[Stream] = Promise()
        # One attempt, because the caller may wait for one attempt to reach this server.
        below = self._dialer_for(network, settings)
        is_quick = self._server.probe and not is_slow(route, self._server)
        dial = functools.partial(redial.dial, below) if is_quick else below.dial
        give_up = dial(deadline, answer.put, wait_for_reconnect=False)
        try:
            stream = answer.get(deadline, cancel)
        except ConnectError as error:
            raise with_hop(error, self._server, route) from error
        except CarrierError as error:
            error.stage = ""  # it is the stage of an earlier hop, which counts its logins and has its own alternative
            raise
        finally:
            give_up()
        if stream is None:
            over = f" over {route[-1]}" if route else ""
            raise ConnectError(f"{settings.name}: not reached in time{over}", reason="connect_timeout")
        self._addresses.connected(self, stream)
        return stream

    def _dialer_for(self, network: Network, settings: Settings) -> Dialer:
        """Return the dialer for streams to the server, the same as last time if nothing has changed."""
        place = TCPAddress(settings.hostname, settings.port)
        if self._dialer is None or self._dialer[:2] != (network.route, place):
            self._close_dialer()
            if not self._below.route:
                _reject_loops(settings, ())
            self._dialer = network.route, place, self._addresses.dialer(self, network.to(place))
        return self._dialer[2]

    def _close_dialer(self) -> None:
        dialer, self._dialer = self._dialer, None
        if dialer is not None:
            dialer[2].close()


def _is_at_i2p(settings: Settings, depth: int = 0) -> bool:
    """Return whether a server, or a ``ProxyJump`` to it, is at I2P, which the OpenSSH client does not support."""
    jumps = settings.jumps if depth < _DEEPEST else ()
    return is_i2p(settings.hostname) or any(_is_at_i2p(resolve_settings(server), depth + 1) for server in jumps)


def _reject_loops(settings: Settings, seen: tuple[str, ...]) -> None:
    """Check ``ProxyJump`` for a loop.

    :raises AddressError: if there is one.
    """
    place = str(TCPAddress(settings.hostname, settings.port))
    if place in seen or len(seen) > _DEEPEST:
        way = " → ".join((*seen, place))
        raise AddressError(f"{settings.name}: ProxyJump loop ({way}); fix the SSH configuration")
    for server in settings.jumps:
        _reject_loops(resolve_settings(server), (*seen, place))


def _refuse_onion(settings: Settings) -> None:
    """Reject a name that ssh itself would look up: that of the server, or of the first one before it.

    :raises AddressError: if it is a name of Tor.
    """
    while settings.jumps:
        settings = resolve_settings(settings.jumps[0])
    # With a ProxyCommand the program looks the name up, perhaps through Tor.
    if settings.command is None:
        refuse_onion(settings.hostname)


def backend_for(settings: Settings) -> str:
    """Choose the backend: that of the caller, else paramiko, unless only the OpenSSH client supports the server.

    :param settings: the server.
    :returns: ``paramiko`` or ``openssh``.
    :raises RelayError: if only the OpenSSH client supports it and is not installed.
    """
    chosen = settings.server.backend
    if chosen == "paramiko" or (chosen is None and not settings.requires_openssh):
        return "paramiko"
    if shutil.which("ssh") is None:
        why = settings.requires_openssh or "backend=openssh"
        raise RelayError(f"{settings.name}: {why} needs the OpenSSH client, and there is no ssh in PATH; install it")
    return "openssh"


def _check_programs(settings: Settings, program: str) -> None:
    """Check that no sandbox keeps relay from starting a program; the configuration may have changed since the start.

    :raises RelayError: if one does.
    """
    if is_confined():
        raise RelayError(f"{settings.name}: the sandbox does not let relay start {program}; restart relay")


def _command(command: str, name: str) -> Stream:
    """Open a stream to the user's ``ProxyCommand`` (ssh_config(5): the shell runs it)."""
    stream = Programs(["/bin/sh", "-c", f"exec {command}"], "the ProxyCommand")()
    stream.target = name
    return stream
