"""Applications of others reach our destinations, and ours reach theirs, whatever their library is."""

import pytest
from i2p_peers import SCENARIOS


@pytest.mark.timeout(1300)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_over_real_routers(i2p_peers, scenario, record_property):
    seconds, problem = i2p_peers[scenario]
    if problem:
        pytest.fail(problem, pytrace=False)
    record_property("measured", f"I2P, {scenario.replace('_', ' ')}: after {seconds:.1f} s")
