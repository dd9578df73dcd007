"""Direct connects that are begun at once and told later, like the streams of every other factory that is dialed."""

from __future__ import annotations

import errno
import functools
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence

from ..errors import ConnectError
from ..eventloop.background import Pump
from ..eventloop.loop import Timer
from ..eventloop.poller import OUT
from .dialer import Dialed, Done, GiveUp, Upgrade
from .happy_eyeballs import Direct, Endpoint, Race, connect_error, connect_patiently, open_socket
from .stream import Stream

__all__ = ["dialed"]


def dialed(factory: Direct | Dialed) -> Dialed:
    """A factory that is dialed, of one that needs nothing but a connect and perhaps an upgrade.

    :param factory: such as :func:`relay.tcp` or :func:`relay.tls` return.
    """
    if isinstance(factory, Dialed):
        return factory
    reached = _Reached(factory)
    return reached if factory.upgrade is None else Upgrade(reached, factory.target, begin=factory.upgrade)


class _Reached(Dialed):
    """Streams of a direct connect."""

    def __init__(self, direct: Direct) -> None:
        super().__init__(direct.target)
        self._direct = direct
        self._lookup = _Lookup(direct)
        self._endpoints: Sequence[Endpoint] = direct.resolve() if direct.literal else ()

    def dial(self, deadline: float | None, done: Done, *, lasting: bool = False, patient: bool = True) -> GiveUp:
        """Begin to connect; see :meth:`Dialed.dial`. A connect that is over at once needs no other thread."""
        endpoints = self._endpoints
        if len(endpoints) != 1:
            return _Connecting(self._direct, deadline, done).begin(endpoints, self._lookup)
        try:
            made, status = open_socket(endpoints[0], socket.socket)
        except OSError as error:
            done(connect_error(self.target, error))
            return _nothing
        if status == 0:
            done(Stream(made, target=self.target))
            return _nothing
        if status in (errno.EINPROGRESS, errno.EAGAIN):
            return self._go_on(made, endpoints[0], status, deadline, done)
        made.close()
        done(connect_error(self.target, OSError(status, os.strerror(status))))
        return _nothing

    def _go_on(
        self, made: socket.socket, endpoint: Endpoint, status: int, deadline: float | None, done: Done
    ) -> GiveUp:
        try:
            connecting = _Connecting(self._direct, deadline, done)
        except OSError:
            made.close()
            raise
        return connecting.go_on(made, endpoint, status)


class _Lookup:
    """The addresses of one target, looked up on one thread for all who ask at one time: a resolver may take long."""

    def __init__(self, direct: Direct) -> None:
        self._direct = direct
        self._lock = threading.Lock()
        self._process = os.getpid()  # whose thread looks it up: a forked child has it not
        self._asking: list[Callable[[Sequence[Endpoint] | BaseException], object]] = []

    def find(self, done: Callable[[Sequence[Endpoint] | BaseException], object]) -> None:
        """Have ``done`` called with the addresses, or with the error, in any thread."""
        with self._lock:
            if self._process != os.getpid():
                self._process, self._asking = os.getpid(), []
            self._asking.append(done)
            if len(self._asking) > 1:
                return
        try:
            threading.Thread(target=self._run, name=f"relay look-up of {self._direct.target}", daemon=True).start()
        except RuntimeError as error:
            self._tell(OSError(errno.EAGAIN, str(error)))

    def _run(self) -> None:
        found: Sequence[Endpoint] | BaseException
        try:
            found = self._direct.resolve()
        except BaseException as error:  # noqa: BLE001  (it is told)
            found = error
        self._tell(found)

    def _tell(self, found: Sequence[Endpoint] | BaseException) -> None:
        with self._lock:
            asking, self._asking = self._asking, []
        for done in asking:
            done(found)


class _Connecting:
    """One connect under way, in the pump's thread but for its beginning and its being given up."""

    def __init__(self, direct: Direct, deadline: float | None, done: Done) -> None:
        self._direct = direct
        self._deadline = deadline
        self._done: Done | None = done
        self._running: dict[int, tuple[socket.socket, Endpoint]] = {}
        self._race: Race | None = None
        self._pump = Pump.hold(self)
        timers = self._pump.loop.timers
        self._again = Timer(timers, self._next)
        self._timer = Timer(timers, self._expired)

    def begin(self, endpoints: Sequence[Endpoint], lookup: _Lookup) -> GiveUp:
        """Begin; the result gives it up, from any thread."""
        loop = self._pump.loop
        loop.call(self._start_clock)
        if endpoints:
            loop.call(functools.partial(self._start, endpoints))
        else:
            lookup.find(self._found)
        return self._give_up

    def go_on(self, made: socket.socket, endpoint: Endpoint, status: int) -> GiveUp:
        """Go on with a connect to the only address, which was begun already."""
        loop = self._pump.loop
        self._race = Race([endpoint])
        self._race.next(time.monotonic())
        loop.call(self._start_clock)
        loop.call(functools.partial(self._ended, made, endpoint, status))
        return self._give_up

    def _give_up(self) -> None:
        if self._done is not None:
            self._pump.loop.call(functools.partial(self._finish, None))

    def abandon(self) -> None:
        """In a forked child: close the descriptors and nothing else."""
        for made, _ in self._running.values():
            made.close()

    def crashed(self, now: float) -> None:
        """A bug in a handler: give it up."""
        self._finish(OSError(errno.EIO, "a bug in relay; the log has it"))

    def _elsewhere(self, function: Callable[[], object], what: str) -> None:
        name = f"relay {what} {self._direct.target}"
        try:
            threading.Thread(target=function, name=name, daemon=True).start()
        except RuntimeError as error:
            self._pump.loop.call(functools.partial(self._finish, OSError(errno.EAGAIN, str(error))))

    def _found(self, found: Sequence[Endpoint] | BaseException) -> None:
        """In the thread of the look-up."""
        if isinstance(found, BaseException):
            failure = found if isinstance(found, OSError) else ConnectError(f"{self._direct.target}: {found}")
            self._pump.loop.call(functools.partial(self._finish, failure))
        else:
            self._pump.loop.call(functools.partial(self._start, found))

    def _start_clock(self) -> None:
        if self._deadline is not None:
            self._timer.start(self._deadline, time.monotonic())

    def _start(self, endpoints: Sequence[Endpoint]) -> None:
        if self._done is not None:
            self._race = Race(endpoints)
            self._next(time.monotonic())

    def _next(self, now: float) -> None:
        race = self._race
        assert race is not None
        while self._done is not None and (endpoint := race.next(now)) is not None:
            try:
                made, status = open_socket(endpoint, socket.socket)
            except OSError as error:
                race.failed(error)
            else:
                self._begun(made, endpoint, status)
        if self._done is None:
            return
        if race.lost:
            self._finish(connect_error(self._direct.target, race.error))
        elif race.again is not None:
            self._again.start(race.again, now)

    def _begun(self, made: socket.socket, endpoint: Endpoint, status: int) -> None:
        if status == 0:
            self._finish(Stream(made, target=self._direct.target))
        elif status == errno.EINPROGRESS:
            self._running[made.fileno()] = made, endpoint
            self._pump.loop.watch(made.fileno(), OUT, functools.partial(self._connected, made, endpoint))
        elif status == errno.EAGAIN:
            self._elsewhere(functools.partial(self._patiently, made, endpoint), "connecting to")
        else:
            made.close()
            assert self._race is not None
            self._race.failed(OSError(status, os.strerror(status)))

    def _patiently(self, made: socket.socket, endpoint: Endpoint) -> None:
        """In a thread of its own: only a blocking connect waits for a Unix listener's backlog."""
        status = connect_patiently(made, endpoint, self._deadline)
        if not self._pump.loop.call(functools.partial(self._ended, made, endpoint, status)):
            made.close()

    def _connected(self, made: socket.socket, endpoint: Endpoint, event: int, now: float) -> None:
        status = made.connect_ex(endpoint.address)
        if status in (errno.EALREADY, errno.EINPROGRESS):
            return
        self._pump.loop.forget(made.fileno())
        del self._running[made.fileno()]
        self._ended(made, endpoint, 0 if status == errno.EISCONN else status)

    def _ended(self, made: socket.socket, endpoint: Endpoint, status: int) -> None:
        if self._done is None:
            made.close()
        else:
            self._begun(made, endpoint, status)
            if self._done is not None:
                self._next(time.monotonic())

    def _expired(self, now: float) -> None:
        self._finish(connect_error(self._direct.target, TimeoutError()))

    def _finish(self, outcome: Stream | OSError | None) -> None:
        done, self._done = self._done, None
        if done is None:
            if isinstance(outcome, Stream):
                outcome.close()
            return
        self._again.stop()
        self._timer.stop()
        for descriptor, (made, _) in self._running.items():
            self._pump.loop.forget(descriptor)
            self._pump.loop.discard(made)
        self._running.clear()
        try:
            if outcome is not None:
                done(outcome)
        finally:
            self._pump.let_go(self)


def _nothing() -> None:
    pass
