"""A private Unix socket for any address, for drivers that take a path and not a socket."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from ..addresses.hops import is_slow, keeps_half_close
from ..addresses.i2p import CONNECT_TIMEOUT, LINGER
from ..addresses.parse import parse_hops, parse_target
from ..engine.tunnel import Tunnel
from ..streams.dialer import Dialer
from ..transports.unix import listen_unix
from .urls import as_text, dialer


def local(url: str | int, via: Sequence[str] = (), *, name: str = "socket") -> AbstractContextManager[str]:
    """Make a Unix socket in a directory of its own (mode 0700) that relay connects to any address.

    For drivers that take a path and not a socket: redis, ``uds`` of httpx, ``ipc://`` of ØMQ. Programs with
    libpq, such as psycopg and psql, take only the directory as ``host``, and look there for a socket with the name
    ``.s.PGSQL.`` and the port::

        with relay.local("db:5432", via=["ssh://bastion"], name=".s.PGSQL.5432") as path:
            psycopg.connect(host=os.path.dirname(path), port=5432, user="me", dbname="shop")

    On Linux, a client in this process reads ECONNRESET after the last byte of a truncated transfer, unless it has
    half-closed. Another process reads EOF, because a Unix socket has no reset for it.

    A client in this process must let other threads run while it waits. A C function that holds the GIL, such as
    psycopg's ``cancel()``, waits for ever (``cancel_safe()`` does not); :func:`relay.spawn` uses a child process.

    :param url: as in :func:`relay.target`.
    :param via: as in :func:`relay.target`.
    :param name: of the socket in its directory.
    :returns: a context manager that gives the path of the socket; leaving it closes connections and the socket.
    :raises AddressError: if an address cannot be understood or is not available in this version.
    :raises TypeError: if ``name`` is not text.
    :raises ValueError: if it is not a file name, or too long for a Unix socket.
    :raises OSError: if a file that the address names cannot be read, or the socket cannot be created.
    """
    _check_name(name)
    url = as_text(url)
    hops = parse_hops(via, url)
    place = parse_target(url, hops[-1] if hops else None)
    make_send = dialer(hops, place)
    connect_timeout = CONNECT_TIMEOUT if is_slow(hops, place) else 30.0
    linger = 60.0 if keeps_half_close(hops, place) else LINGER
    return _leading(name, make_send, connect_timeout, linger)


@contextmanager
def _leading(name: str, make_send: Dialer, connect_timeout: float, linger: float) -> Iterator[str]:
    with listen_privately(name) as receive:
        with Tunnel(receive, make_send, timeout=None, connect_timeout=connect_timeout, linger=linger):
            yield receive.getsockname()


@contextmanager
def listen_privately(name: str = "socket") -> Iterator[socket.socket]:
    """Listen on a Unix socket in a directory of its own (mode 0700).

    :param name: of the socket in its directory.
    :returns: a context manager that gives the socket; leaving it removes both.
    :raises ValueError: if the name is too long for a Unix socket.
    :raises OSError: if it cannot be created.
    """
    with tempfile.TemporaryDirectory(prefix="relay-") as directory:
        with listen_unix(os.path.join(directory, name)) as receive:
            yield receive


def _check_name(name: str) -> None:
    if not isinstance(name, str):
        raise TypeError(f"name: expected a str, got {type(name).__name__}")
    if name in ("", ".", "..") or "/" in name:
        raise ValueError(f"name: must be a file name without a directory, got {name!r}")
