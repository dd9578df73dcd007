"""``relay.i2p`` and ``relay.i2p_listen``: streams to I2P destinations, and a destination of one's own (SAM v3)."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Unpack

from ..addresses.hops import Route
from ..addresses.i2p import SAM, I2PListen, I2PRouter, I2PTarget
from ..addresses.i2p_parser import router_of
from ..addresses.parse import parse_hops
from ..addresses.signatures import shows_options
from ..streams.dialer import Network
from ..transports.chain import network, numbered
from ..transports.i2p.dialer import I2PFactory
from ..transports.i2p.listener import I2PListener
from .keywords import I2PKeywords

__all__ = ["I2PListener", "i2p", "i2p_listen", "listen_i2p"]

_CLOSE_TIMEOUT = 5.0  # seconds for a failed listener to end, so that the keys are free when the caller tries again

Entries = Sequence[str | os.PathLike[str]] | str | os.PathLike[str]
OnState = Callable[[str], object]


@shows_options(I2PRouter, own=("sam", "session"), takes_others=True)
def i2p(
    dest: str,
    *,
    port: int | None = None,
    sam: str | Sequence[str] = SAM,
    session: str = "",
    via: Sequence[str] = (),
    **options: Unpack[I2PKeywords],
) -> I2PFactory:
    """Return a factory for streams to an I2P destination, over a session of a router's SAM bridge.

    Nothing is opened before the first call (or ``ready()``). Factories of this process share one session if they have
    the same bridge, session, keys and options over the same hops. relay re-creates the session when it is lost, and
    replaces it when it is unresponsive. While there is none, a call waits until its deadline, or for one attempt if it
    has none. relay retries a destination that is not reachable yet until the deadline. Creating a session takes 3 to 40
    seconds, at worst a minute: give a :class:`relay.Tunnel` a ``connect_timeout`` of 90. SAM streams have no
    half-close: give it a ``linger`` of 5.

    :param dest: a destination in base64, its address ``….b32.i2p``, or a name in ``.i2p`` that the router knows.
    :param port: the virtual port there (``TO_PORT``), from 1 to 65535; ``None`` for none.
    :param sam: the bridge: ``host:port`` or ``tls://host:port?servername=…&ca=…&cert=…&key=…``. Of several, the session
        is at the first router that answers. When it is lost, the next router has the next one.
    :param session: its name, which the router shows; factories with another one do not share a session.
    :param via: the hops to the bridge, the nearest first, as for :func:`relay.target`; ``sam`` is the
        address as seen from the last one.
    :param options: {options}
    :param others: further options of the session, as in ``**{"inbound.quantity": 5}``: ``i2cp.``, ``inbound.`` and
        ``outbound.`` ones. ``i2cp.leaseSetEncType`` is ``4,0`` unless given, which reaches every destination.
    :returns: a callable for :class:`relay.Tunnel`, with ``ready(timeout)``, ``look_up(timeout)``, ``dest``, ``state``,
        ``subscribe(watcher)`` and ``close()``, which releases the session. A call returns a connected
        :class:`relay.Stream`, and raises :class:`relay.ConnectError` (unreachable, timed out),
        :class:`relay.SAMError`, :class:`relay.AuthenticationError` or :class:`relay.CarrierError`.
        It takes the keywords ``peer``, ``deadline`` and ``cancel``, as all factories do; see :func:`relay.target`.
    :raises TypeError: if an argument has the wrong type, or a keyword is unknown.
    :raises ValueError: if an argument has a value that is not allowed; for ``dest`` it says why (length, alphabet,
        checksum).
    :raises OSError: if a file that ``sam`` names cannot be read.

    Source: SAM v3, "STREAM CONNECT".
    """
    target, hops = I2PTarget(dest, port, router_of({"sam": sam, "session": session, **options})), parse_hops(via)
    return I2PFactory(target, network(hops), functools.partial(numbered, hops=hops))


@shows_options(I2PRouter, own=("sam", "session"), takes_others=True)
def i2p_listen(
    session: str = "",
    *,
    sam: str | Sequence[str] = SAM,
    accept: str | None = None,
    allow: Entries | None = None,
    deny: Entries | None = None,
    standby: bool = False,
    via: Sequence[str] = (),
    on_state: OnState | None = None,
    **options: Unpack[I2PKeywords],
) -> I2PListener:
    """Publish an I2P destination, and listen there.

    relay re-creates the session with the same keys whenever it is lost. It checks that the session is reachable by
    streams from a second session, because a router may report a session as up that others cannot reach.

    :param session: its name, which keeps the destination: relay stores the private key in the user's data directory
        under this name. Empty for a destination that exists as long as the listener.
    :param sam: the router's SAM bridge: ``host:port`` or ``tls://host:port?ca=…``, or those of several routers, as for
        :func:`i2p`.
    :param accept: ``'forward'``: the router connects to a local port for each stream. This is faster and takes bursts
        whole, but the router must be on this machine. ``'accept'``: relay waits at the bridge for each stream. ``None``
        for what the router supports, and ``'accept'`` if the kernel does not report the user of each connection to the
        port, because only the router's user may speak for a destination. ``'forward'`` then rejects streams that the
        router has closed already; on systems other than Linux it trusts every local program.
    :param allow: only these may connect: destinations, in base64 or ``….b32.i2p``, and files with one in each line,
        which are read again when they change. ``None`` for all.
    :param deny: these may not connect, in the same form.
    :param standby: whether other machines have the same keys. This one stands by while another one serves the
        destination, and takes over when that does not answer three times in a row. Needs ``session`` or ``keys``.
    :param via: the hops to the router, the nearest first, as for :func:`relay.target`.
    :param on_state: called with each state, a word as in :attr:`I2PListener.state`, on a thread of relay. It must not
        block; relay logs what it raises.
    :param options: {options}
    :param others: further options of the session: ``i2cp.…``, ``inbound.…`` and ``outbound.…``.
        ``i2cp.leaseSetEncType`` is ``4,0`` unless given: without it, applications that support only ElGamal cannot
        connect.
    :returns: a listener for :class:`relay.Tunnel`, once the session is up, which may take a minute, or another relay
        serves the destination (``standby``). The caller owns it.
    :raises ConnectError: if the bridge cannot be reached.
    :raises SAMError: if the address is not that of a SAM bridge, if the bridge creates no session, or if the keys are
        damaged, in use, cannot be written, or with ``standby`` do not exist; ``.result`` is the router's word.
    :raises AuthenticationError: if the bridge rejects the user and the password.
    :raises TypeError: if an argument has the wrong type, or a keyword is unknown.
    :raises ValueError: if an argument has a value that is not allowed.

    Source: SAM v3, "STREAM ACCEPT" and "STREAM FORWARD".
    """
    router = router_of({"sam": sam, "session": session, **options})
    place = I2PListen(router, accept, _entries(allow), _entries(deny) or (), standby)
    return _started(place, parse_hops(via), on_state)


def listen_i2p(
    router: I2PRouter,
    accept: str | None = None,
    allow: tuple[str, ...] | None = None,
    deny: tuple[str, ...] = (),
    standby: bool = False,
    via: Route = (),
    opening: Callable[[I2PListener], object] | None = None,
    make: Callable[[I2PListen, Network, str], I2PListener] = I2PListener,
) -> I2PListener:
    """Publish an I2P destination, and listen there.

    :param router: the router and the session.
    :param accept: as for :func:`i2p_listen`, and so are the others.
    :param via: the hops to the router, the nearest first.
    :param opening: called with the listener before it starts. The listener then retries without a time limit while the
        router cannot be reached; closing it ends that. ``None`` for one attempt.
    :param make: makes the listener.
    :returns: a listener for :class:`relay.Tunnel`, once the session is up or it stands by. The caller owns it.
    :raises OSError: as :func:`i2p_listen` does; with ``opening`` only what a retry cannot fix.
    """
    return _started(I2PListen(router, accept, allow, deny, standby), via, None, opening, make)


def _started(
    place: I2PListen,
    hops: Route,
    on_state: OnState | None,
    opening: Callable[[I2PListener], object] | None = None,
    make: Callable[[I2PListen, Network, str], I2PListener] = I2PListener,
) -> I2PListener:
    listener = make(place, network(hops), str(place))
    if on_state is not None:
        listener.subscribe(lambda state, _: on_state(state))
    try:
        if opening is not None:
            opening(listener)
        listener.start(patient=opening is not None)
    except BaseException as error:
        listener.close()
        listener.join(_CLOSE_TIMEOUT)
        if isinstance(error, OSError):
            raise numbered(error, hops) from error
        raise
    return listener


def _entries(given: Entries | None) -> tuple[str, ...] | None:
    if given is None:
        return None
    return tuple(os.fspath(entry) for entry in ((given,) if isinstance(given, (str, os.PathLike)) else given))
