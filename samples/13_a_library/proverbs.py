"""A client of a server of proverbs; with the extra ``ssh`` also of one behind SSH servers, proxies or I2P.

It imports relay when it is needed, and all errors are an :class:`OSError` or an :class:`ImportError`: a program that
uses this library need not know of relay.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence


def proverb(address: str, *, via: Sequence[str] = (), timeout: float = 10.0) -> str:
    """Return a proverb.

    :param address: of the server, ``host:port``.
    :param via: the hops to it, the nearest first, such as ``ssh://me@bastion``; needs ``proverbs[ssh]``.
    :param timeout: seconds for the connect, and for each answer.
    :raises OSError: if the server or a hop cannot be reached; the text names the hop.
    :raises ImportError: if there are hops, and relay is not installed.
    """
    with _connect(address, via, timeout) as stream, stream.makefile("rw", encoding="utf-8") as lines:
        stream.settimeout(timeout)
        lines.write("proverb\n")
        lines.flush()
        return lines.readline().strip()


def _connect(address: str, via: Sequence[str], timeout: float) -> socket.socket:
    if not via:
        host, _, port = address.rpartition(":")
        return socket.create_connection((host, int(port)), timeout)
    try:
        import relay
    except ModuleNotFoundError as error:
        raise ImportError("via: relay is not installed; run: pip install 'proverbs[ssh]'") from error
    return relay.connect(address, via=via, timeout=timeout)
