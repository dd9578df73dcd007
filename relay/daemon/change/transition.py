"""A change of what runs, as a whole or not at all: a reload, and each side of an upgrade.

A change needs resources of two kinds. Something *shareable* can be open for the old and the new at once: a kernel
socket, which one offers and the other inherits. Something *exclusive* has one owner: a listener at a server, an address
that another one overlaps, a session of keys, the file of the state. So each change goes the same way: open and check
what is shareable, give up what is exclusive (*vacate*), and then *commit*, or *restore* what was given up.

========= ======= ========= ===========================================================================================
state     event   next      action
                  state
========= ======= ========= ===========================================================================================
prepared  add     prepared  note a step, for which all that is shareable is open
prepared  vacate  vacated   vacate each step, the first one first
prepared  commit  committed commit each step, the first one first
prepared  restore restored  restore each step, the last one first
vacated   commit  committed as above
vacated   restore restored  as above
committed restore restored  as above: of a process that has taken over and hears that the other one goes on
restored  restore restored  nothing
========= ======= ========= ===========================================================================================

Each other pair is an error of the program. A step that fails to vacate counts as vacated: it may be half done. So
``restore`` of a step must do what is left to do, whatever has happened.

Two drivers: a reload commits when all is open (:mod:`.reload`). An upgrade asks the other process
(:mod:`.hand_over`, :mod:`.predecessor`), which may die meanwhile.
"""

from __future__ import annotations

import contextlib
import enum
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass


class TransitionState(enum.Enum):
    """The state of a change; the docstring of the module has the table."""

    PREPARED, VACATED, COMMITTED, RESTORED = range(4)


@dataclass(frozen=True, slots=True)
class Step:
    """One part of a change; what is shareable of it is open. ``None`` is nothing to do.

    :param vacate: gives up what is exclusive. May take long, so not in the main thread.
    :param commit: makes the change, in the main thread; must not wait.
    :param restore: closes what was opened, and takes back what was given up. May take long, and may return problems.
    """

    vacate: Callable[[], object] | None = None
    commit: Callable[[], object] | None = None
    restore: Callable[[], Sequence[str] | None] | None = None


class Transition:
    """A change that consists of steps. Used by one thread at a time.

    :param steps: the first ones.
    """

    def __init__(self, steps: Iterable[Step | Transition] = ()) -> None:
        self.state = TransitionState.PREPARED
        """The state."""
        self._steps = [*steps]

    def add(self, step: Step | Transition | None) -> None:
        """Note a step, or a change that is a part of this one; ``None`` is nothing to do."""
        assert self.state is TransitionState.PREPARED, self.state
        if step is not None:
            self._steps.append(step)

    def vacate(self) -> None:
        """Give up what is exclusive.

        :raises Exception: what a step raises; :meth:`restore` must follow.
        """
        assert self.state is TransitionState.PREPARED, self.state
        self.state = TransitionState.VACATED
        for step in self._steps:
            if step.vacate is not None:
                step.vacate()

    def commit(self) -> None:
        """Make the change."""
        assert self.state in (TransitionState.PREPARED, TransitionState.VACATED), self.state
        self.state = TransitionState.COMMITTED
        for step in self._steps:
            if step.commit is not None:
                step.commit()

    def restore(self) -> list[str]:
        """Take all back. Idempotent.

        :returns: the problems with that.
        """
        if self.state is TransitionState.RESTORED:
            return []
        self.state = TransitionState.RESTORED
        problems: list[str] = []
        for step in reversed(self._steps):
            if step.restore is not None:
                problems += step.restore() or ()
        return problems


def prepare_all(prepares: Iterable[Callable[[], Step | Transition | None]]) -> Transition:
    """Prepare the steps of a change; if one fails, restore those before it.

    :param prepares: each opens what a step needs, and returns it, or ``None`` if there is nothing to change.
    """
    made = Transition()
    with contextlib.ExitStack() as undone:
        undone.callback(made.restore)
        for prepare in prepares:
            made.add(prepare())
        undone.pop_all()
    return made


def side_by_side(calls: Sequence[Callable[[], str]]) -> list[str]:
    """Call functions that may take long, each on a thread of its own, and wait for them.

    :param calls: they must not raise.
    :returns: their results, in the order of the functions.
    """
    results = [""] * len(calls)

    def run(number: int) -> None:
        results[number] = calls[number]()

    threads = []
    for number in range(len(calls)):
        thread = threading.Thread(target=run, args=(number,), name="relay-listen", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the system has no thread left
            run(number)
        else:
            threads.append(thread)
    for thread in threads:
        thread.join()
    return results
