"""The access log of a group of tunnels: ``--log-file``, its reopening on SIGUSR1, and another one after a reload."""

from __future__ import annotations

import functools
import logging
import os
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from ..addresses.printable import shown
from ..errors import can_retry
from ..eventloop import reserve
from ..eventloop.sockets import format_address
from .change.transition import Step
from .failures import describe_error
from .group import Group
from .options import LogPlan
from .routed_targets import route_of_all
from .signals import Signals

if TYPE_CHECKING:  # a command without the log does not need it
    from .access_log import AccessLog, LoggedTunnel

logger = logging.getLogger("relay.cli")


@contextmanager
def connections_logged(group: Group, signals: Signals, plan: LogPlan) -> Iterator[ConnectionLog]:
    """Write the access log while the group runs.

    :param group: the tunnels.
    :param signals: SIGUSR1 opens the file again.
    :param plan: the file.
    :returns: the log.
    :raises ValueError: if the file cannot be opened.
    :raises OSError: if the system has no thread or descriptor left.
    """
    with closing(ConnectionLog(group, plan)) as log:
        group.reopen_logs = log.reopen
        signals.on(signal.SIGUSR1, log.on_signal)
        yield log


class ConnectionLog:
    """The access log, if there is one. Belongs to the main thread, except :meth:`prepare` and :meth:`reopen`.

    :param group: the tunnels.
    :param plan: the file.
    :raises ValueError: if it cannot be opened.
    :raises OSError: if the system has no thread or descriptor left.
    """

    def __init__(self, group: Group, plan: LogPlan) -> None:
        self._group = group
        self._plan = plan
        self._log: AccessLog | None = None
        self._use(self._open(plan))

    def prepare(self, plan: LogPlan) -> Step | None:
        """Open the file of another plan, if it differs; on the thread that reloads.

        :returns: the change; ``None`` if there is none.
        :raises ValueError: if the file cannot be opened.
        :raises OSError: if the system has no thread or descriptor left.
        """
        if plan == self._plan or (plan.path is None and self._plan.path is None):
            return None
        made = self._open(plan)

        def commit() -> None:
            old, self._plan = self._log, plan
            self._use(made)  # first, so that each connection that ends meanwhile has a file
            if old is not None:
                old.start_close()

        return Step(commit=commit, restore=made.close) if made is not None else Step(commit=commit)

    def reopen(self) -> None:
        """Open the file again, if there is one.

        :raises OSError: if it cannot be opened; the old one is kept.
        """
        if (log := self._log) is not None:
            with reserve.lent():
                log.reopen()

    def on_signal(self) -> None:
        """Open the file again, or keep the old one."""
        try:
            self.reopen()
        except OSError as error:
            logger.error("cannot reopen the log file: %s; the old one is kept", describe_error(error))
        else:
            if self._log is None:
                logger.info("SIGUSR1: there is no log file to open again")
            else:
                logger.info("SIGUSR1: the log file is open again")

    def close(self) -> None:
        """Write the lines that wait, and close the file."""
        log = self._log
        self._use(None)
        if log is not None:
            log.close()

    def _open(self, plan: LogPlan) -> AccessLog | None:
        path, interval = plan.path, plan.interval
        if path is None:
            return None
        from .access_log import AccessLog

        try:
            whole = os.path.abspath(os.path.expanduser(path))
            return AccessLog(whole, interval, functools.partial(_tunnels, self._group))
        except OSError as error:
            if can_retry(error):
                raise OSError(
                    error.errno,
                    f"log file {shown(path)}: {error.strerror}; try again once there are threads and descriptors left",
                ) from error
            raise ValueError(f"log file {shown(path)}: {error.strerror}; check the path and its permissions") from error

    def _use(self, log: AccessLog | None) -> None:
        self._log = log
        put = log.put if log is not None else None
        self._group.outlets.on_ended = put
        self._group.processes.log_connections(put)


def _tunnels(group: Group) -> Iterator[LoggedTunnel]:
    from .access_log import LoggedTunnel

    for member in group.members:
        if member.has_opened:
            tunnel, ends = member.relay, member.plan.routes.out
            # Each request of a proxy with rules has its own.
            via = () if member.plan.rules else route_of_all(ends)
            hops = tuple(shown(str(hop)) for hop in via)
            yield LoggedTunnel(member.name, format_address(tunnel.address), hops, tunnel.connections)
