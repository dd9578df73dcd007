"""The path of a stream: the steps in which it was made, and the time that each took."""

from __future__ import annotations

from typing import NamedTuple

from ..addresses.hops import Command, Proxy, Route
from ..addresses.ssh import SSHServer

HANDSHAKE = 0
"""The number of a TLS handshake with the target."""

# Labels become series of metrics, which must have a bound however long a route is.
_MOST = 10  # labels by number; those beyond share the last one


class StreamPath(NamedTuple):
    """The way in which a stream was made, as its dialers know it."""

    steps: tuple[tuple[int, float], ...]
    """The number of what was reached, and the seconds that it took: 1 for the first hop of the route, one more than the
    hops for the target. A hop that was up already has no step."""
    carrier: str | None = None
    """The name of the shared connection that it goes over."""
    attempts: int = 1
    """How often it was begun, because a carrier was lost meanwhile."""
    warm: bool = False
    """Whether it was open before its client came, so that its client has waited for no step."""
    route: Route | None = None
    """The hops on its way, if its dialer has several ways; ``None`` for those of the dialer."""

    def extended(self, number: int, seconds: float) -> StreamPath:
        """Return the path with a further step."""
        return self._replace(steps=(*self.steps, (number, seconds)))


def hop_times(path: StreamPath, route: Route) -> tuple[tuple[str, float], ...]:
    """Return the seconds of each step, by the number and the kind of what was reached.

    :param path: of a stream.
    :param route: the hops on its way.
    """
    found: dict[str, float] = {}
    for number, seconds in path.steps:
        label = _label(number, route)
        found[label] = found.get(label, 0.0) + seconds
    return tuple(found.items())


def _label(number: int, route: Route) -> str:
    target = len(route) + 1
    if number == HANDSHAKE:
        return f"{min(target, _MOST)}:tls"
    if number >= target:
        return f"{min(target, _MOST)}:target"
    hop = route[number - 1]
    if isinstance(hop, Proxy):
        kind: str = hop.protocol
    else:
        kind = "ssh" if isinstance(hop, SSHServer) else "exec" if isinstance(hop, Command) else "i2p"
    return f"{min(number, _MOST)}:{kind}"
