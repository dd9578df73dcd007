"""Tunnels that lead back to themselves: what they have made is reset.

A look at the addresses of all connections finds those that lead back by a name or through other tunnels of this
process. It is done when there are twice as many as before, and now and then while there is no room for another one, so
that it costs a client nothing.

Nothing in the addresses or the bytes shows a loop through another program or a server. But the clients of it come one
by one, and no target ever answers. Where many connections are like that, or all that the descriptors allow while no
other one comes, the last one is reset as a trial: in a loop that ends the target of the one before it, and then all of
them are reset. Clients that look like a loop and are none lose this one silent connection. For a moment afterwards,
clients for the same target are reset before a dial: what a loop has under way would begin it anew.

======== =========================================== ======== =========================================================
state    event                                       next     action
======== =========================================== ======== =========================================================
watching addresses lead back                         barred   reset these connections
watching many look like a loop                       trial    reset the last one
trial    the target of the one before it has ended   barred   reset all for that target that have no answer
trial    it has not                                  watching nothing
barred   a client for that target                    barred   reset it, without a dial
barred   a client, and the moment is over            watching dial
======== =========================================== ======== =========================================================
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Collection, Iterable
from typing import Any

from ..eventloop.loop import Loop, Timer
from ..streams.rate_limited_log import RateLog
from .connection import Connection

logger = logging.getLogger("relay")

_FIRST_LOOK = 256  # open connections; a loop has them within a second
_MANY = 1024  # open connections, at which a loop through another program ends
_FEW = 16  # connections in a row say nothing, even if there are descriptors for no more
_MOST_TIES = 7 / 8  # of them are accepted in one turn; clients that do not wait for each other come in large batches
_UNDER_WAY = 4  # connections: a server may connect to the tunnel before it confirms the stream
_TRIAL = 1.0  # seconds until the end of a connection has gone round
_BARRED = 2.0  # seconds; a client that is under way in a loop comes within them
_PAUSE = 10.0  # seconds between two looks while there is no room


class LoopWatch:
    """Finds the connections of a tunnel whose clients are its own streams. Belongs to the relay thread.

    :param name: of the tunnel.
    :param loop: of the thread.
    :param own: the connections of the tunnel.
    :param others: returns those of the other tunnels of this process, which belong to other threads.
    """

    __slots__ = (
        "next_count", "_name", "_loop", "_own", "_others", "_last", "_log", "_warnings", "_trial", "_before", "_newest",
        "_barred",
    )  # fmt: skip

    def __init__(
        self, name: str, loop: Loop, own: Collection[Connection], others: Callable[[], Iterable[Connection]]
    ) -> None:
        self.next_count = _FIRST_LOOK
        """The number of open connections at which to look."""
        self._name = name
        self._loop = loop
        self._own = own
        self._others = others
        self._last = -math.inf
        self._log, self._warnings = RateLog(logger, logging.ERROR), RateLog(logger, logging.WARNING)
        self._trial = Timer(loop.timers, self._end_of_trial)
        self._before: Connection | None = None  # the connection before the one that was reset as a trial
        self._newest: int | None = None  # the number of the last connection, when the descriptors were used up
        self._barred: tuple[Any, float] | None = None  # a target, and until when it gets no client

    def look_now_and_then(self, now: float, is_used_up: bool = False) -> None:
        """Look, unless that was done a moment ago: there is no room for another client.

        :param now: monotonic seconds.
        :param is_used_up: the descriptors are used up, and not the slots of the tunnel.
        """
        if now - self._last < _PAUSE:
            return
        newest = [*self._own][-1].summary.number if is_used_up and self._own else None
        # Busy clients that use up the descriptors for a moment come and go, and must not meet a trial.
        self._look(now, _FEW if newest is not None and newest == self._newest else _MANY)
        self._newest = newest

    def resets(self, connection: Connection, now: float) -> bool:
        """Look: there are as many connections as :attr:`next_count`, with this one, which gets its stream next.

        :returns: whether the connection was reset.
        """
        if self._barred is None:
            self.next_count *= 2
            self._look(now, _MANY)
            return False
        target, until = self._barred
        if now >= until:
            self.next_count, self._barred = max(_FIRST_LOOK, 2 * len(self._own)), None
        elif _leads_to(connection) == target:
            connection.close("overloaded", now)
            return True
        return False

    def _look(self, now: float, enough: int) -> None:
        self._last = now
        own = list(self._own)
        if found := _looped(own, self._others()):
            self._end(found, now)
        elif len(own) >= enough and _looks_like_a_loop(own[-max(len(own) // 2, _FEW) :]):
            self._before = next((one for one in reversed(own[:-1]) if one.flows is not None), None)
            text = "%s: %d connections came one after the other, and no target has answered: the last one is reset"
            self._warnings.log(
                now, text + "; see that the target does not lead back to the tunnel", self._name, len(own)
            )
            self._loop.call(lambda: _reset(own[-1:]))
            self._trial.start(now + _TRIAL, now)

    def _end_of_trial(self, now: float) -> None:
        before, self._before = self._before, None
        if before is not None and _has_lost_its_target(before):
            target = _leads_to(before)
            self._end([before, *(one for one in self._own if not _is_answered(one) and _leads_to(one) == target)], now)

    def _end(self, found: list[Connection], now: float) -> None:
        self.next_count, self._last = 0, -math.inf
        self._barred = _leads_to(found[-1]), now + _BARRED
        text = "%s: its target leads back to the tunnel: %d connections reset; name another target"
        self._log.log(now, text, self._name, len(found))
        self._loop.call(lambda: _reset(found))  # once the handler of now has done its work


def _reset(found: Iterable[Connection]) -> None:
    now = time.monotonic()
    for connection in found:
        if not connection.is_closed:
            connection.close("overloaded", now)


def _looped(own: list[Connection], others: Iterable[Connection]) -> list[Connection]:
    """Return the connections whose clients are streams of the same tunnel, or have come from these by other tunnels."""
    makers: dict[Any, Connection] = {}  # by the two addresses of its stream to the target: one alone may be used twice
    for connection in (*others, *own):
        target = connection.target
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if target is not None and isinstance(near := target.getsockname(), tuple):
                makers[near[:2], target.getpeername()[:2]] = connection
    ours = set(own)
    return [connection for connection in own if _comes_from(connection, ours, makers)]


def _comes_from(connection: Connection, ours: set[Connection], makers: dict[Any, Connection]) -> bool:
    passed: set[Connection] = set()
    maker: Connection | None = connection
    while maker is not None and maker not in passed:
        passed.add(maker)
        maker = makers.get(_addresses(maker))
        if maker in ours:
            return True
    return False


def _looks_like_a_loop(newest: list[Connection]) -> bool:
    """Return whether the clients came one by one, and no target has sent or ended anything."""
    ties = 0  # both were seen in one turn of a busy loop
    came = -math.inf
    for connection in newest:
        flows, started = connection.flows, connection.summary.started
        # A target that ends streams by itself would pass for one whose connection was ended by the trial.
        if flows is not None and (flows.downstream.moved or flows.downstream.ended):
            return False
        if flows is None and connection not in newest[-_UNDER_WAY:]:
            return False
        ties += started == came
        came = started
    return ties <= len(newest) * _MOST_TIES


def _is_answered(connection: Connection) -> bool:
    return connection.flows is not None and connection.flows.downstream.moved > 0


def _has_lost_its_target(connection: Connection) -> bool:
    flows, summary = connection.flows, connection.summary
    if flows is not None:
        return bool(flows.downstream.ended) and not flows.upstream.ended
    return summary.target_ended_first or summary.reason == "target_reset"


def _leads_to(connection: Connection) -> Any:
    request = connection.request
    return (request.host, request.port) if request is not None else None


def _addresses(connection: Connection) -> Any:
    """Return the two addresses of the client's socket; the header of a balancer may name another one.

    Instead of the address to which a firewall has redirected the client it is the one that it has connected to.
    """
    request = connection.request
    try:
        far, near = connection.client.getpeername(), connection.client.getsockname()
    except OSError:  # it has ended meanwhile
        return None
    if request is not None and request.is_redirected:
        near = request.host, request.port
    return (far[:2], near[:2]) if isinstance(far, tuple) else None
