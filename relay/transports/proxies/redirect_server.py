"""Listener for the connections that a firewall of this machine redirects: their target is where they were going.

Source: ``SO_ORIGINAL_DST`` of linux/netfilter_ipv4.h, and ``IP6T_SO_ORIGINAL_DST`` of its IPv6 counterpart.
"""

from __future__ import annotations

import socket
import sys

from ...eventloop.own_addresses import is_same
from ...streams.proxy_handshake import ProxyHandshake
from ...streams.stream import RejectedRequest, Request
from .listener import Login, ProxyListener

_ORIGINAL = 80  # SO_ORIGINAL_DST, and IP6T_SO_ORIGINAL_DST
_MAPPED = "::ffff:"  # begins the address of an IPv4 client at an IPv6 socket


class RedirectedRequest(Request):
    """The request of a client that has connected to a host and a port itself."""

    __slots__ = ()
    is_redirected = True


class RedirectListener(ProxyListener):
    """Accepts redirected connections; see :class:`ProxyListener`. Nothing is read from them.

    :param listening: a listening TCP socket. The listener owns it.
    :param login: ``None``.
    :raises ValueError: if this is not Linux; the socket is closed then.
    """

    def __init__(self, listening: socket.socket, login: Login | None = None) -> None:
        if sys.platform != "linux":
            listening.close()
            raise ValueError("redirect://: only Linux says where a redirected connection was going; use socks5://")
        super().__init__(listening)
        self.protected = None

    def handshake(self, client: socket.SocketType) -> ProxyHandshake:
        """Return the handshake for the next client, which is over."""
        made = ProxyHandshake()
        made.outcome = self._request(client)
        return made

    def _request(self, client: socket.SocketType) -> Request | RejectedRequest:
        try:
            host, port = original(client)
        except OSError:  # the kernel knows of no redirection, or the client has gone
            return RejectedRequest(None, "no firewall has redirected it here; see relay help redirect")
        if port == self.address[1] and is_same(host, self.address[0]):
            return RejectedRequest(None, "it has connected to this listener itself; see relay help redirect")
        return RedirectedRequest(host, port, b"", None)


def original(client: socket.SocketType) -> tuple[str, int]:
    """Return the address that a redirected client has connected to.

    :raises OSError: if the kernel knows none.
    """
    if client.family == socket.AF_INET6 and not client.getsockname()[0].startswith(_MAPPED):
        data = client.getsockopt(socket.IPPROTO_IPV6, _ORIGINAL, 28)  # a sockaddr_in6
        return socket.inet_ntop(socket.AF_INET6, data[8:24]), int.from_bytes(data[2:4], "big")
    data = client.getsockopt(socket.SOL_IP, _ORIGINAL, 16)  # a sockaddr_in
    return socket.inet_ntoa(data[4:8]), int.from_bytes(data[2:4], "big")
