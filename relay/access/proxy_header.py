"""Headers of the PROXY protocol, versions 1 and 2: bytes to values and back; no I/O.

A proxy sends such a header before the first byte of a connection, so that the next server learns who the client is. The
specification is ``doc/proxy-protocol.txt`` of HAProxy. Version 1 is a line of text with two addresses. Version 2 is
binary, and may also have entries of a type, a length and a value (TLV).

PyPI's ``proxy-protocol`` 0.11.3 was not taken. It accepts a wrong checksum unless a C library is installed, entries
that are longer than the header, and version 1 lines of any length. Other bad input raises :class:`struct.error`, the
import takes 48 ms, and a header 46 µs; here they take 1 ms and 3 µs.
"""

from __future__ import annotations

import functools
import re
import socket
import struct
from collections.abc import Iterable
from typing import NamedTuple

from ..addresses.printable import printable

# Types of entries; section 2.2 of the specification.
ALPN, AUTHORITY, CRC32C, NOOP, UNIQUE_ID, SSL = 0x01, 0x02, 0x03, 0x04, 0x05, 0x20
_SSL_VERSION, _SSL_CN, _SSL_CIPHER = 0x21, 0x22, 0x23  # inside of SSL
# Of those for the use of applications, 0xE0 to 0xEF, relay has these; docs/proxy-protocol.md lists them.
DESTINATION = 0xE0  # the client's I2P destination, ….b32.i2p
SERVER = 0xE1  # the SSH server that the client comes from, [USER@]HOST[:PORT]
CLIENT = 0xE2  # the identity of another client than one of TCP, KIND:NAME

_OF_CLIENTS = (UNIQUE_ID, DESTINATION, SERVER, CLIENT)
LONGEST_V1 = 107  # bytes, with the CRLF
_LONGEST_TEXT = 255  # bytes of one text that is sent; some receivers have room for 216 bytes in all
_LONGEST_ID = 128  # bytes of UNIQUE_ID

_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_V1_START = b"PROXY "
_LOCAL, _PROXY = 0x20, 0x21  # version 2 and the command
_UNSPECIFIED, _TCP4, _TCP6, _UNIX = 0x00, 0x11, 0x21, 0x31
_HEAD = struct.Struct("!12sBBH")
_ENTRY = struct.Struct("!BH")
_PORTS = struct.Struct("!HH")
_ADDRESS_LENGTHS = {_UNSPECIFIED: 0, _TCP4: 12, _TCP6: 36, _UNIX: 216}
_MAPPED = bytes(10) + b"\xff\xff"  # before an IPv4 address in an IPv6 one: RFC 4291, section 2.5.5.2
_PORT = re.compile(rb"0|[1-9][0-9]{0,4}")


class Address(NamedTuple):
    """One end of a connection."""

    host: str
    """An IPv4 or IPv6 address, without a zone; never an IPv4 address in IPv6 form."""
    port: int


class ProxyHeader(NamedTuple):
    """A header that was received."""

    is_local: bool = False
    """``True`` for a connection of the sender itself, such as a health check, or of a client without an address."""
    source: Address | None = None
    """The client; ``None`` if the header has no IP address."""
    destination: Address | None = None
    """The address to which the client has connected; ``None`` as for the source."""
    entries: tuple[tuple[int, bytes], ...] = ()
    """Types and values, in their order."""

    def text(self, kind: int) -> str | None:
        """Return the first entry of a type as text; ``None`` if there is none, or if it is not UTF-8."""
        for found, value in self.entries:
            if found == kind:
                return _text(value)
        return None

    @property
    def is_check(self) -> bool:
        """``True`` for a connection of the sender itself: nothing in the header tells of a client."""
        return self.is_local and not any(kind in _OF_CLIENTS for kind, _ in self.entries)

    @property
    def unique_id(self) -> str | None:
        """The id that the sender has given to the connection, one printable line; ``None`` for none."""
        found = next((value for kind, value in self.entries if kind == UNIQUE_ID), None)
        return None if not found else printable(found.decode("utf-8", "backslashreplace"), _LONGEST_ID)

    def ssl(self) -> SSLEntry | None:
        """Return what it says about the client's TLS connection; ``None`` for nothing."""
        for found, value in self.entries:
            if found == SSL:
                return SSLEntry.parse(value)
        return None


class ProxyHeaderError(ValueError):
    """Bytes that are no header, or one that a receiver must reject."""


class SSLEntry(NamedTuple):
    """The entry about the client's TLS connection; section 2.2.6 of the specification."""

    version: str | None = None
    """Such as ``TLSv1.3``."""
    cipher: str | None = None
    """Such as ``TLS_AES_256_GCM_SHA384``."""
    common_name: str | None = None
    """CN of the subject of the client's certificate."""
    is_verified: bool = False
    """``True`` if the client has shown a certificate, and it was verified."""

    def value(self) -> bytes:
        """Return the value of the entry."""
        flags = 0x07 if self.is_verified else 0x01  # over TLS; with a certificate, of the connection and the session
        texts = ((_SSL_VERSION, self.version), (_SSL_CN, self.common_name), (_SSL_CIPHER, self.cipher))
        found = [(kind, _bytes(text)) for kind, text in texts if text]
        return struct.pack("!BI", flags, not self.is_verified) + _packed(found)

    @classmethod
    def parse(cls, value: bytes) -> SSLEntry:
        """Return the entry with this value.

        :raises ProxyHeaderError: if it is cut.
        """
        if len(value) < 5:
            raise ProxyHeaderError("the entry about TLS is cut")
        flags, result = struct.unpack_from("!BI", value)
        texts = {kind: _text(text) for kind, text in _entries(value[5:])}
        is_verified = bool(flags & 0x01) and bool(flags & 0x06) and result == 0
        return cls(texts.get(_SSL_VERSION), texts.get(_SSL_CIPHER), texts.get(_SSL_CN), is_verified)


# -- to bytes ----------------------------------------------------------------------------------------------------------


def build_local(version: str) -> bytes:
    """Return the header of a connection that is relay's own, such as a probe of the target.

    :param version: ``v1`` or ``v2``.
    """
    return b"PROXY UNKNOWN\r\n" if version == "v1" else _HEAD.pack(_SIGNATURE, _LOCAL, _UNSPECIFIED, 0)


def build_v1(source: Address | None, destination: Address | None) -> bytes:
    """Return a header of version 1.

    :param source: the client; ``None`` if it has no IP address. The header then says ``UNKNOWN``.
    :param destination: the address to which it has connected; ``None`` as for the source.
    """
    if source is None or destination is None:
        return b"PROXY UNKNOWN\r\n"
    family, hosts = _same_family(source.host, destination.host)
    one, other = (socket.inet_ntop(family, host) for host in hosts)
    kind = 4 if family == socket.AF_INET else 6
    if kind == 6:
        one, other = _without_dots(one), _without_dots(other)
    return f"PROXY TCP{kind} {one} {other} {source.port} {destination.port}\r\n".encode("ascii")


def build_v2(
    source: Address | None, destination: Address | None, entries: Iterable[tuple[int, bytes | str]] = ()
) -> bytes:
    """Return a header of version 2.

    For a client without an IP address the command is LOCAL, as HAProxy has it: each receiver must accept that. Many
    reject PROXY with an unspecified family, as they may (section 2.2): HAProxy 2.6, Apache 2.4 and Go's go-proxyproto.

    :param source: the client; ``None`` if it has no IP address.
    :param destination: the address to which it has connected; ``None`` as for the source.
    :param entries: types and values. Texts are cut to 255 bytes, and a unique id to 128.
    :raises ValueError: if the entries have more than 65,000 bytes together.
    """
    command, family, addresses = _LOCAL, _UNSPECIFIED, b""
    if source is not None and destination is not None:
        found, hosts = _same_family(source.host, destination.host)
        command, family = _PROXY, _TCP4 if found == socket.AF_INET else _TCP6
        addresses = b"".join(hosts) + _PORTS.pack(source.port, destination.port)
    body = addresses + _packed((kind, _value(kind, value)) for kind, value in entries)
    if len(body) > 65000:
        raise ValueError(f"entries: at most 65000 bytes are allowed, got {len(body)}")
    return _HEAD.pack(_SIGNATURE, command, family, len(body)) + body


def _same_family(source: str, destination: str) -> tuple[socket.AddressFamily, list[bytes]]:
    """Return both addresses as bytes: IPv4, or IPv6 if one of them is."""
    family = socket.AF_INET6 if ":" in source or ":" in destination else socket.AF_INET
    return family, [
        socket.inet_pton(family, host)
        if family == socket.AF_INET or ":" in host
        else _MAPPED + socket.inet_pton(socket.AF_INET, host)
        for host in (source, destination)
    ]


def _without_dots(host: str) -> str:
    """Return an IPv6 address in groups of hexadecimal digits only, as version 1 has them."""
    if "." not in host:
        return host
    packed = socket.inet_pton(socket.AF_INET6, host)
    return f"{host[: host.rindex(':')]}:{packed[12:14].hex()}:{packed[14:].hex()}"


def _packed(entries: Iterable[tuple[int, bytes]]) -> bytes:
    return b"".join([_ENTRY.pack(kind, len(value)) + value for kind, value in entries])


def _value(kind: int, value: bytes | str) -> bytes:
    if isinstance(value, bytes):
        return value
    return _bytes(value, _LONGEST_ID if kind == UNIQUE_ID else _LONGEST_TEXT)


def _bytes(text: str, longest: int = _LONGEST_TEXT) -> bytes:
    """Return a text as UTF-8, cut between two characters."""
    made = text.encode("utf-8", "replace")
    return made if len(made) <= longest else made[:longest].decode("utf-8", "ignore").encode()


# -- from bytes --------------------------------------------------------------------------------------------------------


class HeaderReader:
    """Reads one header piece by piece, and nothing after it.

    The caller looks at what has come (``MSG_PEEK``), and then removes what belongs to the header. While the header is
    incomplete, that is everything that has come: so the socket is readable again only when there is more.
    """

    __slots__ = ("header", "_data")

    def __init__(self) -> None:
        self.header: ProxyHeader | None = None
        """The header, once it is complete."""
        self._data = bytearray()

    def feed(self, data: bytes) -> int:
        """Look at the next bytes.

        :param data: what has come since; at least one byte.
        :returns: how many of these bytes belong to the header.
        :raises ProxyHeaderError: if it is no valid header. Nothing more can be read from the connection then.
        """
        before = len(self._data)
        self._data += data
        end = _end(self._data)
        if end is None:
            return len(data)
        header = bytes(self._data[:end])
        self.header = _parse_v2(header) if header.startswith(_SIGNATURE) else _parse_v1(header)
        return end - before


def _end(data: bytearray) -> int | None:
    """Return the length of the header that begins so; ``None`` while it is not complete."""
    start = bytes(data[: len(_SIGNATURE)])
    if start.startswith(_V1_START[: len(start)]):
        end = data.find(b"\n", 0, LONGEST_V1)
        if end >= 0 and data[end - 1 : end] != b"\r":
            raise ProxyHeaderError("the line of version 1 does not end with CRLF")
        if end < 0 and len(data) >= LONGEST_V1:
            raise ProxyHeaderError(f"the line of version 1 has more than {LONGEST_V1} bytes")
        return end + 1 if end >= 0 else None
    # Decided by the first byte that cannot be right: a client that is no balancer need not send a whole head first.
    if not _SIGNATURE.startswith(start):
        raise ProxyHeaderError("the connection does not begin with a header")
    if len(data) < _HEAD.size:
        return None
    _, command, family, length = _HEAD.unpack_from(data)
    if command not in (_LOCAL, _PROXY):
        raise ProxyHeaderError(f"version and command 0x{command:02x} are not known")
    if command == _PROXY:
        if family not in _ADDRESS_LENGTHS:
            raise ProxyHeaderError(f"family and protocol 0x{family:02x} are not a stream's")
        if length < _ADDRESS_LENGTHS[family]:
            raise ProxyHeaderError("it is too short for its addresses")
    return _HEAD.size + length if len(data) >= _HEAD.size + length else None


def _parse_v1(line: bytes) -> ProxyHeader:
    words = line[len(_V1_START) : -2].split(b" ")
    if words[0] == b"UNKNOWN":
        return ProxyHeader()  # whatever follows is to be ignored
    family = {b"TCP4": socket.AF_INET, b"TCP6": socket.AF_INET6}.get(words[0])
    if family is None or len(words) != 5:
        raise ProxyHeaderError("the line of version 1 is neither UNKNOWN nor TCP4 or TCP6 with two addresses and ports")
    try:
        source, destination = (_host(socket.inet_pton(family, word.decode("ascii"))) for word in words[1:3])
    except (OSError, ValueError):
        raise ProxyHeaderError("the line of version 1 has an address that is none") from None
    return ProxyHeader(False, Address(source, _port(words[3])), Address(destination, _port(words[4])))


def _port(word: bytes) -> int:
    if not _PORT.fullmatch(word) or int(word) > 65535:
        raise ProxyHeaderError("the line of version 1 has a port that is none")
    return int(word)


def _parse_v2(header: bytes) -> ProxyHeader:
    _, command, family, _ = _HEAD.unpack_from(header)
    if command == _LOCAL:
        return ProxyHeader(is_local=True, entries=_local_entries(header, family))
    start = _HEAD.size + _ADDRESS_LENGTHS[family]
    entries = _entries(header[start:])
    _check(header, start, entries)
    source = destination = None
    if family in (_TCP4, _TCP6):
        size = 4 if family == _TCP4 else 16
        at = _HEAD.size
        ports = _PORTS.unpack_from(header, at + 2 * size)
        source = Address(_host(header[at : at + size]), ports[0])
        destination = Address(_host(header[at + size : at + 2 * size]), ports[1])
    made = ProxyHeader(False, source, destination, entries)
    # Now, where it rejects the client; later it would look like a bug of relay.
    made.ssl()  # raises for one that is cut
    return made


def _local_entries(header: bytes, family: int) -> tuple[tuple[int, bytes], ...]:
    """Return the entries of a LOCAL header; a receiver ignores what it does not understand in one."""
    if family != _UNSPECIFIED:
        return ()
    try:
        entries = _entries(header[_HEAD.size :])
        _check(header, _HEAD.size, entries)
        ProxyHeader(entries=entries).ssl()  # raises for one that is cut
    except ProxyHeaderError:
        return ()
    return entries


def _host(packed: bytes) -> str:
    if len(packed) == 16 and packed.startswith(_MAPPED):
        packed = packed[12:]
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)


def _entries(data: bytes) -> tuple[tuple[int, bytes], ...]:
    found = []
    at, size = 0, len(data)
    while at < size:
        if at + _ENTRY.size > size:
            raise ProxyHeaderError("its last entry is cut")
        kind, length = _ENTRY.unpack_from(data, at)
        at += _ENTRY.size + length
        if at > size:
            raise ProxyHeaderError("an entry is longer than the header")
        found.append((kind, data[at - length : at]))
    return tuple(found)


def _text(value: bytes) -> str | None:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _check(header: bytes, start: int, entries: tuple[tuple[int, bytes], ...]) -> None:
    """Verify the checksum, if there is one."""
    at = start
    for kind, value in entries:
        at += _ENTRY.size + len(value)
        if kind == CRC32C:
            zeroed = header[: at - len(value)] + bytes(len(value)) + header[at:]
            if len(value) != 4 or checksum(zeroed) != int.from_bytes(value, "big"):
                raise ProxyHeaderError("its checksum is wrong")
            return


def checksum(data: bytes) -> int:
    """Return the CRC32C of bytes; RFC 9260, appendix A."""
    table, crc = _table(), 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


@functools.cache
def _table() -> tuple[int, ...]:
    found = []
    for crc in range(256):
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)  # noqa: PLW2901
        found.append(crc)
    return tuple(found)
