"""``relay.transports.ssh.open_failures``: what a server says of a stream that it did not open, by both backends."""

from __future__ import annotations

import pytest

from relay.addresses.values import TCPAddress
from relay.transports.ssh.open_failures import open_failure
from relay.transports.ssh.openssh.diagnostics import open_error

SERVER = "ssh://me@bastion"
KINDS = {1: "administratively prohibited", 2: "connect failed", 3: "unknown channel type", 4: "resource shortage"}
SAYINGS = [
    (1, "open failed", "denied", "denied by ssh://me@bastion; the server's policy forbids it (AllowTcpForwarding, "),
    (1, "", "denied", "denied by ssh://me@bastion; the server's policy forbids it"),
    (
        1,
        "only one 'session' channel allowed",
        "denied",
        "denied by ssh://me@bastion: only one 'session' channel allowed",
    ),
    (2, "Connection refused", "refused", "connection refused (reported by {}); check that the service is running"),
    (2, "Connection timed out", "connect_timeout", "no answer in time (reported by {}); check that the host is up"),
    (2, "open failed", "unreachable", "the connect failed (reported by {}); check that it exists"),
    (2, "", "unreachable", "the connect failed (reported by {}); check that it exists"),
    (2, "Name or service not known", "unreachable", "Name or service not known (reported by {}); check that it exists"),
    (2, "No route to host", "unreachable", "No route to host (reported by {}); check that it exists"),
    (3, "no such thing", "denied", "denied by ssh://me@bastion: no such thing; the server does not support this kind"),
    (4, "too many", "denied", "denied by ssh://me@bastion: too many; the server has reached a limit"),
]


@pytest.mark.parametrize(("code", "words", "reason", "told"), SAYINGS)
def test_one_event_has_one_text_in_both_backends(code: int, words: str, reason: str, told: str) -> None:
    said = f"{KINDS[code]}: {words}".strip()  # as a line of ssh ends
    by_openssh = open_error("db:5432", SERVER, said)
    by_paramiko = open_failure(str(TCPAddress("db", 5432)), SERVER, code, words)
    assert str(by_openssh) == str(by_paramiko)
    assert by_openssh.reason == by_paramiko.reason == reason
    assert str(by_openssh).startswith(f"db:5432: {told.format(SERVER)}")
    assert ("AllowTcpForwarding" in str(by_openssh)) is (code == 1 and words == "open failed")


def test_what_a_server_says_is_one_line_and_not_too_long() -> None:
    text = str(open_failure("db:1", SERVER, 1, "\x1b[31m\r\n" + "x" * 5000))
    assert text.isprintable() and len(text) < 400
