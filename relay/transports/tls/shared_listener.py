"""The TLS listener of a program whose workers accept: they have its socket, and it takes no client."""

from __future__ import annotations

import socket
from typing import Any

from ...eventloop.sockets import Endpoint
from ...streams.listener import TunnelListener
from ..tcp import Inherited, listen_tcp
from .context import Path
from .listener import server_credentials


class SharedTLSListener(TunnelListener):
    """Listens, so that clients wait for the workers, and knows the certificate that these show.

    The parameters and the errors are those of :func:`relay.transports.tls.listener.listen_tls`.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        cert: Path,
        key: Path | None,
        client_ca: Path | None,
        mptcp: bool = False,
        inherited: Inherited | None = None,
    ) -> None:
        self._credentials = server_credentials(cert, key, client_ca)  # the workers have their own
        self.listening: socket.socket = listen_tcp(host, port, mptcp=mptcp, inherited=inherited)
        """The listening socket."""
        self.address: Any = self.listening.getsockname()
        """The address of the listener, from :meth:`socket.socket.getsockname`."""

    @property
    def certificate_end(self) -> float | None:
        """Until when the certificate is valid, in seconds since 1970; ``None`` if that is not known."""
        return self._credentials.not_after(self)  # no handshake here looks

    @property
    def certificate_loads(self) -> tuple[int, int]:
        """The loads of certificates after their files have changed, and those that have failed."""
        return self._credentials.loads, self._credentials.failures

    def getsockname(self) -> Any:
        """Return :attr:`address`."""
        return self.address

    def close(self) -> None:
        """Close the socket. Idempotent."""
        self.listening.close()

    def __repr__(self) -> str:
        return f"<relay.SharedTLSListener at {Endpoint(self.listening.family, self.address)}>"
