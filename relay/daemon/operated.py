"""A group of tunnels with its control and status sockets, and with the service manager that has started it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from .change.transition import Step
from .endpoint_plan import EndpointPlan
from .group import Group
from .operator_sockets import OperatorSockets
from .signals import Signals
from .tunnel_probes import TunnelProbes

if TYPE_CHECKING:  # only an upgrade needs the first, which needs the models of a file
    from .change.predecessor import Predecessor
    from .waiting import LoadServer


@contextmanager
def operated(
    group: Group,
    signals: Signals,
    plan: EndpointPlan,
    load_server: LoadServer,
    predecessor: Predecessor | None = None,
) -> Iterator[OperatorSockets]:
    """Listen for operators while the group runs. A command starts without the server, which comes once it listens.

    A service manager (``NOTIFY_SOCKET``) is notified of the state of the group.

    :param group: the tunnels.
    :param signals: waits for the first client.
    :param plan: where it listens.
    :param load_server: imports the server.
    :param predecessor: the process that serves operators, and is known to the service manager, until it has released
        its sockets; ``None`` if there is none.
    :returns: the sockets.
    :raises ValueError: if an address is wrong.
    :raises OSError: if the control socket cannot be opened; a running relay that has it is named.
    """
    with (
        closing(TunnelProbes(group)) as probes,
        closing(OperatorSockets(group, signals, probes.status, plan, load_server)) as made,
        _supervised(group, predecessor),
    ):
        group.preparations.append(made.start)
        yield made


@contextmanager
def _supervised(group: Group, predecessor: Predecessor | None) -> Iterator[None]:
    """Notify the service manager of the state of the group, if there is one."""
    if "NOTIFY_SOCKET" not in os.environ:
        yield
        return
    from .service_manager import notifier
    from .systemd_supervisor import SystemdSupervisor

    manager = notifier()
    if manager is None:
        yield
        return
    with manager:
        supervisor = SystemdSupervisor(group, manager)

        def notify() -> None:
            group.supervisor = supervisor

        if predecessor is None:
            notify()
        else:  # two processes at once would confuse it
            predecessor.operators.add(Step(commit=notify))
        try:
            yield
        finally:
            supervisor.close()
