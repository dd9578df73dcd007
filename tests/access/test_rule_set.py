"""``relay.access.rule_set``: which rule matches a client."""

import os
import pwd

import pytest

from relay.access.rule_set import RuleSet
from relay.access.rules import parse_rule
from relay.streams.identity import Certificate, Identity

ADDRESS = "a" * 52 + ".b32.i2p"
KEY = "sha256:LHDhK3oGRvkiefQnx7OOczTY5Tic/xZ6HcMOc/gmtoM="
CERTIFICATE = Certificate("Ann", ("web.svc", "www.example"), ("spiffe://example/web",), KEY)
TLS = Identity("tls", "web.svc", "10.1.2.3", 4000, certificate=CERTIFICATE)
SSH = Identity("ssh", "me@server", "10.1.2.3", 4000, server="ssh://me@server:22", is_verified=False)
CLIENTS = {
    "tcp": Identity("tcp", "10.1.2.3", "10.1.2.3", 4000),
    "unix": Identity("unix", "root", user="root", process=1),
    "tls": TLS,
    "ssh": SSH,
    "i2p": Identity("i2p", ADDRESS, destination=ADDRESS),
    "socks": Identity("socks", "alice", "10.1.2.3", 4000, login="alice"),
    "unknown": Identity("", ""),
}


def found(text, *, also_unverified=False):
    rules = RuleSet([parse_rule("cidr:192.0.2.0/24"), parse_rule(text)])
    matching = {name: rules.find(client, also_unverified=also_unverified) for name, client in CLIENTS.items()}
    assert {rule for rule in matching.values() if rule} <= {parse_rule(text).text}
    return {name for name, rule in matching.items() if rule}


@pytest.mark.parametrize(
    ("rule", "clients"),
    [
        ("cidr:10.0.0.0/8", {"tcp", "tls", "socks"}),
        ("cidr:10.0.0.0/16", set()),
        ("user:root", {"unix"}),
        ("user:0", {"unix"}),
        ("user:alice", set()),
        ("login:alice", {"socks"}),
        ("login:root", set()),
        ("dns:*.svc", {"tls"}),
        ("dns:www.example", {"tls"}),
        ("dns:10.1.2.3", set()),
        ("uri:spiffe://example/*", {"tls"}),
        ("uri:spiffe://example/db", set()),
        ("cn:Ann", {"tls"}),
        ("cn:ann", set()),
        (f"spki:{KEY}", {"tls"}),
        (f"i2p:{ADDRESS}", {"i2p"}),
        ("ssh:server", {"ssh"}),
        ("ssh:me@server", {"ssh"}),
        ("ssh:you@server", set()),
    ],
)
def test_a_rule_matches_clients_of_its_kind_alone(rule, clients):
    assert found(rule) == clients


def test_an_address_that_is_not_verified_counts_where_it_is_asked_for():
    assert found("cidr:10.0.0.0/8", also_unverified=True) == {"tcp", "tls", "socks", "ssh"}


def test_the_widest_network_is_the_reason():
    rules = RuleSet(map(parse_rule, ["10.1.2.0/24", "10.0.0.0/8", "10.1.0.0/16"]))
    assert rules.find(CLIENTS["tcp"], also_unverified=False) == "cidr:10.0.0.0/8"


def test_a_user_by_name_is_found_by_number_too():
    name = pwd.getpwuid(os.getuid()).pw_name
    rules = RuleSet([parse_rule(f"user:{name}"), parse_rule("user:no-such-user"), parse_rule("user:²")])
    unknown = str(os.getuid())  # what a client has whose name the system could not tell when it came
    assert rules.find(Identity("unix", unknown, user=unknown), also_unverified=False) == f"user:{name}"


def test_a_user_by_number_is_found_by_name():
    user = pwd.getpwuid(os.getuid()).pw_name
    rules = RuleSet([parse_rule(f"user:{os.getuid()}"), parse_rule("user:4294967294"), parse_rule(f"user:{10**30}")])
    assert rules.find(Identity("unix", user, user=user), also_unverified=False) == f"user:{os.getuid()}"
    assert rules.find(Identity("unix", "4294967294", user="4294967294"), also_unverified=False) == "user:4294967294"


def test_names_of_10_kb_match_nothing_and_raise_nothing():
    long = "a." * 5_000
    rules = RuleSet(
        map(parse_rule, ["10.0.0.0/8", "user:a", "login:a", "dns:**.b", "uri:x:/**", "cn:a", f"spki:{KEY}", "ssh:a"])
    )
    client = Identity(
        "tls", long[:255], long, 1, long, 1, Certificate(long, (long,), (long,), long), long, long, f"{long}@{long}"
    )
    assert rules.find(client, also_unverified=True) is None
