"""The control socket and the status server of a group of tunnels, which a reload can open elsewhere."""

from __future__ import annotations

import errno
import functools
import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, NamedTuple

from ..addresses.values import UnixAddress, UnixListen
from ..eventloop.sockets import format_address
from ..extras import missing
from ..transports.tcp import Inherited
from ..transports.unix import UnixListener
from .change.transition import Step, Transition, prepare_all
from .failures import describe_error
from .group import Group
from .options import EndpointPlan
from .signals import Signals
from .tunnel_probes import TunnelProbes

if TYPE_CHECKING:  # a command without these sockets needs none of them
    from .change.predecessor import Predecessor
    from .instance import Instance
    from .member import Snapshot
    from .recent_log import LogLine, RecentLog
    from .sockets import Endpoint
    from .status import ProbeStatus
    from .waiting import Endpoints, LoadServer

logger = logging.getLogger("relay.operations")

NONE = "none"


class _Open(NamedTuple):
    """A socket, and what serves its clients."""

    endpoint: Endpoint
    server: Endpoints


class OperatorSockets:
    """The sockets of operators. Belongs to the main thread, except :meth:`prepare`.

    :param group: the tunnels.
    :param signals: waits for a client that comes before :meth:`start`.
    :param probe_of: returns the probe of a tunnel.
    :param plan: where to listen.
    :param load_server: imports the server.
    :raises ValueError: if an address is wrong.
    :raises OSError: if the control socket cannot be opened; a running relay that has it is named.
    """

    def __init__(
        self,
        group: Group,
        signals: Signals,
        probe_of: Callable[[Snapshot], ProbeStatus | None],
        plan: EndpointPlan,
        load_server: LoadServer,
    ) -> None:
        self._group = group
        self._load_server = load_server
        self._signals = signals
        self._probe_of = probe_of
        self._plan = plan
        self._status: _Open | None = None
        self._log: RecentLog | None = None
        self._is_started = False
        control = _control(plan)
        self._control = None if control is None else self._served(control)
        try:
            status = _status_or_none(plan)
            self._status = None if status is None else self._served(status)
        except BaseException:
            self.close()
            raise
        self._on_status()

    def start(self) -> None:
        """Serve from now on, also those that are opened later. A client that comes before that is served as well."""
        self._is_started = True
        for each in (self._control, self._status):
            if each is not None:
                each.server.start()

    @property
    def paths(self) -> list[str]:
        """The paths of its Unix sockets."""
        return [each.endpoint.path for each in (self._control, self._status) if each is not None and each.endpoint.path]

    def close(self) -> None:
        """Answer the requests under way, close the sockets and remove their files."""
        for each in (self._control, self._status):
            if each is not None:
                each.server.close()
        if self._log is not None:
            self._log.close()

    # -- an upgrade ---------------------------------------------------------------------------------------------------

    @property
    def path(self) -> str:
        """The path of the control socket; empty if there is none."""
        return self._control.endpoint.path if self._control is not None else ""

    @property
    def listening(self) -> list[socket.socket]:
        """The sockets that listen."""
        found = [each.endpoint.socket for each in (self._control, self._status) if each is not None]
        return [one for one in found if one.fileno() >= 0]

    def adopt(self) -> None:
        """Own the files of the Unix sockets that another process has handed over."""
        for one in self.listening:
            if isinstance(one, UnixListener):
                one.adopt()

    def retire(self) -> None:
        """Take no more clients, and remove the files that no other process owns. The last answers may take a second."""
        for each in (self._control, self._status):
            if each is not None:
                each.server.retire()

    def wait_closed(self, seconds: float) -> None:
        """Wait after :meth:`retire` until no more clients are taken, on any thread."""
        for each in (self._control, self._status):
            if each is not None:
                each.endpoint.has_closed.wait(seconds)

    # -- a reload -----------------------------------------------------------------------------------------------------

    def prepare(self, plan: EndpointPlan, inherited: Inherited | None = None) -> Transition:
        """Open the sockets of another plan that differ; on the thread that reloads.

        :param inherited: as for :func:`~relay.transports.tcp.listen_tcp`.
        :raises ValueError: if an address or a token is wrong.
        :raises OSError: if a socket cannot be opened.
        """
        parts = (self._prepare_control, self._prepare_status)
        prepared = prepare_all(functools.partial(each, plan, inherited) for each in parts)

        def commit() -> None:
            self._plan = plan

        prepared.add(Step(commit=commit))
        return prepared

    def _prepare_control(self, plan: EndpointPlan, inherited: Inherited | None) -> Step | None:
        if plan.control == self._plan.control:
            return None
        if self._control is not None and control_path(plan) == self._control.endpoint.path:
            return None
        made = _control(plan, inherited)

        def commit() -> None:
            # The next one serves before the old one goes. This is the main thread, so it does not wait for the last
            # answers; one of them is often that of the reload itself.
            old, self._control = self._control, None if made is None else self._served(made)
            if old is not None:
                old.server.retire()

        return Step(commit=commit, restore=functools.partial(_close, made))

    def _prepare_status(self, plan: EndpointPlan, inherited: Inherited | None) -> Step | Transition | None:
        before, current = self._plan, self._status
        is_moved = plan.status != before.status
        if current is not None and (not is_moved or _is_at(plan, current.endpoint)):
            changes = [functools.partial(self._prepare_token, plan, current.endpoint)]
            if is_moved:
                changes.append(functools.partial(_prepare_rights, plan, current.endpoint))
            return prepare_all(changes)
        # Without a move, it may have been in use at the start.
        made = _status(plan, inherited) if is_moved else _status_or_none(plan, inherited)
        if made is None and current is None:
            return None

        def commit() -> None:
            old, self._status = self._status, None if made is None else self._served(made)
            if old is not None:
                old.server.retire()
            self._on_status()

        return Step(commit=commit, restore=functools.partial(_close, made))

    def _prepare_token(self, plan: EndpointPlan, endpoint: Endpoint) -> Step | None:
        from .sockets import check_status

        _, token = check_status(plan.status or "", is_public=plan.is_public, token_file=plan.token_file)
        if token == endpoint.token:
            return None

        def commit() -> None:
            endpoint.token = token
            logger.info("status server: it has another token")

        return Step(commit=commit)

    # -- the parts ----------------------------------------------------------------------------------------------------

    def _served(self, endpoint: Endpoint) -> _Open:
        from .waiting import Endpoints

        served = _Open(endpoint, Endpoints([endpoint], self._make_instance, self._signals, self._load_server))
        if self._is_started:
            served.server.start()
        return served

    def _make_instance(self) -> Instance:
        """Return an instance, on the thread of a server. Two servers may begin at once, so each has one of its own."""
        from .instance import Instance

        return Instance(self._group, self._plan.config, lambda: self.path, self._probe_of, self._lines)

    def _lines(self) -> Sequence[LogLine]:
        """Return the last lines of the log; from any thread."""
        log = self._log
        return log.lines() if log is not None else ()

    def _on_status(self) -> None:
        """Log where the status server is, and keep the last lines of the log as long as there is one."""
        if self._status is None:
            if self._log is not None:
                self._log.close()
                self._log = None
            return
        if self._log is None:
            from .recent_log import RecentLog

            self._log = RecentLog()
            self._log.install()
        endpoint = self._status.endpoint
        where = endpoint.path or f"http://{format_address(endpoint.socket.getsockname())}"
        logging.getLogger("relay.cli").info("status server at %s", where)


def _control(plan: EndpointPlan, inherited: Inherited | None = None) -> Endpoint | None:
    """Open the control socket, if there is to be one.

    :raises OSError: if it cannot be opened, and was requested or is in use.
    """
    if plan.control == NONE or (plan.control is None and not plan.config):
        return None
    from .runtime import default_path
    from .sockets import InUseError, open_control

    if plan.control is not None:
        return open_control(plan.control, inherited)
    if (problem := missing("status")) is not None:
        logging.getLogger("relay.cli").info("there is no control socket: %s", problem)
        return None
    chosen = default_path(plan.config)
    if chosen is None:
        logger.info("there is no control socket: this user has no runtime directory; set XDG_RUNTIME_DIR or --control")
        return None
    try:
        return open_control(chosen, inherited)
    except InUseError:
        raise
    except (OSError, ValueError) as error:  # it was not requested
        logger.info("there is no control socket: %s", describe_error(error))
        return None


def control_path(plan: EndpointPlan) -> str | None:
    """Return the path of the control socket, absolute; ``None`` if there is to be none."""
    from .runtime import default_path

    path = plan.control or (default_path(plan.config) if plan.config else None)
    return None if path is None or path == NONE else os.path.abspath(path)


def _status(plan: EndpointPlan, inherited: Inherited | None = None) -> Endpoint | None:
    """Open the socket of the status server, if there is to be one."""
    if plan.status is None or plan.status == NONE:
        return None
    from .sockets import open_status

    return open_status(plan.status, is_public=plan.is_public, token_file=plan.token_file, inherited=inherited)


def _is_at(plan: EndpointPlan, endpoint: Endpoint) -> bool:
    """Return whether the status server listens already where a plan says, in other words."""
    if plan.status is None or plan.status == NONE or endpoint.socket.fileno() < 0:
        return False
    from .sockets import check_status

    where, _ = check_status(plan.status, is_public=plan.is_public, token_file=plan.token_file)
    if isinstance(where, UnixAddress):
        return os.path.abspath(where.path) == endpoint.path
    return not endpoint.path and (where.host, where.port) == endpoint.socket.getsockname()[:2]


def _prepare_rights(plan: EndpointPlan, endpoint: Endpoint) -> Step | None:
    """Give the file of a Unix socket the mode and the group of a plan; a failed reload gives it those of before."""
    from .sockets import check_status

    where, _ = check_status(plan.status or "", is_public=plan.is_public, token_file=plan.token_file)
    if not isinstance(where, UnixListen) or not isinstance(endpoint.socket, UnixListener):
        return None
    return Step(restore=endpoint.socket.change_rights(where.mode, where.group))


def _status_or_none(plan: EndpointPlan, inherited: Inherited | None = None) -> Endpoint | None:
    """Do the same; if its address is in use, log that."""
    try:
        return _status(plan, inherited)
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EADDRNOTAVAIL):
            raise
        logger.warning("%s; relay continues without its status server", error.strerror)
        return None


def _close(endpoint: Endpoint | None) -> None:
    if endpoint is not None:
        endpoint.close()


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
