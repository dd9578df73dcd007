"""One stream, with what is known of it, from its beginning to the end of its channel."""

from __future__ import annotations

import math
import socket
from collections.abc import Callable
from typing import Protocol

from ...errors import CarrierError, ConnectError
from ...stream import Stream
from ..connection import Done
from .diagnostics import open_error

__all__ = ["Opening", "Owner"]


class Owner(Protocol):
    """Whose streams they are."""

    def confirmed(self, opening: Opening) -> None:
        """The far side has answered, or cannot any more. Called with the lock held."""

    def over(self, opening: Opening) -> None:
        """Nothing is left of it. Called with the lock held."""

    def soon(self, call: Callable[[], object]) -> None:
        """Have this called in the loop's thread, without the lock."""

    def look(self) -> CarrierError:
        """Read what ssh has said; returns why a stream ends of which it has said nothing."""


class Opening:
    """One stream; what is told of its channel (:class:`~.channels.Channel`) is told with the owner's lock held.

    :param owner: whose it is.
    :param name: the place that it leads to, for errors.
    :param done: told of the outcome; ``None`` for a stream that the server opened.
    :param deadline: monotonic seconds until which the far side must have answered.
    :param patient: whether ``done`` is told only then; else as soon as ssh has it.
    """

    __slots__ = ("deadline", "done", "error", "is_ended", "is_over", "name", "owner", "patient", "socket")

    def __init__(
        self,
        owner: Owner,
        name: str,
        done: Done | None = None,
        deadline: float | None = None,
        *,
        patient: bool = False,
    ) -> None:
        self.owner = owner
        self.name = name
        self.done = done
        self.deadline = math.inf if deadline is None else deadline
        self.patient = patient
        self.socket: socket.socket | None = None  # until the far side has answered
        self.error: ConnectError | CarrierError | None = None
        self.is_ended = False
        self.is_over = False

    def stream(self, made: socket.socket) -> Stream:
        """The stream over a socket to ssh."""
        return Stream(made, target=self.name, failure=self.failure)

    def failure(self) -> ConnectError | CarrierError | None:
        """Why the stream ended, if that was a failure; asked without the lock at its end of file."""
        if self.error is None and not self.is_ended:
            unsaid = self.owner.look()
            if self.error is None and not self.is_ended:
                self.error = unsaid
        return self.error

    def opened(self) -> None:
        """The far side has taken it."""
        made, self.socket = self.socket, None
        self.owner.confirmed(self)
        done, self.done = self.done, None
        if done is not None and made is not None:
            stream = self.stream(made)
            self.owner.soon(lambda: done(stream))

    def refused(self, text: str) -> None:
        """The far side has not, and why."""
        self.fail(open_error(self.name, text))

    def ended(self) -> None:
        """The far side has ended its direction."""
        self.is_ended = True

    def freed(self) -> None:
        """ssh has let go of it."""
        self.owner.over(self)

    def fail(self, error: ConnectError | CarrierError) -> None:
        """It is not made; whoever has its socket already asks for the reason at its end."""
        self.owner.confirmed(self)
        if self.error is None:
            self.error = error
        done, self.done = self.done, None
        if done is not None:
            made, self.socket = self.socket, None
            if made is not None:
                made.close()
            self.owner.soon(lambda: done(error))

    def expire(self) -> None:
        """The far side has not answered in time."""
        made = self.socket if self.done is None else None
        self.fail(ConnectError(f"{self.name}: no answer in time, through the server", reason="connect_timeout"))
        if made is not None:
            try:
                made.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # its holder has closed it
