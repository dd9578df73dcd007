"""Waiting for signals in the main thread, without polling."""

from __future__ import annotations

import os
import select
import signal
import socket
from collections.abc import Callable, Iterable
from typing import NoReturn


class Signals:
    """Catches SIGINT, SIGTERM and SIGHUP while it is entered, in the main thread.

    A SIGHUP that was ignored at the start (nohup) never ends the program: it stays ignored, or requests a reload.

    A signal is a byte in a socketpair (``signal.set_wakeup_fd``), and so is :meth:`wake`, so that one wait covers both.

    :param reload: whether SIGHUP is a request to reload. If standard input is a terminal, it says that the terminal has
        closed, unless it was ignored.
    """

    def __init__(self, *, reload: bool = False) -> None:
        was_ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        self.reloading = frozenset({signal.SIGHUP} if reload and (was_ignored or not os.isatty(0)) else ())
        """The signals that are a request to reload; the others end the program."""
        self._caught: list[int] = [signal.SIGINT, signal.SIGTERM]
        if self.reloading or not was_ignored:
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
