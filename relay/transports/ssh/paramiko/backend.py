"""SSH connections by paramiko; see :mod:`relay.transports.ssh.connection`."""

from __future__ import annotations

import errno
import struct
import threading
import time
from collections.abc import Callable
from functools import partial

import paramiko

from ....errors import CarrierError, ConnectError, RelayError
from ....eventloop.loop import Loop, Timer
from ....eventloop.poller import IN
from ....streams import exit_drain
from ....streams.promise import Cancel
from ....streams.stream import Stream
from ....streams.trace import SILENT, Stage, Trace, observed
from ..connection import (
    CLIENT_HINT,
    GREETING,
    KEY_EXCHANGE,
    LOGIN,
    Accepted,
    Address,
    IncompatibleError,
    Lost,
    OnResult,
    Place,
    Settings,
)
from ..login_failures import no_greeting
from .forwards import Forwards
from .host_keys import verify, wanted_algorithms
from .keepalive import Keepalive
from .login import authenticate
from .messages import DISCONNECT, printable, text
from .mux import Mux, Requests
from .opening import Opening
from .transport import Transport, choose_algorithms, is_exiting
from .wire import Wire

_GRACE = 0.4  # seconds to send the rest of the data, and for the server to close the connection
_STOP_TIMEOUT = 0.5  # seconds for the thread to end, after it was stopped
_LATE = 1.0  # seconds after the deadline until a thread that should have ended is left behind
_BY_APPLICATION = 11  # RFC 4253, section 11.1
_NEVER_OPENED = ("refused", "unreachable", "connect_timeout", "denied")  # of a stream that fails only at its EOF


def connect(
    settings: Settings, stream: Stream | None, deadline: float, cancel: Cancel, lost: Lost, trace: Trace = SILENT
) -> Connection:
    """Connect, verify the host's key, and only then log in; see :class:`relay.transports.ssh.connection.Connect`."""
    if stream is None:
        raise TypeError("stream: paramiko needs a connected stream, got None")
    try:
        wire = Wire(stream)
    except BaseException:
        stream.close()
        raise
    connection = Connection(settings, wire, lost)
    try:
        connection.begin(deadline, cancel, trace)
    except BaseException:
        connection.give_up()
        raise
    return connection


class Connection:
    """One SSH connection; see :class:`relay.transports.ssh.connection.Connection`.

    :param settings: the server and how to connect to it.
    :param wire: the socket of the connection, which owns it.
    :param lost: called once if the connection ends without :meth:`close`, and not before :meth:`begin` returns.
    """

    def __init__(self, settings: Settings, wire: Wire, lost: Lost) -> None:
        self._settings = settings
        self._wire = wire
        self._lost = lost
        self._lock = threading.Lock()
        self._up = self._is_reported = self._closed = False
        self._transport = Transport(wire, self._over)
        self._mux = Mux(self._transport, settings.name)
        self._requests = Requests(self._transport, self._mux)
        self._forwards = Forwards(self._transport, self._mux, self._requests)
        interval = settings.server.keepalive
        self._keepalive = Keepalive(self._mux, self._requests, interval, self._fail)

    # -- connecting -----------------------------------------------------------------------------------------------

    def begin(self, deadline: float, cancel: Cancel, trace: Trace = SILENT) -> None:
        """Connect; blocks. See :class:`relay.transports.ssh.connection.Connect`."""
        settings, transport = self._settings, self._transport
        try:
            choose_algorithms(transport, settings, wanted_algorithms(settings))
            # Set before the thread starts, which is the thread that owns the loop from then on.
            timer = self._limit(deadline, cancel)
            with observed(trace, Stage.KEY_EXCHANGE, settings.name, transport=transport):
                self._exchange_keys(deadline)
            key = transport.get_remote_server_key()
            with observed(trace, Stage.HOST_KEY, settings.name, settings=settings, blob=key.asbytes()):
                # Before any credential is sent: a server that is not the right one must learn neither password nor
                # keys.
                verify(settings, key)
            with observed(trace, Stage.LOGIN, settings.name) as facts:
                facts.update(authenticate(transport, settings))
            self._unlimit(timer, cancel)
        except (paramiko.SSHException, EOFError, OSError) as error:
            why = self._why(error)
            if isinstance(why, CarrierError) and self._transport.remote_version:
                why.stage = self._stage()
            if isinstance(why, CarrierError) and self._under() is not None:
                why.stage = ""  # the server has not ended it
            if why is error:
                raise
            raise why from error
        with self._lock:
            # Under the lock with `_report_loss`: a loss is either an error of this call or reported to the carrier,
            # never both.
            self._up = not self._wire.ending
        if not self._up:
            raise self._why(EOFError())
        exit_drain.track(self)

    def give_up(self) -> None:
        """Release a connection that was not established."""
        self._closed = True
        self._wire.end()
        # The thread was never started, so that it will not release the wire.
        if self._transport.ident is None:
            self._wire.release()
        else:
            self._transport.join(_STOP_TIMEOUT)

    def _limit(self, deadline: float, cancel: Cancel) -> Timer:
        """End the connection at the deadline, or when it is cancelled; the thread has not started yet."""
        timer = Timer(self._loop.timers, self._too_late)
        timer.start(deadline, time.monotonic())
        self._loop.watch(cancel.fileno(), IN, self._cancelled)
        return timer

    def _too_late(self, now: float) -> None:
        text = f"{self._settings.name}: no answer in time: {self._stage()}; check that it is an SSH server and alive"
        self._wire.end(ConnectError(text, reason="connect_timeout"))

    def _cancelled(self, event: int, now: float) -> None:
        self._wire.end(ConnectError(f"{self._settings.name}: the attempt was given up"))

    def _unlimit(self, timer: Timer, cancel: Cancel) -> None:
        done, descriptor = threading.Event(), cancel.fileno()

        def forget() -> None:
            timer.stop()
            self._loop.forget(descriptor)
            done.set()

        # Waited for, since the descriptor of `cancel` is closed after this, and its number may be another file's.
        if self._loop.call(forget):
            done.wait(_LATE)

    def _exchange_keys(self, deadline: float) -> None:
        transport, over = self._transport, threading.Event()
        try:
            transport.start_client(event=over)
        except RuntimeError as error:
            raise OSError(errno.EAGAIN, str(error)) from error
        # The timer on the loop ends the wire at the deadline; this limit is for a thread that hangs in paramiko.
        over.wait(max(0.0, deadline - time.monotonic()) + _LATE)
        if not transport.initial_kex_done or self._wire.ending:
            raise transport.get_exception() or EOFError()

    def _stage(self) -> str:
        """Return how far the connection has come."""
        if not self._transport.remote_version:
            return GREETING
        if not self._transport.initial_kex_done:
            return KEY_EXCHANGE
        return LOGIN

    def _why(self, error: BaseException) -> BaseException:
        """Return the error for a failed connect, in one line."""
        name, ended = self._settings.name, self._wire.error or self._thread_error()
        # The deadline, or a cancel: what paramiko then says of the end is a consequence.
        if isinstance(ended, ConnectError):
            return ended
        if (never_opened := self._never_opened()) is not None:
            return ConnectError(f"{name}: {never_opened}", reason=never_opened.reason)
        if isinstance(error, RelayError) and not (isinstance(error, CarrierError) and ended is not None):
            return error
        if isinstance(error, OSError) and not self._wire.ending:
            return error
        if isinstance(error, paramiko.ssh_exception.IncompatiblePeer) and (
            lacking := self._transport.lacking(str(error))
        ):
            return IncompatibleError(f"{name}: it and paramiko have no {lacking}; try {CLIENT_HINT}")
        end = str(ended) if ended is not None else printable(str(error)) or "the connection has ended"
        greeting = self._transport.packetizer.greeting
        if not self._transport.remote_version and (greeting or self._under() is None):
            return no_greeting(self._settings, greeting, end)
        return CarrierError(f"{name}: {end} ({self._stage()})")

    def _never_opened(self) -> ConnectError | None:
        """Return why the stream never reached the server, if the stream reports that only at its EOF."""
        under = self._under() if not self._transport.remote_version else None
        if isinstance(under, ConnectError) and under.reason in _NEVER_OPENED:
            return under
        return None

    def _under(self) -> BaseException | None:
        """Return why the stream to the server has ended, if that is known."""
        failure = self._wire.stream.failure
        return failure() if failure is not None else None

    def _thread_error(self) -> Exception | None:
        """Return the error that has ended the transport's thread, unless it is a rejected credential."""
        error = self._transport.saved_exception
        ours = isinstance(error, paramiko.SSHException) and not isinstance(error, paramiko.AuthenticationException)
        return error if ours else None

    # -- any thread -----------------------------------------------------------------------------------------------

    def open(
        self,
        place: Place,
        deadline: float | None,
        done: OnResult,
        *,
        self_contained: bool = False,
        confirmed: bool = False,
    ) -> Callable[[], object]:
        """Begin to open a stream; see :class:`relay.transports.ssh.connection.Connection`."""
        opening = Opening(self._mux, place, deadline, done, alone=self_contained)
        if not self._loop.call(opening.begin):
            # The loop accepts no more calls: its thread has ended, so the outcome is reported in this one.
            opening.resolve(self._ended())
        return opening.give_up

    router = ""  # see :class:`relay.carriers.link.Link`
    quiet = None  # a stream that is closed is given up after a time without progress; see :mod:`.channel`.

    def when_sent(self, done: Callable[[], object]) -> bool:
        """Call ``done`` at exit; see :class:`relay.streams.exit_drain.Sender`."""
        return self._loop.call(partial(self._mux.when_sent, done))

    def progress(self) -> float:
        """Return when the server has sent its last byte."""
        return self._wire.heard

    def listen(self, place: Address, accepted: Accepted, deadline: float | None) -> Address:
        """Ask the server to listen; see :class:`relay.transports.ssh.connection.Connection`."""
        return self._forwards.listen(place, accepted, deadline)

    def stop_listening(self, place: Address) -> None:
        """Cancel a remote forward; see :class:`relay.transports.ssh.connection.Connection`."""
        self._forwards.stop_listening(place)

    @property
    def _loop(self) -> Loop:
        return self._wire.loop

    @property
    def rtt(self) -> float | None:
        """The seconds until the last keepalive probe got its reply; ``None`` before the first one."""
        return self._keepalive.rtt

    @property
    def is_doubtful(self) -> bool:
        """``True`` if the last keepalive probe has got no reply."""
        return self._keepalive.is_late

    @property
    def streams(self) -> int:
        """The number of open streams."""
        return self._mux.streams

    def when_idle(self, call: Callable[[], object]) -> None:
        """Call ``call`` once no stream is open; see :class:`relay.transports.ssh.connection.Connection`."""
        if not self._loop.call(partial(self._mux.when_idle, call)):
            call()

    def confirm(self, done: Callable[[], object]) -> None:
        """Call ``done`` once the server has answered; see :class:`relay.transports.ssh.connection.Connection`."""
        self._loop.call(partial(self._keepalive.ask, done))

    def check(self) -> None:
        """Send a keepalive probe; see :class:`relay.transports.ssh.connection.Connection`."""
        self._keepalive.check()

    def probe(self, why: str) -> None:
        """Ask the server's system for an answer; see :meth:`relay.carriers.link.Link.probe`."""
        self._keepalive.probe(why)

    def close(self) -> None:
        """End it; see :class:`relay.transports.ssh.connection.Connection`."""
        with self._lock:
            self._closed = True
        self._loop.call(self._close)
        # A callback of a stream may close the connection, and a thread cannot join itself.
        if threading.current_thread() is not self._transport:
            self._transport.join(_GRACE + _STOP_TIMEOUT)

    def abandon(self) -> None:
        """In a forked child: close only the descriptors."""
        self._wire.abandon()
        self._mux.abandon()

    def __repr__(self) -> str:
        return f"<SSH connection to {self._settings.name} by paramiko>"

    # -- the transport's thread -----------------------------------------------------------------------------------

    def _fail(self, error: CarrierError) -> None:
        """End the connection: the server is dead or unreachable; on any thread."""
        self._wire.end(error)
        # At once, and not when the transport's thread ends: it may be what hangs.
        self._report_loss()

    def _close(self) -> None:
        """Fail the streams whose owner is there, send the data of the others for a moment, and disconnect."""
        now = time.monotonic()
        self._grace = Timer(self._loop.timers, lambda now: self._wire.end())
        self._grace.start(now + _GRACE, now)
        self._mux.close_streams(self._ended(), self._disconnect)
        self._requests.fail()

    def _disconnect(self) -> None:
        self._mux.send(struct.pack(">BI", DISCONNECT, _BY_APPLICATION) + text("closed") + text("en"))
        self._wire.flush()
        self._wire.end()

    def _over(self) -> None:
        """Fail all streams and requests: the thread ends."""
        self._mux.fail(self._ended())
        self._requests.fail()
        self._report_loss()

    def _report_loss(self) -> None:
        with self._lock:
            wanted = self._up and not self._is_reported and not self._closed and not is_exiting()
            self._is_reported = True
        if wanted:
            # Without the lock: the carrier calls back, for example to close this connection.
            self._lost(self._ended())

    def _ended(self) -> CarrierError:
        name, why = self._settings.name, self._wire.error or self._transport.saved_exception
        if self._closed:
            return CarrierError(f"{name}: the connection was closed")
        return CarrierError(f"{name}: the connection was lost: {printable(str(why or '')) or 'unknown reason'}")
