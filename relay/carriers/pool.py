"""Who holds which carrier: those who ask for the same share one, and the last one who lets go ends it."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import weakref
from collections.abc import Callable, Hashable, Iterable
from typing import Any, Generic

from .carrier import Carrier
from .link import AnyLink, State, Watcher

__all__ = ["Holder", "LetGo", "hold"]

LetGo = Callable[[float], None]

_GONE = 0.2  # seconds for the last streams to be over when a holder lets go


class _Shared:
    """The carriers of this process, by what their users have asked for."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin anew; in a forked child, where the pump tells each carrier."""
        self.lock = threading.Lock()  # no callback is called while it is held
        self.carriers: dict[Hashable, Carrier[Any]] = {}


_shared = _Shared()


def hold(
    key: Hashable, make: Callable[[], Carrier[AnyLink]], watchers: Iterable[Watcher] = ()
) -> tuple[Carrier[AnyLink], LetGo]:
    """The carrier that everybody shares who asks with an equal key, made if there is none.

    :param key: the server, every option, every hop.
    :param make: makes it.
    :param watchers: subscribe to it, before its first attempt if it is new.
    :returns: the carrier, and what lets it go again, which is idempotent and may be called from any thread. When the
        last holder has let go, the carrier is closed as soon as no stream rides on it; the caller waits so many
        seconds for that, and for the close itself unless they are zero.
    :raises OSError: what ``make`` raises.
    """
    with _shared.lock:
        known = _shared.carriers.get(key)
        is_new = known is None or known.state is State.CLOSED
        carrier = make() if known is None or is_new else known
        for watcher in watchers:
            carrier.subscribe(watcher)
        if is_new:
            _shared.carriers[key] = carrier
            carrier.begin()
        carrier.holders += 1
    once = threading.Lock()

    def let_go(patience: float) -> None:
        if once.acquire(blocking=False):
            _let_go(key, carrier, patience)

    return carrier, let_go


def _let_go(key: Hashable, carrier: Carrier[Any], patience: float) -> None:
    with _shared.lock:
        carrier.holders -= 1
        if carrier.holders:
            return
    if carrier.link is not None:
        idle = threading.Event()

        def ended() -> None:
            _end(key, carrier)
            idle.set()

        carrier.when_idle(ended)
        if not idle.wait(patience):
            return
    _end(key, carrier, wait=patience > 0)


def _end(key: Hashable, carrier: Carrier[Any], *, wait: bool = False) -> None:
    with _shared.lock:
        if carrier.holders:
            return
        if _shared.carriers.get(key) is carrier:
            del _shared.carriers[key]
    carrier.close(wait=wait)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_shared.forget)


class Holder(Generic[AnyLink]):
    """Whoever needs a carrier: holds it from the first use until :meth:`close`.

    :param name: of the carrier.
    :param key: and
    :param make: as for :func:`hold`.
    """

    def __init__(self, name: str, key: Hashable, make: Callable[[], Carrier[AnyLink]]) -> None:
        self._name = name
        self._key = key
        self._make = make
        self._carrier: Carrier[AnyLink] | None = None
        self._let_go: LetGo = _nothing
        self._watchers: list[Watcher] = []
        self._finalizer: Any = None

    def carrier(self) -> Carrier[AnyLink]:
        """The connection, which is held from now on.

        :raises OSError: if there is no thread or descriptor to be had.
        """
        carrier = self._carrier
        if carrier is not None and carrier.state is not State.CLOSED:
            return carrier
        with _holders.lock:
            if self._carrier is None or self._carrier.state is State.CLOSED:
                self._release()
                carrier, let_go = hold(self._key, self._make, self._watchers)
                self._carrier, self._let_go = carrier, functools.partial(_leave, carrier, let_go, self._watchers)
                self._finalizer = weakref.finalize(self, _let_go_elsewhere, self._let_go)
                self._finalizer.atexit = False  # nothing is left of a process that ends
            return self._carrier

    def subscribe(self, watcher: Watcher) -> None:
        """Have ``watcher(state, error)`` called at each change of the connection, also of one that is taken up later.

        :raises OSError: as :meth:`carrier` does.
        """
        with _holders.lock:
            self._watchers.append(watcher)
            if self._carrier is not None:
                self._carrier.subscribe(watcher)
        self.carrier()

    @property
    def held(self) -> Carrier[AnyLink] | None:
        """The connection, if it is held."""
        return self._carrier

    def close(self, patience: float = _GONE) -> None:
        """Hold it no longer. Idempotent; the next use takes it up anew.

        :param patience: seconds to wait for the last streams to be over.
        """
        with _holders.lock:
            self._carrier = None
            let_go = self._release()
        let_go(patience)

    def _release(self) -> LetGo:
        let_go, self._let_go = self._let_go, _nothing
        if self._finalizer is not None:
            self._finalizer.detach()
        return let_go

    def __repr__(self) -> str:
        carrier = self._carrier
        return f"{self._name}, {carrier.state.value if carrier is not None else 'not held'}"


class _Holders:
    """What all holders share."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """In a forked child, where the lock may be held for ever."""
        self.lock = threading.Lock()


_holders = _Holders()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_holders.forget)


def _leave(carrier: Carrier[Any], let_go: LetGo, watchers: list[Watcher], patience: float) -> None:
    let_go(patience)
    for watcher in watchers:
        carrier.unsubscribe(watcher)


def _let_go_elsewhere(let_go: LetGo) -> None:
    """A finalizer runs in whatever thread, which must not wait."""
    with contextlib.suppress(RuntimeError):
        threading.Thread(target=let_go, args=(_GONE,), name="relay letting a connection go", daemon=True).start()


def _nothing(patience: float) -> None:
    pass
