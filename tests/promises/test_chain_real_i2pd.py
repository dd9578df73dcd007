"""An SSH server that is an I2P destination, and a router behind an SSH server: both end and come back by themselves."""

import pytest
from chain_restarts import SCENARIOS


@pytest.mark.timeout(1300)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_over_real_routers(chain_restarts, scenario, record_property):
    recoveries, problem = chain_restarts[scenario]
    if problem:
        pytest.fail(problem, pytrace=False)
    for what, seconds in recoveries.items():
        shown = scenario.replace("_", " ")
        record_property("measured", f"Chain, {shown}: {what} ended; served again after {seconds:.1f} s")
