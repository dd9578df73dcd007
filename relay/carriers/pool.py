"""The carriers of this process: callers with an equal key share one, and the last one to release it closes it."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import weakref
from collections.abc import Callable, Hashable, Iterable
from typing import Any, Generic

from .carrier_set import SharedCarrier
from .link import AnyLink, CarrierState, Watcher

Release = Callable[[float], None]

_DRAIN_TIMEOUT = 0.2  # seconds for the last streams to end when a reference is closed


class _Pool:
    """The shared carriers by key, and the locks."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Start with nothing; in a forked child, where the I/O thread abandons each carrier and a lock may be held."""
        self.lock = threading.Lock()  # no callback is called while it is held
        self.ref_lock = threading.Lock()  # for the references; taken before the other one
        self.carriers: dict[Hashable, SharedCarrier[Any]] = {}


_pool = _Pool()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.forget)


def acquire(
    key: Hashable, make: Callable[[], SharedCarrier[AnyLink]], watchers: Iterable[Watcher] = ()
) -> tuple[SharedCarrier[AnyLink], Release]:
    """Return the carrier that all callers with an equal key share; make it if there is none.

    :param key: the server, every option, every hop.
    :param make: makes the carrier.
    :param watchers: subscribe to it, before its first attempt if it is new.
    :returns: the carrier, and a function that releases it, which is idempotent and may be called from any thread. When
        all callers have released the carrier, it is closed as soon as it has no stream. The function takes the seconds
        to wait for that, and also waits for the close itself unless they are zero.
    :raises OSError: what ``make`` raises.
    """
    with _pool.lock:
        known = _pool.carriers.get(key)
        is_new = known is None or known.state is CarrierState.CLOSED
        # Under the lock: two callers with one key must not make two connections.
        carrier = make() if known is None or is_new else known
        for watcher in watchers:
            carrier.subscribe(watcher)
        if is_new:
            _pool.carriers[key] = carrier
            # After the watchers have subscribed, so that they see its first failure.
            carrier.begin()
        carrier.holders += 1
    once = threading.Lock()

    def release(drain_timeout: float) -> None:
        if once.acquire(blocking=False):
            _release(key, carrier, drain_timeout)

    return carrier, release


def close_at_once(is_meant: Callable[[Hashable], bool]) -> None:
    """Close carriers and every stream over them, although callers hold them; these acquire another one then.

    :param is_meant: gets the key of a carrier; returns whether to close it.
    """
    with _pool.lock:
        found = [carrier for key, carrier in _pool.carriers.items() if is_meant(key)]
    for carrier in found:
        # Without the lock: a close waits, and its callbacks may acquire the next carrier.
        carrier.close()


def _release(key: Hashable, carrier: SharedCarrier[Any], drain_timeout: float) -> None:
    with _pool.lock:
        carrier.holders -= 1
        if carrier.holders:
            return
    if carrier.link is not None or carrier.streams():  # of links that it has replaced
        idle = threading.Event()

        def on_idle() -> None:
            _close_unused(key, carrier)
            idle.set()

        carrier.when_idle(on_idle)
        if not idle.wait(drain_timeout):
            return
    _close_unused(key, carrier, wait=drain_timeout > 0)


def _close_unused(key: Hashable, carrier: SharedCarrier[Any], *, wait: bool = False) -> None:
    with _pool.lock:
        # Another caller has taken it between its last stream and this moment.
        if carrier.holders:
            return
        if _pool.carriers.get(key) is carrier:
            del _pool.carriers[key]
    carrier.close(wait=wait)


class CarrierRef(Generic[AnyLink]):
    """One user's reference to a carrier: acquires it with the first use, releases it with :meth:`close`.

    :param name: of the carrier.
    :param key: as for :func:`acquire`.
    :param make: as for :func:`acquire`.
    """

    def __init__(self, name: str, key: Hashable, make: Callable[[], SharedCarrier[AnyLink]]) -> None:
        self._name = name
        self._key = key
        self._make = make
        self._carrier: SharedCarrier[AnyLink] | None = None
        self._release: Release = _nothing
        self._watchers: list[Watcher] = []
        self._finalizer: Any = None

    def carrier(self) -> SharedCarrier[AnyLink]:
        """Return the carrier; acquire it if it is not acquired, or was closed.

        :raises OSError: if no thread or descriptor is available.
        """
        carrier = self._carrier
        if carrier is not None and carrier.state is not CarrierState.CLOSED:
            return carrier
        with _pool.ref_lock:
            if self._carrier is None or self._carrier.state is CarrierState.CLOSED:
                self._take_release()
                carrier, release = acquire(self._key, self._make, self._watchers)
                self._carrier = carrier
                self._release = functools.partial(_release_and_unsubscribe, carrier, release, self._watchers)
                # For a dialer that its owner has only dropped: the connection must not stay until the end of the
                # process.
                self._finalizer = weakref.finalize(self, _release_in_thread, self._release)
                self._finalizer.atexit = False  # the carrier ends with the process
            return self._carrier

    def subscribe(self, watcher: Watcher) -> None:
        """Call ``watcher(state, error)`` at each change of this carrier, and of one that is acquired later.

        :raises OSError: as :meth:`carrier` does; the watcher is not called then.
        """
        with _pool.ref_lock:
            self._watchers.append(watcher)
            if self._carrier is not None:
                self._carrier.subscribe(watcher)
        try:
            self.carrier()
        except BaseException:
            with _pool.ref_lock:
                self._watchers.remove(watcher)
            raise

    @property
    def current(self) -> SharedCarrier[AnyLink] | None:
        """The carrier, if it is acquired."""
        return self._carrier

    @property
    def shared(self) -> SharedCarrier[AnyLink] | None:
        """The carrier, if it is acquired, else the one of other callers that the next use will acquire."""
        carrier = self._carrier
        if carrier is not None:
            return carrier
        # Without the lock: one look-up in a dict, for a state that may change in the next moment.
        others = _pool.carriers.get(self._key)
        return others if others is not None and others.holders else None  # else only its last streams keep it

    def close(self, drain_timeout: float = _DRAIN_TIMEOUT) -> None:
        """Release the carrier. Idempotent; the next use acquires one again.

        :param drain_timeout: seconds to wait for the last streams to end.
        """
        with _pool.ref_lock:
            self._carrier = None
            release = self._take_release()
        # Without the lock: it may wait for the last streams.
        release(drain_timeout)

    def _take_release(self) -> Release:
        release, self._release = self._release, _nothing
        if self._finalizer is not None:
            self._finalizer.detach()
        return release

    def __repr__(self) -> str:
        carrier = self._carrier
        return f"{self._name}, {carrier.state.value if carrier is not None else 'not held'}"


def _release_and_unsubscribe(
    carrier: SharedCarrier[Any], release: Release, watchers: list[Watcher], drain_timeout: float
) -> None:
    release(drain_timeout)
    for watcher in watchers:
        carrier.unsubscribe(watcher)


def _release_in_thread(release: Release) -> None:
    """Release on another thread: a finalizer runs in any thread, which must not wait."""
    with contextlib.suppress(RuntimeError):
        thread = threading.Thread(target=release, args=(_DRAIN_TIMEOUT,), name="relay releasing a carrier", daemon=True)
        thread.start()


def _nothing(drain_timeout: float) -> None:
    pass
