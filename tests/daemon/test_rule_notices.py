"""``relay.daemon.rule_notices``: rules of a command line that can never match have warnings; nothing is opened."""

import pytest

from relay.cli import app
from relay.daemon.group import Group
from relay.eventloop import reserve

NO_USERS = "user:www-data can never match: user: rules match no client of this listener; it needs a listener at"


@pytest.fixture
def warnings(monkeypatch, capfd):
    """Return the warnings of a command, which ends before it listens."""
    monkeypatch.setattr(Group, "run", lambda group: 0)
    monkeypatch.setattr(reserve, "keep", lambda: None)

    def make(command, *words):
        app.command(command).main(list(words), standalone_mode=False)
        return [line.partition("WARNING ")[2] for line in capfd.readouterr().err.splitlines() if "WARNING" in line]

    return make


@pytest.mark.parametrize(
    "line", ["forward 0.0.0.0:0 127.0.0.1:80", "expose 127.0.0.1:80 --on ssh://me@127.0.0.1", "socks 0.0.0.0:0"]
)
def test_each_command_warns_of_a_rule_that_denies_no_client(warnings, line):
    (warning,) = warnings(*line.split(), "--deny", "192.0.2.1", "--deny", "user:www-data")
    assert f"deny[1]: {NO_USERS}" in warning


LOOPBACK = "can never match: all clients of this listener have addresses of the loopback; leave it out, or listen else"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("forward :0 127.0.0.1:80 --allow user:www-data", f"allow[0]: {NO_USERS}"),
        ("forward :0 127.0.0.1:80 --allow 10.0.0.0/8", f"allow[0]: cidr:10.0.0.0/8 {LOOPBACK}"),
        ("forward localhost:0 127.0.0.1:80 --deny 10.0.0.0/8", f"deny[0]: cidr:10.0.0.0/8 {LOOPBACK}"),
        ("forward [::1]:0 127.0.0.1:80 --allow fd00::/8", f"allow[0]: cidr:fd00::/8 {LOOPBACK}"),
        ("socks :0 --accept-proxy 127.0.0.1,10.0.0.0/8", f"accept_proxy[1]: 10.0.0.0/8 {LOOPBACK}"),
        ("forward 127.0.0.1:0 127.0.0.1:80 --accept-proxy 10.0.0.0/8", f"accept_proxy[0]: 10.0.0.0/8 {LOOPBACK}"),
        (
            "forward 0.0.0.0:0 127.0.0.1:80 --accept-proxy 10.0.0.0/8,unix",
            "accept_proxy[1]: unix can never match: no balancer is at a Unix socket; leave it out",
        ),
        (
            "forward unix:///tmp/a 127.0.0.1:80 --accept-proxy unix,10.0.0.0/8",
            "accept_proxy[1]: 10.0.0.0/8 can never match: all balancers are at a Unix socket; leave it out",
        ),
        (
            "forward 0.0.0.0:0 127.0.0.1:80 --deny 10.0.0.0/8 --deny 10.1.0.0/16",
            "deny[1]: cidr:10.1.0.0/16 can never match: cidr:10.0.0.0/8, deny[0], is wider; leave it out",
        ),
        (
            "forward unix:///tmp/a 127.0.0.1:80 --deny user:no-such-user",
            "deny[0]: user:no-such-user can never match: this machine has no such user; correct it, or leave it out",
        ),
    ],
)
def test_a_rule_that_can_never_match_is_warned_of(warnings, line, told):
    (warning,) = warnings(*line.split())
    assert warning.startswith(told)


def test_each_rule_has_its_line_up_to_a_number(warnings):
    rules = [f"fd00:{number:x}::/32" for number in range(21)]
    told = warnings("forward", "127.0.0.1:0", "127.0.0.1:80", *(word for rule in rules for word in ("--deny", rule)))
    assert len(told) == 20
    assert (
        "deny[19]: cidr:fd00:13::/32 can never match: all clients of this listener have addresses of IPv4" in told[19]
    )


@pytest.mark.parametrize(
    "line",
    [
        "forward 0.0.0.0:0 127.0.0.1:80 --allow 10.0.0.0/8 --accept-proxy 192.0.2.0/24",
        "forward 127.0.0.1:0 127.0.0.1:80 --allow 0.0.0.0/0 --deny 127.0.0.7 --deny 127.128.0.0/9",
        "forward :0 127.0.0.1:80 --deny user:www-data --deny 10.0.0.0/8 --accept-proxy 127.0.0.1",
        "forward [::]:0 127.0.0.1:80 --allow 10.0.0.0/8 --allow fd00::/8",
        "forward [::1]:0 127.0.0.1:80 --allow ::/0",
        "forward :0 127.0.0.1:80 --deny /dev/null",
        "forward :0 127.0.0.1:80 --deny no-such-file",
        "socks unix:///tmp/a --deny login:me --user me --password-env A_PASSWORD",
    ],
)
def test_other_rules_are_not_warned_of(warnings, line):
    assert warnings(*line.split()) == []
