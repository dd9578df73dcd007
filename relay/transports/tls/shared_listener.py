"""The TLS listener of a program whose workers accept: they have its socket, and it takes no client."""

from __future__ import annotations

import os
import socket
from typing import Any

from ...eventloop.sockets import Endpoint
from ..tcp import listen_tcp
from .context import not_after
from .listener import server_context

__all__ = ["SharedTLSListener"]

Path = str | os.PathLike[str]


class SharedTLSListener:
    """Listens, so that clients wait for the workers, and knows the certificate that these show.

    The parameters and the errors are those of :func:`relay.transports.tls.listener.listen_tls`.
    """

    def __init__(
        self, host: str, port: int, *, cert: Path, key: Path | None, client_ca: Path | None, mptcp: bool = False
    ) -> None:
        self.certificate_end = not_after(server_context(cert, key, client_ca))
        """Until when the certificate is valid, in seconds since 1970; ``None`` if that is not known."""
        self.listening: socket.socket = listen_tcp(host, port, mptcp=mptcp)
        """The listening socket."""
        self.address: Any = self.listening.getsockname()
        """The address of the listener, from :meth:`socket.socket.getsockname`."""

    def getsockname(self) -> Any:
        """Return :attr:`address`."""
        return self.address

    def close(self) -> None:
        """Close the socket. Idempotent."""
        self.listening.close()

    def __repr__(self) -> str:
        return f"<relay.SharedTLSListener at {Endpoint(self.listening.family, self.address)}>"
