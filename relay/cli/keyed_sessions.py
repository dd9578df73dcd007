"""The I2P sessions to targets whose keys only one process can have: an upgrade ends them in the old process.

Their tunnels accept no client meanwhile: the clients wait in the listen backlog, and the next process serves them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence

from ..addresses.i2p import I2PRouter
from ..engine import changes
from ..engine.tunnel import Tunnel
from .member import Member, MemberState
from .preflight import Routes

__all__ = ["KeyedSessions", "keys_to_targets"]

logger = logging.getLogger("relay.cli")

_LONGEST_DRAIN = 30.0  # seconds for the connections of a session that has to end
_CLOSE_TIME = 5.0  # seconds for it to end after them


class KeyedSessions:
    """Those of some tunnels. Not for the main thread, which they would hold up.

    :param members: the tunnels; those without such a session stay as they are.
    """

    def __init__(self, members: Iterable[Member]) -> None:
        self.members: Sequence[Member] = [member for member in members if _has_session(member)]
        """The tunnels that have one."""

    def end(self) -> None:
        """End them, and accept no client. Connections have the time of their ``drain``, 30 s at most."""
        for member, tunnel in self._tunnels():
            logger.info("%s: ending its session, whose keys the next process needs", member.name)
            tunnel.pause()
            changes.keep_warm(tunnel, 0)
            _release(member)
        begun = time.monotonic()
        for member, tunnel in sorted(self._tunnels(), key=lambda each: each[0].plan.options.drain):
            until = begun + min(member.plan.options.drain, _LONGEST_DRAIN)
            _wait_until_free([member], until - time.monotonic())
            for record in tunnel.connections():
                tunnel.kill(record.id)
            _release(member)  # a connection may have taken it again
        _wait_until_free(self.members, _CLOSE_TIME)

    def resume(self) -> None:
        """Accept clients again: the next one begins the session."""
        for member, tunnel in self._tunnels():
            options = member.plan.options
            changes.keep_warm(tunnel, options.warm, options.warm_for)
            if member.state is MemberState.LISTENING:
                tunnel.resume()

    def _tunnels(self) -> list[tuple[Member, Tunnel]]:
        tunnels = [(member, member.opened.tunnel) for member in self.members if member.opened is not None]
        return [(member, tunnel) for member, tunnel in tunnels if isinstance(tunnel, Tunnel)]


def keys_to_targets(routes: Routes) -> set[str]:
    """Return the key files of the sessions on the way to the targets."""
    places = (place for via, end in routes.out for place in (*via, getattr(end, "router", None)))
    return {place.keys for place in places if isinstance(place, I2PRouter) and place.keys is not None}


def _has_session(member: Member) -> bool:
    """Return whether this process has such a session for a tunnel; workers have their own."""
    opened = member.opened
    if opened is None or not member.state.accepts or not isinstance(opened.tunnel, Tunnel):
        return False
    return bool(keys_to_targets(member.plan.routes))


def _release(member: Member) -> None:
    """Release the session of a tunnel, which ends with its last stream, and end the probes over it."""
    assert member.opened is not None, "it is open"
    member.opened.make_send.close()


def _wait_until_free(members: Iterable[Member], seconds: float) -> None:
    from ..transports.i2p.key_file import wait_until_free

    wait_until_free({path for member in members for path in keys_to_targets(member.plan.routes)}, seconds)
