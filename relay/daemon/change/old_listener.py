"""The listeners of tunnels that run, which close because another one needs their place: after a reload, or an upgrade.

======= ======= ======= ===============================================================================================
state   event   next    action
                state
======= ======= ======= ===============================================================================================
open    vacate  vacant  close it; open connections go on
vacant  vacate  vacant  nothing
open    restore open    nothing
vacant  restore open    listen again by the old plan; it stays vacant if that fails
======= ======= ======= ===============================================================================================
"""

from __future__ import annotations

import dataclasses
import functools
import socket
import time
from collections.abc import Callable, Iterable
from typing import Any

from ...addresses.hops import AT_PORT
from ...engine import changes
from ...engine.tunnel import Tunnel
from ...streams.listener import TunnelListener
from ..failures import describe_error
from ..member import Member

OPENING_ERRORS = (OSError, ValueError, TypeError, RuntimeError)
"""The errors of an opening: that of the system, of the user, of a value, and that there is no thread left."""

_VACATE_TIME = 30.0  # most seconds for the connections of a session that has to end before the next one begins
_CLOSE_TIME = 5.0  # seconds for the session to end after them

Call = Callable[[Callable[[], object]], object]
"""Calls a function in the main thread, and waits for it."""


class OldListener:
    """The listener of a tunnel that runs. Used by the thread of a reload or of an upgrade, not by the main thread.

    :param member: the tunnel.
    :param on_vacated: called with its name after it has closed for another one.
    """

    def __init__(self, member: Member, on_vacated: Callable[[str], object] = lambda _: None) -> None:
        self.member = member
        """The tunnel."""
        self.is_vacant = False
        """Whether it has closed for another one, and is not open again."""
        self._on_vacated = on_vacated

    @property
    def tunnel_keys(self) -> Any:
        """The keys of its table in the file; ``None`` for a tunnel without a file."""
        return self.member.plan.entry.tunnel if self.member.plan.entry is not None else None

    @property
    def address(self) -> Any:
        """The address at which it listens, with the port that it has got; ``None`` for a tunnel without a file."""
        if self.member.plan.entry is None:
            return None
        listen: Any = self.member.plan.entry.listen
        if isinstance(listen, AT_PORT) and not listen.port and self.member.has_opened:
            return dataclasses.replace(listen, port=self.member.relay.address[1])
        return listen

    def sockets(self) -> list[socket.socket]:
        """Return its TCP socket, if it has one."""
        one = self.member.receive.listening if self.member.has_opened else None
        return [one] if one is not None else []

    def vacate(self) -> None:
        """Close it. Idempotent.

        A session under it ends with its last connection: see :func:`end_sessions`.

        :raises ValueError: if workers relay it.
        """
        if not self.is_vacant and self.member.has_opened:
            changes.listen_nowhere(in_this_process(self.member.relay))
            self.is_vacant = True
            self._on_vacated(self.member.name)

    def restore(self, call: Call) -> str:
        """Listen again by the old plan, if it has closed.

        The listener opens on this thread, which may wait for a server. The main thread gives it to the tunnel, because
        only that changes the state of one.

        :param call: calls a function in the main thread, and waits for it.
        :returns: why that fails; empty if it does not.
        """
        member = self.member
        if not self.is_vacant or not member.has_opened:
            return ""
        try:
            receive = member.plan.listen(None, None)
            try:
                call(functools.partial(self._take_back, in_this_process(member.relay), receive))
            except BaseException:
                receive.close()
                raise
        except OPENING_ERRORS as error:
            return f"{member.name}: cannot listen again: {describe_error(error)}"
        self.is_vacant = False
        return ""

    def _take_back(self, tunnel: Tunnel, receive: TunnelListener) -> None:
        changes.relisten(tunnel, receive, None)
        self.member.relisten(receive)


def end_sessions(members: Iterable[Member]) -> None:
    """Wait for the ends of sessions under listeners that were closed; reset the connections that hold them longer.

    :param members: the tunnels, side by side. Their connections have the time of their ``drain``, 30 s at most.
    """
    begun = time.monotonic()
    joins = []
    for member in sorted(members, key=lambda one: one.plan.options.drain):
        if member.receive.has_session:
            join = member.receive.join
            joins.append(join)
            join(max(0.0, begun + min(member.plan.options.drain, _VACATE_TIME) - time.monotonic()))
            # Those that are left hold the session, whose keys the next one needs.
            for record in member.relay.connections():
                member.relay.kill(record.id)
    until = time.monotonic() + _CLOSE_TIME
    for join in joins:
        join(max(0.0, until - time.monotonic()))


def in_this_process(tunnel: Any) -> Tunnel:
    """Return a tunnel that is not in workers.

    :raises ValueError: if it is.
    """
    if not isinstance(tunnel, Tunnel):
        # An upgrade hands a Unix socket over; it does not for TCP addresses that only overlap.
        remedy = "run relay ctl upgrade" if isinstance(tunnel.address, str) else "restart relay"
        raise ValueError(f"the workers of {tunnel.name} listen at an address that has to be free first; {remedy}")
    return tunnel
