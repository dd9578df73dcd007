"""The server name that a TLS client asks for (SNI), read from the first message that it sends.

``ssl.SSLContext.sni_callback`` was not taken: where the name is not ASCII, Python writes a traceback to the standard
error for each such client, and rejects it.
"""

from __future__ import annotations

import re
import struct

LONGEST = 16 << 10
"""The most bytes that are looked at; browsers send at most 2 KiB."""

_NAME = re.compile(rb"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,253}[A-Za-z0-9_.])?")  # RFC 6066, section 3: as in the DNS
_HANDSHAKE, _CLIENT_HELLO = 22, 1  # RFC 8446, sections 5.1 and 4
_SERVER_NAME, _HOST_NAME = 0, 0
_MOST_RECORDS = 256  # of one message; they could have a byte each
_RANDOM = 34  # bytes of the version and the random value


def server_name_of(data: bytes) -> str | None:
    """Return the server name that a client asks for.

    :param data: what it has sent so far: records of TLS, of which OpenSSL has taken the first message.
    :returns: the name, which may be any of at most 255 letters, digits and ``. _ -``; ``None`` if there is none, or
        another one.
    """
    try:
        hello = HelloReader().feed(data)
        return None if hello is None else name_in(hello)
    except ValueError:
        return None


class HelloReader:
    """Reads the first message of a client, which may be in several records; RFC 8446, section 5.1."""

    __slots__ = ("_at", "_message", "_records")

    def __init__(self) -> None:
        self._at = 0  # where the next record begins
        self._message = bytearray()
        self._records = 0

    def feed(self, data: bytes | bytearray) -> bytes | None:
        """Read on.

        :param data: all that the client has sent so far.
        :returns: the body of its ClientHello; ``None`` while that is not complete.
        :raises ValueError: if it is none, or too long.
        """
        while len(data) > self._at:
            if data[self._at] != _HANDSHAKE:
                raise ValueError("it does not speak TLS")
            start = self._at + 5
            size = int.from_bytes(data[start - 2 : start], "big")
            if len(data) < start or len(data) < start + size:
                break
            self._message += data[start : start + size]
            self._at, self._records = start + size, self._records + 1
            if not size or self._records > _MOST_RECORDS:
                raise ValueError("its first message is in too many records")
            length = int.from_bytes(self._message[1:4], "big")
            if self._message[0] != _CLIENT_HELLO or length > LONGEST:
                raise ValueError(f"its first message is no ClientHello of up to {LONGEST} bytes")
            if len(self._message) >= 4 + length:
                return bytes(self._message[4 : 4 + length])
        if len(data) > 2 * LONGEST:
            raise ValueError(f"its first message is no ClientHello of up to {LONGEST} bytes")
        return None


def name_in(hello: bytes) -> str | None:
    """Return the name in the body of a ClientHello; RFC 8446, section 4.1.2, and RFC 6066, section 3.

    :returns: as :func:`server_name_of` does; ``None`` if there is none.
    :raises ValueError: if it is not a ClientHello, or the name is none of the DNS.
    """
    try:
        name = _name_in(hello)
    except (struct.error, IndexError):
        raise ValueError("its ClientHello cannot be read") from None
    if name is None:
        return None
    if not _NAME.fullmatch(name):
        raise ValueError("it asks for a name that no host has")
    return name.decode("ascii")


def _name_in(hello: bytes) -> bytes | None:
    at = _RANDOM
    at += 1 + hello[at]  # session
    at += 2 + struct.unpack_from("!H", hello, at)[0]  # cipher suites
    at += 1 + hello[at]  # compression
    at += 2  # the length of the extensions, which are the rest
    while at < len(hello):
        kind, length = struct.unpack_from("!HH", hello, at)
        at += 4
        end = at + length
        if kind == _SERVER_NAME:
            entry, size = struct.unpack_from("!BH", hello, at + 2)
            if entry != _HOST_NAME or not at + 5 + size <= end <= len(hello):
                raise IndexError
            return hello[at + 5 : at + 5 + size]
        at = end
    return None
