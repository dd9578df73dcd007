"""The I2P sessions to targets whose keys only one process can have: an upgrade ends them in the old process.

Their tunnels accept no client meanwhile: the clients wait in the listen backlog, and the next process serves them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence

from ...addresses.i2p import I2PRouter, router_of
from ...engine import changes
from ...engine.records import ConnectionSummary
from ...engine.tunnel import Tunnel
from ..member import Member, MemberState
from ..preflight import Routes

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
        """End them, and accept no client.

        Their streams have the time of their ``drain``, 30 s at most. Connections of the same tunnels that go another
        way stay open; if such a client asks for a stream over a session later, that fails.
        """
        if not self.members:  # most relays need nothing of I2P
            return
        from ...transports.i2p import key_file
        from ...transports.i2p.dialer import end_sessions

        drains = self._drains()
        for member, tunnel in self._tunnels():
            logger.info("%s: ending its session, whose keys the next process needs", member.name)
            tunnel.pause()
            changes.keep_warm(tunnel, 0)
        key_file.leave(drains)  # before the release: a client that was accepted may connect now
        for member in self.members:
            _release(member)
        begun = time.monotonic()
        for path, drain in sorted(drains.items(), key=lambda item: item[1]):
            if not key_file.wait_until_free([path], begun + drain - time.monotonic()):
                for member, tunnel in self._tunnels():
                    changes.reset(tunnel, _users_of(path, member.plan.routes))
                end_sessions([path])  # a client may still wait for a stream
        key_file.wait_until_free(drains, _CLOSE_TIME)

    def resume(self) -> None:
        """Accept clients again: the next one begins the session."""
        if not self.members:
            return
        from ...transports.i2p import key_file

        key_file.take_back(self._drains())
        for member, tunnel in self._tunnels():
            _release(member)  # a session that has failed, because it did not get its keys, would not begin at once
            options = member.plan.options
            changes.keep_warm(tunnel, options.warm, options.warm_for)
            if member.state is MemberState.LISTENING:
                tunnel.resume()

    def _drains(self) -> dict[str, float]:
        """Return the seconds for the streams of each session, by its key file: the longest ``drain`` of its tunnels."""
        found: dict[str, float] = {}
        for member in self.members:
            drain = min(member.plan.options.drain, _LONGEST_DRAIN)
            for path in keys_to_targets(member.plan.routes):
                found[path] = max(drain, found.get(path, 0.0))
        return found

    def _tunnels(self) -> list[tuple[Member, Tunnel]]:
        return [(member, member.relay) for member in self.members if isinstance(member.relay, Tunnel)]


def keys_to_targets(routes: Routes) -> set[str]:
    """Return the key files of the sessions on the routes to the targets."""
    routers = (router_of(place) for via, end in routes.out for place in (*via, end))
    return {router.keys for router in routers if router is not None and router.keys is not None}


def _users_of(path: str, routes: Routes) -> Callable[[ConnectionSummary], bool]:
    """Return a function that tells which connections of a tunnel use the session with a key.

    :param path: of the key file.
    :param routes: those of the tunnel.
    """
    routers = (router_of(end) for _, end in routes.out)
    carriers = {str(router) for router in routers if router is not None and router.keys == path}

    def uses_it(summary: ConnectionSummary) -> bool:
        is_over = any(isinstance(hop, I2PRouter) and hop.keys == path for hop in summary.route)
        return is_over or (summary.path is not None and summary.path.carrier in carriers)

    return uses_it


def _has_session(member: Member) -> bool:
    """Return whether this process has such a session for a tunnel; workers have their own."""
    is_here = member.state.accepts and isinstance(member.relay, Tunnel)
    return is_here and bool(keys_to_targets(member.plan.routes))


def _release(member: Member) -> None:
    """Release the session of a tunnel, which ends with its last stream, and end the probes over it."""
    member.make_send.close()
