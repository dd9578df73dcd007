"""The table of schemes, and what follows from it: :func:`target`, :func:`connect` and :func:`listen`."""

from __future__ import annotations

import dataclasses
import math
import socket
import time
from collections.abc import Sequence
from importlib import import_module
from typing import Any, Protocol

from .address import TCPAddress, TLSListen, TLSTarget, UnixAddress, masked, parse_listen, parse_target
from .errors import AddressError
from .race import Cancel
from .stream import Stream

__all__ = ["Factory", "connect", "listen", "target"]


class Factory(Protocol):
    """What :func:`target` returns; it may be called from any thread."""

    target: str
    """The address in records and log lines."""

    def __call__(self, *, deadline: float | None = None, cancel: Cancel | None = None) -> Stream:
        """Connect, and wait for it until ``deadline`` (monotonic seconds) or until it is cancelled."""


# The parameters of each function are the fields of the address.
SENDERS: dict[type, str] = {
    TCPAddress: "senders.tcp:tcp",
    UnixAddress: "senders.unix:unix",
    TLSTarget: "senders.tls:tls",
}
LISTENERS: dict[type, str] = {
    TCPAddress: "listeners.tcp:listen_tcp",
    UnixAddress: "listeners.unix:listen_unix",
    TLSListen: "listeners.tls:listen_tls",
}


def target(url: str, via: Sequence[str] = ()) -> Factory:
    """A factory for any address.

    :param url: ``host:port``, ``tcp://host:port``, ``unix:///path`` or
        ``tls://host:port?servername=…&ca=…&cert=…&key=…``.
    :param via: the hops on the way, the nearest first. This version has none.
    :returns: a callable for :class:`relay.Tunnel` that returns a connected :class:`relay.Stream`; its ``target`` is the
        address.
    :raises AddressError: if an address cannot be understood or is not available in this version.
    :raises OSError: if a file that the address names cannot be read.
    """
    _refuse_hops(via)
    made: Factory = _make(SENDERS, parse_target(url))
    return made


def connect(url: str, via: Sequence[str] = (), timeout: float | None = 30.0) -> socket.socket:
    """Connect to any address, with what must be between hidden.

    :param url: as in :func:`target`.
    :param via: as in :func:`target`.
    :param timeout: seconds for all of it; ``None`` for as long as the system tries.
    :returns: a connected, blocking socket; closing it lets go of what lies under it.
    :raises AddressError: if an address cannot be understood or is not available in this version.
    :raises ValueError: if ``timeout`` is not positive.
    :raises TypeError: if ``timeout`` is not a number.
    :raises ConnectError: refused, unreachable or timed out; ``.reason`` tells.
    :raises OSError: if a file that the address names cannot be read.
    """
    deadline = _deadline(timeout)
    stream = target(url, via)(deadline=deadline)
    stream.socket.setblocking(True)
    return stream.socket


def listen(address: str) -> Any:
    """Listen at any address: on the loopback unless another host is written out.

    :param address: ``:port``, ``port``, ``host:port``, ``tcp://host:port``, ``unix:///path`` or
        ``tls://host:port?cert=…&key=…&client_ca=…``; port 0 picks a free one.
    :returns: for TCP and Unix a bound, listening :class:`socket.socket`; for TLS an object with ``accept()``,
        ``close()``, ``address`` and ``getsockname()``. The caller owns it, until a tunnel takes it over.
    :raises AddressError: if the address cannot be understood or is not available in this version.
    :raises OSError: if it cannot be had (in use, not this machine's, a name that does not resolve), or a file that it
        names cannot be read.
    """
    return _make(LISTENERS, parse_listen(address))


def _make(table: dict[type, str], address: Any) -> Any:
    module, name = table[type(address)].split(":")
    fields = {field.name: getattr(address, field.name) for field in dataclasses.fields(address)}
    return getattr(import_module(f".{module}", __package__), name)(**fields)


def _refuse_hops(via: Sequence[str]) -> None:
    if isinstance(via, str):
        raise TypeError("via: a list of addresses is wanted, not a str")
    for hop in via:
        raise AddressError(f"hop '{masked(hop)}': hops are not available in this version; leave them out")


def _deadline(timeout: float | None) -> float | None:
    if timeout is None or timeout == math.inf:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise TypeError(f"timeout: a number of seconds or None is wanted, not {type(timeout).__name__}")
    if not timeout > 0:
        raise ValueError(f"timeout: {timeout} is not allowed; more than zero seconds, or None for no limit")
    return time.monotonic() + timeout
