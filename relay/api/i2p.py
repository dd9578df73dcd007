"""relay.i2p and relay.i2p_listen: streams to I2P destinations, and listening at one's own (SAM v3)."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

from ..addresses.hops import Route
from ..addresses.i2p import SAM, I2PListen, I2PRouter, I2PTarget, router_of
from ..addresses.parse import parse_hops
from ..addresses.values import Secret
from ..transports.chain import network, numbered
from ..transports.i2p.dialer import I2PFactory
from ..transports.i2p.listener import I2PListener

__all__ = ["I2PListener", "i2p", "i2p_listen", "listen_i2p"]

Path = str | os.PathLike[str]


def i2p(
    dest: str,
    *,
    port: int | None = None,
    sam: str = SAM,
    session: str = "",
    keys: Path | None = None,
    in_depth: int | None = None,
    out_depth: int | None = None,
    user: str | None = None,
    password: Secret | None = None,
    via: Sequence[str] = (),
    **options: Any,
) -> I2PFactory:
    """A factory for streams to an I2P destination, over a session of a router's SAM bridge.

    Nothing is opened before the first call (or ``ready()``). One session carries all streams, and those of every other
    factory of this process that asks for the same bridge, session, keys and options over the same hops. It is made
    again when it is lost, and replaced when it has gone deaf; while there is none, a call waits for it until its
    deadline, or for one attempt if it has none. A destination that cannot be reached yet is tried until the deadline.
    Making a session takes 3 to 40 seconds, a minute at worst, so give a :class:`relay.Tunnel` a ``connect_timeout`` of
    90, and a ``linger`` of 5, for these streams have no half-close.

    :param dest: where to: a destination in base64, its address ``….b32.i2p``, or a name in ``.i2p`` that the router
        knows.
    :param port: the virtual port there (``TO_PORT``), from 1 to 65535; ``None`` to say nothing.
    :param sam: the bridge: ``host:port`` or ``tls://host:port?servername=…&ca=…&cert=…&key=…``.
    :param session: its name, shown by the router; factories with another one do not share a session.
    :param keys: a file with the private key of the destination that the streams come from, made if it is missing (mode
        0600) and locked while in use; ``None`` for a new destination with every session.
    :param in_depth: hops of the tunnels through which bytes come in, 0 to 7; ``None`` for 3.
    :param out_depth: hops of those through which they go out.
    :param user: who logs in at the bridge, where it asks for that.
    :param password: text, or a callable that returns it. ``password_file`` and ``password_env`` are keywords, too.
    :param via: the hops on the way to the bridge, the nearest first, as for :func:`relay.target`; ``sam`` is what the
        last one sees.
    :param options: further options of the session, as in ``**{"inbound.quantity": 2}``: ``i2cp.``, ``inbound.`` and
        ``outbound.`` ones. ``i2cp.leaseSetEncType`` is ``4,0`` unless given, which reaches every destination.
    :returns: a callable for :class:`relay.Tunnel`, with ``ready(timeout)``, ``look_up(timeout)``, ``dest``, ``state``,
        ``subscribe(watcher)`` and ``close()``, which lets the session go. A call returns a connected
        :class:`relay.Stream`, and raises :class:`relay.ConnectError` (unreachable, timed out),
        :class:`relay.SAMError`, :class:`relay.AuthenticationError` or :class:`relay.CarrierError`.
        It takes the keywords ``peer``, ``deadline`` and ``cancel``, as all factories do; see :func:`relay.target`.
    :raises TypeError: if an argument has the wrong type or a keyword is unknown.
    :raises ValueError: if an argument cannot be right; of ``dest`` it tells what is wrong (length, alphabet, checksum).
    :raises OSError: if a file that ``sam`` names cannot be read.

    Source: the project's API, section 3; SAM v3, "STREAM CONNECT".
    """
    keywords = {
        "sam": sam,
        "session": session,
        "keys": keys,
        "in_depth": in_depth,
        "out_depth": out_depth,
        "user": user,
        "password": password,
        **options,
    }
    target, hops = I2PTarget(dest, port, router_of(keywords)), parse_hops(via)
    return I2PFactory(target, network(hops), functools.partial(numbered, hops=hops))


_ENDED = 5.0  # seconds for what has failed to end, so that the keys are free when the caller tries again

Entries = Sequence[Path] | Path
OnState = Callable[[str], object]


def i2p_listen(
    session: str = "",
    *,
    sam: str = "127.0.0.1:7656",
    keys: Path | None = None,
    accept: str | None = None,
    allow: Entries | None = None,
    deny: Entries | None = None,
    in_depth: int | None = None,
    out_depth: int | None = None,
    user: str | None = None,
    password: Secret | None = None,
    via: Sequence[str] = (),
    on_state: OnState | None = None,
    **options: Any,
) -> I2PListener:
    """Be a destination of I2P. What connects to it is accepted here.

    The session is made again, with the same keys, whenever it has been lost. That it can be reached is found out by
    streams to itself, from a session of their own: a router may well think that a session is up which nobody can reach.

    :param session: its name, which keeps its destination: the keys lie in the user's data directory under this name.
        Empty for a destination that lasts as long as the listener.
    :param sam: where the router's SAM bridge is: ``host:port`` or ``tls://host:port?ca=…``.
    :param keys: a file with the private key, made if there is none, and locked while it is in use.
    :param accept: ``'forward'``: the router connects to us for each stream, which is quicker and takes bursts whole,
        and works only where it is on this machine; ``'accept'``: we wait at the bridge for each stream. ``None`` for
        what the router shows it can do, and ``'accept'`` where the kernel does not report the user of each connection
        to the port: only the router's may speak for a destination. Then ``'forward'`` rejects those that the router has
        closed already; on systems other than Linux it trusts every local program.
    :param allow: who is let in: destinations, in base64 or ``….b32.i2p``, and files with one of them in a line, which
        are read again when they change. ``None`` for everybody.
    :param deny: who is not let in, likewise.
    :param in_depth: hops of the tunnels through which bytes come in, 0 to 7; ``None`` for three.
    :param out_depth: of those through which they go out.
    :param user: who logs in at the bridge.
    :param password: text or a callable.
    :param via: hops on the way to the router, the nearest first, as for :func:`relay.target`.
    :param on_state: called with each state, a word as in :attr:`I2PListener.state`, in a thread of ours. It must not
        block; what it raises is logged.
    :param options: further ones of the session: ``i2cp.…``, ``inbound.…`` and ``outbound.…``. ``i2cp.leaseSetEncType``
        is ``4,0`` unless given: an application that offers ElGamal alone cannot reach a destination without it.
    :returns: a listener for :class:`relay.Tunnel`, once the session is up, which may take a minute. The caller owns it.
    :raises ConnectError: if the bridge cannot be reached.
    :raises SAMError: if there is no SAM bridge, if it makes no session, or for what is wrong with the keys: damaged, in
        use, not to be written; ``.result`` is the router's word.
    :raises AuthenticationError: if the bridge does not take the user and the password.
    :raises TypeError: if an argument has the wrong type, or is unknown.
    :raises ValueError: if an argument cannot be right.

    Source: the project's API, section 3; SAM v3, "STREAM ACCEPT" and "STREAM FORWARD".
    """
    given = {"sam": sam, "session": session, "keys": keys, "in_depth": in_depth, "out_depth": out_depth}
    router = router_of({**given, "user": user, "password": password, **options})
    place = I2PListen(router, accept, _entries(allow), _entries(deny) or ())
    return _started(place, parse_hops(via), on_state)


def listen_i2p(
    router: I2PRouter,
    accept: str | None = None,
    allow: tuple[str, ...] | None = None,
    deny: tuple[str, ...] = (),
    via: Route = (),
    opening: Callable[[I2PListener], object] | None = None,
) -> I2PListener:
    """Be a destination of I2P.

    :param router: the router and the session.
    :param accept: as for :func:`i2p_listen`, and so are the others.
    :param via: the hops on the way to the router, the nearest first.
    :param opening: called with the listener before it starts, which then retries without a limit of time while the
        router cannot be reached; closing the listener ends that. ``None`` for one attempt.
    :returns: a listener for :class:`relay.Tunnel`, once the session is up. The caller owns it.
    :raises OSError: as :func:`i2p_listen` does; with ``opening`` only what a retry cannot fix.
    """
    return _started(I2PListen(router, accept, allow, deny), via, None, opening)


def _started(
    place: I2PListen,
    hops: Route,
    on_state: OnState | None,
    opening: Callable[[I2PListener], object] | None = None,
) -> I2PListener:
    listener = I2PListener(place, network(hops), str(place))
    if on_state is not None:
        listener.subscribe(lambda state, _: on_state(state))
    try:
        if opening is not None:
            opening(listener)
        listener.start(patient=opening is not None)
    except BaseException as error:
        listener.close()
        listener.join(_ENDED)
        if isinstance(error, OSError):
            raise numbered(error, hops) from error
        raise
    return listener


def _entries(given: Entries | None) -> tuple[str, ...] | None:
    if given is None:
        return None
    return tuple(os.fspath(entry) for entry in ((given,) if isinstance(given, (str, os.PathLike)) else given))
