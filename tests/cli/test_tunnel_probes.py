"""``relay.cli.tunnel_probes``: what an opening tunnel costs the others."""

from __future__ import annotations

from relay.addresses.parse import parse_listen, parse_target
from relay.cli.member import MemberState, Snapshot
from relay.cli.options import Options
from relay.cli.plan import make_plan
from relay.cli.tunnel_probes import TunnelProbes


class Group:
    """A group that counts how often all of its tunnels are looked at."""

    def __init__(self):
        self.looks = 0

    @property
    def members(self):
        self.looks += 1
        return ()


def snapshot(**options):
    plan = make_plan(parse_listen(":0"), parse_target("localhost:1"), Options(**options), name="one")
    return Snapshot(plan, state=MemberState.LISTENING)


def test_a_tunnel_that_opens_is_looked_at_alone():
    """Thousands open one after the other: a look at all of them each time took most of the time to start."""
    group = Group()
    probes = TunnelProbes(group)
    for _ in range(10):
        group.on_change([snapshot(), snapshot(probe="none")])
    assert group.looks == 0
    group.on_change([snapshot(), snapshot(probe="connect")])
    assert group.looks == 1
    probes.close()
