"""The parts of a tunnel that the workers of a pool relay: each worker has one.

A part is in one of these states:

======= ================ ======= ==========================================================
state   event            next    action
======= ================ ======= ==========================================================
absent  worker is up     opening ask the worker to open its part
opening part opened      open    note the address
opening part failed      failed  keep the error: the first opening raises it, a later logs it
opening part closed      absent  nothing
opening worker died      absent  nothing: its successor opens the part
open    part closed      absent  keep its figures
open    worker died      absent  keep its figures, count its connections as lost
failed  worker died      absent  nothing: its successor opens the part
======= ================ ======= ==========================================================
"""

from __future__ import annotations

import enum
import itertools
import logging
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from ..errors import RelayError
from .recipes import Recipe
from .shared import SharedDescriptors
from .totals import Totals
from .wire import Message, to_address, to_error, to_metrics, to_record
from .worker_slot import WorkerLostError, WorkerSlot

__all__ = ["OwnPool", "PartEvent", "PartState", "TunnelParts", "next_part_state"]

logger = logging.getLogger("relay")

_START = 60.0  # seconds for all workers to open a tunnel
_START_ELSEWHERE = 600.0  # the same where a router builds tunnels first


class PartState(enum.Enum):
    """The state of the part of one worker; the docstring of this module has the table."""

    ABSENT = "absent"
    OPENING = "opening"
    OPEN = "open"
    FAILED = "failed"


class PartEvent(enum.Enum):
    """An event of the table."""

    UP = "worker is up"
    OPENED = "part opened"
    FAILED = "part failed"
    CLOSED = "part closed"
    DIED = "worker died"


_NEXT = {
    (PartState.ABSENT, PartEvent.UP): PartState.OPENING,
    (PartState.OPENING, PartEvent.OPENED): PartState.OPEN,
    (PartState.OPENING, PartEvent.FAILED): PartState.FAILED,
    (PartState.OPENING, PartEvent.CLOSED): PartState.ABSENT,
    (PartState.OPENING, PartEvent.DIED): PartState.ABSENT,
    (PartState.OPEN, PartEvent.CLOSED): PartState.ABSENT,
    (PartState.OPEN, PartEvent.DIED): PartState.ABSENT,
    (PartState.FAILED, PartEvent.DIED): PartState.ABSENT,
}


def next_part_state(state: PartState, event: PartEvent) -> PartState:
    """Return the state after an event, by the table; an event that is not in it changes nothing."""
    return _NEXT.get((state, event), state)


class OwnPool(Protocol):
    """A pool that ends with its only tunnel."""

    def start_close(self) -> None:
        """End the processes. Does not wait."""

    def close(self) -> None:
        """End the processes."""


class _Ping:
    """A question to several loops, until all of them have turned."""

    __slots__ = ("left", "reply")

    def __init__(self, left: int, reply: Callable[[], object]) -> None:
        self.left = left
        self.reply = reply


class TunnelParts:
    """The parts of a tunnel, in which the workers of a pool relay it. Any thread may call its methods.

    :param key: of the tunnel in its pool.
    :param slots: the places of the workers that relay it.
    :param recipe: makes the listener and the factory in each worker.
    :param receive: the listening socket that the workers share; ``None`` if the one worker makes the listener.
    :param options: of the :class:`~relay.Tunnel` in each worker.
    :raises OSError: if the system has no descriptor left.
    """

    def __init__(
        self,
        key: int,
        slots: Sequence[WorkerSlot],
        recipe: Recipe,
        receive: socket.socket | None,
        options: Mapping[str, Any],
    ) -> None:
        self.key = key
        self.name: str = options["name"] or f"relay tunnel of workers {key}"
        self._slots = slots
        self._recipe = recipe
        self._options = {**options, "name": self.name}
        self._address = None if receive is None else receive.getsockname()
        self._shared = SharedDescriptors(receive, len(slots))
        self._totals = Totals(len(slots))
        self._changed = threading.Condition()  # guards what follows, and the totals
        self._parts = [PartState.ABSENT] * len(slots)
        self._was_open = False  # a part of it
        self._error: Exception | None = None  # why a part could not be opened
        self._phase = "open"  # or paused, closing, closed
        self._pings: dict[int, _Ping] = {}
        self._ping_numbers = itertools.count(1)
        self._on_over: list[Callable[[], object]] = []
        self._own_pool: OwnPool | None = None

    def own(self, pool: OwnPool) -> None:
        """End the pool with this tunnel, which is its only one."""
        self._own_pool = pool

    def on_over(self, callback: Callable[[], object]) -> None:
        """Call a function once it has ended, perhaps in a thread that watches a worker; it must not block."""
        self._on_over.append(callback)

    def open(self) -> None:
        """Open the parts of the workers that run. Does not wait."""
        for slot in self._slots:
            if slot.process is not None:
                self.open_at(slot.number)

    def wait_until_open(self) -> None:
        """Wait until all parts are open.

        :raises Exception: why one could not be opened.
        :raises RelayError: if that takes too long.
        """
        seconds = _START if self._address is not None else _START_ELSEWHERE
        with self._changed:
            settled = (PartState.OPEN, PartState.FAILED)
            if not self._changed.wait_for(lambda: all(part in settled for part in self._parts), seconds):
                raise RelayError(f"{self.name}: the workers did not listen within {seconds:.0f} s")
            if self._error is not None:
                raise self._error

    def disown(self) -> None:
        """Leave the listening socket to the caller."""
        self._shared.release_listener()

    def open_at(self, number: int) -> None:
        """Open the part of a worker, unless the tunnel is closing or another worker has it."""
        index = self._index(number)
        if index is None:
            return
        with self._changed:
            if self._phase in ("closing", "closed") or self._parts[index] is not PartState.ABSENT:
                return
            self._enter(index, PartEvent.UP)
            paused, again = self._phase == "paused", self._was_open
            request = {"recipe": self._recipe, "options": self._options, "paused": paused, "again": again}
            request |= {"number": index, "workers": len(self._slots)}
        self._ask_one(index, "open", request, descriptors=self._shared.of_worker(index))
        if self._phase == "closing":  # since then
            self._ask_one(index, "close", 0.0)

    def told(self, number: int, message: Message) -> None:
        """Take a message of a worker about this tunnel."""
        index = self._index(number)
        assert index is not None
        if "opened" in message:
            with self._changed:
                if self._address is None:
                    self._address = to_address(message["address"])
                self._was_open = True
                self._enter(index, PartEvent.OPENED)
        elif "failed" in message:
            self._failed(index, to_error(message["error"]))
        elif "closed" in message:
            with self._changed:
                if last := message["last"]:
                    self._totals.answered(index, to_metrics(last["metrics"]))
                    self._totals.answered_recent(index, [to_record(fields) for fields in last["recent"]])
                self._totals.ended(index)
                self._enter(index, PartEvent.CLOSED)
            self._look_closed()
        else:
            self._turned(message["token"])

    def died(self, number: int) -> int:
        """Take the death of a worker; return the number of connections that it had here."""
        index = self._index(number)
        if index is None:
            return 0
        with self._changed:
            lost = self._shared.bury(index) if self._parts[index] is PartState.OPEN else 0
            self._totals.ended(index, lost)
            self._enter(index, PartEvent.DIED)
        self._look_closed()
        return lost

    def abandon(self) -> None:
        """Close this process's copies of the descriptors, in a forked child."""
        self._changed = threading.Condition()
        self._phase = "closed"
        self._shared.close()

    # ---------------------------------------------------------------------------------------------------------------

    def _enter(self, index: int, event: PartEvent) -> None:
        self._parts[index] = next_part_state(self._parts[index], event)
        self._changed.notify_all()

    def _index(self, number: int) -> int | None:
        return next((index for index, slot in enumerate(self._slots) if slot.number == number), None)

    def _open_parts(self) -> list[int]:
        with self._changed:
            return [index for index, part in enumerate(self._parts) if part is PartState.OPEN]

    def _set_phase(self, before: str, after: str) -> None:
        with self._changed:
            if self._phase == before:
                self._phase = after

    def _failed(self, index: int, error: Exception) -> None:
        with self._changed:
            self._enter(index, PartEvent.FAILED)
            is_first = not self._was_open
            if is_first:
                self._error = self._error or error
        if not is_first:
            logger.error("%s: worker %d cannot open it: %s", self.name, self._slots[index].number + 1, error)
        self._look_closed()

    def _ping(self, reply: Callable[[], object]) -> bool:
        number, waiting = next(self._ping_numbers), self._open_parts()
        with self._changed:
            self._pings[number] = _Ping(len(waiting), reply)
        asked = [self._ask_one(index, "ping", number) for index in waiting]
        if asked and all(asked):
            return True
        self._pings.pop(number, None)
        return False

    def _turned(self, number: int) -> None:
        with self._changed:
            ping = self._pings.get(number)
            if ping is None:
                return
            ping.left -= 1
            if ping.left:
                return
            del self._pings[number]
        ping.reply()

    def _ask(self, call: str, *arguments: object) -> list[tuple[int, Any]]:
        """Ask the workers whose parts are open; return their answers, each with the index of its worker."""
        answers = [(index, self._ask_one(index, call, *arguments)) for index in self._open_parts()]
        return [(index, answer) for index, answer in answers if answer is not None]

    def _ask_one(self, index: int, call: str, *arguments: object, descriptors: Sequence[int] = ()) -> Any:
        """Ask one worker; return ``None`` if it has died."""
        process = self._slots[index].process
        if process is None:
            return None
        try:
            return process.ask(call, self.key, *arguments, descriptors=descriptors)
        except WorkerLostError:
            return None

    def _look_closed(self) -> None:
        """End it if it is closing and no part is left."""
        with self._changed:
            gone = (PartState.ABSENT, PartState.FAILED)
            if self._phase != "closing" or not all(part in gone for part in self._parts):
                return
        self.finish()

    def finish(self) -> None:
        """End it, whatever the workers do. Idempotent."""
        with self._changed:
            if self._phase == "closed":
                return
            self._phase = "closed"
            self._shared.close()
            self._pings.clear()
            self._changed.notify_all()
        for callback in self._on_over:
            callback()
        if self._own_pool is not None:
            self._own_pool.start_close()
