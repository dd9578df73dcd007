"""Any chain of hops: dialers around dialers, each of which reaches its own place through the ones before it."""

from __future__ import annotations

import dataclasses
import functools

from ..addresses.hops import Command, Hop, Place, Proxy, Route, check_way, hop_of
from ..addresses.i2p import I2PRouter, I2PTarget, parse_sam
from ..addresses.values import SSHServer, Target, TCPAddress, TLSTarget, is_i2p
from ..streams.connect import dialed
from ..streams.dialer import Dialed, Done, GiveUp, Over, Upgraded, copied
from ..streams.stream import Stream
from .tcp import tcp
from .unix import unix

_LOST = "the connection was lost: "

__all__ = ["bridge", "chain", "numbered", "way"]


def chain(hops: Route, target: Target | I2PTarget | Command) -> Dialed:
    """A factory for a target behind any hops.

    :param hops: those that were written, the nearest first; an error tells which one of them it belongs to.
    :param target: the place, as the last of them sees it.
    :returns: a callable for :class:`relay.Tunnel`. Nothing is opened before it is called.
    :raises AddressError: if a hop cannot lead to what follows.
    :raises OSError: if a file that the target names cannot be read.
    :raises ValueError: if a file does not hold what it should.
    """
    check_way(hops, target)
    made = _to(hops, target)
    return made if len(hops) < 2 else _Chained(made, hops)


def way(hops: Route, place: Place) -> Dialed:
    """A factory for a place behind any hops; its errors do not count the hops, for they may be a part of a chain.

    A name of I2P to which nothing else leads is reached over I2P, for in the DNS it would tell whom the user visits.

    :raises AddressError: if the last hop cannot lead there.
    :raises OSError: if a file that a hop names cannot be read.
    """
    if isinstance(place, TCPAddress) and is_i2p(place.host) and (not hops or isinstance(hops[-1], SSHServer)):
        hops = (*hops, I2PRouter())
    made = _through(hops[-1], hops[:-1], place) if hops else _here(place)
    made.route = hops
    return made


def bridge(router: I2PRouter, before: Route = ()) -> Dialed:
    """A factory for streams to a router's SAM bridge.

    :param router: where it is.
    :param before: the hops on the way to it, the nearest first.
    :raises OSError: if a file that its address names cannot be read.
    :raises ValueError: if a file does not hold what it should.
    """
    made = _secured(before, place) if isinstance(place := parse_sam(router.sam), TLSTarget) else way(before, place)
    made.route = before
    return made


def numbered(error: OSError, hops: Route) -> OSError:
    """An error as the user of a chain is to see it: it says to which hop it belongs, where there are several."""
    number = hop_of(error, hops) if len(hops) > 1 else None
    if number is None:
        return error
    hop, text = hops[number - 1], str(error)
    while True:
        text = text.removeprefix(f"{hop}: ")
        why = text.removeprefix(_LOST)  # a hop that is lost takes those after it along; it is the one to tell
        below = hop_of(why, hops)
        if why == text or below is None:
            break
        number, hop, text = below, hops[below - 1], why
    told = copied(error)
    told.args = (f"hop {number} of {len(hops)} ({hop}): {text}",)
    return told


def _to(hops: Route, target: Target | I2PTarget | Command) -> Dialed:
    if isinstance(target, TLSTarget):
        return _secured(hops, target)
    if not isinstance(target, I2PTarget):
        return way(hops, target)
    if hops and isinstance(router := hops[-1], I2PRouter) and target.router == I2PRouter():
        return _over_i2p(dataclasses.replace(target, router=router), hops[:-1])
    return _over_i2p(target, hops)


def _secured(hops: Route, target: TLSTarget) -> Dialed:
    from .tls.client import Client

    client = Client(target.host, target.port, target.servername, target.ca, target.cert, target.key)
    return Upgraded(way(hops, TCPAddress(target.host, target.port)), client.upgrade, client.name)


def _here(place: Place) -> Dialed:
    """A factory for what this machine reaches itself."""
    if isinstance(place, Command):
        from .program import Local

        return Local(place)
    return dialed(tcp(place.host, place.port) if isinstance(place, TCPAddress) else unix(place.path))


def _through(hop: Hop, before: Route, place: Place) -> Dialed:
    """A factory for what one hop reaches, which is itself reached over those before it."""
    check_way((hop,), place)
    if isinstance(hop, SSHServer):
        from .ssh.dialer import SSHFactory

        return SSHFactory(hop, before, place, way)
    assert isinstance(place, TCPAddress)
    if isinstance(hop, I2PRouter):
        return _over_i2p(I2PTarget(place.host, place.port, hop), before)
    if isinstance(hop, Proxy):
        from .proxies.dialer import Proxied

        return Proxied(way(before, hop.place), hop, place, before)
    made = way(before, hop.to(place))
    made.target = str(place)
    return made


def _over_i2p(target: I2PTarget, before: Route) -> Dialed:
    from .i2p.dialer import I2PFactory

    bridge(target.router, before)  # what is wrong with its files and its place is told now
    return I2PFactory(target, functools.partial(bridge, before=before), before)


class _Chained(Over):
    """The same streams; an error tells which hop it belongs to.

    :param inner: makes them.
    :param hops: those that were written.
    """

    def __init__(self, inner: Dialed, hops: Route) -> None:
        super().__init__(inner, inner.target)
        self.route = hops

    def dial(self, deadline: float | None, done: Done, *, lasting: bool = False, patient: bool = True) -> GiveUp:
        """Begin to make a stream; see :meth:`Dialed.dial`."""

        def told(outcome: Stream | OSError) -> None:
            done(numbered(outcome, self.route) if isinstance(outcome, OSError) else self._numbered(outcome))

        return self.inner.dial(deadline, told, lasting=lasting, patient=patient)

    def _numbered(self, stream: Stream) -> Stream:
        failure, route = stream.failure, self.route

        def told() -> BaseException | None:
            error = failure() if failure is not None else None
            return numbered(error, route) if isinstance(error, OSError) else error

        if failure is not None:
            stream.failure = told
        return stream

    def ready(self, timeout: float | None = 30.0) -> None:
        """Wait until the way is there; see :meth:`Dialed.ready`."""
        try:
            self.inner.ready(timeout)
        except OSError as error:
            raise numbered(error, self.route) from error

    @property
    def problem(self) -> str | None:
        """Why streams cannot be made for now; see :attr:`Dialed.problem`."""
        problem = self.inner.problem
        return problem and str(numbered(OSError(problem), self.route))
