"""Daemon threads for what may block, as few as the work needs."""

from __future__ import annotations

import collections
import logging
import threading
import time
from collections.abc import Callable

from .loop import Loop, Timer

logger = logging.getLogger("relay")

_IDLE = 30.0  # seconds after which a thread without work ends
_AGAIN = 0.25  # seconds until the next attempt to start a thread, after the system had none left
_PROMPT = 0.005  # seconds: a thread that took a job so recently is expected to take the next one, too


class Workers:
    """Threads that make the calls of one relay thread which may block.

    Waking a thread for every short call costs more than the call. So work that comes while a thread is on its way
    through others is left to that thread; if it is still there after five milliseconds, a thread is woken, or made, for
    each piece of it. The threads are daemons: a call that never returns does not hold up the interpreter's exit.

    :param loop: the relay thread's loop. :meth:`submit` and :meth:`close` belong to that thread.
    :param name: of the threads.
    """

    def __init__(self, loop: Loop, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()  # for the four that follow
        self._work: collections.deque[Callable[[], object]] = collections.deque()
        self._idle: list[threading.Lock] = []  # one for each thread that waits; releasing it wakes the thread
        self._threads: set[threading.Thread] = set()
        self._taken = 0.0  # when a thread last took some work
        self._closing = False
        self._started = 0
        self._left_over = Timer(loop.timers, self._hurry)

    def submit(self, work: Callable[[], object]) -> None:
        """Call ``work`` on a thread; it must not raise. If no thread can be started it waits for one."""
        now = time.monotonic()
        with self._lock:
            self._work.append(work)
            # A thread that is in a call may come back at once or never. That it took something lately is the best
            # evidence there is, and the timer below corrects it when it was wrong.
            on_its_way = len(self._threads) > len(self._idle) and now - self._taken < _PROMPT
        if not on_its_way:
            self._staff(1)
        elif self._left_over.due > now + _PROMPT:
            self._left_over.start(now + _PROMPT, now)

    def close(self) -> None:
        """Let every thread end when it has done what there is to do."""
        self._left_over.stop()
        # What the timer would have staffed: the loop may not turn again.
        self._staff(len(self._work))
        with self._lock:
            self._closing = True
            while self._idle:
                self._idle.pop().release()

    def join(self, seconds: float) -> None:
        """Wait for the threads, but not for long: a call that is still blocked does not block the caller."""
        until = time.monotonic() + seconds
        for thread in list(self._threads):
            thread.join(max(0.0, until - time.monotonic()))

    def is_one(self) -> bool:
        """Return true if the current thread is one of these."""
        return threading.current_thread() in self._threads

    def _hurry(self, now: float) -> None:
        self._staff(len(self._work))

    def _staff(self, count: int) -> None:
        for _ in range(count):
            with self._lock:
                if self._idle:
                    self._idle.pop().release()
                    continue
                self._started += 1
                thread = threading.Thread(target=self._run, name=f"{self._name} {self._started}", daemon=True)
                self._threads.add(thread)
            try:
                thread.start()
            except RuntimeError:  # no more threads: the existing ones take it in turn
                self._threads.discard(thread)
                now = time.monotonic()
                self._left_over.start(now + _AGAIN, now)
                return

    def _run(self) -> None:
        me, wake = threading.current_thread(), threading.Lock()
        wake.acquire()
        while True:
            with self._lock:
                work = self._work.popleft() if self._work else None
                if work is not None:
                    self._taken = time.monotonic()
                elif self._closing:
                    self._threads.discard(me)
                    return
                else:
                    # A lock for each thread and no condition: a release wakes exactly one, and always the one that was
                    # idle last, so that those above what the work needs reach their limit and end.
                    self._idle.append(wake)
            if work is not None:
                work()
            elif not wake.acquire(timeout=_IDLE):
                with self._lock:
                    if wake in self._idle:
                        self._idle.remove(wake)
                        self._threads.discard(me)
                        return
                wake.acquire()  # another thread woke it at the last moment
