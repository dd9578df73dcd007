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
        name = _name_in(_first_message(data))
    except (struct.error, IndexError):
        return None
    return name.decode("ascii") if name is not None and _NAME.fullmatch(name) else None


def _first_message(data: bytes) -> bytes:
    """Return the body of the first message, which may be in several records."""
    message, at = b"", 0
    for _ in range(_MOST_RECORDS):
        kind, _, length = struct.unpack_from("!BHH", data, at)
        if kind != _HANDSHAKE or not length:
            raise IndexError
        message += data[at + 5 : at + 5 + length]
        at += 5 + length
        if len(message) >= 4:
            size = int.from_bytes(message[1:4], "big")
            if message[0] != _CLIENT_HELLO or size > LONGEST:
                raise IndexError
            if len(message) >= 4 + size:
                return message[4 : 4 + size]
    raise IndexError


def _name_in(hello: bytes) -> bytes | None:
    """Return the name in a ClientHello; RFC 8446, section 4.1.2, and RFC 6066, section 3."""
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
            is_whole = at + 5 + size <= end <= len(hello)
            return hello[at + 5 : at + 5 + size] if entry == _HOST_NAME and is_whole else None
        at = end
    return None
