"""Dialers for streams over a shared, supervised SSH connection."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable

from ...addresses.ssh import SSHServer
from ...carriers.dialer import as_oserror, wait_until_up
from ...carriers.link import CarrierState
from ...streams.checks import check_time
from ...streams.dialer import Dialer, Network
from ...streams.promise import Abort, OnResult
from .connection import Place
from .connector import Holder, dial


class SSHNetwork:
    """The network as seen from an SSH server.

    :param server: the server.
    :param below: the network from which it is reached.
    """

    def __init__(self, server: SSHServer, below: Network) -> None:
        self._server = server
        self._below = below

    def to(self, place: Place) -> Dialer:
        """Return a dialer for a target that the server can reach."""
        return SSHFactory(self._server, self._below, place)


class SSHFactory(Dialer):
    """A dialer for one target, as seen from an SSH server; made by :func:`relay.ssh`.

    :param server: the SSH server.
    :param below: the network from which it is reached.
    :param place: the target, as the server sees it.
    """

    def __init__(self, server: SSHServer, below: Network, place: Place) -> None:
        super().__init__(str(place))
        self._holder = Holder(server, below)
        self._number = len(below.route) + 1
        self._place = place
        self._confirmed = False

    @property
    def state(self) -> str:
        """The state of the SSH connection: ``connecting``, ``up``, ``backing off``, ``failed`` or ``closed``."""
        held = self._holder.shared
        return held.state.value if held is not None else CarrierState.CLOSED.value

    def subscribe(self, watcher: Callable[[CarrierState, Exception | None], object]) -> None:
        """Call ``watcher(state, error)`` at each change of the connection's state.

        The connection stays open from now on. Closing this dialer ends the calls; its next use resumes them.

        :param watcher: called in a thread of relay with the new state, an enumeration member whose ``value`` is that of
            :attr:`state`, and with the error, or ``None``. It must not block; an error that it raises is logged.
        :raises OSError: if the system has no threads or descriptors left.
        """
        self._holder.subscribe(watcher)

    @property
    def last_error(self) -> str | None:
        """The last error of the SSH connection; ``None`` if there is none."""
        held = self._holder.shared
        error = held.error if held is not None else None
        return str(as_oserror(error)) if error is not None else None

    def ready(self, timeout: float | None = 30.0) -> None:
        """Connect and log in, unless the connection is open, and wait for the result of one attempt.

        After a :class:`ConnectError` or :class:`CarrierError` relay retries in the background, until this dialer is
        closed.

        :param timeout: seconds; ``None`` for no limit.
        :raises HostKeyError: if the server's host key is not trusted.
        :raises AuthenticationError: if the server accepts none of the credentials.
        :raises ConnectError: if the server is unreachable or does not reply in time.
        :raises CarrierError: if the connection was lost meanwhile.
        :raises RelayError: if the configuration is unusable, or a program is missing.
        :raises TypeError: if ``timeout`` is not a number.
        :raises ValueError: if it is not positive.
        """
        seconds = check_time("timeout", timeout)
        deadline = None if seconds is None else time.monotonic() + seconds
        wait_until_up(self._holder.carrier(), deadline, None, wait_for_reconnect=False)

    def dial(
        self, deadline: float | None, done: OnResult, *, self_contained: bool = False, wait_for_reconnect: bool = True
    ) -> Abort:
        """Begin to open a stream; see :meth:`Dialer.dial`."""
        return dial(
            self._holder.carrier(),
            self._place,
            deadline,
            done,
            self_contained=self_contained,
            confirmed=self._confirmed,
            wait_for_reconnect=wait_for_reconnect,
            trace=self.trace,
            number=self._number,
        )

    def confirming(self) -> Dialer:
        """Return one whose streams the server has opened; see :meth:`Dialer.confirming`. Both share the connection."""
        if self._confirmed:
            return self
        other = copy.copy(self)
        other._confirmed = True
        return other

    def close_when_idle(self) -> None:
        """Release the connection, which closes when its last stream has ended. Does not wait."""
        self._holder.close(drain_timeout=0.0)

    def close(self) -> None:
        """Release the connection, which closes when its last stream has ended. Idempotent; the next use reconnects."""
        self._holder.close()

    def __repr__(self) -> str:
        return f"<relay factory to {self.target} over {self._holder!r}>"
