"""The main thread: signals, which wake it without polling, and the calls of other threads between two of them."""

from __future__ import annotations

import functools
import os
import queue
import select
import signal
import socket
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from .failures import ConflictError

if TYPE_CHECKING:  # a command starts in half the time without it
    from concurrent.futures import Future


class Signals:
    """Catches SIGINT, SIGTERM and SIGHUP while it is entered, in the main thread.

    A SIGHUP that was ignored at the start (nohup) never ends the program: it stays ignored, or requests a reload.

    A signal is a byte in a socketpair (``signal.set_wakeup_fd``), and so is :meth:`wake`, so that one wait covers both.

    :param reload: whether SIGHUP is a request to reload. If standard input is a terminal, it says that the terminal has
        closed, unless it was ignored.
    :param catch: whether it catches them; else it is only woken.
    """

    def __init__(self, *, reload: bool = False, catch: bool = True) -> None:
        was_ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        self.reloading = frozenset({signal.SIGHUP} if reload and (was_ignored or not os.isatty(0)) else ())
        """The signals that are a request to reload; the others end the program."""
        self._caught: list[int] = [signal.SIGINT, signal.SIGTERM] if catch else []
        if catch and (self.reloading or not was_ignored):
            self._caught.append(signal.SIGHUP)
        self._calls: dict[int, Callable[[], object]] = {}  # of further signals
        self._reader, self._writer = socket.socketpair()
        # The handler of the interpreter writes here, in the middle of anything: it must never wait.
        self._writer.setblocking(False)
        self._is_woken = False  # a wake is unread: more of them would fill the buffer, and a signal would be lost
        self._watched: dict[int, Callable[[], object]] = {}

    def __enter__(self) -> Signals:
        self._wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        # A handler that does nothing: with the default one the signal would end the process, and an ignored one writes
        # no byte.
        self._before = [signal.signal(number, lambda *_: None) for number in self._caught]
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in zip(self._caught, self._before, strict=True):
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        self._reader.close()
        self._writer.close()

    def on(self, number: int, call: Callable[[], object]) -> None:
        """Catch a further signal, too, and call a function in the main thread's :meth:`wait` when it comes."""
        self._calls[number] = call
        self._caught.append(number)
        self._before.append(signal.signal(number, lambda *_: None))

    def is_set(self) -> bool:
        """Return whether a signal or a wake is still unread. With :meth:`fileno` this is a ``cancel=`` for dialing."""
        return bool(_readable([self._reader.fileno()], 0))

    def fileno(self) -> int:
        """A descriptor that becomes readable with a signal or :meth:`wake`."""
        return self._reader.fileno()

    def wake(self) -> None:
        """End the wait; from any thread."""
        if self._is_woken:
            return
        # Before the byte: a reader that is faster sets it to false again after that.
        self._is_woken = True
        try:
            self._writer.send(b"\0")
        except OSError:
            self._is_woken = False  # a full buffer wakes as well; a closed one has no reader

    def watch(self, descriptor: int, call: Callable[[], object]) -> None:
        """Call ``call`` in :meth:`wait` each time that the descriptor is readable; in the main thread."""
        self._watched[descriptor] = call

    def forget(self, descriptor: int) -> None:
        """Do not wait for a descriptor any more; in the main thread."""
        self._watched.pop(descriptor, None)

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for a signal, for :meth:`wake` or for a descriptor.

        :param timeout: seconds, or ``None`` for as long as it takes.
        :returns: the signal's number, 0 for :meth:`wake`, a descriptor or one of :meth:`on`; ``None`` after the timeout
        """
        reader = self._reader.fileno()
        ready = _readable([reader, *self._watched], timeout)
        if reader in ready:
            # One at a time: two signals are two steps of the end.
            number = self._reader.recv(1)[0]
            if not number:
                self._is_woken = False  # what was queued before is there when this returns
            if call := self._calls.get(number):
                call()
                return 0
            return number
        for descriptor in ready:
            if call := self._watched.get(descriptor):  # one before it may have forgotten it
                call()
        return 0 if ready else None


def _readable(descriptors: Iterable[int], timeout: float | None) -> list[int]:
    """Wait until a descriptor is readable, for ``timeout`` seconds at most; return those that are."""
    poller = select.poll()  # select() has no descriptors beyond 1023, and a reload may open a socket there
    for descriptor in descriptors:
        poller.register(descriptor, select.POLLIN)
    return [descriptor for descriptor, _ in poller.poll(None if timeout is None else timeout * 1000)]


def die_of(number: int) -> NoReturn:
    """End this process by the signal itself, so that the parent sees it: a loop of the shell ends as well."""
    signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
    os.kill(os.getpid(), number)
    os._exit(128 + number)  # the signal was ignored or blocked


UNDER_WAY = "an upgrade is under way; try again after it"

Result = TypeVar("Result")


class MainThread:
    """The calls that wait for the main thread. Until :meth:`enter` it is the thread that has made the object.

    :param wake: ends the wait of the main thread; called from any thread.
    """

    def __init__(self, wake: Callable[[], object]) -> None:
        self._wake = wake
        self._thread = threading.current_thread()
        self._events: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._lock = threading.Lock()  # for the following one
        self._waiting: set[Future[Any]] | None = set()  # the threads that wait for a result; None after the end

    # -- from any thread --------------------------------------------------------------------------------------------

    def later(self, function: Callable[..., object], *arguments: Any) -> None:
        """Call a function in the main thread, and do not wait."""
        self._events.put(functools.partial(function, *arguments))
        self._wake()  # second: the main thread empties the queue after a wake, not before it

    def call(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call a function in the main thread, and wait for it; from the main thread, at once.

        :param function: called with the arguments. It must not wait for long: no signal is handled meanwhile.
        :returns: its result.
        :raises ConflictError: if the end comes before that.
        :raises BaseException: what it raises.
        """
        # The queue is emptied by this very thread, so it would wait for itself.
        if threading.current_thread() is self._thread:
            return function(*arguments)
        from concurrent.futures import Future

        future: Future[Result] = Future()
        with self._lock:
            # The end takes the set away under this lock: a call is in the set and gets its error, or comes later and
            # raises here.
            if self._waiting is None:
                raise ConflictError("relay is ending; start it again")
            self._waiting.add(future)
        self.later(self._answer, future, functools.partial(function, *arguments))
        return future.result()

    @property
    def has_callers(self) -> bool:
        """True if a thread waits for a result."""
        return bool(self._waiting)

    @property
    def is_over(self) -> bool:
        """True after the end: no call waits or comes any more."""
        return self._waiting is None

    # -- the main thread --------------------------------------------------------------------------------------------

    def enter(self) -> None:
        """Make the current thread the main thread."""
        self._thread = threading.current_thread()

    def run_next(self) -> bool:
        """Call the next function; return false if there is none."""
        if self._events.empty():  # no other thread takes from it, so what is there now stays there
            return False
        self._events.get()()
        return True

    def close(self) -> None:
        """Raise in the threads that still wait, and in those that come later."""
        with self._lock:  # a call that comes from now on raises at once, instead of waiting for ever
            waiting, self._waiting = self._waiting or (), None
        # Outside the lock, because a result wakes the thread that waits, and that may call again.
        for future in waiting:
            future.set_exception(ConflictError("relay is ending; start it again"))

    def _answer(self, future: Future[Result], function: Callable[[], Result]) -> None:
        """Call a function for a thread that waits for its result."""
        # close() may have answered it while it was in the queue: that thread goes on, and does not expect its effect.
        with self._lock:
            if self._waiting is None or future not in self._waiting:
                return
            self._waiting.discard(future)
        try:
            future.set_result(function())
        except BaseException as error:  # noqa: BLE001  (it is raised in the thread that waits)
            future.set_exception(error)
