"""The access log of a group: its tunnels, each with its hops."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from relay.addresses.parse import parse_hops, parse_listen
from relay.cli.connection_log import _tunnels
from relay.cli.options import Options
from relay.cli.plan import make_proxy_plan
from relay.transports.dynamic import parse_rule


@pytest.mark.parametrize(
    ("via", "rules", "hops"),
    [
        (["ssh://me@bastion"], [], ("ssh://me@bastion",)),
        ([], ["*.corp.example=ssh://me@bastion", "*=direct"], ()),
        ([], ["*=ssh://me@bastion"], ()),
    ],
)
def test_the_hops_of_one_rule_are_not_those_of_all_clients_of_a_proxy(via, rules, hops):
    plan = make_proxy_plan(
        parse_listen(":0"), Options(), name="proxy", via=parse_hops(via), rules=[parse_rule(rule) for rule in rules]
    )
    tunnel = SimpleNamespace(address=("127.0.0.1", 1080), connections=list)
    member = SimpleNamespace(name="proxy", opened=SimpleNamespace(tunnel=tunnel), plan=plan)
    (logged,) = _tunnels(SimpleNamespace(members=[member]))
    assert logged.hops == hops
