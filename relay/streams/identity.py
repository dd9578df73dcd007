"""Identities of clients: the same value for each kind of listener, as reliable as its transport."""

from __future__ import annotations

import socket
import struct
from typing import Any, NamedTuple

from ..addresses.printable import printable

_LONGEST = 255  # characters of a name
_MAPPED = "::ffff:"  # before an IPv4 address; RFC 4291, section 2.5.5.2


class Certificate(NamedTuple):
    """The names in the certificate of a TLS client, which the listener has verified."""

    common_name: str | None
    """The last CN of the subject."""
    dns: tuple[str, ...]
    """The DNS names of subjectAltName (RFC 5280, section 4.2.1.6)."""
    uri: tuple[str, ...]
    """The URIs of subjectAltName, such as SPIFFE IDs."""
    spki: str
    """``sha256:`` and the base64 of the SHA-256 of the SubjectPublicKeyInfo, as in RFC 7469, section 2.4."""

    @property
    def name(self) -> str:
        """The name to show: the first URI, the first DNS name, the CN, or the hash of the key."""
        return next(filter(None, (*self.uri[:1], *self.dns[:1], self.common_name)), self.spki)


class Identity(NamedTuple):
    """The names of a client. It can have several: of its address, its certificate, its login."""

    kind: str
    """The most specific one that is known: ``tcp``, ``unix``, ``tls``, ``ssh``, ``i2p``, ``tor``,
    ``socks`` or ``http``."""
    name: str
    """The name of this kind: an IP address, a local user, a name in a certificate, the SSH server, a destination, the
    onion service that was reached, or a login. One printable line of at most 255 characters."""
    host: str | None = None
    """The client's IP address, without a zone; an IPv4 address that IPv6 maps is written as IPv4."""
    port: int | None = None
    """The client's TCP port."""
    user: str | None = None
    """The user at the other end of a Unix socket: the name, or the number of one without a name."""
    process: int | None = None
    """The process ID there, at the time of the connect."""
    certificate: Certificate | None = None
    """The certificate of a TLS client."""
    destination: str | None = None
    """The ``.b32.i2p`` address of an I2P client."""
    login: str | None = None
    """The user who has logged in at a SOCKS or HTTP proxy."""
    server: str | None = None
    """The SSH server that has accepted the client."""
    is_verified: bool = True
    """False if ``host`` and ``port`` are only what another party says, such as an SSH server of its client."""

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}"

    def as_fields(self) -> dict[str, Any]:
        """Return what logs and ``relay ctl`` show: ``kind``, ``name``, and ``verified`` if it is not."""
        fields: dict[str, Any] = {"kind": self.kind, "name": self.name}
        return fields if self.is_verified else {**fields, "verified": False}

    def with_login(self, kind: str, user: str) -> Identity:
        """Return the same client, after it has logged in.

        :param kind: ``socks`` or ``http``.
        :param user: the user.
        """
        return self._replace(kind=kind, name=name_of(user), login=user)


def client_text(address: str, kind: str, name: str) -> str:
    """Return a client as logs and tables show it: its address, and its identity where that says more.

    :param address: as text; empty if there is none.
    :param kind: of the identity, and its name; empty if it is unknown.
    """
    host = address.rpartition(":")[0].strip("[]")
    if not kind or kind == "tcp" or name in (address, host):
        return address or "a local client"
    return f"{address} ({kind}:{name})" if address else f"{kind}:{name}"


def identity_of_peer(peer: Any) -> Identity | None:
    """Return the identity of a TCP client.

    :param peer: its address, as ``accept()`` returned it.
    :returns: ``None`` if that is no ``(host, port)``.
    """
    if not isinstance(peer, tuple) or len(peer) < 2 or not isinstance(peer[0], str) or not isinstance(peer[1], int):
        return None
    host = plain_host(peer[0])
    return Identity("tcp", name_of(host), host, peer[1])


def name_of(text: str) -> str:
    """Return a text that may come from the network as a name: one printable line of at most 255 characters."""
    return printable(text[:_LONGEST])[:_LONGEST]


def plain_host(host: str) -> str:
    """Return an IP address without its zone, and as IPv4 if it is a mapped one."""
    if ":" not in host:
        return host
    host = host.partition("%")[0]
    return host[len(_MAPPED) :] if host.startswith(_MAPPED) and "." in host else host


def identity_of_process(client: socket.SocketType) -> Identity | None:
    """Return the identity of the program at the other end of a Unix socket.

    Its user is a number; :mod:`relay.streams.user_names` looks up the name.

    :param client: the accepted socket.
    :returns: ``None`` if the system cannot tell, or if it is another socket.
    """
    if client.family != socket.AF_UNIX or not hasattr(socket, "SO_PEERCRED"):
        return None
    try:
        process, user, _ = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    except OSError:
        return None
    name = str(user)
    return Identity("unix", name, user=name, process=process)
