"""The engine's end of a bridge to an object that is not a plain kernel socket."""

from __future__ import annotations

import socket
from typing import Protocol

from ..eventloop.sockets import reset
from .stream import Stream

CHUNK = 65536  # bytes that a bridge moves at once
PATIENCE = 10.0  # seconds without progress that the rest of what was sent may take after a clean end
_BUFFER = 65536  # bytes of each of the socketpair's buffers, so that a bridge adds little to what is under way


class _Bridge(Protocol):
    """The threads between the object and the other end."""

    error: BaseException | None  # why the object failed
    cut: bool  # the engine has reset the stream

    def finish(self) -> None:
        """Close the object: the engine has closed its end."""


class BridgedStream(Stream):
    """The engine's end of a bridge, whose ``reset()`` marks the bridge: a socketpair cannot carry a reset."""

    __slots__ = ("_bridge",)

    def __init__(self, sock: socket.socket, bridge: _Bridge, *, half_close: bool) -> None:
        super().__init__(sock, half_close=half_close, failure=lambda: bridge.error, on_close=bridge.finish)
        self._bridge = bridge

    def reset(self) -> None:
        """Close, and reset the far end."""
        # Before the reset: the bridge's thread wakes by it, and must know by then what it was.
        self._bridge.cut = True
        reset(self.socket)
        self.close()


def small_pair() -> tuple[socket.socket, socket.socket]:
    """Return the engine's end, which is non-blocking, and the bridge's."""
    ours, theirs = socket.socketpair()
    theirs.settimeout(None)  # whatever the default
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
    # The bridge's end stays blocking, as its threads wait in it; the modes of the two ends are independent.
    ours.setblocking(False)
    return ours, theirs
