"""The tunnel of a command line: a group of one, which differs in what is printed."""

from __future__ import annotations

import functools
import logging
import signal
import time

from ..addresses.i2p import I2PListen
from .group import TunnelGroup
from .i2p_options import tell_published
from .member import Member
from .output import describe_error, print_line, status_of
from .plan import Opened, Plan
from .probes import SLOW, report_slow
from .signals import Signals

__all__ = ["SingleTunnel"]

logger = logging.getLogger("relay.cli")


class SingleTunnel(TunnelGroup):
    """The tunnel of a command line: no name in what is printed, and its failure is raised.

    :param plan: how it is opened.
    :param signals: those that end it.
    :param title: printed before where it listens and where that leads to.
    """

    def __init__(self, plan: Plan, signals: Signals, title: str) -> None:
        super().__init__([Member(plan)], signals)
        self._title = title
        self._explains_wait = plan.at_i2p  # until it is open, or the log says what it waits for
        self._slow_at = time.monotonic() + SLOW
        self._error: Exception | None = None

    @property
    def shutdown_delay(self) -> float:
        """That of the options."""
        return self._members[0].plan.options.shutdown_delay or 0.0

    def relay(self) -> None:
        """Open it, relay until a signal, and drain.

        :raises Exception: what a retry cannot fix, or the first failure if the options say so.
        """
        self.run(watch=False)
        if self._error is not None:
            raise self._error

    def _wait(self) -> int | None:
        if not self._explains_wait:
            return super()._wait()
        due = self.supervisor.timeout()
        heard = self._signals.wait(SLOW if due is None else min(SLOW, due))
        if heard is None and time.monotonic() >= self._slow_at:
            self._explains_wait = False
            where = self._members[0].plan.routes.where
            report_slow(standby=isinstance(where, I2PListen) and where.standby)
        return heard

    def _on_postponed(self, member: Member, error: Exception) -> None:
        self._explains_wait = False  # the log does
        if member.state.is_before and not self.is_ending:
            member.on_postponed(f"{describe_error(error)}; trying again")

    def _on_opened(self, member: Member, opened: Opened) -> None:
        self._explains_wait = False
        line = f"{self._title}{opened.title}"
        print_line(line)
        self._let_in(member, opened)
        tell_published(opened.receive)
        self._try_hops(member, opened)
        if member.plan.options.watch:
            from .views import TunnelView, hop_state

            hops = functools.partial(hop_state, opened.receive, opened.make_send)
            self._show(TunnelView(opened.tunnel, line, hops))

    def _log_count(self) -> None:
        pass

    def _give_up(self, member: Member, error: Exception) -> None:
        self._error = error
        self._end(status_of(error))

    def _on_signal(self, number: int) -> None:
        if self._members[0].opened is not None:
            super()._on_signal(number)
            return
        logger.info("%s: closing before there was an answer", signal.Signals(number).name)
        self._end(0)

    def _log_summary(self) -> None:
        if self._error is None and self._members[0].opened is not None:
            super()._log_summary()
