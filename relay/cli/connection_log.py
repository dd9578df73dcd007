"""The access log of a group of tunnels: ``--log-file``, and its reopening on SIGUSR1."""

from __future__ import annotations

import functools
import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..addresses.printable import shown
from ..engine.statistics import set_access_log
from ..eventloop.sockets import format_address
from .group import TunnelGroup
from .output import describe_error
from .signals import Signals

if TYPE_CHECKING:  # a command without the log does not need it
    from ..operations.access_log import AccessLog, LoggedTunnel

__all__ = ["connections_logged"]

logger = logging.getLogger("relay.cli")


@contextmanager
def connections_logged(
    group: TunnelGroup, signals: Signals, path: str | None, interval: float | None
) -> Iterator[None]:
    """Write the access log while the group runs.

    :param group: the tunnels.
    :param signals: SIGUSR1 opens the file again.
    :param path: of the file; ``None`` for no access log.
    :param interval: seconds between two lines of an open connection; ``None`` for none.
    :raises ValueError: if the file cannot be opened.
    """
    if path is None:
        yield
        return
    from ..operations.access_log import AccessLog

    try:
        log = AccessLog(os.path.abspath(os.path.expanduser(path)), interval, functools.partial(_tunnels, group))
    except OSError as error:
        raise ValueError(f"log file {shown(path)}: {error.strerror}; check the path and its permissions") from error
    group.reopen_logs = log.reopen
    signals.on(signal.SIGUSR1, functools.partial(_reopen, log))
    set_access_log(log.put)
    try:
        yield
    finally:
        set_access_log(None)
        log.close()


def _reopen(log: AccessLog) -> None:
    """Open the file again, or keep the old one."""
    try:
        log.reopen()
    except OSError as error:
        logger.error("cannot reopen the log file: %s; the old one is kept", describe_error(error))
    else:
        logger.info("SIGUSR1: the log file is open again")


def _tunnels(group: TunnelGroup) -> Iterator[LoggedTunnel]:
    from ..operations.access_log import LoggedTunnel

    for member in group.members:
        if member.opened is not None:
            tunnel, ends = member.opened.tunnel, member.plan.routes.out
            via = ends[0][0] if len(ends) == 1 else ()  # each request of a proxy with rules has its own
            hops = tuple(shown(str(hop)) for hop in via)
            yield LoggedTunnel(member.name, format_address(tunnel.address), hops, tunnel.connections)
