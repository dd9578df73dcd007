"""Questions about clients that may block: the ``admit`` of a tunnel, its files of rules, and the names of local users.

Other threads answer them. Meanwhile the client is half-open, in the state *admitting* of
:mod:`relay.engine.connection`. The relay thread takes the answer, or gives up after five seconds.

Even a look at the times of a file may block, as on a network file system whose server hangs; so may the name of a user,
if the system asks a server for it. One reading of both is under way at a time, and answers all clients that have come
before it began. Once it takes more than five seconds, no further client waits for it.
"""

from __future__ import annotations

import collections
import functools
import logging
import math
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from ..access.limit import Limit, check_answer
from ..access.policy import AccessRules, Admit
from ..addresses.printable import printable
from ..eventloop.loop import Loop, Timer
from ..eventloop.sockets import format_address
from ..streams.identity import Identity
from ..streams.rate_limited_log import RateLog
from ..streams.user_names import look_up
from .connection import Connection

if TYPE_CHECKING:  # parts of one machine name each other
    from .relay_thread import RelayThread

logger = logging.getLogger("relay")

_DEADLINE = 5.0  # seconds for an answer
_RECENT = 1.0  # seconds for which files of rules are taken as they were read, before a handshake
_MOST_CALLS = 256  # of ``admit`` at one time; further clients wait
_MOST_USERS = 1024  # whose names one reading looks up
_LONGEST = 500  # characters of an error in the log


class Question:
    """The thing that an *admitting* connection waits for. Belongs to the relay thread.

    :param loop: of that thread.
    :param connection: the connection.
    :param on_late: called with the connection when the time is over.
    :param now: monotonic seconds.
    """

    __slots__ = ("connection", "_on_late", "_timer")

    def __init__(
        self, loop: Loop, connection: Connection, on_late: Callable[[Connection, float], object], now: float
    ) -> None:
        self.connection = connection
        self._on_late = on_late
        self._timer = Timer(loop.timers, self._late)
        self._timer.start(now + _DEADLINE, now)

    @property
    def is_awaited(self) -> bool:
        """True while the connection waits for it."""
        return self.connection.pending is self

    def end(self) -> bool:
        """Take the answer; return whether it is still awaited."""
        self._timer.stop()
        if not self.is_awaited:
            return False
        self.connection.pending = None
        return True

    def abandon(self) -> None:
        """Give it up."""
        self._timer.stop()

    def too_late(self) -> None:
        """Do nothing: the limit of the connection was reached first."""

    def after_fork(self) -> None:
        """Do nothing: it has no descriptor."""

    def _late(self, now: float) -> None:
        if self.end():
            self._on_late(self.connection, now)


class Readings:
    """Reads the files of rules of one tunnel, and the names of its clients. Belongs to the relay thread.

    :param owner: the relay thread.
    :param on_read: called with a connection once the files and the name are read, or cannot be read in time.
    """

    def __init__(self, owner: RelayThread, on_read: Callable[[Connection, float], object]) -> None:
        self._owner = owner
        self._on_read = on_read
        self._reading: collections.deque[Question] = collections.deque()  # answered by the reading that is under way
        self._reading_next: collections.deque[Question] = collections.deque()  # those that came after its start
        self._rules: AccessRules | None = None  # what is read next
        self._users: set[int] = set()
        self._reading_since = -math.inf
        self._read_at: tuple[AccessRules | None, float] = (None, -math.inf)  # the last rules, and when this began
        self._delays = RateLog(logger, logging.WARNING)

    def reads_too_long(self, now: float) -> bool:
        """Return whether a reading is under way for which clients no longer wait: what was read before decides."""
        return bool(self._reading) and now - self._reading_since >= _DEADLINE

    def has_just_read(self, rules: AccessRules, now: float) -> bool:
        """Return whether the files of rules were read so recently that a client may be denied without reading them."""
        read, since = self._read_at
        return read is rules and now - since < _RECENT

    def read(self, rules: AccessRules | None, user: int | None, connection: Connection, now: float) -> None:
        """Read what the decision about a client needs; after five seconds it has to do without.

        :param rules: rules with files, of which those are read that have changed; ``None`` for none.
        :param user: the client's user, whose name is looked up; ``None`` for none.
        :param connection: the client's.
        :param now: monotonic seconds.
        """
        question = Question(self._owner.loop, connection, self._not_read, now)
        connection.wait_for_answer(question)
        self._forget_ended()
        self._reading_next.append(question)
        self._rules = rules  # a reload may have replaced those that are being read
        if user is not None and len(self._users) < _MOST_USERS:
            self._users.add(user)
        if not self._reading:
            self._read(now)

    def _forget_ended(self) -> None:
        """Forget the first questions that nothing awaits; else they would be kept for as long as the reading hangs."""
        while self._reading_next and not self._reading_next[0].is_awaited:
            self._reading_next.popleft()

    def _read(self, now: float) -> None:
        self._reading, self._reading_next = self._reading_next, collections.deque()
        users, self._users = self._users, set()
        self._reading_since = now
        self._owner.call_elsewhere(functools.partial(self._run_reading, self._rules, users))

    def _run_reading(self, rules: AccessRules | None, users: Iterable[int]) -> None:
        try:
            for user in users:
                look_up(user)
            if rules is not None:
                rules.refresh(self._owner.name)
        except Exception:  # whatever it is, the previous rules stay
            logger.exception("%s: reading the rules failed", self._owner.name)
        # The answer is taken in the relay thread, so that no state of a connection needs a lock.
        self._owner.loop.call(functools.partial(self._have_read, rules))

    def _have_read(self, rules: AccessRules | None) -> None:
        now = time.monotonic()
        self._read_at = rules, self._reading_since
        done, self._reading = self._reading, collections.deque()
        # First: the next reading starts while the clients of this one are served.
        if self._reading_next:
            self._read(now)
        for question in done:
            if question.end():
                self._on_read(question.connection, now)

    def _not_read(self, connection: Connection, now: float) -> None:
        text = "%s: the files of allow and deny, or the name of a user, were not read within %g s; "
        text += "the previous rules, and the user's number, decide until they are"
        self._delays.log(now, text, self._owner.name, _DEADLINE)
        self._forget_ended()
        self._on_read(connection, now)


class Questions:
    """Asks the ``admit`` of one tunnel about its clients. Belongs to the relay thread, except the calls.

    :param owner: the relay thread.
    :param on_answer: called with a connection, the answer of ``admit``, and monotonic seconds.
    """

    def __init__(
        self, owner: RelayThread, on_answer: Callable[[Connection, bool | tuple[Limit, ...], float], object]
    ) -> None:
        self._owner = owner
        self._on_answer = on_answer
        self._calls = 0  # also those that nothing waits for any more
        self._waiting: collections.deque[tuple[Question, Callable[[], object]]] = collections.deque()
        self._failures = RateLog(logger, logging.ERROR)
        self._delays = RateLog(logger, logging.WARNING)

    def ask(self, admit: Admit, connection: Connection, now: float) -> None:
        """Ask the program whether a client may connect, and within which limits.

        An error, a wrong answer, and no answer within five seconds mean no.
        """
        question = Question(self._owner.loop, connection, self._late, now)
        connection.wait_for_answer(question)
        call = functools.partial(self._run_call, admit, question, connection.summary.who())
        while self._waiting and not self._waiting[0][0].is_awaited:
            self._waiting.popleft()  # else they would be kept for as long as all calls hang
        self._waiting.append((question, call))
        self._start_calls()

    def _start_calls(self) -> None:
        while self._waiting and self._calls < _MOST_CALLS:
            question, call = self._waiting.popleft()
            if question.is_awaited:
                self._calls += 1
                self._owner.call_elsewhere(call)

    def _run_call(self, admit: Admit, question: Question, identity: Identity | None) -> None:
        outcome: bool | tuple[Limit, ...] | BaseException
        try:
            outcome = check_answer(admit(identity))
        except BaseException as error:  # noqa: BLE001  (SystemExit included: it decides about this client only)
            outcome = error
        self._owner.loop.call(functools.partial(self._called, question, outcome))

    def _called(self, question: Question, outcome: bool | tuple[Limit, ...] | BaseException) -> None:
        now = time.monotonic()
        # Also for a call that came too late: it has held a thread until now.
        self._calls -= 1
        if question.end():
            if isinstance(outcome, BaseException):
                self._log_failure(question.connection, outcome, now)
                outcome = False
            self._on_answer(question.connection, outcome, now)
        self._start_calls()

    def _late(self, connection: Connection, now: float) -> None:
        text = "%s: admit has not answered within %g s, so that the client %s is denied; it must be quicker"
        self._delays.log(now, text, self._owner.name, _DEADLINE, _client(connection))
        self._on_answer(connection, False, now)

    def _log_failure(self, connection: Connection, error: BaseException, now: float) -> None:
        name, client = self._owner.name, _client(connection)
        problem = printable(f"{type(error).__name__}: {error}", _LONGEST)
        self._failures.log(now, "%s: admit failed, so that the client %s is denied: %s", name, client, problem)
        logger.debug("%s: admit failed", name, exc_info=error)


def _client(connection: Connection) -> str:
    return format_address(connection.summary.peer) or "at a Unix socket"
