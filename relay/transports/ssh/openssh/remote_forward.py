"""Remote forwards: the server listens; for each connection ssh connects to a Unix socket at which relay listens."""

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
from .channel_log import Arrival, ChannelLog, is_plain, shown
from .control import Control, ControlError, close_forward, open_forward
from .diagnostics import said
from .master import Master
from .opening import Opening

_BACKLOG = 4096
_AT_ONCE = 64  # streams that one listener accepts before another one has its turn
_CANCEL_TIMEOUT = 1.0  # seconds for the reply to a cancellation


class _RemoteForward:
    """One address at which the server listens, or is about to."""

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
        """True after its listener was closed."""
        return self.socket.fileno() < 0

    def granted(self, port: int) -> Address | None:
        """Return the address at which the server listens.

        :param port: the port that it has chosen; 0 if it had no choice.
        :returns: the address; ``None`` if that is no port.
        """
        if not _is_any_port(self.asked):
            return self.asked
        assert isinstance(self.asked, TCPAddress)
        return TCPAddress(self.asked.host, port) if 0 < port < 1 << 16 else None


class RemoteForwards:
    """The remote forwards of one connection.

    :param master: the process.
    :param channels: its log of channels, with the peer of each stream.
    :param make: makes the opening for a stream whose channel is unknown.
    """

    def __init__(self, master: Master, channels: ChannelLog, make: Callable[[], Opening]) -> None:
        self.control: Control | None = None
        self._master = master
        self._loop: Loop = master.loop
        self._channels = channels
        self._make = make
        self._forwards: dict[Address, _RemoteForward] = {}
        # ssh keeps each request, also one that the server has rejected, and connects the streams of an address to the
        # path of the first request: an address has the same path as long as ssh runs.
        self._paths: dict[Address, str] = {}
        self._number = 0
        self._unanswered: list[Future[Address]] = []  # the control socket broke; ssh is about to log why

    # -- any thread -----------------------------------------------------------------------------------------------

    def begin(self, place: Address, accepted: Accepted, deadline: float | None) -> Address:
        """Request a forward, and wait for the reply; see :meth:`.connection.Connection.listen`.

        :raises ForwardError: if the server rejects it, or does not reply in time.
        :raises CarrierError: if the connection is lost.
        """
        if not is_plain(place):
            raise ForwardError(f"{self._name}: control characters in an address are not supported: {str(place)!a}")
        answer: Future[Address] = Future()
        if not self._loop.call(lambda: self._ask(place, accepted, answer)):
            raise self._gone()
        try:
            return answer.result(None if deadline is None else max(0.0, deadline - time.monotonic()))
        except NotInTime:
            if not answer.cancel():
                return answer.result()  # the reply arrives at this moment
            problem = f"no reply in time to the request to listen at {place}"
            raise ForwardError(f"{self._name}: {problem}") from None

    def end(self, place: Address) -> None:
        """Cancel a forward, and wait for a second at most."""
        over = threading.Event()
        if self._loop.call(lambda: self._take_back(place, over)):
            over.wait(_CANCEL_TIMEOUT)

    def abandon(self) -> None:
        """In a forked child: close only the descriptors."""
        for forward in self._forwards.values():
            forward.socket.close()

    # -- the loop's thread ----------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close everything: the connection has ended."""
        forwards, self._forwards = self._forwards, {}
        for forward in forwards.values():
            self._close(forward)
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
        earlier = self._forwards.get(place)
        if earlier is not None and not earlier.answer.cancelled():
            _fail(answer, ForwardError(f"{self._name}: {place} is in use by another listener of this connection"))
            return
        if earlier is not None:
            self._close(earlier)  # no reply yet, and its caller does not wait any more
        try:
            # Listening before the request is sent: the server's first client may come with its reply.
            forward = _RemoteForward(place, self._path(place), accepted, answer)
        except OSError as error:
            _fail(answer, error)
            return
        # Known by its address before the reply, so that a second request for it is rejected; a chosen port is known
        # after it.
        if not _is_any_port(place):
            self._forwards[place] = forward
        with self._master.lock:
            self._channels.arrivals[forward.key] = forward.arrivals
        request = open_forward(place, forward.path, remote=True)
        self.control.request(request, lambda reply: self._answered(forward, reply))

    def _path(self, place: Address) -> str:
        """Return the path to which ssh connects the streams of an address."""
        self._number += 1
        path = self._master.path(f"r{self._number}")
        return path if _is_any_port(place) else self._paths.setdefault(place, path)

    def _answered(self, forward: _RemoteForward, reply: int | RelayError) -> None:
        place = None if isinstance(reply, RelayError) else forward.granted(reply)
        if place is None:
            self._refused(forward, reply)
            return
        if forward.is_closed:
            return  # it was cancelled, or replaced by a later request
        forward.place = place
        self._forwards[place] = forward
        self._loop.watch(forward.socket.fileno(), IN, lambda event, now: self._accept(forward))
        # The reply and the caller's deadline may meet: one of them wins here, and a forward without a caller is
        # cancelled.
        if forward.answer.set_running_or_notify_cancel():
            forward.answer.set_result(place)
        else:
            self._take_back(place, threading.Event())

    def _refused(self, forward: _RemoteForward, reply: int | RelayError) -> None:
        if not forward.is_closed:
            self._close(forward)
        if isinstance(reply, int) and self.control is not None:  # ssh regards it as granted
            self.control.request(close_forward(forward.asked, forward.path, remote=True), lambda reply: None)
        error = self._refusal(forward.asked, reply)
        if error is None:
            self._unanswered.append(forward.answer)
        else:
            _fail(forward.answer, error)

    def _refusal(self, place: Address, reply: int | RelayError) -> RelayError | None:
        """Return why the server does not listen there; ``None`` if that is known only when ssh has ended."""
        if isinstance(reply, int):
            return ForwardError(f"{self._name}: the server reports an invalid port: {reply}")
        if not isinstance(reply, ControlError):
            words = self._last_words()  # ssh ends at an invalid port
            return ForwardError(f"{self._name}: {words}") if "Invalid allocated port" in words else self._master.gone
        remedy = "check that it is free there, and AllowTcpForwarding, GatewayPorts and PermitListen"
        return ForwardError(f"{self._name}: the server does not listen at {place}: {reply}; {remedy}")

    def _last_words(self) -> str:
        with self._master.lock:
            self._master.drain()
        return said(self._master.stderr_lines())

    def _take_back(self, place: Address, over: threading.Event) -> None:
        forward = self._forwards.get(place)
        if forward is None or self.control is None or not forward.answer.done():
            over.set()
            return
        self._accept(forward)  # the streams that have arrived already
        self._close(forward)
        self.control.request(close_forward(forward.asked, forward.path, remote=True), lambda reply: over.set())

    def _close(self, forward: _RemoteForward) -> None:
        """Accept no more of its streams; its path is free when this returns."""
        if self._forwards.get(forward.place) is forward:
            del self._forwards[forward.place]
        self._loop.forget(forward.socket.fileno())
        forward.socket.close()
        with self._master.lock:
            self._master.drain()  # ssh logs a connect before it connects: no arrival may be left for the next forward
            self._channels.arrivals.pop(forward.key, None)
        try:
            os.unlink(forward.path.path)
        except OSError:
            pass  # the directory is gone

    def _accept(self, forward: _RemoteForward) -> None:
        for _ in range(_AT_ONCE):
            try:
                made, _ = forward.socket.accept()
            except OSError:
                return
            made.setblocking(False)
            with self._master.lock:
                # Before the stream is matched: ssh has logged whom it is for before it connected.
                self._master.drain()
                arrival = forward.arrivals.popleft() if forward.arrivals else None
            opening = arrival.channel if arrival is not None else self._make()
            assert isinstance(opening, Opening)
            forward.accepted(opening.stream(made), arrival.peer if arrival is not None else "")


def _is_any_port(place: Address) -> bool:
    """Return whether the server chooses the port; each such address is another one."""
    return isinstance(place, TCPAddress) and not place.port


def _fail(answer: Future[Address], error: OSError) -> None:
    if answer.set_running_or_notify_cancel():
        answer.set_exception(error)
