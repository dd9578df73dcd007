"""Routes as networks: each hop is a network as seen from its far end, made over the network below it.

:data:`KINDS` names the network of each kind of hop; a new transport adds its line there.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from importlib import import_module
from typing import Any, Protocol

from ..addresses.hops import Command, Hop, Place, Proxy, Route, check_route, hop_of, is_slow
from ..addresses.i2p import I2PRouter, I2PTarget
from ..addresses.options import options_of
from ..addresses.resume import ResumeServer
from ..addresses.ssh import SSHServer
from ..addresses.values import Target, TargetOverTCP, TCPAddress, TLSTarget, is_i2p
from ..streams.dialer import Dialer, Network, Upgrade
from ..streams.promise import copy_error
from ..streams.trace import SILENT, Trace
from .tcp import tcp
from .unix import unix

KINDS: dict[type[Hop], str] = {
    SSHServer: "ssh.dialer:SSHNetwork",
    I2PRouter: "i2p.dialer:I2PNetwork",
    Proxy: "proxies.dialer:ProxyNetwork",
    Command: "program_dialer:ProgramNetwork",
}
"""The class of each kind of hop: called with the hop and the network below it, it has ``to(place) -> Dialer``."""

_LOST = "the connection was lost: "


def chain(
    hops: Route, target: Target | I2PTarget | Command, trace: Trace = SILENT, last: Network | None = None
) -> Dialer:
    """Return a dialer for a target behind any hops. Opens nothing.

    :param hops: the hops as the user wrote them, the nearest first; errors are numbered by them.
    :param target: the address, as seen from the last hop.
    :param trace: observes the steps of each dial, also those of the hops.
    :param last: the network of these hops, for several targets; ``None`` for a new one.
    :returns: a factory for :class:`relay.Tunnel`.
    :raises AddressError: if a hop cannot lead to what follows.
    :raises OSError: if a file that the target names cannot be read.
    :raises ValueError: if a file does not hold what it should.
    """
    check_route(hops, target)
    made = (last or network(hops, trace)).to(target)
    return made if len(hops) < 2 else Upgrade(made, explain=functools.partial(numbered, hops=hops))


def network(hops: Route = (), trace: Trace = SILENT) -> Network:
    """Return the network as seen from the last hop of a route, or from this machine if there is none."""
    here: Network = _Network((), _Here(trace), trace)
    return functools.reduce(lambda below, hop: below.beyond(hop), hops, here)


class _View(Protocol):
    """The places that one kind of hop reaches by itself; the values of :data:`KINDS` name such classes."""

    def to(self, place: Any, /) -> Dialer:
        """Return a dialer for a place that this kind of hop can lead to: a :data:`Place` or an I2P target."""


class _Here:
    """The places that this machine reaches itself."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace

    def to(self, place: Place | I2PTarget) -> Dialer:
        assert not isinstance(place, I2PTarget)
        if isinstance(place, Command):
            from .program_dialer import local

            return local(place, self._trace)
        return tcp(place.host, place.port, mptcp=place.mptcp) if isinstance(place, TCPAddress) else unix(place.path)


class _Network(Network):
    """The network as seen from a hop, for every kind of address: TLS and I2P addresses lead to further networks.

    :param route: the hops, the nearest first.
    :param view: reaches the places that need no further hop.
    :param trace: observes the steps of each dial.
    """

    def __init__(self, route: Route, view: _View, trace: Trace) -> None:
        self._route = route
        self._view = view
        self._trace = trace

    @property
    def route(self) -> Route:
        return self._route

    @property
    def trace(self) -> Trace:
        return self._trace

    def to(self, place: Target | I2PTarget | Command) -> Dialer:
        if isinstance(place, TLSTarget):
            made = _secured(self.to(TCPAddress(place.host, place.port, place.mptcp)), place, self._trace)
        elif isinstance(place, TargetOverTCP):
            made = _websocket(self, place)
        elif isinstance(place, I2PTarget):
            made = self._to_destination(place)
        elif isinstance(place, TCPAddress) and is_i2p(place.host) and self._asks_dns:
            made = self.beyond(I2PRouter()).to(place)
        else:
            check_route(self._route[-1:], place)
            made = self._view.to(place)
        made.route, made.trace = self._route, self._trace
        return made

    def beyond(self, hop: Hop) -> Network:
        if isinstance(hop, ResumeServer):
            from .proxies.resumed import FarNetwork

            route = (*self._route, hop)
            carrier, slow = functools.partial(self.to, hop.place), is_slow(route)
            return _Network(
                route, FarNetwork(str(hop), carrier, self._route, is_slow=slow, trace=self._trace), self._trace
            )
        module, name = next(KINDS[kind] for kind in type(hop).__mro__ if kind in KINDS).split(":")
        # Imported with the first hop of its kind: a plain forward starts without paramiko, ssl and I2P.
        kind: Callable[[Hop, Network], _View] = getattr(import_module(f".{module}", __package__), name)
        route = (*self._route, hop)
        if isinstance(hop, SSHServer) and hop.resume is not None:
            from .proxies.resumed import at_server

            # The same connection as one without the option has: streams of both share it.
            usual = options_of(SSHServer)
            without = {name: usual[name].default for name in ("resume", "resume_for", "resume_buffer")}
            plain = kind(dataclasses.replace(hop, **without), self)
            return _Network(route, at_server(hop, plain, self._route, self._trace), self._trace)
        return _Network(route, kind(hop, self), self._trace)

    @property
    def _asks_dns(self) -> bool:
        """``True`` if the DNS resolves names: a name in .i2p would reveal to the DNS which site the user visits."""
        return not self._route or isinstance(self._route[-1], SSHServer | ResumeServer)

    def _to_destination(self, target: I2PTarget) -> Dialer:
        last = self._route[-1] if self._route else None
        if isinstance(last, I2PRouter) and target.router == I2PRouter():
            return self._view.to(target)
        return self.beyond(target.router).to(dataclasses.replace(target, router=I2PRouter()))


def _secured(inner: Dialer, target: TLSTarget, trace: Trace) -> Dialer:
    # Here and not above: a start without TLS does not load ssl.
    from .tls.client import client_of

    return client_of(target, trace).over(inner)


def _websocket(network: Network, target: TargetOverTCP) -> Dialer:
    from ..addresses.websocket import WSTarget
    from ..extras import needed

    assert isinstance(target, WSTarget)
    needed("websocket", str(target))
    from .websocket.client import Client

    return Client(target, network.trace).over(network.to(TCPAddress(target.host, target.port)))


def numbered(error: OSError, hops: Route) -> OSError:
    """Return an error as the user of a chain sees it: with the number of the hop that it belongs to.

    :param error: of a dialer over the hops, or of a stream.
    :param hops: as the user wrote them; with fewer than two the error stays as it is.
    """
    number = hop_of(error, hops) if len(hops) > 1 else None
    if number is None:
        return error
    hop, text = hops[number - 1], str(error)
    while True:
        text = text.removeprefix(f"{hop}: ")
        why = text.removeprefix(_LOST)  # a lost hop takes the later ones along; the error names the first of them
        below = hop_of(why, hops)
        if why == text or below is None:
            break
        number, hop, text = below, hops[below - 1], why
    # A copy: one lost hop is the error of many streams, each of which has hops of its own.
    explained = copy_error(error)
    explained.args = (f"hop {number} of {len(hops)} ({hop}): {text}",)
    return explained
