"""Frames of WebSockets (RFC 6455, section 5): bytes to frames and back, without I/O.

wsproto makes the handshakes. Its frames cost several times as much as these: it copies each payload more than once.
The tests compare both with each other.
"""

from __future__ import annotations

import os
from typing import Any

apply_mask: Any
"""Masks in C, where the package websockets is there: the standard library has nothing that is fast."""
try:
    from websockets.speedups import apply_mask
except ImportError:
    apply_mask = None

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA

_FINAL = 0x80  # the bit of a message's last frame
_MASKED = 0x80
_CONTROL = 0x8  # the bit of the opcodes that are no data
_LONGEST_CONTROL = 125  # bytes; section 5.5
_SHORT = 512  # bytes up to which one integer is faster than four passes of bytes.translate
_TABLES = [bytes(byte ^ mask for byte in range(256)) for mask in range(256)]

NORMAL, GOING_AWAY, PROTOCOL_ERROR, NO_STATUS, INTERNAL_ERROR = 1000, 1001, 1002, 1005, 1011
"""Codes of closes (section 7.4.1)."""


class FrameError(ValueError):
    """Bytes that are no frames, as one clause of a sentence."""


def mask(data: bytes | bytearray | memoryview, key: bytes) -> bytes | bytearray:
    """Mask or unmask (section 5.3).

    :param data: the bytes.
    :param key: four bytes; the first one belongs to the first byte.
    """
    if apply_mask is not None:
        return apply_mask(data, key)  # type: ignore[no-any-return]
    size = len(data)
    if size <= _SHORT:
        repeated = (key * (size // 4 + 1))[:size]
        return (int.from_bytes(data, "little") ^ int.from_bytes(repeated, "little")).to_bytes(size, "little")
    made = bytearray(data)
    for lane, byte in enumerate(key):
        made[lane::4] = made[lane::4].translate(_TABLES[byte])
    return made


def frame(
    opcode: int,
    data: bytes | bytearray | memoryview,
    *,
    prefix: bytes = b"",
    is_masked: bool = False,
    key: bytes | None = None,
) -> bytes:
    """Return one frame, which is a whole message.

    :param opcode: its kind.
    :param data: its payload.
    :param prefix: bytes of the payload before ``data``.
    :param is_masked: whether to mask it; clients do.
    :param key: four random bytes, to mask this frame alone; ``None`` for new ones.
    """
    size = len(prefix) + len(data)
    bit = _MASKED if is_masked else 0
    if size < 126:
        head = bytes((_FINAL | opcode, bit | size))
    elif size < 1 << 16:
        head = bytes((_FINAL | opcode, bit | 126, size >> 8, size & 0xFF))
    else:
        head = bytes((_FINAL | opcode, bit | 127)) + size.to_bytes(8, "big")
    if not is_masked:
        return b"".join((head, prefix, data))
    if key is None:
        key = os.urandom(4)
    return b"".join((head, key, mask(b"".join((prefix, data)) if prefix else data, key)))


def close_payload(code: int, reason: str = "") -> bytes:
    """Return the payload of a close.

    :param code: the reason as a number.
    :param reason: a few words.
    """
    return code.to_bytes(2, "big") + reason.encode()[: _LONGEST_CONTROL - 2]


def code_of(payload: bytes) -> int:
    """Return the code of a close.

    :param payload: of the frame.
    :raises FrameError: if it cannot be one.
    """
    if not payload:
        return NO_STATUS
    code = int.from_bytes(payload[:2], "big")
    if len(payload) == 1 or not ((1000 <= code < 1015 and code not in (1004, 1005, 1006)) or 3000 <= code < 5000):
        raise FrameError("a close with an invalid code")
    return code


class Decoder:
    """The frames of one direction, in whatever pieces their bytes come. What it holds is a header or a control frame.

    :param is_masked: whether they are those of a client.
    """

    __slots__ = ("_bit", "_held", "_in_message", "_is_first", "_key", "_left")

    def __init__(self, *, is_masked: bool) -> None:
        self._bit = _MASKED if is_masked else 0
        self._held = b""  # the beginning of a header, or of a control frame
        self._left = 0  # bytes of the payload of a data frame that have not come
        self._key = b""
        self._in_message = False  # a frame of it has come, and its last one has not begun
        self._is_first = False  # nothing of the message that begins with the current frame has come

    def feed(self, data: bytes | memoryview) -> list[tuple[int, bytes | bytearray | memoryview]]:
        """Decode.

        :param data: the next bytes.
        :returns: what they have brought, in its order: each part of a payload, with the opcode of a message that begins
            with it, or :data:`CONTINUATION` in a message that has begun; control frames as a whole. A part that was
            not masked may be a view of ``data``.
        :raises FrameError: if they are no frames.
        """
        if not (self._held or self._left or self._in_message):
            # One short message, which most reads bring where messages are short.
            size = len(data) - (6 if self._bit else 2)
            if 0 < size <= _LONGEST_CONTROL and data[0] == _FINAL | BINARY and data[1] == self._bit | size:
                if self._bit:
                    return [(BINARY, mask(data[6:], bytes(data[2:6])))]
                return [(BINARY, data[2:])]
        if self._held:
            data, self._held = self._held + data, b""
        view = memoryview(data)
        found: list[tuple[int, bytes | bytearray | memoryview]] = []
        at, end = 0, len(view)
        while True:
            if self._left:
                if at == end:
                    return found
                part: bytes | bytearray | memoryview = view[at : at + self._left]
                size = len(part)
                at += size
                self._left -= size
                if self._bit:
                    part = mask(part, self._key)
                    if self._left and (turn := size % 4):
                        self._key = self._key[turn:] + self._key[:turn]
                found.append((BINARY if self._is_first else CONTINUATION, part))
                self._is_first = False
                continue
            begin = at
            if (size := end - at) < 2:
                break
            first, second = view[at], view[at + 1]
            if second & _MASKED != self._bit:
                raise FrameError(
                    "a frame of a client without a mask" if self._bit else "a frame of a server with a mask"
                )
            if first & 0x70:
                raise FrameError("a frame with bits of an extension")
            opcode, length, at = first & 0x0F, second & 0x7F, at + 2
            if opcode & _CONTROL and (length > _LONGEST_CONTROL or not first & _FINAL):
                raise FrameError("a control frame that is too long or in parts")
            if opcode not in (CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG):
                raise FrameError(f"a frame of the unknown kind {opcode}")
            if not opcode & _CONTROL and (opcode == CONTINUATION) != self._in_message:
                raise FrameError("a frame that does not continue its message" if opcode else "a frame of no message")
            if length > _LONGEST_CONTROL:
                wide = 2 if length == 126 else 8
                if end - at < wide:
                    at = begin
                    break
                length = int.from_bytes(view[at : at + wide], "big")
                if length < (126 if wide == 2 else 1 << 16) or length >> 63:
                    raise FrameError("a frame with an invalid length")
                at += wide
            needed = (4 if self._bit else 0) + (length if opcode & _CONTROL else 0)
            if end - at < needed:
                at = begin
                break
            if self._bit:
                self._key = bytes(view[at : at + 4])
                at += 4
            if opcode & _CONTROL:
                payload = bytes(view[at : at + length])
                found.append((opcode, bytes(mask(payload, self._key)) if self._bit else payload))
                at += length
                continue
            self._in_message = not first & _FINAL
            self._is_first = opcode != CONTINUATION
            self._left = length
            if not length and self._is_first:
                found.append((BINARY, b""))
                self._is_first = False
        self._held = bytes(view[at:])
        return found
