"""IP networks: the text of one as a value, and sets of many in which the network of an address is found at once."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable
from typing import NamedTuple

_SHAPE = re.compile(r"[0-9A-Fa-f:.]+(/[0-9]{1,3})?")
_BITS = {4: 32, 6: 128}
_AF_INET, _inet_pton, _from_bytes = socket.AF_INET, socket.inet_pton, int.from_bytes  # for each client
_MAPPED = 0xFFFF  # the upper 96 bits of an IPv4 address in an IPv6 one, RFC 4291, section 2.5.5.2


class Network(NamedTuple):
    """An IP network; one of IPv4-mapped IPv6 addresses is the network of the IPv4 addresses.

    :param version: 4 or 6.
    :param prefix: the number of bits that all its addresses share.
    :param number: its lowest address.
    """

    version: int
    prefix: int
    number: int

    @property
    def has_loopback(self) -> bool:
        """True if it has an address of the loopback: one of 127.0.0.0/8, or ::1."""
        bits, loopback = (8, 127) if self.version == 4 else (128, 1)
        shared = min(self.prefix, bits)
        return self.number >> (_BITS[self.version] - shared) == loopback >> (bits - shared)

    def __str__(self) -> str:
        address = ipaddress.IPv4Address if self.version == 4 else ipaddress.IPv6Address
        return f"{address(self.number)}/{self.prefix}"


def is_network(text: str) -> bool:
    """Return whether a text looks like an address or a network, and like nothing different."""
    return _SHAPE.fullmatch(text) is not None and (":" in text or text.count(".") == 3)


def parse_network(text: str) -> Network:
    """Parse an IP address, or a network such as ``10.0.0.0/8``.

    :param text: the text.
    :returns: the network; that of an address has only this address.
    :raises ValueError: if it is neither, or has host bits set; the error names the network that is meant.
    """
    if "%" in text:
        raise ValueError("an address of an access list has no zone; leave out the % and what follows")
    if not _SHAPE.fullmatch(text):
        raise ValueError("that is no IP address or network; write it as 10.0.0.0/8 or fd00::/8")
    host, slash, length = text.partition("/")
    version, number = _parse_address(host)
    bits = _BITS[version]
    prefix = int(length) if slash else bits
    if prefix > bits:
        raise ValueError(f"/{prefix} is out of range; a prefix of IPv{version} has 0 to {bits} bits")
    lowest = number >> (bits - prefix) << (bits - prefix)
    # An error and no silent correction: `10.1.2.3/8` may be meant as the host or as the network.
    if lowest != number:
        raise ValueError(f"it has host bits set; write {Network(version, prefix, lowest)}, or {host} for the address")
    if version == 6 and prefix >= 96 and number >> 32 == _MAPPED:
        return Network(4, prefix - 96, number & 0xFFFFFFFF)
    return Network(version, prefix, number)


def version_at(host: str) -> int | None:
    """Return the version of IP that all clients of a listener have.

    :param host: where it listens.
    :returns: 4 or 6; ``None`` for both, or if that is not known because the host is a name.
    """
    if not is_network(host):
        return None
    version, _, number = parse_network(host)
    return version if number or version == 4 else None  # :: takes clients of both


def _parse_address(text: str) -> tuple[int, int]:
    try:
        if ":" in text:
            return 6, int.from_bytes(socket.inet_pton(socket.AF_INET6, text), "big")
        return 4, int.from_bytes(socket.inet_pton(socket.AF_INET, text), "big")
    except OSError:
        raise ValueError("that is no IP address or network; write it as 10.0.0.0/8 or fd00::/8") from None


class NetworkSet:
    """A set of networks. The cost of :meth:`find` grows with the number of different prefix lengths alone.

    :param networks: its members.
    """

    __slots__ = ("_by_prefix",)

    def __init__(self, networks: Iterable[Network] = ()) -> None:
        found: dict[int, dict[int, dict[int, str]]] = {4: {}, 6: {}}
        for version, prefix, number in networks:
            found[version].setdefault(prefix, {})[number >> (_BITS[version] - prefix)] = ""
        # The widest network first: :mod:`relay.access.useless` reports those inside of it. The text of each network is
        # made when it is asked for, because there may be many.
        self._by_prefix = {
            version: [(_BITS[version] - prefix, prefixes[prefix]) for prefix in sorted(prefixes)]
            for version, prefixes in found.items()
        }

    def __bool__(self) -> bool:
        return any(self._by_prefix.values())

    def find(self, host: str) -> str | None:
        """Return the text of the widest network of the set that has an address.

        :param host: an IP address as text; no network has another text.
        """
        try:
            if ":" not in host:
                return self._find(4, _from_bytes(_inet_pton(_AF_INET, host), "big"), 32)
            version, number = _parse_address(host)
        except (ValueError, OSError):
            return None
        if number >> 32 == _MAPPED:
            version, number = 4, number & 0xFFFFFFFF
        return self._find(version, number, _BITS[version])

    def find_wider(self, network: Network) -> str | None:
        """Return the text of the widest network of the set that has all addresses of another one and more."""
        return self._find(network.version, network.number, network.prefix - 1)

    def find_covering(self, network: Network) -> str | None:
        """Return the text of the widest network of the set that has all addresses of another one."""
        return self._find(network.version, network.number, network.prefix)

    def _find(self, version: int, number: int, longest: int) -> str | None:
        least = _BITS[version] - longest
        for shift, texts in self._by_prefix[version]:
            if shift < least:
                break
            shifted = number >> shift
            text = texts.get(shifted)
            if text is not None:
                if not text:
                    text = texts[shifted] = f"cidr:{Network(version, _BITS[version] - shift, shifted << shift)}"
                return text
        return None
