"""Requests of proxy clients, as values."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Request:
    """A client's request for a stream to an address that it names.

    :param host: a name, or an IPv4 or IPv6 address without brackets; the listener has checked it.
    :param port: from 1 to 65535.
    :param success_reply: bytes for the client once there is the stream, before any other byte.
    :param failure_reply: returns the bytes for the client if there is no stream, given the reason: ``refused``,
        ``unreachable``, ``connect_timeout``, ``denied`` or another word of a connection's record.
    :param early: bytes that the client has sent already for the target.
    :param login: the protocol, ``socks`` or ``http``, and the user who has logged in; ``None`` if none has.
    """

    __slots__ = ("host", "port", "success_reply", "failure_reply", "early", "login")

    def __init__(
        self,
        host: str,
        port: int,
        success_reply: bytes,
        failure_reply: Callable[[str], bytes],
        early: bytes = b"",
        login: tuple[str, str] | None = None,
    ) -> None:
        self.host = host
        self.port = port
        self.success_reply = success_reply
        self.failure_reply = failure_reply
        self.early = early
        self.login = login

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __repr__(self) -> str:
        return f"<request for {self}>"


class RejectedRequest(NamedTuple):
    """The answer to a client that gets no stream, before one was dialed."""

    last: bytes
    """The last bytes for the client."""
    problem: str
    """The problem, for the log; empty if it is not worth a line."""
    reason: str = "denied"
    """The word for it in the connection's record."""
    guessed: bool = False
    """``True`` for a wrong user or password: the client may be guessing."""
