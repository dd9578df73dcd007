"""A group of tunnels with its control and status sockets, and with the service manager that has started it."""

from __future__ import annotations

import errno
import functools
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..eventloop.sockets import format_address
from .endpoint_plan import EndpointPlan
from .group import TunnelGroup
from .signals import Signals
from .tunnel_probes import TunnelProbes

if TYPE_CHECKING:  # a command without these sockets needs neither
    from ..operations.instance import Instance
    from ..operations.sockets import Endpoint

__all__ = ["operated"]

logger = logging.getLogger("relay.operations")

NONE = "none"


@contextmanager
def operated(
    group: TunnelGroup,
    signals: Signals,
    plan: EndpointPlan,
) -> Iterator[None]:
    """Listen for operators while the group runs. Until the first client this costs neither a thread nor an import.

    A service manager (``NOTIFY_SOCKET``) is notified of the state of the group.

    :param group: the tunnels.
    :param signals: waits for the first client.
    :param plan: where it listens.
    :raises ValueError: if an address is wrong.
    :raises OSError: if the control socket cannot be opened; a running relay that has it is named.
    """
    endpoints: list[Endpoint] = []
    try:
        if plan.control not in (None, NONE) or (plan.control is None and plan.config):
            endpoints += _control(plan.control, plan.config)
        path = endpoints[0].path if endpoints else ""
        if plan.status is not None and plan.status != NONE:
            endpoints += _status(plan.status, plan.is_public, plan.token_file)
    except BaseException:
        for endpoint in endpoints:
            endpoint.close()
        raise
    probes = TunnelProbes(group)
    try:
        if not endpoints:
            with _supervised(group):
                yield
            return
        from ..operations.waiting import Endpoints

        waiting = Endpoints(endpoints, functools.partial(_make_instance, group, probes, plan.config, path), signals)
        try:
            with _supervised(group):
                yield
        finally:
            waiting.close()
    finally:
        probes.close()


@contextmanager
def _supervised(group: TunnelGroup) -> Iterator[None]:
    """Notify the service manager of the state of the group, if there is one."""
    if "NOTIFY_SOCKET" not in os.environ:
        yield
        return
    from ..operations.service_manager import notifier
    from .systemd_supervisor import SystemdSupervisor

    manager = notifier()
    if manager is None:
        yield
        return
    with manager:
        supervisor = group.supervisor = SystemdSupervisor(group, manager)
        try:
            yield
        finally:
            supervisor.close()


def _control(path: str | None, config: str) -> Iterator[Endpoint]:
    from ..operations.runtime import default_path
    from ..operations.sockets import InUseError, open_control

    if path is not None:
        yield open_control(path)
        return
    chosen = default_path(config)
    if chosen is None:
        logger.info("there is no control socket: this user has no runtime directory; set XDG_RUNTIME_DIR or --control")
        return
    try:
        yield open_control(chosen)
    except InUseError:
        raise
    except (OSError, ValueError) as error:  # it was not requested
        logger.info("there is no control socket: %s", error)


def _status(address: str, is_public: bool, token_file: str | None) -> Iterator[Endpoint]:
    from ..operations.sockets import open_status

    try:
        endpoint = open_status(address, is_public=is_public, token_file=token_file)
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EADDRNOTAVAIL):
            raise
        logger.warning("%s; relay continues without its status server", error.strerror)
        return
    where = endpoint.path or f"http://{format_address(endpoint.socket.getsockname())}"
    logging.getLogger("relay.cli").info("status server at %s", where)
    yield endpoint


def _make_instance(group: TunnelGroup, probes: TunnelProbes, config: str, control: str) -> Instance:
    from .group_instance import GroupInstance

    return GroupInstance(group, config, control, probes.status)
