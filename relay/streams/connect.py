"""Dialing sockets: one driver of the connect race for every loop, and the dialer that needs nothing but a connect."""

from __future__ import annotations

import copy
import errno
import functools
import os
import socket
import threading
import time
from collections.abc import Callable, Hashable, Sequence

from ..errors import ConnectError
from ..eventloop.background import Home, IOThread
from ..eventloop.loop import Loop, Timer
from ..eventloop.poller import OUT
from ..eventloop.sockets import Endpoint, connect_blocking, connect_error, open_socket
from .dialer import Dialer, Engine
from .happy_eyeballs import HappyEyeballs, interleave
from .lookups import BoundName, Found, Lookups, Name, key_of
from .promise import Abort, OnResult
from .source import Source
from .stream import Stream
from .trace import SILENT, Stage, Step

_LOOKUP_TIMEOUT = 30.0  # seconds after which a look-up counts as hung: the next dial starts another one


class ConnectRace:
    """A connect to the first of several addresses that answers (RFC 8305). Belongs to the thread of its loop.

    :param loop: watches the sockets.
    :param begin: begins one connect; :func:`relay.eventloop.sockets.open_socket` describes what it returns and raises.
    :param submit: calls a function on a thread that may block; raises :class:`RuntimeError` if there is no thread.
    :param deadline: monotonic seconds for a connect on such a thread, or ``None``; the caller watches the clock.
    :param done: called once with the connected socket, which the loop does not watch, or with the error, and with the
        time (monotonic seconds).
    """

    __slots__ = ("_loop", "_begin", "_submit", "_deadline", "_done", "_order", "_running", "_timer")

    def __init__(
        self,
        loop: Loop,
        begin: Callable[[Endpoint], tuple[socket.SocketType, int]],
        submit: Callable[[Callable[[], object]], object],
        deadline: float | None,
        done: Callable[[socket.SocketType | OSError, float], object],
    ) -> None:
        self._loop = loop
        self._begin = begin
        self._submit = submit
        self._deadline = deadline
        self._done: Callable[[socket.SocketType | OSError, float], object] | None = done
        self._order: HappyEyeballs | None = None  # None if there is one address, which is being connected to
        self._running: dict[int, tuple[socket.SocketType, Endpoint]] = {}
        self._timer: Timer | None = None

    def start(self, endpoints: Sequence[Endpoint], now: float) -> None:
        """Connect to the first of these addresses that answers."""
        self._order = HappyEyeballs(endpoints)
        self._next(now)

    def go_on(self, made: socket.SocketType, endpoint: Endpoint, status: int, now: float) -> None:
        """Go on with a connect to the only address, which was begun already."""
        self._begun(made, endpoint, status, now)

    def give_up(self) -> None:
        """Close every socket; ``done`` is not called any more. Idempotent."""
        self._done = None
        self._stop()

    def after_fork(self) -> None:
        """Close a forked child's copies of the sockets."""
        for made, _ in self._running.values():
            made.close()

    def crashed(self, now: float) -> None:
        """Fail because of a bug in a handler."""
        self._finish(ConnectError("a bug in relay; the log has it", reason="factory_error"), now)

    def _next(self, now: float) -> None:
        order = self._order
        assert order is not None
        # A connect may be over at once, by success or refusal: then `next` gives the address after it without a delay,
        # and `_done` is None after a success.
        while self._done is not None and (endpoint := order.next(now)) is not None:
            try:
                made, status = self._begin(endpoint)
            except OSError as error:
                order.failed(error)
            else:
                self._begun(made, endpoint, status, now)
        if self._done is None:
            return
        if order.lost:
            self._finish(order.error or OSError("no address"), now)
        elif order.again is not None:
            if self._timer is None:
                self._timer = Timer(self._loop.timers, self._next)
            self._timer.start(order.again, now)

    def _begun(self, made: socket.SocketType, endpoint: Endpoint, status: int, now: float) -> None:
        if status == 0:
            self._finish(made, now)
        elif status == errno.EINPROGRESS:
            self._running[made.fileno()] = made, endpoint
            self._loop.watch(made.fileno(), OUT, functools.partial(self._connected, made, endpoint))
        # A Unix listener whose backlog is full. The connect has not begun, so that no event would ever announce it.
        elif status == errno.EAGAIN:
            try:
                self._submit(functools.partial(self._connect_blocking, made, endpoint))
            except RuntimeError:
                self._failed(made, errno.EAGAIN, now)
        else:
            self._failed(made, status, now)

    def _failed(self, made: socket.SocketType, status: int, now: float) -> None:
        made.close()
        error = OSError(status, os.strerror(status))
        if self._order is None:
            self._finish(error, now)
        else:
            self._order.failed(error)

    def _connected(self, made: socket.SocketType, endpoint: Endpoint, event: int, now: float) -> None:
        # Asked again and not read from SO_ERROR: EISCONN is the one answer that proves a peer. An event may come
        # without one, for example OUT and HUP with SO_ERROR 0 of a Unix socket whose connect has not begun.
        status = made.connect_ex(endpoint.address)
        if status in (errno.EALREADY, errno.EINPROGRESS):
            return
        # Out of the loop before it is passed on: the engine watches the same number with a handler of its own.
        self._loop.forget(made.fileno())
        del self._running[made.fileno()]
        self._ended(made, endpoint, 0 if status == errno.EISCONN else status, now)

    def _connect_blocking(self, made: socket.SocketType, endpoint: Endpoint) -> None:
        """Wait for room in a Unix listener's backlog, on a thread that may block."""
        status = connect_blocking(made, endpoint, self._deadline)
        # The loop has ended: this thread is the last one that knows the socket.
        if not self._loop.call(lambda: self._ended(made, endpoint, status, time.monotonic())):
            made.close()

    def _ended(self, made: socket.SocketType, endpoint: Endpoint, status: int, now: float) -> None:
        # Given up while a thread of its own connected it: it was not in `_running`, so no other place closes it.
        if self._done is None:
            made.close()
            return
        self._begun(made, endpoint, status, now)
        if self._done is not None and self._order is not None:
            self._next(now)

    def _finish(self, outcome: socket.SocketType | OSError, now: float) -> None:
        done, self._done = self._done, None
        if done is None:
            return
        # Before `done`: the losers of the race are out of the loop when the caller makes its next socket.
        self._stop()
        done(outcome, now)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.stop()
        for descriptor, (made, _) in self._running.items():
            self._loop.forget(descriptor)
            # Closed after the turn: this turn may still have events of their numbers.
            self._loop.discard(made)
        self._running.clear()


class SocketDialer(Dialer):
    """A dialer whose streams need nothing but a connect, so that an engine can make them on its own loop.

    :param target: its name in records, such as ``db.internal:5432``.
    :param resolve: returns the addresses; a name blocks, and is resolved on a thread of its own.
    :param literal: whether ``resolve`` never blocks (an address, a path).
    :param name: the name that ``resolve`` looks up, so that an engine can look each host up once for all its clients.
    """

    def __init__(
        self, target: str, resolve: Callable[[], Sequence[Endpoint]], *, literal: bool, name: Name | None = None
    ) -> None:
        super().__init__(target)
        self.resolve = resolve
        self.name = name
        self.endpoints: Sequence[Endpoint] = resolve() if literal else ()
        """The addresses, if they are known without a look-up."""
        self._lookup = _Lookup(self)
        self._engine: Engine | None = None

    def on(self, engine: Engine) -> SocketDialer:
        """Return one that looks up and connects in the thread of an engine; see :meth:`Dialer.on`."""
        other = copy.copy(self)
        other._engine = engine
        return other

    def find(self, lookups: Lookups, source: Hashable, done: Callable[[Found, float], object]) -> Abort:
        """Look the addresses up for a client of an engine, once for all that wait for the same name.

        :param lookups: those of the engine; the parameters and the result are those of :meth:`Lookups.find`.
        """
        name = self.name
        if name is None:
            return lookups.find(self, self.resolve, source, done)

        def on_found(found: Found, now: float) -> None:
            try:
                found = name.endpoints(found)
            except BaseException as error:  # noqa: BLE001  (whatever it is, it ends this connection only)
                found = error
            done(found, now)

        return lookups.find(key_of(name.host), name.look_up, source, on_found)

    def bound(self, source: Source) -> SocketDialer:
        """Return one whose connections come from an address of this machine; see :meth:`Dialer.bound`."""
        if any(endpoint.family == socket.AF_UNIX for endpoint in self.endpoints):
            raise ValueError(f"source: {self.target} is a Unix socket, which has no addresses; remove source")
        other = copy.copy(self)
        try:
            other.endpoints = source.of(self.target, self.endpoints)
        except ConnectError as error:
            raise ValueError(f"source: {error}") from None
        if self.name is not None:
            other.name = BoundName(self.target, self.name, source)
        resolve = self.resolve
        other.resolve = lambda: source.of(self.target, resolve())
        # Its results have the source in them, so it must not share the look-up of the original.
        other._lookup = _Lookup(other)
        return other

    def avoiding(self, is_used: Callable[[object], bool]) -> SocketDialer:
        """Return one that tries some of the addresses after all others.

        :param is_used: whether an address, as ``getpeername()`` returns it, is one of those; in any thread.
        """
        other = copy.copy(self)
        resolve = self.resolve
        # `sorted` is stable: among the addresses of each half the families still alternate.
        other.resolve = lambda: sorted(interleave(resolve()), key=lambda endpoint: is_used(endpoint.address))
        other.name = None  # an engine would look up its host, and get all addresses in their own order
        other._lookup = _Lookup(other)
        return other

    def dial(
        self, deadline: float | None, done: OnResult, *, self_contained: bool = False, wait_for_reconnect: bool = True
    ) -> Abort:
        """Begin to connect; see :meth:`Dialer.dial`. A connect that is over at once needs no other thread."""
        endpoints, trace, engine = self.endpoints, self.trace, self._engine
        if engine is not None and not engine.loop.is_here():
            engine = None
        # No address means a look-up, several a race, and an observer gets each step. One known address is begun in this
        # thread, which saves two switches of threads where the connect is over at once (loopback, Unix).
        if len(endpoints) != 1 or trace is not SILENT:
            return _Connect(self, deadline, done, engine).begin()
        try:
            made, status = open_socket(endpoints[0], socket.socket)
        except OSError as error:
            done(connect_error(self.target, error))
            return _nothing
        if status == 0:
            done(Stream(made, target=self.target))
            return _nothing
        if status in (errno.EINPROGRESS, errno.EAGAIN):
            try:
                connect = _Connect(self, deadline, done, engine)
            except OSError:
                made.close()
                raise
            return connect.go_on(made, endpoints[0], status)
        made.close()
        done(connect_error(self.target, OSError(status, os.strerror(status))))
        return _nothing


def _open(endpoint: Endpoint) -> tuple[socket.socket, int]:
    return open_socket(endpoint, socket.socket)


class _Lookup:
    """The addresses of one target, looked up on one thread for all dials of one moment: a resolver may take long."""

    def __init__(self, dialer: SocketDialer) -> None:
        self._dialer = dialer
        self._lock = threading.Lock()
        self._process = os.getpid()  # a forked child has no copy of the thread that looks it up
        self._waiting: list[Callable[[Found], object]] = []
        self._started = 0.0

    def find(self, done: Callable[[Found], object]) -> None:
        """Call ``done`` with the addresses or the error, in any thread."""
        now = time.monotonic()
        with self._lock:
            if self._process != os.getpid() or now - self._started >= _LOOKUP_TIMEOUT:
                self._process, self._waiting = os.getpid(), []  # a hung thread keeps the list of its own dials
            waiting = self._waiting
            waiting.append(done)
            # Another dial has started the thread, and the list is reported as a whole.
            if len(waiting) > 1:
                return
            self._started = now
        name = f"relay look-up of {self._dialer.target}"
        try:
            threading.Thread(target=self._run, args=(waiting,), name=name, daemon=True).start()
        except RuntimeError as error:
            self._report(waiting, OSError(errno.EAGAIN, str(error)))

    def _run(self, waiting: list[Callable[[Found], object]]) -> None:
        found: Found
        try:
            found = self._dialer.resolve()
        except BaseException as error:  # noqa: BLE001  (every dial gets it)
            found = error
        self._report(waiting, found)

    def _report(self, waiting: list[Callable[[Found], object]], found: Found) -> None:
        with self._lock:
            # Else a later look-up has begun, because this one took too long: the dials in its list are not this one's.
            if self._waiting is waiting:
                self._waiting = []
        # Without the lock: a `done` may dial again, which looks the same name up.
        for done in waiting:
            done(found)


class _Connect:
    """One connect in the thread of an engine, or in the I/O thread, to which it belongs but for its beginning and end.

    :param engine: the engine, if this is its thread; ``None`` for the I/O thread.
    :raises OSError: if the I/O thread cannot be started.
    """

    def __init__(self, dialer: SocketDialer, deadline: float | None, done: OnResult, engine: Engine | None) -> None:
        self._dialer = dialer
        self._target = dialer.target
        self._trace = dialer.trace
        self._step: Step | None = None
        self._deadline = deadline
        self._done: OnResult | None = done
        self._engine = engine
        self._home: Home
        if engine is None:
            self._home = IOThread.acquire(self)
        else:
            self._home = engine
            engine.hold(self)
        loop = self._home.loop
        self._race = ConnectRace(loop, _open, self._submit, deadline, self._raced)
        self._give_up_lookup: Abort | None = None
        self._looks_up = False
        self._timer = Timer(loop.timers, self._expired)

    def begin(self) -> Abort:
        """Begin; the result gives it up, from any thread."""
        # First, so that the deadline also ends a look-up that hangs.
        self._call(self._start_clock)
        if self._dialer.endpoints:
            self._call(functools.partial(self._start, self._dialer.endpoints))
            return self._give_up
        self._looks_up = True
        self._step = self._trace.begin(Stage.RESOLVE, self._target)
        if self._engine is None:
            self._dialer._lookup.find(self._found)
        else:
            give_up = self._dialer.find(self._engine.lookups, None, self._found_here)
            if self._looks_up:  # else there was no room for it
                self._give_up_lookup = give_up
        return self._give_up

    def go_on(self, made: socket.socket, endpoint: Endpoint, status: int) -> Abort:
        """Go on with a connect to the only address, which was begun already."""
        self._call(self._start_clock)
        self._call(functools.partial(self._go_on, made, endpoint, status))
        return self._give_up

    def _call(self, function: Callable[[], object]) -> None:
        """Call a function in the thread of the connect: at once if this is that one."""
        if not self._home.loop.is_here():
            self._home.loop.call(function)
        else:
            function()

    def _give_up(self) -> None:
        if self._done is not None:
            self._call(functools.partial(self._finish, None))

    def abandon(self) -> None:
        """In a forked child: only close the descriptors."""
        self._race.after_fork()

    def _submit(self, function: Callable[[], object]) -> None:
        threading.Thread(target=function, name=f"relay connecting to {self._target}", daemon=True).start()

    def _found(self, found: Found) -> None:
        """In the thread of the look-up, or in that of the connect."""
        if isinstance(found, BaseException):
            failure = found if isinstance(found, OSError) else ConnectError(f"{self._target}: {found}")
            self._call(functools.partial(self._finish, failure))
        else:
            self._call(functools.partial(self._start, found))

    def _found_here(self, found: Found, now: float) -> None:
        self._looks_up, self._give_up_lookup = False, None
        self._found(found)

    def _start_clock(self) -> None:
        if self._deadline is not None:
            self._timer.start(self._deadline, time.monotonic())

    def _start(self, endpoints: Sequence[Endpoint]) -> None:
        self._looks_up = False
        if self._done is not None:
            if self._step is not None:
                self._step.done(endpoints=endpoints)
            self._step = self._trace.begin(Stage.CONNECT, self._target, endpoints=endpoints)
            try:
                self._race.start(endpoints, time.monotonic())
            except Exception:
                self._race.crashed(time.monotonic())  # a bug, which the loop logs: the caller must not wait for ever
                raise

    def _go_on(self, made: socket.socket, endpoint: Endpoint, status: int) -> None:
        if self._done is None:
            made.close()
        else:
            self._race.go_on(made, endpoint, status, time.monotonic())

    def _raced(self, outcome: socket.SocketType | OSError, now: float) -> None:
        if isinstance(outcome, OSError):
            self._finish(connect_error(self._target, outcome))
        else:
            assert isinstance(outcome, socket.socket)
            self._finish(Stream(outcome, target=self._target))

    def _expired(self, now: float) -> None:
        error = connect_error(self._target, TimeoutError())
        if self._looks_up:
            text = f"{self._target}: DNS lookup timed out; check the name server"
            error = ConnectError(text, reason="connect_timeout")
        self._finish(error)

    def _finish(self, outcome: Stream | OSError | None) -> None:
        done, self._done = self._done, None
        if done is None:
            # It was given up while the connect was passed to this thread.
            if isinstance(outcome, Stream):
                outcome.close()
            return
        self._timer.stop()
        self._race.give_up()
        if self._give_up_lookup is not None:
            self._give_up_lookup()
        if self._step is not None and isinstance(outcome, OSError):
            self._step.failed(outcome)
        elif self._step is not None and isinstance(outcome, Stream):
            self._step.done(socket=outcome.socket)
        try:
            if outcome is not None:
                done(outcome)
        # Last: with its last client the I/O thread ends, and `done` may make the next one.
        finally:
            self._home.release(self)


def _nothing() -> None:
    pass
