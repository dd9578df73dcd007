"""The meaning of the recorded steps of a route."""

import socket
import ssl

import pytest

from relay.cli.doctor import explain
from relay.cli.doctor.explain import checks_of
from relay.cli.doctor.recorder import RecordedStep
from relay.cli.doctor.report import Status
from relay.errors import ConnectError
from relay.eventloop.sockets import Endpoint
from relay.streams.trace import Stage

LOOPBACK = Endpoint(socket.AF_INET, ("127.0.0.1", 5432))


def step(stage, subject="db:5432", **facts):
    return RecordedStep(stage, subject, facts, lambda: None)


def shown(stage, error=None, *, subject="db:5432", **facts):
    """Return the name, the status and the text of each check of a step that has ended."""
    found = checks_of(step(stage, subject, **facts), error, Status.FAILED if error is not None else Status.OK)
    return [(check.step, check.status, check.text) for check in found]


def test_addresses_of_a_name():
    endpoints = [LOOPBACK, LOOPBACK, Endpoint(socket.AF_INET6, ("::1", 5432, 0, 0))]
    (check,) = checks_of(step(Stage.RESOLVE, endpoints=endpoints), None, Status.OK)
    assert (check.text, check.facts) == ("127.0.0.1, ::1", {"ipv4": ["127.0.0.1"], "ipv6": ["::1"]})
    assert shown(Stage.RESOLVE, endpoints=[]) == [("resolve", Status.OK, "no address")]
    assert shown(Stage.RESOLVE, ConnectError("db:5432: no such name")) == [("resolve", Status.FAILED, "no such name")]


@pytest.mark.parametrize(("length", "is_incomplete"), [(1, True), (2, False)])
def test_a_chain_that_is_incomplete(monkeypatch, length, is_incomplete):
    facts = {"names": ["db"], "days_left": 9.0, "days_until_valid": -3.0, "not_after": "", "chain_length": length}
    monkeypatch.setattr(explain, "certificate_facts", lambda chain: facts)
    error, cause = ConnectError("db:5432: unknown authority; name it"), ssl.SSLCertVerificationError()
    cause.verify_code = 20
    error.__cause__ = cause
    (check,) = checks_of(step(Stage.TLS), error, Status.FAILED)
    assert ("fullchain.pem" in check.advice) is is_incomplete


def test_the_policy_of_sshd_is_explained():
    error = ConnectError("db:5432: denied; look at AllowTcpForwarding", reason="denied")
    (check,) = checks_of(step(Stage.CHANNEL, server="ssh://s"), error, Status.FAILED)
    assert "PermitOpen" in check.advice and check.subject == "ssh://s"
