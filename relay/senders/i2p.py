"""The way out to I2P: a stream to a destination, made by a router's SAM bridge (SAM v3, "STREAM CONNECT")."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any

from ..address import Secret
from ..i2paddress import SAM, I2PTarget, router_of
from ..parsing import parse_hops
from ..sam.factory import I2PFactory
from .chain import bridge, numbered

__all__ = ["i2p"]

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
    bridge(target.router, hops)  # what is wrong with its files is told now
    reach = functools.partial(bridge, before=hops)
    return I2PFactory(target, reach, hops, functools.partial(numbered, hops=hops))
