"""A private Unix socket that leads elsewhere, for drivers that take a path and not a socket."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from .i2paddress import CONNECT_TIMEOUT, LINGER, I2PTarget
from .listeners.unix import listen_unix
from .parsing import parse_target
from .registry import target
from .tunnel import Tunnel

__all__ = ["local"]


@contextmanager
def local(url: str, via: Sequence[str] = ()) -> Iterator[str]:
    """Make a Unix socket in a directory of its own (mode 0700) that leads to any address.

    For drivers that take a path and not a socket: psycopg, redis, ``uds`` of httpx, ``ipc://`` of ØMQ.

    :param url: as in :func:`relay.target`.
    :param via: as in :func:`relay.target`.
    :returns: a context manager that gives the path of the socket; leaving it ends what uses it, and removes it.
    :raises AddressError: if an address cannot be understood or is not available in this version.
    :raises OSError: if a file that the address names cannot be read, or there is no place for the socket.
    """
    make_send = target(url, via)
    at_i2p = isinstance(parse_target(url), I2PTarget)
    connect_timeout, linger = (CONNECT_TIMEOUT, LINGER) if at_i2p else (30.0, 60.0)
    with tempfile.TemporaryDirectory(prefix="relay-") as directory:
        path = os.path.join(directory, "socket")
        receive = listen_unix(path)
        with Tunnel(receive, make_send, timeout=None, connect_timeout=connect_timeout, linger=linger):
            yield path
