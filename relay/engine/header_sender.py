"""Sends a header of the PROXY protocol to each target, before the first byte of its client."""

from __future__ import annotations

from typing import Any

from ..access.introduction import address_of, header_of
from ..access.proxy_header import Address, SSLEntry
from ..streams.dialer import Dialer
from ..streams.identity import plain_host
from ..streams.stream import Stream
from .connection import Connection
from .connection_id import id_of


class HeaderSender:
    """Makes and sends the headers of one tunnel. Belongs to the relay thread.

    :param version: ``v1`` or ``v2``.
    """

    def __init__(self, version: str) -> None:
        self.version = version

    def header(self, connection: Connection) -> bytes:
        """Return the header of a client."""
        summary, client = connection.summary, connection.client
        identity = summary.who()
        reported = summary.reported()
        local = reported.destination if reported is not None else None
        if local is None and identity is not None and identity.host is not None:
            local = _local_address(client)
        number = id_of(summary.number, summary.started)
        stream = connection.client_stream
        if stream is None or stream.tls is None:
            return header_of(self.version, identity, local, number, reported=reported)
        name, protocol = stream.server_name, stream.tls.selected_alpn_protocol()
        return header_of(self.version, identity, local, number, _entry_of(stream), name, protocol, reported)

    def over(self, dialer: Dialer, connection: Connection) -> Dialer:
        """Return the dialer for a connection: over TLS, the header goes before the handshake."""
        return dialer.introducing(self.header(connection)) if dialer.introduces else dialer

    def introduce(self, connection: Connection, now: float) -> bool:
        """Send the header of a client: the first bytes of its outgoing stream, whose buffer has room for them.

        :returns: whether the connection goes on; it has ended if the header could not be sent at once.
        """
        target, stream = connection.target, connection.target_stream
        if stream is not None and stream.is_introduced:
            return True
        header = self.header(connection)
        try:
            if target is not None and target.send(header) == len(header):
                return True
        except OSError:
            pass
        connection.close("target_reset", now)
        return False


def _entry_of(stream: Stream) -> SSLEntry:
    """Return what the target gets to know of the TLS session of a client."""
    cipher = stream.tls.cipher()
    certificate = stream.identity.certificate if stream.identity is not None else None
    name = certificate.common_name if certificate is not None else None
    return SSLEntry(stream.tls.version(), cipher[0] if cipher else None, name, certificate is not None)


def _local_address(client: Any) -> Address | None:
    """Return the address to which a client has connected; ``None`` if its socket cannot tell."""
    try:
        local = client.getsockname()
    except (OSError, AttributeError):  # a session has no such name
        return None
    if not isinstance(local, tuple) or len(local) < 2:
        return None
    return address_of(plain_host(local[0]), local[1])
