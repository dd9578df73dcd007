"""The place of one worker process in a pool: it starts the process, and another one when that has died.

======== ================== ======== ====================================================================
state    event              next     action
======== ================== ======== ====================================================================
starting process is up      running  open the tunnels in it
starting process fails      waiting  log why; wait, twice as long as before
starting close              ended    kill the process
running  no answer          stuck    log it; wait for no answer that is open; wait for ten seconds
running  process dies       starting log it; start a process
running  process dies young waiting  log it; wait, twice as long as before; nothing before the first time
running  only process dies  ended    nothing: it has no successor, and its tunnel reports it
running  close              ended    end the process; kill it if it has not ended within five seconds
stuck    answer             running  log it; open the tunnels that it does not have
stuck    time is over       stuck    kill the process
stuck    process dies       starting log it; start a process
stuck    process dies young waiting  log it; wait, twice as long as before; nothing before the first time
stuck    close              ended    kill the process
waiting  time is over       starting start a process
waiting  close              ended    nothing
======== ================== ======== ====================================================================

Any other event changes nothing. A process that is up after *close* is ended. A process dies young within ten seconds of
its start. If the first one does not start, the place is closed. The *only process* is that of a pool
without successors.

*No answer*: a process has not answered a question for two seconds. Nothing asks in regular intervals: a question is one
about figures, an action, or one of a watchdog. While a worker is stuck, it is not asked, and its last figures are used.
The only process is never stuck: its tunnel waits longer for an answer, and raises an error.
"""

from __future__ import annotations

import enum
import logging
import threading
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING, NamedTuple

from ..eventloop.backoff import Backoff
from .parent import ChildProcess
from .wire import Message

if TYPE_CHECKING:
    from .pool import WorkerPool

logger = logging.getLogger("relay")

ANSWER = 2.0
"""Seconds for a worker to answer a question."""

_YOUNG = 10.0  # seconds
_BACKOFF = (0.05, 10.0)  # seconds after the first process in a row that died young, and at most
_PATIENCE = 10  # seconds that a worker may be stuck
_STEP = 1.0  # seconds
_END = 5.0  # seconds for a process to end before it is killed


class SlotState(enum.Enum):
    """The state of the place of a worker; the docstring of this module has the table."""

    STARTING = "starting"
    RUNNING = "running"
    STUCK = "stuck"
    WAITING = "waiting"
    ENDED = "ended"


class SlotEvent(enum.Enum):
    """An event of the table."""

    UP = "process is up"
    FAILED = "process fails"
    NO_ANSWER = "no answer"
    ANSWER = "answer"
    DIED = "process dies"
    DIED_YOUNG = "process dies young"
    DIED_ONLY = "only process dies"
    TIME = "time is over"
    CLOSE = "close"


_NEXT = {
    (SlotState.STARTING, SlotEvent.UP): SlotState.RUNNING,
    (SlotState.STARTING, SlotEvent.FAILED): SlotState.WAITING,
    (SlotState.STARTING, SlotEvent.CLOSE): SlotState.ENDED,
    (SlotState.RUNNING, SlotEvent.NO_ANSWER): SlotState.STUCK,
    (SlotState.RUNNING, SlotEvent.DIED): SlotState.STARTING,
    (SlotState.RUNNING, SlotEvent.DIED_YOUNG): SlotState.WAITING,
    (SlotState.RUNNING, SlotEvent.DIED_ONLY): SlotState.ENDED,
    (SlotState.RUNNING, SlotEvent.CLOSE): SlotState.ENDED,
    (SlotState.STUCK, SlotEvent.ANSWER): SlotState.RUNNING,
    (SlotState.STUCK, SlotEvent.TIME): SlotState.STUCK,
    (SlotState.STUCK, SlotEvent.DIED): SlotState.STARTING,
    (SlotState.STUCK, SlotEvent.DIED_YOUNG): SlotState.WAITING,
    (SlotState.STUCK, SlotEvent.CLOSE): SlotState.ENDED,
    (SlotState.WAITING, SlotEvent.TIME): SlotState.STARTING,
    (SlotState.WAITING, SlotEvent.CLOSE): SlotState.ENDED,
}


def next_state(state: SlotState, event: SlotEvent) -> SlotState:
    """Return the state after an event, by the table; an event that is not in it changes nothing."""
    return _NEXT.get((state, event), state)


class WorkerStatus(NamedTuple):
    """One worker of a pool."""

    number: int
    """Its number, from 1."""
    pid: int | None
    """The process id; ``None`` while there is no process."""
    state: str
    """``starting``, ``running``, ``stuck`` (it does not answer), ``waiting`` (for the time to start again) or
    ``ended``."""
    restarts: int
    """How many processes have died in this place."""


class WorkerSlot:
    """The place of one worker, and the thread that starts its processes.

    :param number: of the worker, from 0.
    :param owner: the pool.
    """

    def __init__(self, number: int, owner: WorkerPool) -> None:
        self.number = number
        self._owner = owner
        self._replaces = owner.replaces
        self._changed = threading.Condition()  # guards what follows
        self._state = SlotState.STARTING
        self._process: ChildProcess | None = None
        self._expects_answers = False
        self._was_stuck = False  # since the thread has looked
        self._was_killed = False  # because it was stuck
        self._restarts = 0
        self._backoff = Backoff(*_BACKOFF)  # after processes in a row that have died young, or have not started
        self._begun: Future[None] = Future()
        # One thread for each place: to start a process blocks for a tenth of a second and more, and no place waits for
        # another one's.
        self._thread = threading.Thread(target=self._run, name=f"relay worker {number + 1}", daemon=True)

    def status(self) -> WorkerStatus:
        """Return what is known of the worker."""
        with self._changed:
            pid = self._process.pid if self._process is not None else None
            return WorkerStatus(self.number + 1, pid, self._state.value, self._restarts)

    @property
    def process(self) -> ChildProcess | None:
        """The process, while it runs, also if it is stuck."""
        with self._changed:
            return self._process if self._state in (SlotState.RUNNING, SlotState.STUCK) else None

    @property
    def answering(self) -> ChildProcess | None:
        """The process, while it runs and is not stuck."""
        with self._changed:
            return self._process if self._state is SlotState.RUNNING else None

    @property
    def problem(self) -> str:
        """The worker and what happens next, while it is stuck; else empty."""
        with self._changed:
            if self._state is not SlotState.STUCK or self._process is None:
                return ""
            worker = f"worker {self.number + 1} (process {self._process.pid})"
        return f"{worker} does not answer; relay replaces it unless it answers within {_PATIENCE} s"

    def start(self) -> None:
        """Start the first process. Does not wait."""
        self._thread.start()

    def wait_for_start(self) -> None:
        """Wait for the first process.

        :raises RelayError: if it does not start.
        :raises OSError: if the system has no room for it.
        """
        self._begun.result()

    def expect_answers(self) -> None:
        """Look whether the process answers within two seconds what it was asked. Does not wait."""
        with self._changed:
            self._expects_answers = self._replaces
            self._changed.notify_all()

    def suspect(self, process: ChildProcess) -> None:
        """Take note that a process has not answered for two seconds."""
        with self._changed:
            # The suspicion may be about a predecessor.
            if self._process is not process or self._state is not SlotState.RUNNING or not self._replaces:
                return
            self._enter(SlotEvent.NO_ANSWER)
            problem = self.problem
            if process.oldest_question() is None:  # it has answered just now, before the state changed
                self._enter(SlotEvent.ANSWER)
                return
            # For the thread of the place: the worker may answer again before that looks at the state.
            self._was_stuck = True
        # Outside the lock: the callbacks of the questions run in this thread.
        process.give_up_questions()
        logger.warning("%s", problem)

    def kill_stuck(self) -> bool:
        """Kill the process if it is stuck, and return whether it is. Does not wait."""
        with self._changed:
            process = self._process
            if self._state is not SlotState.STUCK or process is None:
                return False
            self._enter(SlotEvent.TIME)
            self._was_killed = True
        process.kill()
        return True

    def is_own_thread(self) -> bool:
        """Return whether the current thread watches the worker, and so must not wait for its end."""
        with self._changed:
            process = self._process if self._state is not SlotState.STARTING else None
        if threading.current_thread() is self._thread:
            return True
        return process is not None and process.is_own_thread()

    def start_close(self) -> None:
        """End the process, and start no other one. Does not wait."""
        with self._changed:
            before, process = self._state, self._process
            self._enter(SlotEvent.CLOSE)
        if process is None:
            return
        # A process that is stuck, or has hardly begun, does not read that its channel has ended.
        if before is SlotState.RUNNING:
            process.start_close()
        elif before is not SlotState.ENDED:
            process.kill()

    def close(self) -> None:
        """Do the same, and wait; a process that does not end in time is killed."""
        self.start_close()
        self.join()

    def join(self, timeout: float | None = None) -> None:
        """Wait until the last process has ended, except in a thread that watches it.

        :param timeout: seconds to wait at most; ``None`` for no limit.
        """
        if self._thread.is_alive() and not self.is_own_thread():  # it may not even have started
            self._thread.join(timeout)

    def after_fork(self) -> None:
        """Leave the process to the program, in a forked child."""
        self._changed = threading.Condition()  # a thread that is not in this process may have held the other one
        self._state, self._process = SlotState.ENDED, None

    def _enter(self, event: SlotEvent) -> SlotState:
        with self._changed:
            self._state = next_state(self._state, event)
            self._changed.notify_all()
            return self._state

    # -- what the process reports -----------------------------------------------------------------------------------

    def on_begin(self, process: ChildProcess) -> None:
        """Take note of a process that starts; it is killed if the place is closed."""
        with self._changed:
            self._process = process
            is_closed = self._state is SlotState.ENDED
        if is_closed:
            process.kill()

    def on_message(self, message: Message) -> None:
        """Pass a message of the process on."""
        self._owner.on_message(self.number, message)

    def on_answer(self) -> None:
        """Take note that the process has answered."""
        # Without the lock, as this comes after each answer. If the state changes just now, suspect() sees that no
        # question is open any more, for this one was taken out before the call.
        if self._state is SlotState.STUCK:
            self._enter(SlotEvent.ANSWER)

    def on_over(self) -> None:
        """Take note of the end of the process."""
        with self._changed:
            self._changed.notify_all()

    # -- the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while self._run_process() is not SlotState.ENDED:
            pass

    def _run_process(self) -> SlotState:
        """Start a process, wait for its end, and then until the next one is started; return the state."""
        try:
            process = self._owner.start_process(self)
        except Exception as error:  # noqa: BLE001  (whatever it is, it must not end the thread in silence)
            return self._failed(error)
        begun = time.monotonic()
        # Before the pool hears that this place has begun: what opens a tunnel then finds a worker that answers.
        if self._enter(SlotEvent.UP) is not SlotState.ENDED:
            self._owner.on_up(self.number)
        if not self._begun.done():
            self._begun.set_result(None)
        self._watch(process)
        return self._died(process, time.monotonic() - begun < _YOUNG)

    def _watch(self, process: ChildProcess) -> None:
        """Wait for the end of a process; see to it that it answers, and that it ends when it has to."""
        while not process.fate:
            with self._changed:
                self._changed.wait_for(
                    lambda: process.fate or self._state is SlotState.ENDED or self._was_stuck or self._expects_answers
                )
                state, stuck, expects = self._state, self._was_stuck, self._expects_answers
                # Taken under the lock: what is set after this line leads to another turn.
                self._was_stuck = self._expects_answers = False
            if state is SlotState.ENDED:
                self._wait_for_end(process)
            elif stuck:
                self._watch_stuck(process)
            elif expects:
                self._watch_answers(process)
        process.join()

    def _watch_answers(self, process: ChildProcess) -> None:
        """Wait until what the process was asked is due, and suspect it if that is not answered."""
        with self._changed:
            if self._changed.wait_for(lambda: process.fate or self._state is not SlotState.RUNNING, ANSWER):
                return
        oldest = process.oldest_question()
        if oldest is not None and time.monotonic() - oldest >= ANSWER:
            self.suspect(process)
        elif oldest is not None:
            self.expect_answers()  # of what it was asked meanwhile

    def _watch_stuck(self, process: ChildProcess) -> None:
        """Wait until a stuck process answers, and kill it if it does not.

        In steps: if this program did not run meanwhile, as in a suspended container, no worker could answer, and all of
        that time is one step.
        """
        with self._changed:
            for _ in range(_PATIENCE):
                if self._changed.wait_for(lambda: process.fate or self._state is not SlotState.STUCK, _STEP):
                    break
            state = self._state
        if state is SlotState.RUNNING:
            logger.warning("worker %d (process %d) answers again", self.number + 1, process.pid)
            # A tunnel that was opened while it was stuck was not opened here.
            self._owner.on_up(self.number)
        elif state is SlotState.STUCK and not process.fate:
            self.kill_stuck()
            process.join()

    def _wait_for_end(self, process: ChildProcess) -> None:
        process.start_close()
        with self._changed:
            if self._changed.wait_for(lambda: process.fate, _END):
                return
        process.kill()
        process.join()

    def _failed(self, error: Exception) -> SlotState:
        with self._changed:
            self._process = None
        if not self._begun.done():
            self._enter(SlotEvent.CLOSE)
            self._begun.set_exception(error)
            return SlotState.ENDED
        if self._enter(SlotEvent.FAILED) is not SlotState.ENDED:
            logger.error("worker %d: cannot start a process: %s; it is tried again", self.number + 1, error)
        return self._wait(self._backoff.next())

    def _died(self, process: ChildProcess, is_young: bool) -> SlotState:
        with self._changed:
            self._process = None
            fate = "did not answer and was killed" if self._was_killed else process.fate
            self._was_killed = False
        event = SlotEvent.DIED_YOUNG if is_young else SlotEvent.DIED
        state = self._enter(event if self._replaces else SlotEvent.DIED_ONLY)
        # Also when the place is closed: the tunnels count what ended with it.
        lost = self._owner.on_died(self.number, fate)
        if state is SlotState.ENDED:
            return state
        with self._changed:
            self._restarts += 1
        text = "worker %d: the process %d %s; %d connections are lost, and another process takes its place"
        logger.error(text, self.number + 1, process.pid, fate, lost)
        if state is SlotState.STARTING:
            self._backoff.reset()
            return state
        pause = self._backoff.next()
        # The first one in a row has a successor at once: clients wait in the backlog.
        return self._wait(pause if self._backoff.failures > 1 else 0.0)

    def _wait(self, seconds: float) -> SlotState:
        with self._changed:
            self._changed.wait_for(lambda: self._state is SlotState.ENDED, seconds)
        return self._enter(SlotEvent.TIME)
