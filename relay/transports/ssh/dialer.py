"""Dialers for streams over a shared, supervised SSH connection."""

from __future__ import annotations

import copy

from ...addresses.ssh import SSHServer
from ...carriers.dialer import CarrierDialer
from ...streams.dialer import Dialer, Network
from ...streams.promise import Abort, OnResult
from .connection import Adapt, Connection, Place
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


class SSHFactory(CarrierDialer[Connection]):
    """A dialer for one target, as seen from an SSH server; made by :func:`relay.ssh`.

    :param server: the SSH server.
    :param below: the network from which it is reached.
    :param place: the target, as the server sees it.
    :param adapt: changes the settings of each attempt to connect; ``None`` to leave them.
    """

    def __init__(self, server: SSHServer, below: Network, place: Place, adapt: Adapt | None = None) -> None:
        super().__init__(str(place), Holder(server, below, adapt))
        self._number = len(below.route) + 1
        self._place = place
        self._confirmed = False

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

    def __repr__(self) -> str:
        return f"<relay factory to {self.target} over {self._holder!r}>"
