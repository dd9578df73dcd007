"""What a client of a proxy asks for, as values."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

__all__ = ["Refusal", "Request"]


class Request:
    """What a client asks for: a stream to a place that it names itself.

    :param host: a name, or an IPv4 or IPv6 address without brackets; the listener has checked it.
    :param port: from 1 to 65535.
    :param granted: what is sent to the client when there is the stream, before anything else.
    :param refused: tells what is sent when there is none, given the reason: ``refused``, ``unreachable``,
        ``connect_timeout``, ``denied`` or another word of a connection's record.
    :param early: what the client has said already to whom it will be connected to.
    """

    __slots__ = ("host", "port", "granted", "refused", "early")

    def __init__(
        self, host: str, port: int, granted: bytes, refused: Callable[[str], bytes], early: bytes = b""
    ) -> None:
        self.host = host
        self.port = port
        self.granted = granted
        self.refused = refused
        self.early = early

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __repr__(self) -> str:
        return f"<request for {self}>"


class Refusal(NamedTuple):
    """Why a client gets no stream before one was even begun."""

    last: bytes
    """What is sent to it; nothing follows."""
    problem: str
    """What is wrong, for the log; empty where that is nobody's business."""
    reason: str = "denied"
    """The word for it in the connection's record."""
    guessed: bool = False
    """Whether the client has shown a wrong user or password, which may be somebody who guesses."""
