"""The list of the carriers of this process, for operators."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from ..eventloop.background import IOThread
from .carrier import Carrier
from .link import strip_prefix

__all__ = ["CarrierStatus", "carriers"]


@dataclass(frozen=True, slots=True)
class CarrierStatus:
    """One carrier at one moment.

    :param name: such as ``ssh://me@bastion``.
    :param kind: the protocol: ``ssh`` or ``i2p``.
    :param state: ``connecting``, ``up``, ``backing off``, ``failed`` or ``closed``.
    :param since: when the state last changed, in seconds since 1970.
    :param losses: the links that were lost.
    :param streams: the open streams, those being opened included.
    :param rtt: seconds of a round trip, if the carrier measures it.
    :param error: why it is not up; empty if it is, or no attempt has ended yet.
    """

    name: str
    kind: str
    state: str
    since: float
    losses: int
    streams: int
    rtt: float | None = None
    error: str = ""


def carriers() -> list[CarrierStatus]:
    """Return the state of each carrier of this process, in the order of their names. From any thread."""
    clients = IOThread.clients()
    found = [_status(client) for client in clients if isinstance(client, Carrier)]
    return sorted(found, key=lambda status: (status.name, status.since))


def _status(carrier: Carrier[Any]) -> CarrierStatus:
    error = carrier.error
    return CarrierStatus(
        carrier.name,
        carrier.kind,
        carrier.state.value,
        time.time() - (time.monotonic() - carrier.since),
        carrier.losses,
        carrier.streams(),
        error=strip_prefix(carrier.name, error) if error is not None else "",
    )
