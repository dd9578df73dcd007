"""The meaning of the recorded steps of a route."""

from __future__ import annotations

import socket
from types import SimpleNamespace

import pytest

from relay.cli.doctor import explain
from relay.cli.doctor.explain import LIMITS, checks_of, limit_error
from relay.cli.doctor.recorder import RecordedStep
from relay.cli.doctor.report import Status
from relay.errors import AuthenticationError, ConnectError
from relay.eventloop.sockets import Endpoint
from relay.streams.trace import Stage

LOOPBACK = Endpoint(socket.AF_INET, ("127.0.0.1", 5432))


def step(stage, subject="db:5432", **facts):
    return RecordedStep(stage, subject, facts, lambda: None)


def shown(stage, error=None, *, subject="db:5432", **facts):
    """Return the name, the status and the text of each check of a step that has ended."""
    found = checks_of(step(stage, subject, **facts), error, Status.FAILED if error is not None else Status.OK)
    return [(check.step, check.status, check.text) for check in found]


def test_every_stage_has_a_limit_and_an_explanation():
    assert set(LIMITS) == set(Stage) == set(explain._EXPLAINERS)
    assert all(seconds > 0 and "; " in text for seconds, text in LIMITS.values())


def test_a_step_that_is_late_has_the_error_of_its_last_attempt_or_one_of_its_own():
    late = step(Stage.CONNECT)
    error = limit_error(late)
    assert (str(error).partition(":")[0], error.reason) == ("db", "connect_timeout")
    late.note(noted := ConnectError("refused"))
    assert limit_error(late) is noted


def test_addresses_of_a_name():
    endpoints = [LOOPBACK, LOOPBACK, Endpoint(socket.AF_INET6, ("::1", 5432, 0, 0))]
    (check,) = checks_of(step(Stage.RESOLVE, endpoints=endpoints), None, Status.OK)
    assert (check.text, check.facts) == ("127.0.0.1, ::1", {"ipv4": ["127.0.0.1"], "ipv6": ["::1"]})
    assert shown(Stage.RESOLVE, endpoints=[]) == [("resolve", Status.OK, "no address")]
    assert shown(Stage.RESOLVE, ConnectError("db:5432: no such name")) == [("resolve", Status.FAILED, "no such name")]


def test_a_connect_and_its_route():
    found = shown(Stage.CONNECT, local="127.0.0.1", interface="lo", peer="127.0.0.1:5432")
    assert found == [("route", Status.OK, "from 127.0.0.1 (lo)"), ("connect", Status.OK, "connected to 127.0.0.1:5432")]
    assert shown(Stage.CONNECT) == [("connect", Status.OK, "connected to db:5432")]


def test_a_connect_that_failed_has_a_route_or_none(monkeypatch):
    error = ConnectError("db:5432: refused")
    assert [row[:2] for row in shown(Stage.CONNECT, error, endpoints=[LOOPBACK])] == [
        ("route", Status.OK),
        ("connect", Status.FAILED),
    ]
    assert [row[0] for row in shown(Stage.CONNECT, error, endpoints=[])] == ["connect"]

    def no_route(endpoint):
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(explain, "source_of", no_route)
    assert shown(Stage.CONNECT, error, endpoints=[LOOPBACK]) == [
        ("route", Status.FAILED, "127.0.0.1:5432: Network is unreachable")
    ]


def test_a_unix_socket_that_failed_has_its_own_remedy():
    error = ConnectError("unix:///s: No such file or directory; check it")
    (check,) = checks_of(step(Stage.CONNECT, "unix:///s"), error, Status.FAILED)
    assert (check.text, "start the service" in check.advice) == ("No such file or directory", True)


def certificate(monkeypatch, **facts):
    values = {
        "names": ["db"], "days_left": 90.0, "days_until_valid": -3.0, "not_after": "later", "not_before": "earlier",
        "chain_length": 2, "self_signed": False,
    }  # fmt: skip
    monkeypatch.setattr(explain, "certificate_facts", lambda chain: values | facts)


TLS = {"version": "TLSv1.3", "cipher": "AES", "alpn": "", "servername": "db"}


def test_tls_without_and_with_a_certificate(monkeypatch):
    assert shown(Stage.TLS, **TLS) == [("tls", Status.OK, "TLSv1.3, AES, no ALPN")]
    certificate(monkeypatch)
    tls, (step_, status, text) = shown(Stage.TLS, **TLS | {"alpn": "h2"})
    assert tls[2] == "TLSv1.3, AES, ALPN h2"
    assert (step_, status) == ("certificate", Status.OK)
    assert text == "verified for db; it is for db, valid until later, for 90 days"
    certificate(monkeypatch, days_left=3.0)
    assert shown(Stage.TLS, **TLS)[1][1] is Status.WARNING


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"days_left": -2.5}, "expired on later, 2.5 days ago"),
        ({"days_until_valid": 2.5}, "valid from earlier, in 2.5 days"),
        ({"names": []}, "it is for no name"),
    ],
)
def test_a_certificate_that_was_not_accepted(monkeypatch, facts, words):
    certificate(monkeypatch, **facts)
    error = ConnectError("db:5432: not accepted; renew it")
    error.__cause__ = SimpleError(10)
    ((name, status, text),) = shown(Stage.TLS, error, **TLS)
    assert (name, status) == ("certificate", Status.FAILED)
    assert text.startswith("not accepted; it is for ") and words in text


class SimpleError(Exception):
    """The error of a verification."""

    def __init__(self, code):
        self.verify_code = code


@pytest.mark.parametrize(("facts", "is_chain"), [({"chain_length": 1}, True), ({"chain_length": 2}, False)])
def test_a_chain_that_is_incomplete(monkeypatch, facts, is_chain):
    certificate(monkeypatch, **facts)
    error = ConnectError("db:5432: unknown authority; name it")
    error.__cause__ = SimpleError(20)
    (check,) = checks_of(step(Stage.TLS, **TLS), error, Status.FAILED)
    assert ("fullchain.pem" in check.advice) is is_chain
    assert check.advice.endswith("name it")


def test_a_handshake_that_failed_is_no_certificate():
    assert shown(Stage.TLS, ConnectError("no TLS there"), **TLS) == [("tls", Status.FAILED, "no TLS there")]


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (AuthenticationError("x"), "proxy login"),
        (ConnectError("db:5432: refused"), "proxy request"),
        (ConnectError("hop 1 (socks5://p): db:5432: refused"), "proxy request"),
        (ConnectError("socks5://p: no proxy there"), "proxy"),
    ],
)
def test_a_proxy(error, name):
    facts = {"place": "db:5432", "user": "me"}
    assert shown(Stage.PROXY, error, subject="socks5://p", **facts)[0][0] == name
    assert shown(Stage.PROXY, **facts)[0][2] == "logged in as me, connection to db:5432 granted"
    assert shown(Stage.PROXY, **facts | {"user": ""})[0][2].startswith("no login, ")


@pytest.mark.parametrize(
    ("error", "rows"),
    [
        (None, [("forwarding", Status.OK), ("target", Status.OK)]),
        (ConnectError("db:5432: refused", reason="refused"), [("forwarding", Status.OK), ("target", Status.FAILED)]),
        (ConnectError("db:5432: late", reason="connect_timeout"), [("target", Status.FAILED)]),
        (ConnectError("db:5432: denied", reason="denied"), [("forwarding", Status.FAILED)]),
    ],
)
def test_a_channel(error, rows):
    assert [row[:2] for row in shown(Stage.CHANNEL, error, server="ssh://s")] == rows


def test_the_policy_of_sshd_is_explained():
    error = ConnectError("db:5432: denied; look at AllowTcpForwarding", reason="denied")
    (check,) = checks_of(step(Stage.CHANNEL, server="ssh://s"), error, Status.FAILED)
    assert "PermitOpen" in check.advice and check.subject == "ssh://s"


def test_a_bridge_a_session_and_a_destination():
    assert shown(Stage.BRIDGE, version="3.3\x1b") == [("sam bridge", Status.OK, "answers, SAM 3.3\\x1b")]
    assert shown(Stage.BRIDGE, AuthenticationError("x"))[0][0] == "sam login"
    version = ConnectError("too old")
    version.result = "NOVERSION"
    assert shown(Stage.BRIDGE, version)[0][0] == "sam version"
    assert shown(Stage.BRIDGE, ConnectError("x"))[0][0] == "sam bridge"
    for stage, name in ((Stage.SESSION, "i2p session"), (Stage.DESTINATION, "destination")):
        assert shown(stage)[0][:2] == (name, Status.OK)
        assert shown(stage, ConnectError("db:5432: x; wait")) == [(name, Status.FAILED, "x")]


def test_the_steps_of_ssh_are_explained_by_their_own_module():
    transport = SimpleNamespace(remote_version="", kex="", host_key_type="", remote_cipher="", remote_mac="")
    assert shown(Stage.KEY_EXCHANGE, ConnectError("x"), transport=transport)[0][0] == "ssh version"
    assert shown(Stage.LOGIN, accepted=["key"])[0][0] == "login"
    assert shown(Stage.SSH_CLIENT)[0][0] == "login"
