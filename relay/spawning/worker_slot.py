"""The place of one worker process in a pool: it starts the process, and another one when that has died.

======== ================== ======== ===================================================================
state    event              next     action
======== ================== ======== ===================================================================
starting process is up      running  open the tunnels in it
starting process fails      waiting  log why; wait, twice as long as before
running  process dies       starting log it; start a process
running  process dies young waiting  log it; wait, twice as long as before; nothing before the first time
waiting  time is over       starting start a process
starting close              ended    end the process when it is up
running  close              ended    end the process
waiting  close              ended    nothing
ended    process is up      ended    end the process
ended    process fails      ended    nothing
ended    process dies       ended    nothing
ended    process dies young ended    nothing
ended    time is over       ended    nothing
ended    close              ended    nothing
======== ================== ======== ===================================================================

A process dies young within ten seconds of its start. If the first one does not start, the place is closed.
"""

from __future__ import annotations

import enum
import functools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple, Protocol

from ..errors import RelayError
from .parent import ChildProcess
from .wire import Message

__all__ = ["SlotEvent", "SlotState", "WorkerLostError", "WorkerProcess", "WorkerSlot", "WorkerStatus", "next_state"]

logger = logging.getLogger("relay")

_YOUNG = 10.0  # seconds
_WAITS = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)  # seconds, by the number of processes in a row that died young


class SlotState(enum.Enum):
    """The state of the place of a worker; the docstring of this module has the table."""

    STARTING = "starting"
    RUNNING = "running"
    WAITING = "waiting"
    ENDED = "ended"


class SlotEvent(enum.Enum):
    """An event of the table."""

    UP = "process is up"
    FAILED = "process fails"
    DIED = "process dies"
    DIED_YOUNG = "process dies young"
    TIME = "time is over"
    CLOSE = "close"


_NEXT = {
    (SlotState.STARTING, SlotEvent.UP): SlotState.RUNNING,
    (SlotState.STARTING, SlotEvent.FAILED): SlotState.WAITING,
    (SlotState.RUNNING, SlotEvent.DIED): SlotState.STARTING,
    (SlotState.RUNNING, SlotEvent.DIED_YOUNG): SlotState.WAITING,
    (SlotState.WAITING, SlotEvent.TIME): SlotState.STARTING,
    (SlotState.STARTING, SlotEvent.CLOSE): SlotState.ENDED,
    (SlotState.RUNNING, SlotEvent.CLOSE): SlotState.ENDED,
    (SlotState.WAITING, SlotEvent.CLOSE): SlotState.ENDED,
}


def next_state(state: SlotState, event: SlotEvent) -> SlotState:
    """Return the state after an event, by the table."""
    return state if state is SlotState.ENDED else _NEXT[state, event]


class WorkerLostError(RelayError):
    """A worker that was asked has died, or is not there yet; its successor has what was asked for, if anything."""


class WorkerStatus(NamedTuple):
    """One worker of a pool."""

    number: int
    """Its number, from 1."""
    pid: int | None
    """The process id; ``None`` while there is no process."""
    state: str
    """``starting``, ``running``, ``waiting`` (for the time to start again) or ``ended``."""
    restarts: int
    """How many processes have died in this place."""


class WorkerProcess(ChildProcess):
    """One process of a worker.

    :param on_message: called with each message that is neither an answer nor a log record.
    :param arguments: those of :class:`ChildProcess`.
    :raises Exception: as for :class:`ChildProcess`.
    """

    def __init__(self, on_message: Callable[[Message], object], *arguments: Any) -> None:
        self._on_message = on_message
        self.fate = ""
        """How it has ended."""
        super().__init__(*arguments)

    def ask(self, call: str, *arguments: object, descriptors: Sequence[int] = ()) -> Any:
        """Call a function of the worker.

        :param call: its name.
        :param arguments: its arguments.
        :param descriptors: that the worker gets copies of.
        :raises WorkerLostError: if it has died.
        :raises RelayError: if it does not answer in time.
        :raises Exception: what the function raised.
        """
        return self._ask(call, *arguments, descriptors=descriptors)

    def is_watched_here(self) -> bool:
        """Return whether the current thread is the one that watches it, which must not wait for its end."""
        return threading.current_thread() is self._thread

    def join(self) -> None:
        """Wait until it has ended."""
        self._thread.join()

    def start_close(self) -> None:
        """Let it end. Does not wait."""
        self._close_control()

    def close(self) -> None:
        """Let it end, wait for that, and kill it if it does not end in time."""
        self._end()

    def _told(self, message: Message) -> None:
        self._on_message(message)

    def _read_final_state(self, call: str) -> Any:
        raise WorkerLostError(f"{self.name}: the worker process {self.pid} has ended")

    def _over(self, fate: str) -> None:
        self.fate = fate


class SlotOwner(Protocol):
    """The pool, as the place of a worker sees it."""

    def start_process(self, on_message: Callable[[Message], object]) -> WorkerProcess:
        """Start a process, and wait until it is up.

        :param on_message: called with what it says unasked.
        :raises RelayError: if it does not start.
        :raises OSError: if the system has no room for it.
        """

    def on_up(self, number: int) -> None:
        """Open the tunnels in the process of a worker, which is running now."""

    def on_message(self, number: int, message: Message) -> None:
        """Take a message of the process of a worker."""

    def on_died(self, number: int) -> int:
        """Take the death of the process of a worker; return the number of connections that are lost with it."""


class WorkerSlot:
    """The place of one worker, and the thread that starts its processes.

    :param number: of the worker, from 0.
    :param owner: the pool.
    """

    def __init__(self, number: int, owner: SlotOwner) -> None:
        self.number = number
        self._owner = owner
        self._changed = threading.Condition()  # guards what follows
        self._state = SlotState.STARTING
        self._process: WorkerProcess | None = None
        self._restarts = 0
        self._young = 0  # processes in a row that have died young, or have not started
        self._begun: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name=f"relay worker {number + 1}", daemon=True)

    def status(self) -> WorkerStatus:
        """Return what is known of the worker."""
        with self._changed:
            pid = self._process.pid if self._process is not None else None
            return WorkerStatus(self.number + 1, pid, self._state.value, self._restarts)

    @property
    def process(self) -> WorkerProcess | None:
        """The process, while it runs."""
        with self._changed:
            return self._process if self._state is SlotState.RUNNING else None

    def start(self) -> None:
        """Start the first process. Does not wait."""
        self._thread.start()

    def wait_for_start(self) -> None:
        """Wait for the first process.

        :raises RelayError: if it does not start.
        :raises OSError: if the system has no room for it.
        """
        self._begun.result()

    def start_close(self) -> None:
        """End the process, and start no other one. Does not wait."""
        self._enter(SlotEvent.CLOSE)
        with self._changed:
            process = self._process
        if process is not None:
            process.start_close()

    def close(self) -> None:
        """Do the same, and wait; a process that does not end in time is killed."""
        self.start_close()
        with self._changed:
            process = self._process
        if process is not None and process.is_watched_here():
            return
        if process is not None:
            process.close()
        self._thread.join()

    def _enter(self, event: SlotEvent) -> SlotState:
        with self._changed:
            self._state = next_state(self._state, event)
            self._changed.notify_all()
            return self._state

    # -- the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while self._run_process() is not SlotState.ENDED:
            pass

    def _run_process(self) -> SlotState:
        """Start a process, wait for its end, and then until the next one is started; return the state."""
        try:
            process = self._owner.start_process(functools.partial(self._owner.on_message, self.number))
        except Exception as error:  # noqa: BLE001  (whatever it is, it must not end the thread in silence)
            return self._failed(error)
        begun = time.monotonic()
        with self._changed:
            self._process = process
        if self._enter(SlotEvent.UP) is SlotState.ENDED:
            process.start_close()
        else:
            self._owner.on_up(self.number)
        if not self._begun.done():
            self._begun.set_result(None)
        process.join()
        return self._died(process, time.monotonic() - begun < _YOUNG)

    def _failed(self, error: Exception) -> SlotState:
        if not self._begun.done():
            self._enter(SlotEvent.CLOSE)
            self._begun.set_exception(error)
            return SlotState.ENDED
        self._young += 1
        if self._enter(SlotEvent.FAILED) is not SlotState.ENDED:
            logger.error("worker %d: cannot start a process: %s; it is tried again", self.number + 1, error)
        return self._wait()

    def _died(self, process: WorkerProcess, is_young: bool) -> SlotState:
        with self._changed:
            self._process = None
        state = self._enter(SlotEvent.DIED_YOUNG if is_young else SlotEvent.DIED)
        lost = self._owner.on_died(self.number)
        if state is SlotState.ENDED:
            return state
        with self._changed:
            self._restarts += 1
        text = "worker %d: the process %d %s; %d connections are lost, and another process takes its place"
        logger.error(text, self.number + 1, process.pid, process.fate, lost)
        if state is SlotState.STARTING:
            self._young = 0
            return state
        state = self._wait()
        self._young += 1
        return state

    def _wait(self) -> SlotState:
        seconds = _WAITS[min(self._young, len(_WAITS) - 1)]
        with self._changed:
            self._changed.wait_for(lambda: self._state is SlotState.ENDED, seconds)
        return self._enter(SlotEvent.TIME)
