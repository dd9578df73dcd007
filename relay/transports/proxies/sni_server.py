"""Listener for clients of TLS, which name the server that they want in their first message; nothing is decrypted."""

from __future__ import annotations

import socket

from ...addresses.values import is_ip_address
from ...streams.proxy_handshake import ProxyHandshake
from ...streams.stream import RejectedRequest, Request
from ..tls.client_hello import HelloReader, name_in
from .listener import Login, ProxyListener

PORT = 443
"""The port of the servers that clients name, unless a rule names another target."""


class NamedRequest(Request):
    """The request of a client that has named a server.

    :param host: the name, in lower case; empty if it has named none.
    :param early: its bytes so far.
    :param here: the address of the listener.
    """

    __slots__ = ("here",)

    def __init__(self, host: str, early: bytes, here: tuple[str, int]) -> None:
        super().__init__(host, PORT, b"", None, early)
        self.here = here

    def __str__(self) -> str:
        return super().__str__() if self.host else ""


class SNIHandshake(ProxyHandshake):
    """Reads the ClientHello of one client, which stays as it is.

    :param here: the address of the listener.
    """

    __slots__ = ("_hello", "_held", "_here")

    def __init__(self, here: tuple[str, int]) -> None:
        super().__init__()
        self._here = here
        self._hello = HelloReader()
        self._held = bytearray()

    def feed(self, data: bytes) -> bytes:
        """Read on; see :meth:`ProxyHandshake.feed`. It is sent nothing."""
        self._held += data
        try:
            hello = self._hello.feed(self._held)
            if hello is not None:
                self.outcome = NamedRequest(_host(name_in(hello)), bytes(self._held), self._here)
            elif not data and self._held:
                raise ValueError("it ended before its ClientHello did")
            elif not data:
                self.outcome = RejectedRequest(b"", "", "done")  # such as a program that only checks the port
        except ValueError as error:
            self.outcome = RejectedRequest(None, str(error))
        return b""


def _host(name: str | None) -> str:
    host = (name or "").lower().removesuffix(".")
    if is_ip_address(host):
        raise ValueError("it asks for an address, where TLS has names (RFC 6066, section 3)")
    return host


class SNIListener(ProxyListener):
    """Accepts clients of TLS; see :class:`ProxyListener`. They know of no proxy, and are never sent a byte of it.

    :param listening: a listening TCP socket. The listener owns it.
    :param login: ``None``.
    """

    def __init__(self, listening: socket.socket, login: Login | None = None) -> None:
        super().__init__(listening)  # its clients know of no login
        self.protected = None

    def handshake(self, client: socket.SocketType) -> SNIHandshake:
        """Return the handshake for the next client."""
        return SNIHandshake(self.address[:2])
