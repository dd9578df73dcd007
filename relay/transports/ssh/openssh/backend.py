"""SSH connections by the OpenSSH client: one ``ssh`` for each connection, Unix sockets for its streams."""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import math
import os
import select
import socket
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Container

from ....addresses.hops import Command
from ....addresses.values import UnixAddress
from ....errors import CarrierError, ConnectError, RelayError
from ....eventloop.loop import Timer
from ....eventloop.sockets import Endpoint, connect_blocking
from ....streams import exit_drain
from ....streams.pair_end import LINGER
from ....streams.promise import Cancel
from ....streams.socket_proxy import self_contained as proxied
from ....streams.stream import Stream
from ....streams.trace import SILENT, Stage, Trace, observed
from ..connection import Accepted, Address, Connection, Lost, OnResult, Place, Settings
from .channel_log import ChannelLog, Key, is_plain, shown
from .control import Control, close_forward, open_forward
from .diagnostics import timeout_error
from .host_keys import check_pin, check_writable
from .master import Master
from .opening import Opening, OpenStreams
from .remote_forward import RemoteForwards
from .sessions import Sessions

logger = logging.getLogger("relay")

_FORWARDS = 64  # targets whose listener is kept when no stream is being opened
_BACKLOG_TIMEOUT = 60.0  # seconds for ssh to make room in a full backlog
_NONBLOCKING = socket.SOCK_STREAM | getattr(socket, "SOCK_NONBLOCK", 0)


def connect(
    settings: Settings, stream: Stream | None, deadline: float, cancel: Cancel, lost: Lost, trace: Trace = SILENT
) -> Connection:
    """Start ``ssh``, and wait until it is logged in; see :class:`relay.transports.ssh.connection.Connect`.

    What the caller has not set is left to ssh and its configuration.

    :raises RelayError: if there is no ``ssh``, it rejects its configuration, or has no algorithm in common with the
        server; final.
    :raises OSError: if the system has no descriptors, threads or directories left.

    Source: ssh(1), ssh_config(5), ``PROTOCOL.mux`` of OpenSSH.
    """
    try:
        check_pin(settings)
        check_writable(settings)
        connection = OpenSSH(settings, stream, lost)
    except BaseException:
        if stream is not None:
            stream.close()
        raise
    with observed(trace, Stage.SSH_CLIENT, settings.name):
        connection.start(deadline)
        try:
            connection.wait(deadline, cancel)
        except BaseException:
            connection.close()
            raise
    # Only a connection that has logged in can have anything to send.
    exit_drain.track(connection)
    return connection


def _self_contained(done: OnResult, outcome: Stream | OSError) -> None:
    """Report a stream whose socket is reset if the connection is lost."""
    if isinstance(outcome, Stream):
        failure = outcome.failure
        try:
            outcome = proxied(outcome, lambda: None, quiet=LINGER)
            outcome.failure = failure
        except OSError as error:
            outcome = error
    done(outcome)


class OpenSSH:
    """A connection of the OpenSSH client; see :class:`relay.transports.ssh.connection.Connection`.

    Its tables of states are those of its master and its streams (:mod:`.master`, :mod:`.opening`, :mod:`.sessions`).
    The lock of the master guards the state of the streams; no callback is called while it is held.

    :param settings: as for :func:`connect`, and so are the others.
    """

    def __init__(self, settings: Settings, stream: Stream | None, lost: Lost) -> None:
        self.server = settings.name
        self._lost = lost
        self._forwards: OrderedDict[Address, LocalForward] = OrderedDict()
        self._unanswered: dict[Opening, None] = {}  # streams with a deadline
        self._patient: set[Opening] = set()  # streams whose caller waits for the server's reply
        self._next = math.inf  # the first deadline
        self.rtt, self.is_doubtful = None, False  # ssh does not report its probes
        self.router = ""
        self._names = 0
        self._controls: list[Control] = []
        self._channels = ChannelLog(self._arrived)
        self._master = Master(settings, stream, self)
        self.start = self._master.start
        self.loop = self._master.loop
        self.soon = self.loop.call
        self._open = OpenStreams(self.soon)
        self._timer = Timer(self.loop.timers, self._expire_due)
        self._remote_forwards = RemoteForwards(self._master, self._channels, self._unknown)
        self._sessions = Sessions(self._master, self._channels, self)

    def wait(self, deadline: float, cancel: Cancel) -> None:
        """Wait until the login is complete.

        :param deadline: monotonic seconds.
        :param cancel: ends the wait when set.
        :raises OSError: if the login has failed.
        """
        master = self._master
        poller = select.poll()
        poller.register(master.settled.fileno(), select.POLLIN)
        poller.register(cancel.fileno(), select.POLLIN)
        try:
            poller.poll(max(0.0, deadline - time.monotonic()) * 1000)
        finally:
            master.settled.close()
        if master.has_logged_in:
            return
        if cancel.is_set():
            raise ConnectError(f"{master.settings.name}: the attempt was given up")
        raise master.failure() or timeout_error(master.settings, master.stderr_lines())

    # -- streams, in any thread -----------------------------------------------------------------------------------

    def open(
        self,
        place: Place,
        deadline: float | None,
        done: OnResult,
        *,
        self_contained: bool = False,
        confirmed: bool = False,
    ) -> Callable[[], object]:
        """Begin to open a stream; see :meth:`relay.transports.ssh.connection.Connection.open`.

        ``done`` is called as soon as ssh has the stream, unless it must be ``confirmed`` or is of a command. After that
        the stream's ``failure`` returns the reply of the server.
        """
        if isinstance(place, Command):
            opening = Opening(self, str(place), done, deadline, patient=True, alone=self_contained)
            return self._sessions.open(place, opening)
        if self_contained:  # the other end of the socket is ssh's, so that nothing could reset it
            done = functools.partial(_self_contained, done)
        opening = Opening(self, str(place), done, deadline, patient=self_contained or confirmed)
        made, report = None, None
        with self._master.lock:
            error: OSError | None = self._master.gone or objection(place, self._forwards, self._channels.expected)
            if error is None:
                self.begun(opening)
                forward = self._forward(place)
                made = forward.connect(opening)
                if made is not None:
                    report = opening.connected(made)
                elif forward.wants_help:
                    self._help(forward)
        if error is not None:
            done(error)
        # After the lock is released: the caller may open the next stream in its callback.
        elif report is not None and made is not None:
            report(opening.stream(made))
        return lambda: self._give_up(place, opening)

    def _give_up(self, place: Address, opening: Opening) -> None:
        with self._master.lock:
            opening.give_up()
            forward = self._forwards.get(place)
            # One that is connected already stays counted until ssh releases its channel.
            if forward is not None and opening in forward.waiting:
                forward.waiting.remove(opening)
                self.over(opening)

    def _arrived(self) -> Opening:
        opening = Opening(self, self._master.settings.name)
        self._open.add(opening)
        return opening

    def _unknown(self) -> Opening:
        """Make the opening for a stream from the server about which ssh has logged nothing (before OpenSSH 9.2)."""
        opening = Opening(self, self._master.settings.name)
        opening.is_traced = False
        return opening

    def _forward(self, place: Address) -> LocalForward:
        """Return the forward for a target; request one if there is none."""
        forward = self._forwards.get(place)
        if forward is None:
            self._make_room()
            self._names += 1
            forward = self._forwards[place] = LocalForward(place, self._master.path(str(self._names)))
            self.soon(lambda: self._ask_for(forward))
        elif len(self._forwards) > 1:
            # The order is that of their last use: the first one is cancelled when there are too many.
            self._forwards.move_to_end(place)
        return forward

    def _make_room(self) -> None:
        """Cancel the least recently used forwards."""
        for place, forward in list(self._forwards.items()):
            if len(self._forwards) < _FORWARDS:
                return
            # Else a stream on its way would be lost.
            if not forward.is_busy:
                del self._forwards[place]
                self._channels.expected.pop(forward.key, None)
                self.soon(functools.partial(self._cancel_forward, forward))

    def begun(self, opening: Opening) -> None:
        """Count a stream and watch its deadline. Called with the lock held."""
        self._open.add(opening)
        if opening.patient and opening.done is not None:
            self._patient.add(opening)
            # A caller waits for the server's answer, which is in the log: without this it would be read up to 20 ms
            # later.
            self.soon(self._master.read_at_once)
        if opening.deadline == math.inf or (opening.done is None and opening.error is not None):
            return
        self._unanswered[opening] = None
        if opening.deadline < self._next:
            self._next = opening.deadline
            self.soon(self._set_timer)

    # -- events of openings, with the lock held -------------------------------------------------------------------

    def answered(self, opening: Opening) -> None:
        """Stop watching the deadline of a stream."""
        self._unanswered.pop(opening, None)
        self._patient.discard(opening)

    def over(self, opening: Opening) -> None:
        """Stop counting a stream, which has ended."""
        self._open.remove(opening)

    def unexplained_error(self, opening: Opening) -> ConnectError | CarrierError | None:
        """Return why a stream has ended about which ssh has logged nothing; without the lock."""
        master = self._master
        with master.lock:
            # ssh logs an event before it acts on it, so whatever explains the EOF that was just read is in the pipe by
            # now.
            master.drain()
            if opening.error is not None or opening.is_ended:
                return opening.error
            if not opening.is_traced:
                return master.gone
            return master.gone or CarrierError(f"{opening.name}: ssh has ended, and the connection with it")

    def listen(self, place: Address, accepted: Accepted, deadline: float | None) -> Address:
        """Request a remote forward; see :meth:`relay.transports.ssh.connection.Connection.listen`."""
        return self._remote_forwards.begin(place, accepted, deadline)

    def stop_listening(self, place: Address) -> None:
        """Cancel a remote forward; see :meth:`relay.transports.ssh.connection.Connection.stop_listening`."""
        self._remote_forwards.end(place)

    @property
    def streams(self) -> int:
        """The number of streams that are open or being opened."""
        return len(self._open)

    quiet = LINGER  # seconds; see relay.streams.exit_drain.Sender

    def when_sent(self, done: Callable[[], object]) -> bool:
        """Call ``done`` at exit; see :class:`relay.streams.exit_drain.Sender`."""
        with self._master.lock:
            self._open.when_sent(done)
            return self._master.gone is None

    def progress(self) -> int:
        """Return how much ssh has written by now; replies to keepalive probes do not count."""
        return self._master.written() >> 14

    def when_idle(self, call: Callable[[], object]) -> None:
        """Call ``call`` once no stream is open; see :class:`relay.transports.ssh.connection.Connection`."""
        with self._master.lock:
            idle = not self._open or self._master.gone is not None
            self._open.when_idle(None if idle else call)
        if idle:
            call()

    def confirm(self, done: Callable[[], object]) -> None:
        """Call ``done`` at once: ssh has logged in, and it sends no further request on demand."""
        done()

    def check(self) -> None:
        """Do nothing: ssh sends its own keepalive probes (``ServerAliveInterval``), and ends without a reply."""

    def probe(self, why: str) -> None:
        """Ask the server's system for an answer; see :meth:`relay.carriers.link.Link.probe`."""
        self.soon(functools.partial(self._master.probe, why))

    def close(self) -> None:
        """Close the connection and its streams. Idempotent."""
        self._master.close()

    def abandon(self) -> None:
        """In a forked child: close only the descriptors."""
        self._master.abandon()
        for control in self._controls:
            control.abandon()
        self._sessions.abandon()
        self._remote_forwards.abandon()

    # -- events of the master -------------------------------------------------------------------------------------

    def line(self, line: bytes) -> bool:
        """Handle a line of standard error; with the lock held.

        :returns: whether it was handled; otherwise it is for the user.
        """
        return self._channels.read(line)

    def is_urgent(self) -> bool:
        """Return whether a caller waits for a line; on the loop's thread."""
        return bool(self._patient)

    def ready(self) -> None:
        """Connect to the control socket: ssh has logged in; on the loop's thread.

        :raises OSError: if there is none: then the line came from another program, such as ProxyCommand.
        """
        path = self._master.path("control")
        # A request for a remote forward delays the replies after it until the server has replied.
        self._controls = [Control(self.loop, path, self._control_broken) for _ in range(2)]
        self._remote_forwards.control = self._controls[1]

    def ended(self, error: CarrierError, *, is_lost: bool) -> None:
        """Fail everything: the process has ended; on the loop's thread.

        :param error: why it has ended.
        :param is_lost: whether it was up, and relay has not closed it.
        """
        self._sessions.ended(error)
        for control in self._controls:
            control.close()
        self._remote_forwards.close()
        self._timer.stop()
        with self._master.lock:
            # Without their callbacks here: `fail` leaves them to the loop, which calls them without the lock.
            for opening in self._all_unmade():
                opening.fail(error)
            self._channels.clear()
            self._forwards.clear()
            self._open.clear()
        if is_lost:
            self._lost(error)

    def _all_unmade(self) -> list[Opening]:
        unmade = list(self._unanswered)
        for forward in self._forwards.values():
            unmade += [*forward.waiting, *forward.expected]
        return unmade

    # -- the loop's thread ----------------------------------------------------------------------------------------

    def _control_broken(self, error: RelayError) -> None:
        if self._master.gone is None:
            logger.debug("%s: %s", self._master.settings.name, error)
            # ssh closes its control socket when it ends; one that only closes this is of no use without it.
            self._master.expect_end()

    def _ask_for(self, forward: LocalForward) -> None:
        if not self._controls:
            return  # ssh has ended
        listen = UnixAddress(forward.path)
        request = open_forward(listen, forward.place, remote=False)
        self._controls[0].request(request, lambda answer: self._granted(forward, answer))

    def _granted(self, forward: LocalForward, answer: int | RelayError) -> None:
        if isinstance(answer, CarrierError):
            return  # ssh ends: what waits fails with the reason for that
        with self._master.lock:
            if isinstance(answer, RelayError):
                self._forwards.pop(forward.place, None)
                for opening in forward.waiting:
                    opening.fail(ConnectError(f"{forward.name}: ssh rejects the forward: {answer}"))
                    self.over(opening)
                return
            forward.is_ready = True
            self._channels.expected[forward.key] = forward.expected  # type: ignore[assignment]
            waiting = list(forward.waiting)
            forward.waiting.clear()
            for opening in waiting:
                made = forward.connect(opening)
                report = None if made is None else opening.connected(made)
                if report is not None and made is not None:
                    self.soon(functools.partial(report, opening.stream(made)))
            if forward.wants_help:
                self._help(forward)

    def _help(self, forward: LocalForward) -> None:
        """Start a thread that waits for room in a full backlog. With the lock held, on any thread."""
        forward.is_connecting = True
        name = f"{self._master.name} backlog"
        self.soon(threading.Thread(target=self._connect_waiting, args=(forward,), name=name, daemon=True).start)

    def _connect_waiting(self, forward: LocalForward) -> None:
        while True:
            with self._master.lock:
                opening = forward.next_waiting()
            if opening is None:
                return
            # Without the lock: it may wait for a minute, while the lines that make room must be read.
            made = forward.connect_blocking()
            with self._master.lock:
                if isinstance(made, OSError):
                    forward.not_connected(opening, made)
                    continue
                report = opening.connected(made)
            if report is not None:
                report(opening.stream(made))

    def _cancel_forward(self, forward: LocalForward) -> None:
        request = close_forward(UnixAddress(forward.path), forward.place, remote=False)
        self._controls[0].request(request, lambda answer: self._unlink(forward))

    def _unlink(self, forward: LocalForward) -> None:
        with contextlib.suppress(OSError):  # ssh has removed it, or the directory
            os.unlink(forward.path)

    def _set_timer(self) -> None:
        now = time.monotonic()
        with self._master.lock:
            due = self._next
        if due < math.inf:
            self._timer.start(due, now)

    def _expire_due(self, now: float) -> None:
        with self._master.lock:
            self._master.drain()
            for opening in [one for one in self._unanswered if one.deadline <= now]:
                opening.expire()
            self._next = min((one.deadline for one in self._unanswered), default=math.inf)
        self._set_timer()


def objection(place: Address, known: Container[Address], expected: Container[Key]) -> ConnectError | None:
    """Return why a target is unsupported.

    :param place: the target.
    :param known: the targets in use.
    :param expected: the targets in use, as ssh logs them.
    """
    if place in known:
        return None
    if not is_plain(place):
        return ConnectError(f"{str(place)!a}: control characters in an address are not supported", reason="denied")
    if shown(place) in expected:
        text = "another target in use begins with the same 100 characters"
        return ConnectError(f"{place}: {text}; use the backend paramiko")
    return None


class LocalForward:
    """A local forward: one target, and ssh's listener for it, a Unix socket. A connect to that opens a stream.

    Every method but :meth:`connect_blocking` is called with the owner's lock held.

    :param place: the target.
    :param path: the path of the listener.
    """

    def __init__(self, place: Address, path: str) -> None:
        self.place = place
        self.path = path
        self.name = str(place)
        self.key = shown(place)
        self.is_ready = False
        self.is_connecting = False  # a thread connects the waiting streams, one after another
        self.waiting: deque[Opening] = deque()
        self.expected: deque[Opening] = deque()  # not yet in ssh's log; in the order of their connects

    @property
    def is_busy(self) -> bool:
        """True while a stream is being opened by the listener."""
        return not self.is_ready or self.is_connecting or bool(self.waiting or self.expected)

    @property
    def wants_help(self) -> bool:
        """True if its backlog is full, and no thread waits for room yet."""
        return self.is_ready and bool(self.waiting) and not self.is_connecting

    def connect(self, opening: Opening) -> socket.socket | None:
        """Connect a stream; ``None`` if that has failed, or if it waits for :meth:`connect_blocking`."""
        # Behind those that wait: ssh's log names streams by the order of their connects only.
        if not self.is_ready or self.waiting or self.is_connecting:
            self.waiting.append(opening)
            return None
        try:
            made = socket.socket(socket.AF_UNIX, _NONBLOCKING)
        except OSError as error:
            self._failed(opening, error)
            return None
        if _NONBLOCKING == socket.SOCK_STREAM:
            made.setblocking(False)
        status = made.connect_ex(self.path)
        if status == 0:
            # With the lock held since before the connect, so that no line about it can have been read yet.
            self.expected.append(opening)
            return made
        made.close()
        if status == errno.EAGAIN:
            self.waiting.append(opening)
        else:
            self._failed(opening, OSError(status, os.strerror(status)))
        return None

    def next_waiting(self) -> Opening | None:
        """Return the next waiting stream, for the thread that connects them; ``None`` if there is none."""
        self.is_connecting = bool(self.waiting)
        if not self.waiting:
            return None
        opening = self.waiting.popleft()
        self.expected.append(opening)  # before its connect, because ssh may be faster
        return opening

    def connect_blocking(self) -> socket.socket | OSError:
        """Connect as soon as the backlog has room; without the lock, on the thread for waiting streams."""
        try:
            made = socket.socket(socket.AF_UNIX)
        except OSError as error:
            return error
        status = connect_blocking(made, Endpoint(socket.AF_UNIX, self.path), time.monotonic() + _BACKLOG_TIMEOUT)
        if status == 0:
            return made
        made.close()
        return OSError(status, os.strerror(status))

    def not_connected(self, opening: Opening, error: OSError) -> None:
        """Report that the connect of a waiting stream has failed."""
        # It never connected: the next line of the log is about the one behind it.
        self.expected.remove(opening)
        self._failed(opening, error)

    def _failed(self, opening: Opening, error: OSError) -> None:
        gone = error.errno in (errno.ECONNREFUSED, errno.ENOENT, errno.ECONNRESET)
        text = f"{self.name}: ssh accepts no stream: {error.strerror}"
        opening.fail(CarrierError(text) if gone else ConnectError(text))
        opening.owner.over(opening)
