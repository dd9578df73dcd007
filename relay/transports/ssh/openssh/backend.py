"""The OpenSSH client as a backend: one master for each connection, plain kernel sockets for its streams."""

from __future__ import annotations

import functools
import logging
import math
import os
import select
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from ....addresses.hops import Command
from ....addresses.values import UnixAddress
from ....errors import CarrierError, ConnectError, RelayError
from ....eventloop.loop import Timer
from ....streams.cancellation import Cancel
from ....streams.stream import Stream
from ..connection import Accepted, Address, Connection, Lost, OnResult, Place, Settings
from .channel_log import Channels, is_plain, shown
from .control import Control, close_forward, open_forward
from .diagnostics import timeout_error
from .local_forward import Forward
from .master import Master
from .opening import Opening
from .remote_forward import Listening
from .sessions import Sessions
from .trust import check_pin, check_writable

__all__ = ["OpenSSH", "connect"]

logger = logging.getLogger("relay")

_FORWARDS = 64  # targets that keep a listener when nothing is under way to them


def connect(settings: Settings, stream: Stream | None, deadline: float, cancel: Cancel, lost: Lost) -> Connection:
    """Start ``ssh``, and wait until it is logged in.

    :param settings: whom, how. What the caller did not say is left to ssh and its configuration.
    :param stream: a connected stream to the server, owned from now on; ``None`` if ssh is to connect itself.
    :param deadline: monotonic seconds for all of it.
    :param cancel: ends it at once when set.
    :param lost: called once, in any thread, when the connection ends and nobody has closed it.
    :returns: the connection.
    :raises HostKeyError: if the server's key is not to be trusted.
    :raises AuthenticationError: if the server takes none of the credentials.
    :raises ConnectError: if it cannot be reached or does not answer in time.
    :raises CarrierError: if the connection was lost meanwhile, or what answers does not speak SSH.
    :raises RelayError: if there is no ``ssh``, it does not take its configuration, or has no algorithm in common with
        the server; final.
    :raises OSError: if there are no descriptors, threads or directories to be had.

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
    connection.start(deadline)
    try:
        connection.wait(deadline, cancel)
    except BaseException:
        connection.close()
        raise
    return connection


class OpenSSH:
    """A connection of the OpenSSH client; see :class:`relay.transports.ssh.connection.Connection`.

    The lock of its master guards what it knows of its streams; no callback is called while it is held.

    :param settings: whom, how.
    :param stream: as for :func:`connect`.
    :param lost: as for :func:`connect`.
    """

    def __init__(self, settings: Settings, stream: Stream | None, lost: Lost) -> None:
        self.server = settings.name
        self._lost = lost
        self._forwards: OrderedDict[Address, Forward] = OrderedDict()
        self._unanswered: dict[Opening, None] = {}  # those with a deadline
        self._patient: set[Opening] = set()  # those whose maker waits for the answer
        self._next = math.inf  # when the first of them is looked at
        self._count = 0  # streams that are not over
        self._when_idle: Callable[[], object] | None = None
        self._names = 0
        self._controls: list[Control] = []
        self._channels = Channels(self._arrived)
        self._master = Master(settings, stream, self)
        self.start = self._master.start
        self.loop = self._master.loop
        self.soon = self.loop.call
        self._timer = Timer(self.loop.timers, self._look_at_deadlines)
        self._listening = Listening(self._master, self._channels, self._unknown)
        self._sessions = Sessions(self._master, self._channels, self)

    def wait(self, deadline: float, cancel: Cancel) -> None:
        """Until it is up.

        :raises OSError: why it is not.
        """
        master = self._master
        poller = select.poll()
        poller.register(master.settled.fileno(), select.POLLIN)
        poller.register(cancel.fileno(), select.POLLIN)
        try:
            poller.poll(max(0.0, deadline - time.monotonic()) * 1000)
        finally:
            master.settled.close()
        if master.is_up:
            return
        if cancel.is_set():
            raise ConnectError(f"{master.settings.name}: the attempt was given up")
        raise master.failure() or timeout_error(master.settings, master.said())

    # -- streams, in any thread -----------------------------------------------------------------------------------

    def open(
        self, place: Place, deadline: float | None, done: OnResult, *, self_contained: bool = False
    ) -> Callable[[], object]:
        """Begin to make a stream; see :meth:`relay.transports.ssh.connection.Connection.open`.

        ``done`` is told as soon as ssh has the stream, unless it is ``self_contained`` or of a command: what the server
        answers is told by the stream's ``failure`` then.
        """
        if isinstance(place, Command):
            return self._sessions.open(place, Opening(self, str(place), done, deadline, patient=True))
        opening = Opening(self, str(place), done, deadline, patient=self_contained)
        made, told = None, None
        with self._master.lock:
            error: OSError | None = self._master.gone or self._objection(place)
            if error is None:
                self.begun(opening)
                forward = self._forward(place)
                made = forward.connect(opening)
                if made is not None:
                    told = opening.connected(made)
                elif forward.wants_help:
                    self._help(forward)
        if error is not None:
            done(error)
        elif told is not None and made is not None:
            told(opening.stream(made))
        return lambda: self._give_up(place, opening)

    def _give_up(self, place: Address, opening: Opening) -> None:
        with self._master.lock:
            opening.give_up()
            forward = self._forwards.get(place)
            if forward is not None and opening in forward.waiting:
                forward.waiting.remove(opening)
                self.over(opening)

    def _arrived(self) -> Opening:
        self._count += 1
        return Opening(self, self._master.settings.name)

    def _unknown(self) -> Opening:
        """A stream from the server of which ssh has said nothing (before OpenSSH 9.2)."""
        opening = Opening(self, self._master.settings.name)
        opening.is_traced = False
        return opening

    def _forward(self, place: Address) -> Forward:
        """The one that leads there; asked for if there is none."""
        forward = self._forwards.get(place)
        if forward is None:
            self._make_room()
            self._names += 1
            forward = self._forwards[place] = Forward(place, self._master.path(str(self._names)))
            self.soon(lambda: self._ask_for(forward))
        elif len(self._forwards) > 1:
            self._forwards.move_to_end(place)
        return forward

    def _objection(self, place: Address) -> ConnectError | None:
        """Why no stream is made to such a place."""
        if place in self._forwards:
            return None
        if not is_plain(place):
            return ConnectError(f"{str(place)!a}: ssh is given no name with control characters", reason="denied")
        if shown(place) in self._channels.expected:
            text = "another target is in use whose name begins with the same 100 characters"
            return ConnectError(f"{place}: {text}; use the backend paramiko")
        return None

    def _make_room(self) -> None:
        """Take back the listeners that were not used for longest."""
        for place, forward in list(self._forwards.items()):
            if len(self._forwards) < _FORWARDS:
                return
            if not forward.is_busy:
                del self._forwards[place]
                self._channels.expected.pop(forward.key, None)
                self.soon(functools.partial(self._take_back, forward))

    def begun(self, opening: Opening) -> None:
        """It is counted, and has a deadline. Called with the lock held."""
        self._count += 1
        if opening.patient and opening.done is not None:
            self._patient.add(opening)
            self.soon(self._master.listen_closely)
        if opening.deadline == math.inf or (opening.done is None and opening.error is not None):
            return
        self._unanswered[opening] = None
        if opening.deadline < self._next:
            self._next = opening.deadline
            self.soon(self._set_timer)

    # -- what openings tell, with the lock held -------------------------------------------------------------------

    def answered(self, opening: Opening) -> None:
        """It has no deadline any more."""
        self._unanswered.pop(opening, None)
        self._patient.discard(opening)

    def over(self, opening: Opening) -> None:
        """Nothing is left of it."""
        if opening.is_over or not self._count:
            return
        opening.is_over = True
        self._count -= 1
        if not self._count and self._when_idle is not None:
            call, self._when_idle = self._when_idle, None
            self.soon(call)

    def unsaid(self, opening: Opening) -> ConnectError | CarrierError | None:
        """Why a stream ends of which ssh has said nothing; without the lock."""
        master = self._master
        with master.lock:
            master.drain()
            if opening.error is not None or opening.is_ended:
                return opening.error
            if not opening.is_traced:
                return master.gone
            return master.gone or CarrierError(f"{opening.name}: ssh has ended, and the connection with it")

    # -- the rest of the contract ---------------------------------------------------------------------------------

    def listen(self, place: Address, accepted: Accepted, deadline: float | None) -> Address:
        """Ask the server to listen; see :meth:`relay.transports.ssh.connection.Connection.listen`."""
        return self._listening.begin(place, accepted, deadline)

    def stop_listening(self, place: Address) -> None:
        """Ask it to listen there no more; see :meth:`relay.transports.ssh.connection.Connection.stop_listening`."""
        self._listening.end(place)

    def when_idle(self, call: Callable[[], object]) -> None:
        """Have ``call`` called when no stream is left; see :class:`relay.transports.ssh.connection.Connection`."""
        with self._master.lock:
            idle = not self._count or self._master.gone is not None
            self._when_idle = None if idle else call
        if idle:
            call()

    def check(self) -> None:
        """Nothing: ssh asks the server itself (``ServerAliveInterval``), and ends if there is no answer."""

    def close(self) -> None:
        """End it and everything on it. Idempotent."""
        self._master.close()

    def abandon(self) -> None:
        """In a forked child: close the descriptors and nothing else."""
        self._master.abandon()
        for control in self._controls:
            control.abandon()
        self._sessions.abandon()
        self._listening.abandon()

    # -- what the master tells ------------------------------------------------------------------------------------

    def line(self, line: bytes) -> bool:
        """A line of standard error; with the lock held."""
        return self._channels.read(line)

    def is_urgent(self) -> bool:
        """Whether somebody waits for a line."""
        return bool(self._patient)

    def ready(self) -> None:
        """It has logged in, if its control socket is there; in the loop's thread."""
        path = self._master.path("control")
        # A remote forward holds up what is asked for after it, until the server has answered.
        self._controls = [Control(self.loop, path, self._control_broken) for _ in range(2)]
        self._listening.control = self._controls[1]

    def ended(self, error: CarrierError) -> None:
        """The process is gone; in the loop's thread."""
        self._sessions.ended(error)
        for control in self._controls:
            control.close()
        self._listening.close()
        self._timer.stop()
        with self._master.lock:
            for opening in self._all_unmade():
                opening.fail(error)
            self._channels.clear()
            self._forwards.clear()
            self._count = 0
            call, self._when_idle = self._when_idle, None
        if call is not None:
            call()
        if self._master.is_up and not self._master.was_closed:
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
            self._master.expect_end()

    def _ask_for(self, forward: Forward) -> None:
        if not self._controls:
            return  # it has ended, or never began
        listen = UnixAddress(forward.path)
        request = open_forward(listen, forward.place, remote=False)
        self._controls[0].request(request, lambda answer: self._granted(forward, answer))

    def _granted(self, forward: Forward, answer: int | RelayError) -> None:
        with self._master.lock:
            if isinstance(answer, RelayError):
                self._forwards.pop(forward.place, None)
                for opening in forward.waiting:
                    opening.fail(ConnectError(f"{forward.name}: ssh makes no forward there: {answer}"))
                    self.over(opening)
                return
            forward.is_ready = True
            self._channels.expected[forward.key] = forward.expected  # type: ignore[assignment]
            waiting = list(forward.waiting)
            forward.waiting.clear()
            for opening in waiting:
                made = forward.connect(opening)
                told = None if made is None else opening.connected(made)
                if told is not None and made is not None:
                    self.soon(functools.partial(told, opening.stream(made)))
            if forward.wants_help:
                self._help(forward)

    def _help(self, forward: Forward) -> None:
        """Its backlog is full: have a thread wait for room. With the lock held, in any thread."""
        forward.is_catching_up = True
        name = f"{self._master.name} backlog"
        self.soon(threading.Thread(target=self._catch_up, args=(forward,), name=name, daemon=True).start)

    def _catch_up(self, forward: Forward) -> None:
        while True:
            with self._master.lock:
                opening = forward.next_waiting()
            if opening is None:
                return
            made = forward.connect_blocking()
            with self._master.lock:
                if isinstance(made, OSError):
                    forward.not_connected(opening, made)
                    continue
                told = opening.connected(made)
            if told is not None:
                told(opening.stream(made))

    def _take_back(self, forward: Forward) -> None:
        request = close_forward(UnixAddress(forward.path), forward.place, remote=False)
        self._controls[0].request(request, lambda answer: self._unlink(forward))

    def _unlink(self, forward: Forward) -> None:
        try:
            os.unlink(forward.path)
        except OSError:
            pass  # ssh has done it, or the directory is gone

    def _set_timer(self) -> None:
        now = time.monotonic()
        with self._master.lock:
            due = self._next
        if due < math.inf:
            self._timer.start(due, now)

    def _look_at_deadlines(self, now: float) -> None:
        with self._master.lock:
            self._master.drain()
            for opening in [one for one in self._unanswered if one.deadline <= now]:
                opening.expire()
            self._next = min((one.deadline for one in self._unanswered), default=math.inf)
        self._set_timer()
