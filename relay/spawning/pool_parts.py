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

import concurrent.futures
import enum
import logging
import os
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..engine.worker_table import WorkerTable
from ..errors import RelayError
from .parent import ChildProcess
from .questions import NoAnswerError, Question
from .recipes import Recipe
from .totals import Totals
from .wire import Message, to_address, to_error, to_metrics, to_record
from .worker_slot import ANSWER, WorkerSlot

if TYPE_CHECKING:
    from .pool import WorkerPool

logger = logging.getLogger("relay")

_START = 60.0  # seconds for all workers to open a tunnel
_START_ELSEWHERE = 600.0  # the same where a router builds tunnels first
# Kinds that keep the borders of messages: each has one client with its descriptor, and a reader takes whole ones.
_KIND = getattr(socket, "SOCK_SEQPACKET", socket.SOCK_DGRAM)


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


class SharedDescriptors:
    """A listening socket, the counts of the workers, and a pair of sockets to each of them.

    The clients that wait in the backlog, and those that are on their way to a worker, outlive every worker.

    :param receive: the listening socket, if the workers share one.
    :param workers: how many there are.
    :raises OSError: if the system has no descriptor left; ``receive`` stays with the caller then.
    """

    def __init__(self, receive: socket.socket | None, workers: int) -> None:
        self._receive = receive
        self._timeout = None if receive is None else receive.gettimeout()
        if receive is not None:
            receive.setblocking(False)  # for all workers, so that no accept of theirs ever blocks
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._memory = WorkerTable.make(workers)
        self._accepted = 0  # once the table is closed: its memory is gone then
        self._is_open = True
        try:
            self._table = WorkerTable(self._memory, workers)
            # A single worker passes no client on.
            for _ in range(workers if workers > 1 else 0):
                self._pairs.append(socket.socketpair(socket.AF_UNIX, _KIND))
        except BaseException:
            self._close_own()
            raise

    def of_worker(self, index: int) -> list[int]:
        """Return the descriptors for a worker; see :class:`relay.spawning.worker.HostedTunnel`."""
        to_it = [pair[0] for pair in self._pairs[index : index + 1]]
        sockets = [*to_it, *(pair[1] for pair in self._pairs), *([] if self._receive is None else [self._receive])]
        return [self._memory, *(sock.fileno() for sock in sockets)]

    def accepted(self) -> int:
        """Return the number of connections that all workers have ever accepted."""
        return sum(self._table.accepted()) if self._is_open else self._accepted

    def loads(self) -> list[int]:
        """Return the numbers of open connections of the workers; none after the end."""
        return self._table.loads() if self._is_open else []

    def bury(self, index: int) -> int:
        """Take note of the death of a worker; return the number of connections that ended with it."""
        return self._table.bury(index) if self._is_open else 0

    def release_listener(self) -> None:
        """Leave the listening socket to the caller, in the mode that it had."""
        receive, self._receive = self._receive, None
        if receive is not None:
            receive.settimeout(self._timeout)

    def close_listener(self) -> None:
        """Close the program's copy of the listening socket. Idempotent."""
        if self._receive is not None:
            self._receive.close()

    def close(self) -> None:
        """Close all of it. Idempotent."""
        if self._is_open:
            # The count stays after the shared memory is gone: figures of a closed tunnel may still be asked for.
            self._accepted, self._is_open = self.accepted(), False
            self.close_listener()
            self._table.close()
            self._close_own()

    def _close_own(self) -> None:
        os.close(self._memory)
        for pair in self._pairs:
            for sock in pair:
                sock.close()


class Asked(NamedTuple):
    """A question to a worker."""

    worker: int
    """The index of its part."""
    process: ChildProcess
    question: Question


class TunnelParts:
    """The parts of a tunnel, in which the workers of a pool relay it. Any thread may call its methods.

    :param key: of the tunnel in its pool.
    :param slots: the places of the workers that relay it.
    :param recipe: makes the listener and the factory in each worker.
    :param receive: the listening socket that the workers share; ``None`` if the one worker makes the listener.
    :param options: of the :class:`~relay.Tunnel` in each worker.
    :raises OSError: if the system has no descriptor left.
    """

    _late = "{}: the workers did not listen within {:.0f} s"

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
        self._start_timeout = _START if receive is not None else _START_ELSEWHERE
        self._changed = threading.Condition()  # guards what follows, and the totals
        self._parts = [PartState.ABSENT] * len(slots)
        self._was_open = False  # a part of it
        self._error: Exception | None = None  # why a part could not be opened
        self._phase = "open"  # or paused, closing, closed
        self._limits: Mapping[str, Any] = {}  # that have changed since the tunnel was made
        # With which the parts were opened: whether they were paused, and the changed limits.
        self._requested: list[tuple[bool, Mapping[str, Any]]] = [(False, self._limits)] * len(slots)
        self._on_over: list[Callable[[], object]] = []
        self._own_pool: WorkerPool | None = None

    def own(self, pool: WorkerPool) -> None:
        """End the pool with this tunnel, which is its only one."""
        self._own_pool = pool

    def on_over(self, callback: Callable[[], object]) -> None:
        """Call a function once it has ended, perhaps in a thread that watches a worker; it must not block."""
        self._on_over.append(callback)

    def open(self) -> None:
        """Open the parts of the workers that run. Does not wait."""
        self._await_opening([asked for slot in self._slots for asked in self._opening(slot.number)])

    def wait_until_open(self) -> None:
        """Wait until the parts of all workers that run are open.

        :raises Exception: why one could not be opened.
        :raises RelayError: if that takes too long.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._phase == "closed" or self._are_settled(), self._start_timeout):
                raise RelayError(self._late.format(self.name, self._start_timeout))
            if self._error is not None:
                raise self._error
            if self._phase == "closed":
                raise RelayError(f"{self.name}: the workers were ended before they listened")

    def _are_settled(self) -> bool:
        """Return whether no part is opening any more, except those of workers that will be replaced."""
        settled = [part in (PartState.OPEN, PartState.FAILED) for part in self._parts]
        return any(settled) and all(
            done or slot.answering is None for done, slot in zip(settled, self._slots, strict=True)
        )

    def disown(self) -> None:
        """Leave the listening socket to the caller."""
        with self._changed:
            self._shared.release_listener()

    def open_at(self, number: int) -> None:
        """Open the part of a worker, unless it is open, the tunnel is closing or another worker has it."""
        self._await_opening(self._opening(number))

    def _opening(self, number: int) -> list[Asked]:
        """Begin to open the part of a worker; return the question, if there is one."""
        index = self._index(number)
        if index is None:
            return []
        with self._changed:
            is_closing = self._phase in ("closing", "closed")
            if is_closing or self._parts[index] is not PartState.ABSENT or self._slots[index].answering is None:
                return []
            self._enter(index, PartEvent.UP)
            try:
                # Copies, as the tunnel may end before they are sent.
                descriptors = [os.dup(descriptor) for descriptor in self._shared.of_worker(index)]
            except OSError as error:
                self._on_failed(index, error)
                return []
            paused, again = self._phase == "paused", self._was_open
            self._requested[index] = (paused, self._limits)
            request = {"recipe": self._recipe, "options": self._options, "paused": paused, "again": again}
            request |= {"number": index, "workers": len(self._slots)}
        # Not under the lock: to send may take two seconds, and each message of another worker takes the lock.
        asked = self._ask_one(index, "open", request, descriptors=descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        if self._phase == "closing":  # since then
            self._ask_one(index, "close", 0.0)
        return asked

    def _await_opening(self, asked: Sequence[Asked]) -> None:
        for each in self._await(asked):
            if (error := each.question.exception()) is not None:
                assert isinstance(error, Exception)
                self._on_failed(each.worker, error)

    def on_message(self, number: int, message: Message) -> None:
        """Take a message of a worker about this tunnel."""
        index = self._index(number)
        assert index is not None
        if "opened" in message:
            self._on_opened(index, message)
        elif "failed" in message:
            self._on_failed(index, to_error(message["error"]))
        elif "late" in message:
            self._on_late(message["worker"])
        else:
            with self._changed:
                if last := message["last"]:
                    self._totals.answered(index, to_metrics(last["metrics"]))
                    self._totals.answered_recent(index, [to_record(fields) for fields in last["recent"]])
                self._totals.ended(index)
                self._enter(index, PartEvent.CLOSED)
                if message["expired"]:
                    self._phase = "closing"
            self._look_closed()

    def on_died(self, number: int, fate: str) -> int:
        """Take the death of a worker; return the number of connections that it had here.

        :param fate: how its process has ended.
        """
        index = self._index(number)
        if index is None:
            return 0
        with self._changed:
            lost = self._shared.bury(index)  # also of a part that has not reported that it is open
            self._totals.ended(index, lost)
            self._enter(index, PartEvent.DIED)
        self._look_closed()
        for other in self._open_parts():
            self._ask_one(other, "take_backlog")  # the kernel may have woken only the dead one for a client
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

    def _on_opened(self, index: int, message: Message) -> None:
        with self._changed:
            if self._address is None:
                self._address = to_address(message["address"])
            # From now on a part that fails is tried again by its worker: the address was good once.
            self._was_open = True
            self._enter(index, PartEvent.OPENED)
            was_paused, before = self._requested[index]
            is_paused, limits = self._phase == "paused", self._limits
        if is_paused != was_paused:  # while it was opening
            self._ask_one(index, *(("pause", False) if is_paused else ("resume",)))
        if limits is not before:
            self._ask_one(index, "update", limits)

    def _on_failed(self, index: int, error: Exception) -> None:
        with self._changed:
            self._enter(index, PartEvent.FAILED)
            is_first = not self._was_open
            if is_first:
                # The first one; the others of the same opening say the same as a rule.
                self._error = self._error or error
        if not is_first:
            logger.error("%s: worker %d cannot open it: %s", self.name, self._slots[index].number + 1, error)
        self._look_closed()

    def _on_late(self, index: int) -> None:
        """Find out whether a worker is stuck: it does not take a client that another worker has passed to it."""
        slot = self._slots[index]
        if slot.answering is not None:
            self._ask_one(index, "turn")
            slot.expect_answers()

    def _set_phase(self, before: str, after: str) -> None:
        with self._changed:
            if self._phase == before:
                self._phase = after

    def _figures(self, call: str) -> list[Asked]:
        """Ask the workers whose parts are open and which are not stuck; return those that answer in time."""
        return self._answered(self._ask_answering(call))

    def _order(self, call: str, *arguments: object) -> list[Any]:
        """Do the same for an action, and return the answers; a worker that is stuck does it when it goes on."""
        asked = [each for index in self._open_parts() for each in self._ask_one(index, call, *arguments)]
        return [each.question.result() for each in self._answered(asked)]

    def _is_current(self, asked: Asked) -> bool:
        """Return whether the worker that was asked has still an open part; the totals have its last answer if not."""
        return self._parts[asked.worker] is PartState.OPEN and self._slots[asked.worker].process is asked.process

    def _ask_answering(self, call: str) -> list[Asked]:
        found = [index for index in self._open_parts() if self._slots[index].answering is not None]
        return [asked for index in found for asked in self._ask_one(index, call)]

    def _ask_one(self, index: int, call: str, *arguments: object, descriptors: Sequence[int] = ()) -> list[Asked]:
        """Ask one worker, and do not wait; return the question, if the worker runs."""
        process = self._slots[index].process
        if process is None:
            return []
        return [Asked(index, process, process.ask(call, self.key, *arguments, descriptors=descriptors))]

    def _answered(self, asked: Sequence[Asked]) -> list[Asked]:
        """Wait for the answers that the caller of a member waits for; return the questions that have one."""
        return self._await(asked)

    def _await(self, asked: Sequence[Asked]) -> list[Asked]:
        """Wait for answers; return the questions that have one in time. A worker without one is stuck from then on."""
        # All at once, so that one that is stuck costs two seconds in all; one that is known to be stuck costs none.
        concurrent.futures.wait([each.question for each in asked if not self._slots[each.worker].problem], ANSWER)
        for each in asked:
            if not each.question.done():
                self._slots[each.worker].suspect(each.process)
        done = [each for each in asked if each.question.done()]
        return [each for each in done if not isinstance(each.question.exception(), NoAnswerError)]

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
            self._changed.notify_all()
        # Without the lock: they are those of the pool and of the program, and may ask this tunnel.
        for callback in self._on_over:
            callback()
        if self._own_pool is not None:
            self._own_pool.start_close()
