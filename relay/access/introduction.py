"""Identities of clients in headers of the PROXY protocol: what relay sends to a target, and takes from a balancer."""

from __future__ import annotations

import re
import socket

from ..streams.identity import Certificate, Identity, name_of
from .proxy_header import (
    ALPN,
    AUTHORITY,
    CLIENT,
    DESTINATION,
    SERVER,
    SSL,
    UNIQUE_ID,
    Address,
    ProxyHeader,
    SSLEntry,
    build_v1,
    build_v2,
)

_NAMED = ("unix", "tls", "socks", "http")  # kinds of identities with an entry of their own
# Entries that go to the target as they have come, and their most bytes. The last ones are of applications, such as that
# of a cloud with the endpoint of the client.
_PASSED_ON = {ALPN: 255, AUTHORITY: 255, UNIQUE_ID: 128, SSL: 4096, **dict.fromkeys(range(0xE3, 0xF0), 255)}
_DESTINATION = re.compile(r"[a-z2-7]{52,63}\.b32\.i2p")


def address_of(host: str | None, port: int | None) -> Address | None:
    """Return an address for a header; ``None`` if that is no IP address and port.

    :param host: it may be any text: an SSH server reports it.
    :param port: of TCP.
    """
    if host is None or port is None or not 0 <= port <= 65535:
        return None
    try:
        socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host)
    except (OSError, ValueError):
        return None
    return Address(host, port)


def header_of(
    version: str,
    identity: Identity | None,
    local: Address | None,
    unique_id: str,
    tls: SSLEntry | None = None,
    server_name: str | None = None,
    protocol: str | None = None,
    reported: ProxyHeader | None = None,
) -> bytes:
    """Return the header that tells a target who the client is.

    :param version: ``v1``, which has the addresses only, or ``v2``.
    :param identity: of the client; ``None`` if nothing is known.
    :param local: the address to which it has connected; ``None`` if that is not known.
    :param unique_id: the id of the connection in relay's log.
    :param tls: the client's TLS connection with relay; ``None`` for none.
    :param server_name: the name that the client has asked for there; ``None`` for none.
    :param protocol: what was negotiated there by ALPN; ``None`` for nothing.
    :param reported: what a balancer has said of the client, of :func:`passed_on`; its entries go on, but for those that
        relay knows better.
    """
    source = address_of(identity.host, identity.port) if identity is not None else None
    if source is not None and local is None:
        local = Address("::" if ":" in source.host else "0.0.0.0", 0)  # noqa: S104  (nothing listens there)
    if version == "v1":
        return build_v1(source, local)
    entries: dict[int, bytes | str] = {UNIQUE_ID: unique_id}
    if reported is not None:
        # Before those of relay, which replace them: what relay has seen itself is more certain than a report.
        entries.update(reported.entries)
    if protocol is not None:
        entries[ALPN] = protocol
    if server_name is not None:
        entries[AUTHORITY] = server_name
    if tls is not None:
        entries[SSL] = tls.value()
    if identity is not None:
        if identity.destination is not None:
            entries[DESTINATION] = identity.destination
        if identity.server is not None:
            entries[SERVER] = identity.server
        if identity.kind in _NAMED:
            entries[CLIENT] = str(identity)
    return build_v2(source, local, entries.items())


def passed_on(header: ProxyHeader) -> ProxyHeader:
    """Return a header with those of its entries only that go to the target.

    :param header: of a trusted sender. Of several entries of a type the first one counts: the others were not checked.
    """
    first = dict(reversed(header.entries))
    kept = tuple((kind, value) for kind, value in first.items() if 0 < len(value) <= _PASSED_ON.get(kind, 0))
    return header._replace(entries=kept)


def identified(header: ProxyHeader, sender: Identity | None) -> Identity | None:
    """Return the identity of the client that a header describes.

    :param header: of a trusted sender.
    :param sender: the identity of the sender, which counts where the header says nothing.
    """
    source = header.source
    made = sender
    if source is not None:
        made = Identity("tcp", source.host, source.host, source.port)
    if not header.entries:
        return made
    host, port = (made.host, made.port) if made is not None else (None, None)
    ssl = header.ssl()
    if ssl is not None and ssl.is_verified and ssl.common_name:
        certificate = Certificate(ssl.common_name, (), (), "")
        made = Identity("tls", name_of(ssl.common_name), host, port, certificate=certificate)
    destination, server = header.text(DESTINATION), header.text(SERVER)
    if destination is not None and _DESTINATION.fullmatch(destination):
        made = Identity("i2p", destination, destination=destination)
    elif server:
        made = Identity("ssh", name_of(server), host, port, server=name_of(server), is_verified=False)
    kind, _, name = (header.text(CLIENT) or "").partition(":")
    if kind in _NAMED and name:
        name = name_of(name)
        if kind == "unix":
            made = Identity(kind, name, user=name)
        elif kind == "tls":
            made = (made or Identity(kind, name, host, port))._replace(kind=kind, name=name)
        else:
            made = (made or Identity(kind, name, host, port)).with_login(kind, name)
    return made
