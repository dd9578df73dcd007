"""The two flows of a connection whose client has a bandwidth or a quota.

A large bandwidth of one TCP connection is left to the kernel (``SO_MAX_PACING_RATE``), which costs relay nothing.
"""

from __future__ import annotations

import socket
import struct
import sys
from typing import TYPE_CHECKING

from ..access.meter import Meter
from ..access.ticket import Quota
from ..streams.session_socket import session_of
from .flow import Flow
from .flow_pair import StreamPair
from .metered_flow import Budget, MeteredFlow, MeteredSessionFlow
from .session_flow import SessionFlow
from .workspace import Workspace

if TYPE_CHECKING:  # parts of one machine name each other
    from .connection import Connection

_SO_MAX_PACING_RATE = 47  # asm-generic/socket.h; Python 3.11 has no name for it

# The kernel does not pace the first ten segments, which have 64 KiB each on the loopback: 7 per cent of ten seconds at
# 1 MB/s (measured: 3 to 4), and at 20 kB/s three times the limit. A meter is exact there, and costs little.
_LEAST_PACED = 2_000_000.0  # bytes a second


class MeteredPair(StreamPair):
    """The flows of a connection between its client and its target, with the limits of the client.

    Each direction has the whole bandwidth; a quota counts both.

    :param connection: the connection.
    :param work: what all flows of the thread share.
    :param client: the client's socket.
    :param target: the socket of the outgoing stream.
    """

    __slots__ = ()

    def __init__(
        self, connection: Connection, work: Workspace, client: socket.SocketType, target: socket.SocketType
    ) -> None:
        self.connection = connection
        self.is_bulk = self.is_closed = False
        ticket = connection.ticket
        assert ticket is not None
        up_meters, down_meters = ticket.meters()
        pace, quotas = ticket.pace, ticket.quotas()
        flows = []
        for source, sink, meters in ((client, target, up_meters), (target, client, down_meters)):
            if pace is not None and not _paces(sink, pace):
                meters.append(Meter(pace, work.loop.timers))
            flows.append(
                self._flow(work, source, sink, Budget(meters, quotas, self._used_up) if meters or quotas else None)
            )
        self.upstream, self.downstream = up, down = flows
        if session_of(client) is not None or session_of(target) is not None:
            up.spliceable = down.spliceable = False
        up.reverse, down.reverse = down, up

    def _used_up(self, quota: Quota, now: float) -> None:
        """End the connection, because its client may have no more bytes."""
        quota.exhausted(now)
        self.connection.summary.rule = quota.rule
        self.connection.close("quota", now)

    def _flow(self, work: Workspace, source: socket.SocketType, sink: socket.SocketType, budget: Budget | None) -> Flow:
        is_session = session_of(source) is not None
        if budget is None:
            return (SessionFlow if is_session else Flow)(self, work, source, sink)
        flow = (MeteredSessionFlow if is_session else MeteredFlow)(self, work, source, sink)
        flow.budget = budget
        flow.begin_metering()
        return flow


def _paces(sink: socket.SocketType, rate: float) -> bool:
    """Let the kernel limit what it sends on a TCP socket; return whether it does."""
    if rate < _LEAST_PACED:
        return False
    if sys.platform != "linux" or sink.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    if session_of(sink) is not None:
        return False
    try:
        sink.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, struct.pack("@L", int(rate)))
    except OSError:
        return False
    return True
