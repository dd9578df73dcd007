"""``relay.operations.probing``: what a probe does, that it never hangs, and what it logs."""

from __future__ import annotations

import logging
import socket
import threading

import pytest
from helpers import WAIT, wait_until

import relay
from relay.operations import probing
from relay.operations.probing import Prober, ProbeTarget

LONG = 3600.0


@pytest.fixture
def probe(monkeypatch):
    """Probes one target again and again; returns the prober."""
    monkeypatch.setattr(probing, "_FIRST", 0.0)
    made = []

    def start(address, kind="connect", interval=LONG, timeout=WAIT, dial=None):
        target = ProbeTarget("t", kind, interval, timeout, dial or relay.tcp(*address), "t:1")
        made.append(Prober(lambda: [target]))
        made[-1].wake()
        return made[-1]

    yield start
    for prober in made:
        prober.close()


def outcome(prober):
    wait_until(lambda: prober.status("t") and prober.status("t").finished)
    return prober.status("t").problem


def answering(data):
    """A handler that sends some bytes, and reads until the end."""

    def handle(connection):
        connection.sendall(data)
        while connection.recv(4096):
            pass

    return handle


@pytest.mark.parametrize(
    ("kind", "data", "problem"),
    [
        ("connect", b"", ""),
        ("banner", b"2", ""),
        ("http://health", b"HTTP/1.1 200 OK\r\n\r\n", ""),
        ("http:///health", b"HTTP/1.0 404 no\r\n", ""),
        ("http://", b"HTTP/1.1 503\r\n\r\n", "status 503"),
        ("http://", b"SSH-2.0-x\r\n", "the answer is not HTTP"),
        ("http://", b"\x1b" * 10_000, "the answer is not HTTP"),
    ],
)
def test_each_kind_asks_for_its_own(serve, probe, kind, data, problem):
    prober = probe(serve(answering(data)).address, kind)
    assert outcome(prober) == problem
    status = prober.status("t")
    assert status.kind == kind.partition(":")[0]
    assert status.interval == LONG
    assert status.seconds >= 0


def test_the_request_of_http_names_the_path_and_the_host(serve, probe):
    requests = []

    def handle(connection):
        requests.append(connection.recv(4096))
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")

    assert outcome(probe(serve(handle).address, "http://a/b?c")) == ""
    assert requests[0].startswith(b"GET /a/b?c HTTP/1.1\r\nHost: t:1\r\n")


def test_a_target_that_ends_without_a_byte_has_no_banner(serve, probe):
    assert outcome(probe(serve(lambda connection: None).address, "banner")) == (
        "the target closed the connection without a byte"
    )


def test_a_target_that_is_down_is_a_problem(probe):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
    assert "refused" in outcome(probe(address))


@pytest.mark.parametrize("kind", ["banner", "http://"])
def test_a_target_that_is_silent_ends_by_the_deadline(serve, probe, kind):
    assert outcome(probe(serve(answering(b"")).address, kind, timeout=0.05)) == "no answer in time"


def test_a_probe_that_hangs_is_given_up_at_the_end(serve, probe):
    prober = probe(serve(answering(b"")).address, "banner")
    wait_until(lambda: any(thread.name == "relay-probe" for thread in threading.enumerate()))
    prober.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("relay-probe")]


def test_one_at_a_time_and_again_after_the_interval(probe):
    running, most, count, enough = [], [0], [0], threading.Event()

    def dial(**_):
        running.append(1)
        most[0] = max(most[0], len(running))
        count[0] += 1
        if count[0] == 5:
            enough.set()
        running.pop()
        raise relay.ConnectError("no")

    probe(None, interval=0.01, dial=dial)
    assert enough.wait(WAIT)
    assert most[0] == 1


def test_a_change_is_one_line_in_the_log(probe, caplog):
    caplog.set_level(logging.INFO, "relay.operations")
    fails, count = [True], [0]

    def dial(**_):
        count[0] += 1
        if fails[0]:
            raise relay.ConnectError("db:1: no route\x1b[31m")
        near, far = socket.socketpair()
        far.close()
        return relay.Stream(near)

    prober = probe(None, interval=0.01, dial=dial)
    wait_until(lambda: count[0] > 3)
    fails[0] = False
    wait_until(lambda: "succeeds again" in caplog.text)
    prober.close()
    lines = [record.message for record in caplog.records if "t: " in record.message]
    assert lines == ["t: probe: db:1: no route\\x1b[31m", "t: the probe succeeds again"]


class Route:
    """A factory whose calls wait until the test releases them, and then fail."""

    def __init__(self, problem=""):
        self.called, self.goes_on = threading.Event(), threading.Event()
        self.problem = problem

    def __call__(self, **_):
        self.called.set()
        assert self.goes_on.wait(WAIT)
        if self.problem:
            raise relay.ConnectError(self.problem)
        near, far = socket.socketpair()
        far.close()
        return relay.Stream(near)


def test_another_route_is_probed_at_once_and_the_old_result_counts_until_then(monkeypatch, caplog):
    monkeypatch.setattr(probing, "_FIRST", 0.0)
    old, new = Route(), Route()
    targets = [ProbeTarget("t", "connect", LONG, WAIT, old)]
    prober = Prober(lambda: targets)
    try:
        prober.wake()
        old.goes_on.set()
        assert outcome(prober) == ""
        before = prober.status("t")
        targets[0] = ProbeTarget("t", "connect", LONG, WAIT, new)
        prober.wake()
        assert new.called.wait(WAIT)
        assert prober.status("t") == before
        new.problem = "no route"
        new.goes_on.set()
        wait_until(lambda: prober.status("t") != before)
        assert prober.status("t").problem == "no route"
    finally:
        prober.close()
    assert [record.message for record in caplog.records] == ["t: probe: no route"]


@pytest.mark.parametrize("is_gone", [True, False], ids=["gone", "another route"])
def test_a_probe_of_an_old_route_is_not_the_result_of_a_new_one(monkeypatch, caplog, is_gone):
    """A reload closes the old route while it is probed."""
    monkeypatch.setattr(probing, "_FIRST", 0.0)
    old, new = Route("the route is closed"), Route()
    new.goes_on.set()
    targets = [ProbeTarget("t", "connect", LONG, WAIT, old)]
    prober = Prober(lambda: targets)
    try:
        prober.wake()
        assert old.called.wait(WAIT)
        targets[:] = [] if is_gone else [ProbeTarget("t", "connect", LONG, WAIT, new)]
        old.goes_on.set()
        if is_gone:
            wait_until(lambda: prober.status("t") is None)
        else:
            assert outcome(prober) == ""
    finally:
        prober.close()
    assert caplog.records == []


def test_a_bug_in_a_factory_is_logged_and_a_problem(probe, caplog):
    assert outcome(probe(None, dial=lambda **_: 1 / 0)) == "ZeroDivisionError"
    assert "t: the probe failed" in caplog.text


def test_without_a_thread_a_probe_fails_and_others_go_on(monkeypatch):
    """Also if the tunnels change at that moment."""
    monkeypatch.setattr(probing, "_FIRST", 0.0)
    first, later = (ProbeTarget(name, "connect", LONG, WAIT, relay.tcp("127.0.0.1", 1)) for name in "tu")
    targets = [first]
    prober = Prober(lambda: tuple(targets))
    start = prober._start

    def refuse(work, name):
        if name == "relay-probe" and later not in targets:
            targets.append(later)
            raise RuntimeError("can't start new thread")
        start(work, name)

    monkeypatch.setattr(prober, "_start", refuse)
    prober.wake()
    try:
        assert outcome(prober) == "can't start new thread"
        wait_until(lambda: prober.status("u") and prober.status("u").finished)
    finally:
        prober.close()


def test_without_a_target_there_is_no_thread():
    prober = Prober(list)
    prober.wake()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("relay-probe")]
    assert prober.status("t") is None
    prober.close()
    prober.wake()


def test_a_tunnel_that_is_gone_has_no_probe_any_more(probe):
    targets = [ProbeTarget("t", "connect", 0.01, 1.0, lambda **_: 1 / 0)]
    prober = Prober(lambda: targets)
    prober.wake()
    try:
        outcome(prober)
        targets.clear()
        prober.wake()
        wait_until(lambda: prober.status("t") is None)
    finally:
        prober.close()
