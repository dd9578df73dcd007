"""Reverse forwards: the server listens, ssh connects to a listener of ours for each stream that comes."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotInTime

from ...address import TCPAddress, UnixAddress
from ...errors import CarrierError, ForwardError, RelayError
from ...loop import Loop
from ...poller import IN
from ..connection import Accepted, Place
from .channels import Arrival, Channels, is_plain, shown
from .master import Master
from .multiplexing import Control, ControlError, close_forward, open_forward
from .opening import Opening

__all__ = ["Listening"]

_BACKLOG = 4096
_AT_ONCE = 64  # streams that one listener takes before another has its turn
_PATIENCE = 1.0  # seconds for a listener to be taken back


class _Reverse:
    """One place where the server listens, or is to."""

    def __init__(self, place: Place, path: str, accepted: Accepted) -> None:
        self.asked = place
        self.place = place
        self.path = UnixAddress(path)
        self.key = shown(self.path)[0]
        self.accepted = accepted
        self.arrivals: deque[Arrival] = deque()
        self.socket = socket.socket(socket.AF_UNIX)
        try:
            self.socket.bind(path)
            self.socket.listen(_BACKLOG)
            self.socket.setblocking(False)
        except BaseException:
            self.socket.close()
            raise


class Listening:
    """The reverse forwards of one connection.

    :param master: the process.
    :param channels: tells who has come.
    :param make: makes what is told of a stream whose channel is not known.
    """

    def __init__(self, master: Master, channels: Channels, make: Callable[[], Opening]) -> None:
        self.control: Control | None = None
        self._master = master
        self._loop: Loop = master.loop
        self._channels = channels
        self._make = make
        self._reverses: dict[Place, _Reverse] = {}
        self._number = 0

    # -- any thread -----------------------------------------------------------------------------------------------

    def begin(self, place: Place, accepted: Accepted, deadline: float | None) -> Place:
        """Ask the server to listen, and wait for its answer; as :meth:`relay.secureshell.connection.Connection.listen`.

        :raises ForwardError: if it does not.
        :raises CarrierError: if the connection is gone.
        """
        if not is_plain(place):
            raise ForwardError(f"{self._name}: ssh is given no name with control characters: {str(place)!a}")
        answer: Future[Place] = Future()
        if not self._loop.call(lambda: self._ask(place, accepted, answer)):
            raise self._gone()
        try:
            return answer.result(None if deadline is None else max(0.0, deadline - time.monotonic()))
        except NotInTime:
            answer.cancel()
            if answer.done() and not answer.cancelled():
                return answer.result()
            raise ForwardError(
                f"{self._name}: the server did not answer in time whether it listens at {place}"
            ) from None

    def end(self, place: Place) -> None:
        """Ask it to listen there no more, and wait a second at most."""
        over = threading.Event()
        if self._loop.call(lambda: self._take_back(place, over)):
            over.wait(_PATIENCE)

    def abandon(self) -> None:
        """In a forked child."""
        for reverse in self._reverses.values():
            reverse.socket.close()

    # -- the loop's thread ----------------------------------------------------------------------------------------

    def close(self) -> None:
        """The connection is gone."""
        reverses, self._reverses = self._reverses, {}
        for reverse in reverses.values():
            self._close(reverse)

    @property
    def _name(self) -> str:
        return self._master.settings.name

    def _gone(self) -> CarrierError:
        return self._master.gone or CarrierError(f"{self._name}: the connection is not up")

    def _ask(self, place: Place, accepted: Accepted, answer: Future[Place]) -> None:
        if self.control is None or self._master.gone is not None:
            answer.set_exception(self._gone())
            return
        if place in self._reverses:
            answer.set_exception(ForwardError(f"{self._name}: {place} is listened at already, over this connection"))
            return
        self._number += 1
        try:
            reverse = _Reverse(place, self._master.path(f"r{self._number}"), accepted)
        except OSError as error:
            answer.set_exception(error)
            return
        with self._master.lock:
            self._channels.arrivals[reverse.key] = reverse.arrivals
        request = open_forward(place, reverse.path, remote=True)
        self.control.request(request, lambda told: self._answered(reverse, told, answer))

    def _answered(self, reverse: _Reverse, told: int | RelayError, answer: Future[Place]) -> None:
        if isinstance(told, RelayError):
            self._close(reverse)
            if answer.set_running_or_notify_cancel():
                answer.set_exception(self._refusal(reverse.asked, told))
            return
        if told and isinstance(reverse.asked, TCPAddress):
            reverse.place = TCPAddress(reverse.asked.host, told)
        self._reverses[reverse.place] = reverse
        self._loop.watch(reverse.socket.fileno(), IN, lambda event, now: self._accept(reverse))
        if answer.set_running_or_notify_cancel():
            answer.set_result(reverse.place)
        else:
            self._take_back(reverse.place, threading.Event())

    def _refusal(self, place: Place, told: RelayError) -> RelayError:
        if not isinstance(told, ControlError):
            return self._gone()
        why = "it is in use there, or the server does not allow it (AllowTcpForwarding, GatewayPorts, PermitListen)"
        return ForwardError(f"{self._name}: the server does not listen at {place}: {told}; {why}")

    def _take_back(self, place: Place, over: threading.Event) -> None:
        reverse = self._reverses.pop(place, None)
        if reverse is None or self.control is None:
            over.set()
            return

        def taken_back(told: int | RelayError) -> None:
            self._accept(reverse)  # those that have come by now
            self._close(reverse)
            over.set()

        self.control.request(close_forward(reverse.asked, reverse.path, remote=True), taken_back)

    def _close(self, reverse: _Reverse) -> None:
        self._loop.forget(reverse.socket.fileno(), closing=True)
        reverse.socket.close()
        with self._master.lock:
            self._channels.arrivals.pop(reverse.key, None)
        try:
            os.unlink(reverse.path.path)
        except OSError:
            pass  # the directory is gone

    def _accept(self, reverse: _Reverse) -> None:
        for _ in range(_AT_ONCE):
            try:
                made, _ = reverse.socket.accept()
            except OSError:
                return
            made.setblocking(False)
            with self._master.lock:
                self._master.drain()
                arrival = reverse.arrivals.popleft() if reverse.arrivals else None
            opening = arrival.channel if arrival is not None else self._make()
            assert isinstance(opening, Opening)
            reverse.accepted(opening.stream(made), arrival.peer if arrival is not None else "")
