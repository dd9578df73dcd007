"""Addresses of the loopback that stand for clients: ``source = "peer"``.

A server behind a tunnel sees one address for each client, so its own log and its limits for each address work. As in
i2pd, the address of an I2P client is 127 and the first three bytes of the hash of its destination (for a target at an
IPv6 address: fd and fifteen bytes). For other clients it is made in the same way of the SHA-256 of the identity. A TCP
client that comes from 127.0.0.0/8 already keeps its address, so that a tunnel behind a tunnel shows the same one.

No client gets 127.0.0.1, which servers trust, nor the first or the last address of the network.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import ipaddress
import socket
from collections.abc import Callable
from typing import Any

from .connect import SocketDialer
from .dialer import Dialer, Upgrade
from .identity import Identity
from .source import Source, parse_source

_NETWORK = ipaddress.IPv4Network("127.0.0.0/8")
_RESERVED = {bytes((0, 0, 0)), bytes((0, 0, 1)), bytes((255, 255, 255))}
_TRIED: dict[int, str] = {socket.AF_INET: "127.1.2.3", socket.AF_INET6: "fd01:203::1"}  # as a client could get them
_DOMAIN = ".b32.i2p"


def source_address_of(identity: Identity | None, family: int = socket.AF_INET) -> str:
    """Return the address that stands for a client.

    :param identity: who it is; all clients of whom nothing is known have the same address.
    :param family: ``AF_INET`` or ``AF_INET6``: that of the target.
    """
    if family == socket.AF_INET and identity is not None and identity.kind == "tcp" and identity.host is not None:
        address = _parsed(identity.host)
        if isinstance(address, ipaddress.IPv4Address) and address in _NETWORK and address.packed[1:] not in _RESERVED:
            return str(address)
    digest = _digest_of(identity)
    if family == socket.AF_INET6:
        return str(ipaddress.IPv6Address(b"\xfd" + digest[:15]))
    # Hashed again and not counted up: the address after a reserved one would have two clients more often than others.
    while digest[:3] in _RESERVED:
        digest = hashlib.sha256(digest).digest()
    return str(ipaddress.IPv4Address(b"\x7f" + digest[:3]))


def _parsed(host: str) -> Any:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None  # a text from a factory of the user


def _digest_of(identity: Identity | None) -> bytes:
    if identity is None:
        return hashlib.sha256().digest()
    if identity.kind == "i2p" and identity.destination is not None:
        name = identity.destination.removesuffix(_DOMAIN).upper()
        try:
            digest = base64.b32decode(name + "=" * (-len(name) % 8))
        except binascii.Error:
            digest = b""
        if len(digest) >= hashlib.sha256().digest_size:
            return digest
    text = str(identity)
    if identity.kind == "ssh" and identity.host is not None:
        text += f" {identity.host}"  # one server forwards the clients of many
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


class PeerSource:
    """A target on the loopback, to which relay connects from an address of its own for each client.

    :param dialer: dials the target.
    :raises ValueError: if relay does not connect to it over TCP itself, or it is not on the loopback, or this system
        has no such addresses.
    """

    def __init__(self, dialer: Dialer) -> None:
        self._dialer = dialer
        self._family = _family_of(dialer)
        _check_name(dialer)
        try:
            # Bound once now and not with the first client: Linux has all of 127.0.0.0/8, other systems 127.0.0.1 alone.
            with socket.socket(self._family) as tried:
                tried.bind((_TRIED[self._family], 0))
        except OSError:
            raise ValueError(
                f"source: {dialer.target}: this system has no addresses like {_TRIED[self._family]}, which peer needs; "
                "name the target by 127.0.0.1 on Linux, or remove source"
            ) from None

    def dialer_for(self, identity: Identity | None) -> Dialer:
        """Return a dialer of the target for one client."""
        return self._dialer.bound(Source(self._family, source_address_of(identity, self._family)))


def _family_of(dialer: Dialer) -> int:
    """Return the family of the addresses of clients: IPv4, unless the target has only an IPv6 address."""
    try:
        dialer.bound(Source(socket.AF_INET, _TRIED[socket.AF_INET]))
    except ValueError:
        try:
            # The address that each system has; whether it has those of clients is tried by the caller.
            dialer.bound(Source(socket.AF_INET6, "::1"))
        except ValueError:
            pass
        else:
            return socket.AF_INET6
        # The first error: it names what is wrong with an IPv4 source, which most targets have.
        raise
    return socket.AF_INET


def _check_name(dialer: Dialer) -> None:
    """Check that a target that is looked up is on the loopback."""
    for each in dialer.alternatives:
        _check_name(each)
    innermost = dialer
    while isinstance(innermost, Upgrade):
        innermost = innermost.inner
    name = innermost.name if isinstance(innermost, SocketDialer) else None
    if name is not None and not f".{name.host.lower()}".endswith(".localhost"):  # RFC 6761, section 6.3
        raise ValueError(
            f"source: {dialer.target} may be another machine, and peer needs one on the loopback; name it by 127.0.0.1"
        )


def bound_to(factory: Callable[..., Any], source: str) -> Dialer | PeerSource:
    """Return what makes the streams of a factory from a source.

    :param factory: of a tunnel.
    :param source: the value of the option.
    :raises ValueError: if its connections cannot come from there.
    """
    address = parse_source(source)
    if not isinstance(factory, Dialer):
        raise ValueError("source: the factory connects by itself; bind its sockets there, and remove source")
    return PeerSource(factory) if address is None else factory.always_bound(address)


def check_source(source: str | None, factory: Callable[..., Any], warm: int = 0) -> None:
    """Check the option ``source`` of a tunnel.

    :param source: ``None`` for none.
    :param factory: makes the streams of the tunnel.
    :param warm: how many of them are to be kept ready.
    :raises TypeError: if the option is no text.
    :raises ValueError: if it is no source, or the streams cannot come from there.
    """
    if source is None:
        return
    if isinstance(bound_to(factory, source), PeerSource) and warm:
        raise ValueError(
            "warm: with source = peer each stream belongs to its client, so none can be opened before; set warm to 0"
        )
