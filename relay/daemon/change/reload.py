"""The reload of a group of tunnels: one at a time, and all of it or nothing."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from ...config.models import File
from ..failures import ReloadError, describe_error, status_of
from ..member import Member, MemberState
from ..preflight import Preflight
from ..top_keys import KeyChange, Swap, prepare_all
from ..verdicts import Change, Settings, Verdict, compare
from .replacement import Call, Leaving, Replacement, undo_all

__all__ = ["ReloadResult", "Reloads", "prepared", "prepared_parts", "verdicts"]


@dataclass(frozen=True, slots=True)
class ReloadResult:
    """The effect of a reload, or of one that would be done.

    :param changes: a verdict for each tunnel: those of the file in its order, then those that are gone.
    :param keys: the keys at the top of the file that have changed.
    """

    changes: tuple[Change, ...]
    keys: tuple[KeyChange, ...] = ()


class Reloads:
    """Runs reloads one after the other. At most one waits; those that come meanwhile get its result.

    :param work: does one.
    """

    def __init__(self, work: Callable[[], ReloadResult]) -> None:
        self._work = work
        self._turn = threading.Lock()
        self._lock = threading.Lock()  # for the next one
        self._next: Future[ReloadResult] | None = None  # that has not begun

    def run(self) -> ReloadResult:
        """Reload, or wait for the one that has not begun.

        :raises BaseException: what the work raises.
        """
        with self._lock:
            known = self._next
            future = self._next = known or Future()
        if known is not None:
            return future.result()
        with self._turn:
            with self._lock:
                self._next = None
            try:
                future.set_result(self._work())
            except BaseException as error:  # noqa: BLE001  (it is raised below, and where others wait)
                future.set_exception(error)
        return future.result()


def verdicts(members: Sequence[Member], settings: Sequence[Settings]) -> list[Change]:
    """Return the verdicts for tunnels that run; those that have failed, drain or are closed count as new."""
    return compare([one.settings for one in _running(members) if one.settings is not None], settings)


def prepared_parts(parts: Iterable[Callable[[File], Swap | None]], file: File) -> Swap:
    """Open what the keys at the top of the file need.

    :param parts: prepare one part of the program each.
    :param file: the file.
    :raises ReloadError: if something cannot be opened; nothing is open then.
    """
    try:
        return prepare_all(functools.partial(prepare, file) for prepare in parts)
    except (OSError, ValueError) as error:
        raise ReloadError([describe_error(error)], status_of(error)) from error


def prepared(
    members: Sequence[Member],
    settings: Sequence[Settings],
    vacated: Callable[[str], object],
    call: Call,
) -> list[Replacement]:
    """Check and open everything that the new settings need.

    :param members: the tunnels of the group.
    :param settings: those of the file.
    :param vacated: called with the name of a tunnel whose listener had to close first.
    :param call: calls a function in the main thread, and waits for it.
    :returns: the changes, in the order of the verdicts; :func:`~relay.daemon.change.replacement.undo_all` closes them.
        One with an error is a tunnel that had failed before, in the same way: it stays as it is.
    :raises ReloadError: if one cannot be opened; all is as before then.
    """
    running = {one.name: one for one in _running(members)}
    new = {one.name: one for one in settings}
    changes = verdicts(members, settings)
    replacements = [Replacement(each, new.get(each.name), running.get(each.name), vacated) for each in changes]
    preflight = Preflight(names=False)
    # Those whose listener is in the way of others close it only after everything else has been bound.
    leaving = Leaving(replacements)
    steps: tuple[list[Replacement], list[Replacement]] = [], []
    for each in replacements:
        steps[each.must_vacate(leaving)].append(each)
    failed = _prepare(steps[False], preflight, leaving) or _prepare(steps[True], preflight, leaving)
    hopeless = {one.name: one.settings for one in members if one.state is MemberState.FAILED}
    problems = [each for each in failed if not _is_known(hopeless.get(each.change.name), each.settings)]
    if not problems:
        return replacements
    lines = [f"{each.change.name}: {describe_error(each.error)}" for each in problems if each.error is not None]
    lines += undo_all(replacements, call)
    raise ReloadError(lines, max(status_of(each.error) for each in problems if each.error is not None))


def _prepare(replacements: Sequence[Replacement], preflight: Preflight, leaving: Leaving) -> list[Replacement]:
    """Prepare changes side by side; return those that have failed."""
    for each in replacements:
        each.prepare(preflight, leaving)
    for each in replacements:
        each.wait()
    return [each for each in replacements if each.error is not None]


def _is_known(old: Settings | None, new: Settings | None) -> bool:
    """Return whether a tunnel that cannot start has failed before, with the same settings."""
    return old is not None and new is not None and compare([old], [new])[0].verdict is Verdict.SAME


def _running(members: Sequence[Member]) -> list[Member]:
    return [one for one in members if not one.state.is_over and one.state is not MemberState.DRAINING]
