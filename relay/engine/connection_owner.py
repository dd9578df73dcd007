"""The owner of a connection, as the connection sees it; where a method takes a connection, it is that one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from ..eventloop.loop import Loop
from ..streams.request import RejectedRequest
from ..streams.stream import Stream
from .limits import Limits

__all__ = ["ConnectionEntrance", "ConnectionOwner"]


class ConnectionEntrance(Protocol):
    """The entrance of the relay thread, where connections are before they get a stream."""

    @property
    def half_open(self) -> dict[Any, None]:
        """The half-open connections."""

    @property
    def introduce(self) -> Callable[[Any, float], bool] | None:
        """Tells a target who its client is, or ends the connection; ``None`` for no header."""

    def on_request(self, connection: Any, now: float, /) -> None:
        """Take a connection whose client has sent its request."""

    def on_rejected_request(self, connection: Any, rejection: RejectedRequest, now: float, /) -> None:
        """Log a request that cannot be met."""

    def on_last_reply(self, connection: Any, now: float, /) -> None:
        """Take a connection that gets no stream, only a last reply."""


class ConnectionOwner(Protocol):
    """The relay thread, as the owner of a connection."""

    name: str
    limits: Limits
    loop: Loop
    keepalive_enabled_until: float  # the acceptance of the last connection with keepalive, monotonic seconds

    @property
    def entrance(self) -> ConnectionEntrance:
        """The place of a connection before it gets a stream."""

    def close_stream(self, stream: Stream, clean: bool) -> None:
        """Close a stream, or reset it."""

    def connection_over(self, connection: Any, /) -> None:
        """Take a connection that has ended."""
