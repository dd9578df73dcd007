"""One stream, with what is known of it, from its beginning to the end of its channel."""

from __future__ import annotations

import math
import socket
from collections.abc import Callable
from typing import Protocol

from ....errors import CarrierError, ConnectError
from ....streams.stream import Stream
from ..connection import OnResult
from .diagnostics import open_error

__all__ = ["Opening", "Owner"]

Error = ConnectError | CarrierError


class Owner(Protocol):
    """Whose streams they are."""

    @property
    def server(self) -> str:
        """The name of the server."""

    def answered(self, opening: Opening) -> None:
        """It has no deadline any more. Called with the lock held."""

    def over(self, opening: Opening) -> None:
        """Nothing is left of it. Called with the lock held."""

    def soon(self, call: Callable[[], object], /) -> object:
        """Have this called in the loop's thread, without the lock."""

    def unsaid(self, opening: Opening) -> Error | None:
        """Read what ssh has said; returns why a stream ends of which it has said nothing. Takes the lock."""


class Opening:
    """One stream. Every method but :meth:`failure` is called with the owner's lock held.

    :param owner: whose it is.
    :param name: the place that it leads to, for errors.
    :param done: told of the outcome; ``None`` for a stream that the server opened.
    :param deadline: monotonic seconds until which the far side must have answered.
    :param patient: whether ``done`` is told only then; else as soon as ssh has it.
    """

    __slots__ = (
        "_is_answered",
        "_socket",
        "deadline",
        "done",
        "error",
        "is_ended",
        "is_over",
        "is_traced",
        "name",
        "owner",
        "patient",
    )

    def __init__(
        self,
        owner: Owner,
        name: str,
        done: OnResult | None = None,
        deadline: float | None = None,
        *,
        patient: bool = False,
    ) -> None:
        self.owner = owner
        self.name = name
        self.done = done
        self.deadline = math.inf if deadline is None else deadline
        self.patient = patient
        self.error: Error | None = None
        self.is_ended = False  # the far side has ended its direction
        self.is_over = False
        self.is_traced = True  # ssh tells of its channel
        self._is_answered = False
        self._socket: socket.socket | None = None  # kept until the far side has answered

    def stream(self, made: socket.socket) -> Stream:
        """The stream over a socket to ssh."""
        return Stream(made, target=self.name, failure=self.failure)

    def failure(self) -> Error | None:
        """Why the stream ended, if that was a failure; asked at its end of file."""
        if self.error is None and not self.is_ended:
            self.error = self.owner.unsaid(self)
        return self.error

    def connected(self, made: socket.socket) -> OnResult | None:
        """It is connected to ssh.

        :returns: whom to tell, without the lock, that the stream is there.
        """
        if self.done is None:  # it has failed, or was given up
            made.close()
            return None
        if not self._is_answered:
            self._socket = made
            if self.patient:
                return None
        done, self.done = self.done, None
        return done

    def opened(self) -> None:
        """The far side has taken it."""
        self._is_answered = True
        self.owner.answered(self)
        made, self._socket = self._socket, None
        done = self.done
        if done is not None and made is not None:
            self.done = None
            stream = self.stream(made)
            self.owner.soon(lambda: done(stream))

    def refused(self, text: str) -> None:
        """The far side has not, and why."""
        self.fail(open_error(self.name, self.owner.server, text))

    def ended(self) -> None:
        """The far side has ended its direction."""
        self.is_ended = True

    def freed(self) -> None:
        """It is over for ssh."""
        self.owner.over(self)

    def fail(self, error: Error) -> None:
        """It is not made; whoever has its socket already asks for the reason at its end."""
        if self.error is None:
            self.error = error
        done = self.done
        self.give_up()
        if done is not None:
            self.owner.soon(lambda: done(error))

    def give_up(self) -> None:
        """Nobody waits for it any more."""
        self.owner.answered(self)
        waited, self.done = self.done is not None, None
        made, self._socket = self._socket, None
        if waited and made is not None:
            made.close()

    def expire(self) -> None:
        """The far side has not answered in time."""
        made = self._socket if self.done is None else None
        problem = f"no answer in time through {self.owner.server}; is the host up and the port open?"
        self.fail(ConnectError(f"{self.name}: {problem}", reason="connect_timeout"))
        if made is not None:
            try:
                made.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # its holder has closed it
