"""SSH connections by paramiko; see :mod:`relay.transports.ssh.connection`."""

from __future__ import annotations

import errno
import math
import struct
import threading
import time
from collections.abc import Callable
from functools import partial

import paramiko

from ....errors import CarrierError, ConnectError, RelayError
from ....eventloop.loop import Timer
from ....eventloop.poller import IN
from ....streams.cancellation import Cancel
from ....streams.stream import Stream
from ..config.algorithms import CLIENT_HINT
from ..connection import (
    GREETING,
    KEY_EXCHANGE,
    LOGIN,
    OVERLOADED,
    Accepted,
    Address,
    IncompatibleError,
    Lost,
    OnResult,
    Place,
    Settings,
)
from .forwards import Forwards
from .host_keys import verify, wanted_algorithms
from .login import authenticate
from .messages import DISCONNECT, printable, text
from .mux import Channels
from .opening import Opening
from .requests import Requests
from .transport import Transport, choose_algorithms, is_exiting
from .wire import Wire

__all__ = ["Connection", "connect"]

_GRACE = 0.4  # seconds for the rest of what was sent to go out, and for the server's goodbye
_PROMPT = 0.5  # seconds for the thread to end, once it was told to
_LATE = 1.0  # seconds after the deadline until a thread that should have ended is left behind
_SILENCE = 3  # times keepalive without a byte that a server may take
_STOPPED = 1.5  # times keepalive without a check, which only a process that was stopped leaves out
_BY_APPLICATION = 11  # RFC 4253, section 11.1
_NEVER_THERE = ("refused", "unreachable", "connect_timeout", "denied")  # of a stream whose end alone tells


def connect(settings: Settings, stream: Stream | None, deadline: float, cancel: Cancel, lost: Lost) -> Connection:
    """Connect, verify the host's key, and only then log in; see :class:`relay.transports.ssh.connection.Connect`."""
    if stream is None:
        raise TypeError("stream: paramiko connects over a stream that is there")
    try:
        wire = Wire(stream)
    except BaseException:
        stream.close()
        raise
    connection = Connection(settings, wire, lost)
    try:
        connection.begin(deadline, cancel)
    except BaseException:
        connection.give_up()
        raise
    return connection


class Connection:
    """One SSH connection; see :class:`relay.transports.ssh.connection.Connection`.

    :param settings: whom, how.
    :param wire: the way there. The connection owns it.
    :param lost: called once when the connection ends and nobody has closed it, but not before :meth:`begin` is over.
    """

    def __init__(self, settings: Settings, wire: Wire, lost: Lost) -> None:
        self._settings = settings
        self._wire = wire
        self._loop = wire.loop
        self._lost = lost
        self._lock = threading.Lock()
        self._up = self._told = self._closed = False
        self._transport = Transport(wire, self._over)
        self._channels = Channels(self._transport, settings.name)
        self._requests = Requests(self._transport, self._channels)
        self._forwards = Forwards(self._transport, self._channels, self._requests)
        self._silence = Timer(wire.loop.timers, self._look_for_life)
        self._asked = self._checked = -math.inf  # when a sign of life was asked for, and when that was thought of
        self._unheeded = 0  # checks that the transport's thread has not taken notice of

    # -- connecting -----------------------------------------------------------------------------------------------

    def begin(self, deadline: float, cancel: Cancel) -> None:
        """Connect; blocks. See :class:`relay.transports.ssh.connection.Connect`."""
        settings, transport = self._settings, self._transport
        try:
            choose_algorithms(transport, settings, wanted_algorithms(settings))
            timer = self._limit(deadline, cancel)
            self._exchange_keys(deadline)
            verify(settings, transport.get_remote_server_key())
            authenticate(transport, settings)
            self._unlimit(timer, cancel)
        except (paramiko.SSHException, EOFError, OSError) as error:
            why = self._why(error)
            if isinstance(why, CarrierError) and self._under() is None:
                why.stage = self._last_stage()
            if why is error:
                raise
            raise why from error
        with self._lock:
            self._up = not self._wire.ending
        if not self._up:
            raise self._why(EOFError())

    def give_up(self) -> None:
        """Let go of a connection that did not come up."""
        self._closed = True
        self._wire.end()
        if self._transport.ident is None:
            self._wire.release()
        else:
            self._transport.join(_PROMPT)

    def _limit(self, deadline: float, cancel: Cancel) -> Timer:
        """Have it end at the deadline, or when it is cancelled; the thread has not begun yet."""
        timer = Timer(self._loop.timers, self._too_late)
        timer.start(deadline, time.monotonic())
        self._loop.watch(cancel.fileno(), IN, self._cancelled)
        return timer

    def _too_late(self, now: float) -> None:
        text = f"{self._settings.name}: no answer in time: {self._stage()}; is it an SSH server, and alive?"
        self._wire.end(ConnectError(text, reason="connect_timeout"))

    def _cancelled(self, event: int, now: float) -> None:
        self._wire.end(ConnectError(f"{self._settings.name}: the attempt was given up"))

    def _unlimit(self, timer: Timer, cancel: Cancel) -> None:
        done = threading.Event()

        def forget() -> None:
            timer.stop()
            self._loop.forget(cancel.fileno())
            done.set()

        if self._loop.call(forget):
            done.wait(_LATE)

    def _exchange_keys(self, deadline: float) -> None:
        transport, over = self._transport, threading.Event()
        try:
            transport.start_client(event=over)
        except RuntimeError as error:
            raise OSError(errno.EAGAIN, str(error)) from error
        over.wait(max(0.0, deadline - time.monotonic()) + _LATE)
        if not transport.initial_kex_done or self._wire.ending:
            raise transport.get_exception() or EOFError()

    def _stage(self) -> str:
        """What it has come to."""
        if not self._transport.remote_version:
            return GREETING
        if not self._transport.initial_kex_done:
            return KEY_EXCHANGE
        return LOGIN

    def _last_stage(self) -> str:
        """Where the server has ended it; empty where that may pass: it is not up yet behind its port, or overloaded."""
        stage, said = self._stage(), self._transport.packetizer.greeting
        return "" if stage == GREETING and (not said or said.startswith(OVERLOADED)) else stage

    def _why(self, error: BaseException) -> BaseException:
        """Why it could not connect, as one line."""
        name, ended = self._settings.name, self._wire.error or self._stumbled()
        if isinstance(ended, ConnectError):
            return ended
        if (never_there := self._never_there()) is not None:
            return ConnectError(f"{name}: {never_there}", reason=never_there.reason)
        if isinstance(error, RelayError) and not (isinstance(error, CarrierError) and ended is not None):
            return error
        if isinstance(error, OSError) and not self._wire.ending:
            return error
        if isinstance(error, paramiko.ssh_exception.IncompatiblePeer) and (
            lacking := self._transport.lacking(str(error))
        ):
            return IncompatibleError(f"{name}: it and paramiko have no {lacking}; try {CLIENT_HINT}")
        said = self._transport.packetizer.greeting
        if not self._transport.remote_version and said:
            problem = f"it does not speak SSH, but says {printable(said)!r}; is this the right port?"
        elif ended is not None:
            problem = f"{ended} ({self._stage()})"
        else:
            problem = f"{printable(str(error)) or 'the connection has ended'} ({self._stage()})"
        return CarrierError(f"{name}: {problem}")

    def _never_there(self) -> ConnectError | None:
        """Why the stream to the server has never led there, which some learn from its end alone."""
        under = self._under() if not self._transport.remote_version else None
        if isinstance(under, ConnectError) and under.reason in _NEVER_THERE:
            return under
        return None

    def _under(self) -> BaseException | None:
        """Why the stream to the server has ended, where that is known."""
        failure = self._wire.stream.failure
        return failure() if failure is not None else None

    def _stumbled(self) -> Exception | None:
        """What the transport's thread has ended over, if nobody was told; the rest are refusals of a credential."""
        error = self._transport.saved_exception
        ours = isinstance(error, paramiko.SSHException) and not isinstance(error, paramiko.AuthenticationException)
        return error if ours else None

    # -- any thread -----------------------------------------------------------------------------------------------

    def open(
        self, place: Place, deadline: float | None, done: OnResult, *, self_contained: bool = False
    ) -> Callable[[], object]:
        """Begin to make a stream; see :class:`relay.transports.ssh.connection.Connection`."""
        opening = Opening(self._channels, place, deadline, done)
        if not self._loop.call(opening.begin):
            opening.tell(self._ended())
        return opening.give_up

    def listen(self, place: Address, accepted: Accepted, deadline: float | None) -> Address:
        """Ask the server to listen; see :class:`relay.transports.ssh.connection.Connection`."""
        return self._forwards.listen(place, accepted, deadline)

    def stop_listening(self, place: Address) -> None:
        """Ask it to listen no more; see :class:`relay.transports.ssh.connection.Connection`."""
        self._forwards.stop_listening(place)

    def when_idle(self, call: Callable[[], object]) -> None:
        """Have ``call`` called when no stream is open; see :class:`relay.transports.ssh.connection.Connection`."""
        if not self._loop.call(partial(self._channels.when_idle, call)):
            call()

    def check(self) -> None:
        """Ask for a sign of life; see :class:`relay.transports.ssh.connection.Connection`."""
        keepalive = self._settings.server.keepalive
        if keepalive is None:
            return
        self._unheeded += 1  # the time alone says nothing: it also passes while this process is stopped
        silent = time.monotonic() - self._wire.heard
        if self._unheeded > _SILENCE and silent > _SILENCE * keepalive:
            self._fall_silent(silent)
        else:
            self._loop.call(partial(self._ask_for_life, keepalive))

    def close(self) -> None:
        """End it; see :class:`relay.transports.ssh.connection.Connection`."""
        with self._lock:
            self._closed = True
        self._loop.call(self._leave)
        if threading.current_thread() is not self._transport:
            self._transport.join(_GRACE + _PROMPT)

    def abandon(self) -> None:
        """In a forked child: close the descriptors and nothing else."""
        self._wire.abandon()
        self._channels.abandon()

    def __repr__(self) -> str:
        return f"<SSH connection to {self._settings.name} by paramiko>"

    # -- the transport's thread -----------------------------------------------------------------------------------

    def _ask_for_life(self, keepalive: float) -> None:
        now = time.monotonic()
        self._unheeded = 0
        self._ask(now, keepalive)
        if self._silence.due == math.inf:
            self._silence.start(self._wire.heard + _SILENCE * keepalive, now)

    def _ask(self, now: float, keepalive: float) -> None:
        """Ask, if nobody has. Once more if there was no check for too long: then this process was stopped itself."""
        if not self._requests or now - self._checked > _STOPPED * keepalive:
            self._asked = now
            self._requests.ask("keepalive@openssh.com", b"", _nothing)
        self._checked = now

    def _look_for_life(self, now: float) -> None:
        """Judge the silence, after what lies in the socket was read. Whoever was asked has ``keepalive`` to answer."""
        keepalive = self._settings.server.keepalive
        assert keepalive is not None
        end = self._wire.heard + _SILENCE * keepalive
        if end <= now:
            self._ask(now, keepalive)
        due = max(end, self._asked + keepalive)
        if due > now:
            self._silence.start(due, now)
        else:
            self._fall_silent(now - self._wire.heard)

    def _fall_silent(self, seconds: float) -> None:
        """The server is dead or out of reach; from any thread."""
        self._wire.end(CarrierError(f"no answer for {seconds:.0f} s; is the server alive, and the network up?"))
        self._tell()

    def _leave(self) -> None:
        """Cut what is held, wait a moment for the rest to go out, and say goodbye."""
        now = time.monotonic()
        self._grace = Timer(self._loop.timers, lambda now: self._wire.end())
        self._grace.start(now + _GRACE, now)
        self._channels.leave(self._ended(), self._say_goodbye)
        self._requests.fail()

    def _say_goodbye(self) -> None:
        self._channels.send(struct.pack(">BI", DISCONNECT, _BY_APPLICATION) + text("closed") + text("en"))
        self._wire.flush()
        self._wire.end()

    def _over(self) -> None:
        """The thread ends."""
        self._channels.fail(self._ended())
        self._requests.fail()
        self._tell()

    def _tell(self) -> None:
        with self._lock:
            wanted = self._up and not self._told and not self._closed and not is_exiting()
            self._told = True
        if wanted:
            self._lost(self._ended())

    def _ended(self) -> CarrierError:
        name, why = self._settings.name, self._wire.error or self._transport.saved_exception
        if self._closed:
            return CarrierError(f"{name}: the connection was closed")
        return CarrierError(f"{name}: the connection was lost: {printable(str(why or '')) or 'no reason is known'}")


def _nothing(answer: bytes | None) -> None:
    pass
