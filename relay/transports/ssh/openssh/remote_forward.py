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

from ....addresses.values import TCPAddress, UnixAddress
from ....errors import CarrierError, ForwardError, RelayError
from ....eventloop.loop import Loop
from ....eventloop.poller import IN
from ..connection import Accepted, Address
from .channel_log import Arrival, Channels, is_plain, shown
from .control import Control, ControlError, close_forward, open_forward
from .diagnostics import said
from .master import Master
from .opening import Opening

__all__ = ["Listening"]

_BACKLOG = 4096
_AT_ONCE = 64  # streams that one listener takes before another has its turn
_PATIENCE = 1.0  # seconds for a listener to be taken back


class _Reverse:
    """One place where the server listens, or is to."""

    def __init__(self, place: Address, path: str, accepted: Accepted, answer: Future[Address]) -> None:
        self.asked = place
        self.place = place
        self.path = UnixAddress(path)
        self.key = shown(self.path)[0]
        self.accepted = accepted
        self.answer = answer
        self.arrivals: deque[Arrival] = deque()
        self.socket = socket.socket(socket.AF_UNIX)
        try:
            self.socket.bind(path)
            self.socket.listen(_BACKLOG)
            self.socket.setblocking(False)
        except BaseException:
            self.socket.close()
            raise

    @property
    def is_closed(self) -> bool:
        """Whether nobody takes its streams any more."""
        return self.socket.fileno() < 0

    def granted(self, port: int) -> Address | None:
        """Where the server listens, from the port that it tells (0 if none); ``None`` if that is no port."""
        if not _is_any_port(self.asked):
            return self.asked
        assert isinstance(self.asked, TCPAddress)
        return TCPAddress(self.asked.host, port) if 0 < port < 1 << 16 else None


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
        self._reverses: dict[Address, _Reverse] = {}
        # ssh keeps what it was asked, also where the server has refused, and connects the streams of a place to the
        # path that it was told first: a place has the same one for as long as ssh lives.
        self._paths: dict[Address, str] = {}
        self._number = 0
        self._unanswered: list[Future[Address]] = []  # the control socket broke; ssh is about to say why

    # -- any thread -----------------------------------------------------------------------------------------------

    def begin(self, place: Address, accepted: Accepted, deadline: float | None) -> Address:
        """Ask the server to listen, and wait for its answer; see :meth:`.connection.Connection.listen`.

        :raises ForwardError: if it does not.
        :raises CarrierError: if the connection is gone.
        """
        if not is_plain(place):
            raise ForwardError(f"{self._name}: ssh is given no name with control characters: {str(place)!a}")
        answer: Future[Address] = Future()
        if not self._loop.call(lambda: self._ask(place, accepted, answer)):
            raise self._gone()
        try:
            return answer.result(None if deadline is None else max(0.0, deadline - time.monotonic()))
        except NotInTime:
            if not answer.cancel():
                return answer.result()  # it comes at this moment
            problem = f"the server did not answer in time whether it listens at {place}"
            raise ForwardError(f"{self._name}: {problem}") from None

    def end(self, place: Address) -> None:
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
        unanswered, self._unanswered = self._unanswered, []
        for answer in unanswered:
            _fail(answer, self._gone())

    @property
    def _name(self) -> str:
        return self._master.settings.name

    def _gone(self) -> CarrierError:
        return self._master.gone or CarrierError(f"{self._name}: the connection is not up")

    def _ask(self, place: Address, accepted: Accepted, answer: Future[Address]) -> None:
        if self.control is None or self._master.gone is not None:
            _fail(answer, self._gone())
            return
        earlier = self._reverses.get(place)
        if earlier is not None and not earlier.answer.cancelled():
            _fail(answer, ForwardError(f"{self._name}: {place} is listened at already, over this connection"))
            return
        if earlier is not None:
            self._close(earlier)  # the server has not answered yet, and nobody waits for it any more
        try:
            reverse = _Reverse(place, self._path(place), accepted, answer)
        except OSError as error:
            _fail(answer, error)
            return
        if not _is_any_port(place):
            self._reverses[place] = reverse
        with self._master.lock:
            self._channels.arrivals[reverse.key] = reverse.arrivals
        request = open_forward(place, reverse.path, remote=True)
        self.control.request(request, lambda told: self._answered(reverse, told))

    def _path(self, place: Address) -> str:
        """Where ssh is to connect the streams of a place."""
        self._number += 1
        path = self._master.path(f"r{self._number}")
        return path if _is_any_port(place) else self._paths.setdefault(place, path)

    def _answered(self, reverse: _Reverse, told: int | RelayError) -> None:
        place = None if isinstance(told, RelayError) else reverse.granted(told)
        if place is None:
            self._refused(reverse, told)
            return
        if reverse.is_closed:
            return  # somebody else has asked since, or has asked to stop
        reverse.place = place
        self._reverses[place] = reverse
        self._loop.watch(reverse.socket.fileno(), IN, lambda event, now: self._accept(reverse))
        if reverse.answer.set_running_or_notify_cancel():
            reverse.answer.set_result(place)
        else:
            self._take_back(place, threading.Event())

    def _refused(self, reverse: _Reverse, told: int | RelayError) -> None:
        if not reverse.is_closed:
            self._close(reverse)
        if isinstance(told, int) and self.control is not None:  # ssh holds it for granted
            self.control.request(close_forward(reverse.asked, reverse.path, remote=True), lambda told: None)
        error = self._refusal(reverse.asked, told)
        if error is None:
            self._unanswered.append(reverse.answer)
        else:
            _fail(reverse.answer, error)

    def _refusal(self, place: Address, told: int | RelayError) -> RelayError | None:
        """Why the server does not listen there; ``None`` if that is known only when ssh has ended."""
        if isinstance(told, int):
            return ForwardError(f"{self._name}: the server says that it listens at the port {told}, which is none")
        if not isinstance(told, ControlError):
            words = self._last_words()  # a port that is none is the end of ssh
            return ForwardError(f"{self._name}: {words}") if "Invalid allocated port" in words else self._master.gone
        why = "it is in use there, or the server does not allow it (AllowTcpForwarding, GatewayPorts, PermitListen)"
        return ForwardError(f"{self._name}: the server does not listen at {place}: {told}; {why}")

    def _last_words(self) -> str:
        with self._master.lock:
            self._master.drain()
        return said(self._master.said())

    def _take_back(self, place: Address, over: threading.Event) -> None:
        reverse = self._reverses.get(place)
        if reverse is None or self.control is None or not reverse.answer.done():
            over.set()
            return
        self._accept(reverse)  # those that have come by now
        self._close(reverse)
        self.control.request(close_forward(reverse.asked, reverse.path, remote=True), lambda told: over.set())

    def _close(self, reverse: _Reverse) -> None:
        """Take no more of its streams; its path is free when this returns."""
        if self._reverses.get(reverse.place) is reverse:
            del self._reverses[reverse.place]
        self._loop.forget(reverse.socket.fileno(), closing=True)
        reverse.socket.close()
        with self._master.lock:
            self._master.drain()  # ssh says first where it connects: what did not get here is not the next one's
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


def _is_any_port(place: Address) -> bool:
    """Whether the server is to choose; each such place is another."""
    return isinstance(place, TCPAddress) and not place.port


def _fail(answer: Future[Address], error: OSError) -> None:
    if answer.set_running_or_notify_cancel():
        answer.set_exception(error)
