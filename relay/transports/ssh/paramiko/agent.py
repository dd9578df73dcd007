"""A client of the authentication agent (OpenSSH's PROTOCOL.agent) with a timeout for each reply."""

from __future__ import annotations

import contextlib
import socket
import struct

from ..config.identities import strings

ANSWER_TIME = 5.0  # seconds for the agent to list its keys
SIGNING_TIME = 120.0  # seconds for a signature, for which the user may have to touch a key or answer a question
LONGEST = 1 << 18  # bytes of a message, as in OpenSSH

_LIST, _KEYS, _SIGN, _SIGNATURE = 11, 12, 13, 14


class Agent:
    """A connection to the agent.

    :param path: its socket.
    :raises OSError: if it cannot be reached or does not answer.
    """

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            # An agent may hang (a forwarded one whose connection is dead); without it the login goes on with the other
            # keys.
            self._socket.settimeout(ANSWER_TIME)
            self._socket.connect(path)
            self.keys = _parsed(self._ask(bytes([_LIST]), _KEYS))
        except BaseException:
            self._socket.close()
            raise

    def sign(self, blob: bytes, data: bytes, flags: int) -> bytes:
        """Request a signature from the agent.

        :param blob: the public key.
        :param data: the data to sign.
        :param flags: 2 for SHA-256 and 4 for SHA-512 with an RSA key, otherwise 0.
        :returns: the signature in SSH's encoding.
        :raises OSError: if the agent rejects the request, does not reply, or :meth:`close` is called meanwhile.
        """
        self._socket.settimeout(SIGNING_TIME)
        request = bytes([_SIGN]) + _string(blob) + _string(data) + struct.pack(">I", flags)
        try:
            return strings(self._ask(request, _SIGNATURE), 1)[0]
        except ValueError:
            raise OSError("the agent's reply is malformed") from None

    def close(self) -> None:
        """Close the connection, and wake a thread that waits for a signature. Idempotent."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _ask(self, request: bytes, wanted: int) -> bytes:
        self._socket.sendall(_string(request))
        (size,) = struct.unpack(">I", self._receive(4))
        if not 1 <= size <= LONGEST:
            raise OSError("the agent's reply is malformed")
        answer = self._receive(size)
        if answer[0] != wanted:
            raise OSError("the agent has rejected the request")
        return answer[1:]

    def _receive(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self._socket.recv(size - len(data))
            if not piece:
                raise OSError("the agent has ended the connection")
            data += piece
        return data


def _parsed(answer: bytes) -> dict[bytes, str]:
    """Return the keys in the agent's order, each with its comment."""
    if len(answer) < 4:
        raise OSError("the agent's reply is malformed")
    (count,) = struct.unpack_from(">I", answer)
    # A number that no answer of this length can hold, before a list of that size is made.
    if count > len(answer):
        raise OSError("the agent's reply is malformed")
    try:
        parts = strings(answer[4:], 2 * count)
    except ValueError:
        raise OSError("the agent's reply is malformed") from None
    return {parts[i]: parts[i + 1].decode("utf-8", "replace") for i in range(0, len(parts), 2)}


def _string(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data
