"""Tunnels that run for as long as a program does.

The program is in the process group of relay, so that a job of the shell is both: a pipeline, ``&``, Ctrl-Z and ``fg``
work as without relay. The signals of relay are blocked in all of its threads, and one thread waits for them. So it
knows which ones come from the terminal, which sends them to the program as well.

============== =============================== ====================================================================
the program    event                           action
============== =============================== ====================================================================
is not there   all routes work                 start it
is not there   a tunnel or a route fails       end, with the exit status of the failure
is not there   a route fails, without a wait   report it; the tunnel stays
is not there   a signal                        end with 128 + its number
is not there   Ctrl-Z                          stop relay
runs           SIGINT, SIGQUIT of the terminal nothing: the program has it
runs           another signal                  send it to the program
runs           it stops                        stop relay; once that goes on, the program does
runs           a tunnel or a route fails       report it
runs           it ends                         close the listeners, let what it has sent arrive, end with its status
has ended      a signal                        end at once
============== =============================== ====================================================================
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..addresses.hops import listens_at_server
from ..streams.dialer import Dialer, introduced
from .failures import describe_error, status_of
from .group import Group
from .member import Member, MemberState, Snapshot
from .probes import HopProbe

if TYPE_CHECKING:
    from ..process import Process
    from .plan import Plan
    from .reporter import Reporter
    from .signals import Signals

_PASSED_ON = {
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
}
_OF_JOBS = {signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}
_HELD = _PASSED_ON | _OF_JOBS
_OF_TERMINAL = {signal.SIGINT, signal.SIGQUIT}  # and SIGHUP, but that may come to the leader of the session alone
_SI_KERNEL = 0x80  # siginfo_t of Linux: the sender is the kernel


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Block the signals that a :class:`ProgramGroup` waits for; before any thread is started, which inherit that."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class RouteProbe(HopProbe):
    """A probe of a whole route: a stream to the target, as a client would open it, is opened and closed.

    :param header: of the PROXY protocol, with which the stream begins; empty for none.
    :param given: as for :class:`~relay.daemon.probes.HopProbe`.
    """

    def __init__(self, header: bytes, *given: Any, **options: Any) -> None:
        self._header = header
        super().__init__(*given, **options)

    def _ready(self, make_send: Dialer, timeout: float | None) -> None:
        deadline = None if timeout is None else time.monotonic() + timeout
        introduced(make_send, self._header).confirming()(deadline=deadline).close()


def with_route_probe(plan: Plan, key: str) -> Plan:
    """Return a plan that probes its whole route at the start, if it has a target that is there before the program.

    :param key: plans with the same key share one probe.
    """
    from ..access.proxy_header import build_local

    has_target = bool(plan.routes.out) and all(end is not None for _, end in plan.routes.out)
    if not has_target or listens_at_server(plan.routes.where):  # the program may be the target
        return plan
    header = build_local(plan.options.send_proxy) if plan.options.send_proxy else b""
    return dataclasses.replace(plan, trial=functools.partial(RouteProbe, header), route_key=key)


class ProgramGroup(Group):
    """Tunnels, and the program for which they are there; the docstring of this module has its events.

    :param plans: those of the tunnels.
    :param signals: that catch none: :func:`signals_held` is in force.
    :param reporter: gets the failures.
    :param start: starts the program, once all tunnels are open.
    :param wait: whether each tunnel must be open before that, and its route must work.
    """

    def __init__(
        self,
        plans: Iterable[Plan],
        signals: Signals,
        reporter: Reporter,
        start: Callable[[Sequence[Snapshot]], Process],
        *,
        wait: bool,
    ) -> None:
        super().__init__([Member(plan) for plan in plans], signals, reporter)
        self.error: Exception | None = None
        """Why the program could not be started."""
        self._start = start
        self._wait_for_routes = wait
        self._process: Process | None = None
        self._refused: Exception | None = None  # the last failure of a route that was reported
        threading.Thread(target=self._hear, name="relay-signals", daemon=True).start()

    def give_up(self, member: Member, error: Exception) -> None:
        """End a tunnel that a retry cannot help, and all of them before the program is there."""
        if self.is_ending:  # the other listener of its name, with the same failure
            return
        member.on_failed(describe_error(error), status_of(error))
        self.reporter.on_failed(member.name, error)
        if self._process is None:
            self.end(status_of(error))

    def _on_refused(self, member: Member, error: Exception, fatal: bool) -> None:
        """End a tunnel whose route has failed; without a wait it stays, for when that is mended."""
        if self._wait_for_routes:
            super()._on_refused(member, error, fatal)
        elif error is not self._refused:  # the other listener of its name has the same failure
            self._refused = error
            super()._on_refused(member, error, fatal=False)

    def _turn(self) -> None:
        super()._turn()
        if self._process is None and not self.is_ending and all(map(self._is_ready, self.tunnels)):
            try:
                self._process = self._start(self.members)
            except (OSError, ValueError) as error:
                self.error = error
                return self.end(1)
            watch = functools.partial(self._watch, self._process)
            threading.Thread(target=watch, name="relay-program", daemon=True).start()

    def _is_ready(self, member: Member) -> bool:
        if not self._wait_for_routes:
            return member.state is not MemberState.OPENING
        return member.state is MemberState.LISTENING and self.hop_trials.is_over(member)

    # -- the program, on a thread -------------------------------------------------------------------------------------

    def _watch(self, process: Process) -> None:
        while True:
            _, status = os.waitpid(process.pid, os.WUNTRACED)
            if not os.WIFSTOPPED(status):
                break
            self.later(self._on_stopped, process.pid, os.WSTOPSIG(status))
        code = process.returncode = os.waitstatus_to_exitcode(status)
        self.later(self.end_for, "the program has ended", code if code >= 0 else 128 - code)

    def _on_stopped(self, program: int, number: int) -> None:
        # One that was stopped from elsewhere is continued from there, without relay.
        with contextlib.suppress(ProcessLookupError):
            group = os.getpgid(program)
            if number == signal.SIGSTOP and _foreground() not in (os.getpgrp(), group):
                return
            _stop()
            if group == os.getpgrp():  # which is continued by the shell, as a rule
                os.kill(program, signal.SIGCONT)
            else:  # a shell has one of its own
                os.killpg(group, signal.SIGCONT)

    # -- signals, on a thread -----------------------------------------------------------------------------------------

    def _hear(self) -> None:
        while True:
            self.later(self._on_heard, *_next_signal())

    def _on_heard(self, number: int, is_of_terminal: bool) -> None:
        process = self._process
        if signal.getsignal(number) is signal.SIG_IGN:  # a signal that is blocked comes all the same
            return
        if process is None and number in _OF_JOBS:
            _stop()
        elif process is None:
            self.end(128 + number)
        elif process.returncode is not None:
            self.end(self._status)
        elif number not in _OF_JOBS and not (is_of_terminal and number in _OF_TERMINAL):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)  # Popen.send_signal() would take its status from the thread


def _next_signal() -> tuple[int, bool]:
    """Wait for a signal; return its number, and whether it comes from the terminal."""
    if hasattr(signal, "sigwaitinfo"):
        heard = signal.sigwaitinfo(_HELD)
        return heard.si_signo, heard.si_code == _SI_KERNEL
    return signal.sigwait(_HELD), _foreground() == os.getpgrp()


def _stop() -> None:
    """Stop relay, until the shell continues it."""
    os.kill(os.getpid(), signal.SIGSTOP)


def _foreground() -> int | None:
    """Return the process group that has the terminal now; ``None`` if there is no terminal."""
    try:
        terminal = os.open(os.ctermid(), os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.tcgetpgrp(terminal)
    except OSError:
        return None
    finally:
        os.close(terminal)
