"""Reports of the relaying commands on their tunnels: lines on standard output, the log, and the live table."""

from __future__ import annotations

import functools
import logging
import math
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from ..addresses.i2p import I2PListen
from ..daemon.failures import describe_error
from ..daemon.probes import SLOW, report_slow
from ..daemon.reporter import Reporter
from .i2p_options import tell_published
from .output import log_from, print_error, print_line, summary

if TYPE_CHECKING:  # a command starts in half the time without them
    from ..daemon.member import Snapshot
    from ..engine.records import Stats
    from .live import LiveTable, View

logger = logging.getLogger("relay.cli")

REFRESH = 0.5  # seconds between two states of the live table


class _CommandReporter(Reporter):
    """The common part: the live table, and the lines of the end.

    :param watch: whether there is a live table.
    """

    def __init__(self, watch: bool) -> None:
        self._watch = watch
        self._terminal = ExitStack()  # restores the terminal
        self._table: LiveTable | None = None
        self._due = math.inf  # when the table is drawn again, in monotonic seconds

    def timeout(self) -> float | None:
        return max(0.0, self._due - time.monotonic()) if self._due < math.inf else None

    def on_turn(self) -> None:
        if self._table is not None and time.monotonic() >= self._due:
            self._table.refresh()
            self._due = time.monotonic() + REFRESH

    def log_from(self, level: int) -> None:
        log_from(level)

    def on_end(self, why: str, step: str) -> None:
        logger.info("%s: %s", why, step)
        if self._table is not None:
            self._table.view.closing = step
            self._due = time.monotonic()

    def on_ended(self, stats: Stats) -> None:
        logger.info("%s", summary(stats), extra={"stats": stats})

    def stop(self) -> None:
        self._terminal.close()

    def _show(self, view: View) -> None:
        from .live import live_table

        table = live_table(view)
        if table is not None:
            self._table = self._terminal.enter_context(table)
            self._due = time.monotonic() + REFRESH


class ManyTunnels(_CommandReporter):
    """The tunnels of a file: each line begins with the name of one.

    :param watch: whether there is a live table of the tunnels.
    """

    def on_start(self, members: Callable[[], Sequence[Snapshot]]) -> None:
        if self._watch:
            from .views import FleetView, watched

            self._show(FleetView(lambda: list(map(watched, members()))))

    def on_opened(self, tunnel: Snapshot) -> None:
        self.on_changed(tunnel)
        tell_published(tunnel.receive, f"{tunnel.name}: ")

    def on_changed(self, tunnel: Snapshot) -> None:
        print_line(f"{tunnel.name}: listening on {tunnel.title}")

    def on_postponed(self, name: str, problem: str, *, is_first: bool) -> None:
        if is_first:
            print_error(f"{name}: {problem}")

    def on_failed(self, name: str, error: Exception) -> None:
        print_error(f"{name}: {describe_error(error)}")

    def on_none_left(self) -> None:
        print_error("there is no tunnel left")

    def on_all_tried(self, listening: int, count: int) -> None:
        failed = count - listening
        logger.info("%d of %d tunnels listen%s", listening, count, f"; {failed} do not" if failed else "")

    def on_upgrade_failed(self, why: str) -> None:
        print_error(f"upgrade: {why}")


class OneTunnel(_CommandReporter):
    """The tunnel of a command line, without its name. The command ends with :attr:`error`, which prints it.

    :param title: printed before where it listens and where that leads to.
    :param watch: whether there is a live table of its connections.
    :param where: where it listens; on I2P, a long wait is explained.
    """

    def __init__(self, title: str, *, watch: bool, where: object) -> None:
        super().__init__(watch)
        self.error: Exception | None = None
        """Why it has failed."""
        self._title = title
        self._is_open = False
        self._is_standby = isinstance(where, I2PListen) and where.standby
        if isinstance(where, I2PListen):
            self._due = time.monotonic() + SLOW  # unless it is open before that, or the log says what it waits for

    def on_turn(self) -> None:
        if self._table is None and time.monotonic() >= self._due:
            self._due = math.inf
            report_slow(standby=self._is_standby)
        super().on_turn()

    def on_opened(self, tunnel: Snapshot) -> None:
        self._due, self._is_open = math.inf, True
        line = f"{self._title}{tunnel.title}"
        if self._watch:
            from ..daemon.status import hop_state
            from .views import TunnelView

            hops = functools.partial(hop_state, tunnel.receive, tunnel.make_send)
            self._show(TunnelView(tunnel.relay, line, hops))
        if self._table is None or not sys.stdout.isatty():  # the table has it as its first line
            print_line(line)
        tell_published(tunnel.receive)

    def on_postponed(self, name: str, problem: str, *, is_first: bool) -> None:
        self._due = math.inf  # the log says what it waits for

    def on_failed(self, name: str, error: Exception) -> None:
        self.error = error

    def on_end(self, why: str, step: str) -> None:
        super().on_end(why, step if self._is_open else "closing before there was an answer")

    def on_ended(self, stats: Stats) -> None:
        if self._is_open and self.error is None:
            super().on_ended(stats)
