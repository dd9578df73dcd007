"""``relay.cli.useless_rules``: rules that deny no client of a command line are warned of; nothing is opened here."""

from __future__ import annotations

import pytest

from relay.cli import app
from relay.cli import run as serving
from relay.cli.commands import socks
from relay.cli.single import SingleTunnel

NO_USERS = "user:www-data can never match: no client of this listener has what user: compares; it needs a listener at"


@pytest.fixture
def warnings(monkeypatch, capfd):
    """Return the warnings of a command, which ends before it listens."""
    monkeypatch.setattr(SingleTunnel, "relay", lambda tunnel: None)
    for module in (serving, socks):
        monkeypatch.setattr(module, "raise_descriptor_limit", lambda: None)

    def make(command, *words):
        app.command(command).main(list(words), standalone_mode=False)
        return [line.partition("WARNING ")[2] for line in capfd.readouterr().err.splitlines() if "WARNING" in line]

    return make


@pytest.mark.parametrize(
    "line",
    ["forward :0 127.0.0.1:80", "expose 127.0.0.1:80 --on ssh://me@127.0.0.1", "socks :0"],
)
def test_each_command_warns_of_a_rule_that_denies_no_client(warnings, line):
    (warning,) = warnings(*line.split(), "--deny", "192.0.2.1", "--deny", "user:www-data")
    assert f"deny[1]: {NO_USERS}" in warning


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
        "forward :0 127.0.0.1:80 --allow user:www-data",
        "forward :0 127.0.0.1:80 --deny 10.0.0.0/8 --deny 10.1.0.0/16",
        "forward :0 127.0.0.1:80 --deny user:www-data --accept-proxy 127.0.0.1",
        "forward unix:///tmp/a 127.0.0.1:80 --deny user:no-such-user",
        "forward :0 127.0.0.1:80 --deny /dev/null",
        "forward :0 127.0.0.1:80 --deny no-such-file",
        "socks unix:///tmp/a --deny login:me --user me --password-env A_PASSWORD",
    ],
)
def test_other_rules_are_not_warned_of(warnings, line):
    assert warnings(*line.split()) == []
