"""The list of the carriers of this process, for operators."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from ..eventloop.background import IOThread
from ..eventloop.histogram import CONNECT_TIMES, Durations, Histogram
from .carrier import Carrier
from .link import strip_prefix


@dataclass(frozen=True, slots=True)
class CarrierStatus:
    """One carrier at one moment.

    :param name: such as ``ssh://me@bastion``.
    :param kind: the protocol: ``ssh``, ``i2p``, or ``port`` for a program that listens.
    :param state: ``connecting``, ``up``, ``backing off``, ``failed`` or ``closed``.
    :param since: when the state last changed, in seconds since 1970.
    :param losses: the links that were lost.
    :param streams: the open streams, those being opened included.
    :param rtt: seconds of the last round trip of a keepalive probe, if the carrier measures it and is up.
    :param error: why it is not up; empty if it is, or no attempt has ended yet.
    :param metrics: how long the attempts took that succeeded, by the bounds ``CONNECT_TIMES``.
    :param number: which of several carriers of one hop it is, from 1; ``None`` if it is the only one.
    :param router: the I2P router that has the session, if the hop has several and it is up; else empty.
    :param worker: the number of the worker process that has it, from 1; ``None`` for the program itself.
    """

    name: str
    kind: str
    state: str
    since: float
    losses: int
    streams: int
    rtt: float | None = None
    error: str = ""
    metrics: Histogram = field(default=Durations(CONNECT_TIMES).counted, metadata={"json": False})
    number: int | None = None
    router: str = ""
    worker: int | None = None


def carriers() -> list[CarrierStatus]:
    """Return the state of each carrier of this process, in the order of their names. From any thread."""
    clients = IOThread.clients()
    found = [_status(client) for client in clients if isinstance(client, Carrier)]
    return sorted(found, key=lambda status: (status.name, status.number or 0, status.since))


def _status(carrier: Carrier[Any]) -> CarrierStatus:
    error, link = carrier.error, carrier.link
    return CarrierStatus(
        carrier.name,
        carrier.kind,
        carrier.state.value,
        time.time() - (time.monotonic() - carrier.since),
        carrier.losses,
        carrier.streams(),
        link.rtt if link is not None else None,
        strip_prefix(carrier.name, error) if error is not None else "",
        carrier.blocking.connect_times.counted,
        carrier.number,
        link.router if link is not None else "",
    )
