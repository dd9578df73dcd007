"""``relay.daemon.continued_figures``: the sums of a tunnel and of those in whose place it is, whichever ends first."""

from __future__ import annotations

import itertools

import pytest

from relay.daemon.continued_figures import ContinuedFigures
from relay.engine.statistics import Statistics

NONE = Statistics("", None, None).metrics(())


class Counting:
    """A tunnel that has accepted so many."""

    def __init__(self, accepted):
        self.accepted = accepted

    def metrics(self):
        assert self.accepted is not None, "it is forgotten"
        return NONE._replace(accepted=self.accepted)

    def recent(self):
        return []


@pytest.mark.parametrize("order", [*itertools.permutations(range(3))])
def test_tunnels_may_end_in_any_order(order):
    tunnels = [Counting(10**power) for power in range(3)]
    continued = []
    for tunnel in tunnels:
        continued.append(ContinuedFigures(tunnel, continued[-1] if continued else None))
    for count, which in enumerate(order):
        assert continued[-1].metrics(NONE).accepted == sum(one.accepted or 0 for one in tunnels) + 5000 * count
        assert not continued[-1].is_over
        tunnels[which].accepted += 5000  # the last bytes of its connections
        continued[which].end()
        tunnels[which].accepted, tunnels[which] = None, Counting(10**which)
    assert continued[-1].metrics(NONE._replace(accepted=3)).accepted == 15114
    assert continued[-1].recent([]) == []
    assert continued[-1].is_over
