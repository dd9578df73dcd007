"""Listeners, streams and factories of a program's own: what a tunnel takes.

They are protocols: any object with their methods is accepted, and no class has to derive from them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from .stream import Stream

__all__ = ["Listener", "MakeSend", "Sender", "StreamLike", "WholeSender"]


class _Receiver(Protocol):
    def recv(self, size: int, /) -> bytes:
        """Up to ``size`` bytes; none at the end of file."""

    def close(self) -> object:
        """Close both directions."""


class Sender(_Receiver, Protocol):
    """A stream that may send a part of what it is given, such as a test double."""

    def send(self, data: Any, /) -> int:
        """Send some of ``data``, a bytes-like object; returns how many bytes."""


class WholeSender(_Receiver, Protocol):
    """A stream that sends all of what it is given: a :class:`socket.socket`, a paramiko channel."""

    def sendall(self, data: bytes, /) -> object:
        """Send all of ``data``."""


StreamLike = Stream | WholeSender | Sender
"""What a factory returns and a listener accepts.

A :class:`socket.socket` (connected, or non-blocking with its connect in progress), an :class:`ssl.SSLSocket`, a
:class:`relay.Stream`, or any object with ``recv``, ``close``, and ``send`` or ``sendall``. One that has ``shutdown`` or
``shutdown_write`` keeps half-close.
"""


class Listener(Protocol):
    """A listener for a tunnel: a listening :class:`socket.socket`, or any object with these two methods."""

    def accept(self) -> tuple[StreamLike, Any]:
        """Wait for the next client; returns its stream and where it comes from."""

    def close(self) -> object:
        """Stop listening; an ``accept`` under way should raise."""


MakeSend = Callable[..., StreamLike]
"""A factory: called once for each client, with those of ``peer``, ``identity``, ``deadline``, ``cancel`` and
``destination`` that it names; see :class:`relay.Tunnel`. It must be a plain function and not a coroutine function."""
