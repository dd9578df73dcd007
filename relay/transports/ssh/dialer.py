"""Streams over an SSH connection that is shared and kept up."""

from __future__ import annotations

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

__all__ = ["SSHFactory", "SSHNetwork"]


class SSHNetwork:
    """The network as seen from an SSH server.

    :param server: the server.
    :param below: the network from which it is reached.
    """

    def __init__(self, server: SSHServer, below: Network) -> None:
        self._server = server
        self._below = below

    def to(self, place: Place) -> Dialer:
        """Return a dialer for a place that the server reaches."""
        return SSHFactory(self._server, self._below, place)


class SSHFactory(Dialer):
    """Streams to one place, as seen from an SSH server; made by :func:`relay.ssh`.

    :param server: the SSH server.
    :param below: the network from which it is reached.
    :param place: the target, as the server sees it.
    """

    def __init__(self, server: SSHServer, below: Network, place: Place) -> None:
        super().__init__(str(place))
        self._holder = Holder(server, below)
        self._place = place

    @property
    def state(self) -> str:
        """What the connection to the server does: ``connecting``, ``up``, ``backing off``, ``failed`` or ``closed``."""
        held = self._holder.current
        return held.state.value if held is not None else CarrierState.CLOSED.value

    def subscribe(self, watcher: Callable[[CarrierState, Exception | None], object]) -> None:
        """Have ``watcher(state, error)`` called at each change of the connection's state.

        The connection is held from now on. The call comes in a thread of ours and must not block; what it raises is
        logged. It ends when this factory is closed, and goes on when it is used again.

        :param watcher: is given the new state, a member of an enumeration whose ``value`` is that of :attr:`state`, and
            why the connection is not up (``None`` where there is no reason).
        :raises OSError: if there is no thread or descriptor to be had.
        """
        self._holder.subscribe(watcher)

    @property
    def last_error(self) -> str | None:
        """Why there is no connection to the server, as far as that is known."""
        held = self._holder.current
        error = held.error if held is not None else None
        return str(as_oserror(error)) if error is not None else None

    def ready(self, timeout: float | None = 30.0) -> None:
        """Connect and log in, if that is not done yet, and wait for it: one attempt.

        :param timeout: seconds; ``None`` for as long as it takes.
        :raises HostKeyError: if the server's host key is not to be trusted.
        :raises AuthenticationError: if the server takes none of the credentials.
        :raises ConnectError: if it cannot be reached or does not answer in time; it is tried again in the background
            for as long as this factory is open.
        :raises CarrierError: if the connection was lost meanwhile; likewise.
        :raises RelayError: if it cannot be tried: the configuration is of no use, or a program is missing.
        :raises TypeError: if ``timeout`` is not a number.
        :raises ValueError: if it is not positive.
        """
        seconds = check_time("timeout", timeout)
        deadline = None if seconds is None else time.monotonic() + seconds
        wait_until_up(self._holder.carrier(), deadline, None, wait_for_reconnect=False)

    def dial(
        self, deadline: float | None, done: OnResult, *, self_contained: bool = False, wait_for_reconnect: bool = True
    ) -> Abort:
        """Begin to make a stream; see :meth:`Dialer.dial`."""
        return dial(
            self._holder.carrier(),
            self._place,
            deadline,
            done,
            self_contained=self_contained,
            wait_for_reconnect=wait_for_reconnect,
        )

    def close_when_idle(self) -> None:
        """Let the connection go as soon as no stream rides on it, and do not wait for that."""
        self._holder.close(drain_timeout=0.0)

    def close(self) -> None:
        """Let the connection go, as soon as no stream rides on it. Idempotent; the next call takes it up anew."""
        self._holder.close()

    def __repr__(self) -> str:
        return f"<relay factory to {self.target} over {self._holder!r}>"
