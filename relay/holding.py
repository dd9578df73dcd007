"""Who holds which carrier: those who ask for the same share one, and the last one who lets go ends it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable
from typing import Any

from .carrier import AnyLink, Carrier, State

__all__ = ["LetGo", "hold"]

LetGo = Callable[[float], None]


class _Shared:
    """The carriers of this process, by what their users have asked for."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin anew; in a forked child, where the pump tells each carrier."""
        self.lock = threading.Lock()  # no callback is called while it is held
        self.carriers: dict[Hashable, Carrier[Any]] = {}


_shared = _Shared()


def hold(key: Hashable, make: Callable[[], Carrier[AnyLink]]) -> tuple[Carrier[AnyLink], LetGo]:
    """The carrier that everybody shares who asks with an equal key, made if there is none.

    :param key: the server, every option, every hop.
    :param make: makes it.
    :returns: the carrier, and what lets it go again, which is idempotent and may be called from any thread. When the
        last holder has let go, the carrier is closed as soon as no stream rides on it; the caller waits so many
        seconds for that, and for the close itself unless they are zero.
    :raises OSError: what ``make`` raises.
    """
    with _shared.lock:
        carrier = _shared.carriers.get(key)
        if carrier is None or carrier.state is State.CLOSED:
            carrier = _shared.carriers[key] = make()
        carrier.holders += 1
    held = carrier
    once = threading.Lock()

    def let_go(patience: float) -> None:
        if once.acquire(blocking=False):
            _let_go(key, held, patience)

    return carrier, let_go


def _let_go(key: Hashable, carrier: Carrier[Any], patience: float) -> None:
    with _shared.lock:
        carrier.holders -= 1
        if carrier.holders:
            return
    link = carrier.link
    if link is not None:
        idle = threading.Event()

        def ended() -> None:
            _end(key, carrier)
            idle.set()

        link.when_idle(ended)
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
