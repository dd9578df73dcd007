"""The observer of a route: it keeps the steps that dialers report, with the facts that are to be shown.

Dialers report from their own threads, and the sockets and TLS connections that they report are in use or closed soon
after. So a step takes the facts from these while they are reported.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from ...streams.trace import Stage, Step, Trace
from .certificates import tls_facts
from .network import local_facts


class RecordedStep(Step):
    """One step of a route.

    :param stage: its kind.
    :param subject: the target, hop or session.
    :param facts: what was reported.
    :param on_change: called with each change; must not block.
    """

    def __init__(self, stage: Stage, subject: str, facts: dict[str, Any], on_change: Callable[[], object]) -> None:
        self.stage = stage
        self.subject = subject
        self.facts = facts
        self.begun = time.monotonic()
        self.ended: float | None = None
        self.error: BaseException | None = None
        self.noted: BaseException | None = None  # the error of the last attempt
        self._on_change = on_change
        # At once, in the dialer's thread: the socket or the TLS connection may be closed when this returns.
        self._take(facts)

    @property
    def seconds(self) -> float:
        """The time that it took, or has taken until now."""
        return (time.monotonic() if self.ended is None else self.ended) - self.begun

    @property
    def is_running(self) -> bool:
        """``True`` until it has ended."""
        return self.ended is None

    def note(self, error: BaseException) -> None:
        """Keep the error of an attempt."""
        self.noted = error

    def done(self, **facts: object) -> None:
        """Keep the facts of a success."""
        self._end(facts)

    def failed(self, error: BaseException, **facts: object) -> None:
        """Keep the error and the facts of a failure."""
        self.error = error
        self._end(facts)

    def _end(self, facts: dict[str, Any]) -> None:
        self._take(facts)
        self.facts.update(facts)
        # After the facts and the error: another thread that finds the step ended reads them.
        self.ended = time.monotonic()
        self._on_change()

    def _take(self, facts: dict[str, Any]) -> None:
        """Replace what belongs to the dialer by its values."""
        if (socket := facts.pop("socket", None)) is not None:
            facts |= local_facts(socket)
        if (connection := facts.pop("connection", None)) is not None:
            facts |= tls_facts(connection)


class Recorder(Trace):
    """Keeps all steps in the order in which they began. Its methods may be called in any thread.

    :param on_change: called when a step begins or ends; must not block.
    """

    changes_nothing = True

    def __init__(self, on_change: Callable[[], object]) -> None:
        self._on_change = on_change
        self._lock = threading.Lock()
        self._steps: list[RecordedStep] = []

    def begin(self, stage: Stage, subject: str, **facts: object) -> Step:
        """Keep a step; see :meth:`relay.streams.trace.Trace.begin`."""
        step = RecordedStep(stage, subject, dict(facts), self._on_change)
        with self._lock:
            self._steps.append(step)
        self._on_change()
        return step

    def steps(self) -> list[RecordedStep]:
        """Return the steps since the last :meth:`clear`."""
        with self._lock:
            return list(self._steps)

    def clear(self) -> None:
        """Forget the steps, before another target of the same route."""
        with self._lock:
            self._steps.clear()
