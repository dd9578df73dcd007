"""``relay.daemon.probing``: what a probe does, that it never hangs, and what it logs."""

import logging
import socket
import threading

import pytest
from helpers import WAIT, Thread, makes, wait_until

import relay
from relay.access.proxy_header import build_local
from relay.daemon import probing
from relay.daemon.probing import Prober, ProbeTarget

LONG = 3600.0


@pytest.fixture
def probe(monkeypatch):
    """Probes one target again and again; returns the prober."""
    monkeypatch.setattr(probing, "_FIRST", 0.0)

    def start(address, kind="connect", interval=LONG, timeout=WAIT, dial=None, header=b""):
        dial = dial or relay.tcp(*address)
        prober = Prober(lambda _: ProbeTarget("t", kind, interval, timeout, dial, "t:1", header))
        prober.wake(["t"])
        return prober

    yield from makes(start)


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


@pytest.mark.parametrize("version", [None, "v1", "v2"])
def test_the_request_of_http_names_the_path_and_the_host_after_a_header_of_the_proxy_protocol(serve, probe, version):
    header, requests = build_local(version) if version else b"", []

    def handle(connection):
        requests.append(connection.recv(len(header), socket.MSG_WAITALL))
        requests.append(connection.recv(4096))
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")

    assert outcome(probe(serve(handle).address, "http://a/b?c", header=header)) == ""
    assert requests[0] == header
    assert requests[1].startswith(b"GET /a/b?c HTTP/1.1\r\nHost: t:1\r\n")


def test_a_header_goes_before_the_handshake_of_tls(listener, certificates, probe):
    header = build_local("v2")

    def serve():
        server, _ = listener.accept()
        with server:
            server.settimeout(WAIT)
            seen = server.recv(len(header), socket.MSG_WAITALL)
            with certificates.server().wrap_socket(server, server_side=True):
                return seen

    served = Thread(serve)
    dial = relay.tls("localhost", listener.getsockname()[1], ca=certificates.ca)
    assert outcome(probe(None, dial=dial, header=header)) == ""
    assert served.result() == header


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


@pytest.mark.parametrize(
    ("events", "problem"),
    [("x", "no answer"), ("oxx", ""), ("oxxoxx", ""), ("oxxx", "no answer"), ("or", "db:1: refused"), ("oroxx", "")],
)
def test_one_lost_probe_of_a_target_changes_nothing(probe, caplog, events, problem):
    """Each letter is a probe that passes (o), fails (x) or is refused (r); those after the first follow soon."""
    caplog.set_level(logging.INFO, "relay.operations")
    left, is_over, goes_on = list(events), threading.Event(), threading.Event()

    def dial(**_):
        if not left:
            is_over.set()
            goes_on.wait(WAIT)
            raise relay.ConnectError("over")
        answer = left.pop(0)
        if answer != "o":
            text, reason = ("db:1: refused", "refused") if answer == "r" else ("no answer", "connect_timeout")
            raise relay.ConnectError(text, reason=reason)
        near, far = socket.socketpair()
        far.close()
        return relay.Stream(near)

    prober = probe(None, interval=0.01, dial=dial)
    assert is_over.wait(WAIT)
    found = prober.status("t").problem
    goes_on.set()
    assert found == problem
    assert ("t: a probe failed: no answer; another one follows" in caplog.text) == ("ox" in events)


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
    targets = {"t": ProbeTarget("t", "connect", LONG, WAIT, old)}
    prober = Prober(targets.get)
    try:
        prober.wake(["t"])
        old.goes_on.set()
        assert outcome(prober) == ""
        before = prober.status("t")
        targets["t"] = ProbeTarget("t", "connect", LONG, WAIT, new)
        prober.wake(["t"])
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
    targets = {"t": ProbeTarget("t", "connect", LONG, WAIT, old)}
    prober = Prober(targets.get)
    try:
        prober.wake(["t"])
        assert old.called.wait(WAIT)
        targets.clear()
        if not is_gone:
            targets["t"] = ProbeTarget("t", "connect", LONG, WAIT, new)
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
    targets = {"t": first}
    prober = Prober(targets.get)
    start = prober._start

    def refuse(work, name):
        if name == "relay-probe" and "u" not in targets:
            targets["u"] = later
            prober.wake(["u"])
            raise RuntimeError("can't start new thread")
        start(work, name)

    monkeypatch.setattr(prober, "_start", refuse)
    prober.wake(["t"])
    try:
        assert outcome(prober) == "can't start new thread"
        wait_until(lambda: prober.status("u") and prober.status("u").finished)
    finally:
        prober.close()


def test_without_a_thread_the_probes_begin_with_the_next_change(monkeypatch, caplog):
    monkeypatch.setattr(probing, "_FIRST", 0.0)
    prober = Prober({"t": ProbeTarget("t", "connect", LONG, WAIT, relay.tcp("127.0.0.1", 1))}.get)

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        prober.wake(["t"])
    assert caplog.messages == ["no tunnel is probed before the next one changes: can't start new thread"]
    prober.wake([])
    try:
        assert "refused" in outcome(prober)
    finally:
        prober.close()


def test_without_a_target_there_is_no_thread():
    prober = Prober(lambda _: None)
    prober.wake(["t"])
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("relay-probe")]
    assert prober.status("t") is None
    prober.close()
    prober.wake(["t"])


@pytest.mark.parametrize("is_announced", [True, False])
def test_a_tunnel_that_is_gone_has_no_probe_any_more(monkeypatch, is_announced):
    """A drain of an operator, or a failure, is not announced; it is found when the time of the probe has come."""
    monkeypatch.setattr(probing, "_FIRST", 0.0)
    targets = {"t": ProbeTarget("t", "connect", LONG if is_announced else 0.01, 1.0, lambda **_: 1 / 0)}
    prober = Prober(targets.get)
    prober.wake(["t"])
    try:
        outcome(prober)
        targets.clear()
        prober.wake(["t"] if is_announced else [])
        wait_until(lambda: prober.status("t") is None)
    finally:
        prober.close()


class Crowd:
    """Tunnels ``0``, ``1``, … whose probes all wait until the test releases them; counts those under way."""

    def __init__(self, count, interval=LONG):
        self.count, self.most, self.dials = 0, 0, 0
        self.full, self.goes_on = threading.Semaphore(0), threading.Event()
        self._lock = threading.Lock()
        self.targets = {str(n): ProbeTarget(str(n), "connect", interval, WAIT, self.dial) for n in range(count)}
        self.looked = []

    def look(self, name):
        self.looked.append(name)
        return self.targets.get(name)

    def dial(self, **_):
        with self._lock:
            self.count += 1
            self.dials += 1
            self.most = max(self.most, self.count)
        self.full.release()
        assert self.goes_on.wait(WAIT)
        with self._lock:
            self.count -= 1
        raise relay.ConnectError("no")


def test_probes_queue_for_a_bounded_number_of_threads(monkeypatch):
    monkeypatch.setattr(probing, "_FIRST", 0.0)
    monkeypatch.setattr(probing, "_MOST", 3)
    crowd = Crowd(20)
    prober = Prober(crowd.look)
    prober.wake(crowd.targets)
    try:
        for _ in range(3):
            assert crowd.full.acquire(timeout=WAIT)
        assert sum(thread.name == "relay-probe" for thread in threading.enumerate()) == 3
        crowd.goes_on.set()
        wait_until(lambda: all(prober.status(name) and prober.status(name).finished for name in crowd.targets))
        wait_until(lambda: not [thread for thread in threading.enumerate() if thread.name == "relay-probe"])
    finally:
        prober.close()
    assert crowd.most == 3
    assert crowd.dials == 20


def test_a_change_and_a_probe_look_at_their_own_tunnel_only(monkeypatch):
    monkeypatch.setattr(probing, "_FIRST", 0.0)
    crowd = Crowd(100)
    crowd.goes_on.set()
    prober = Prober(crowd.look)
    try:
        for name in crowd.targets:
            prober.wake([name])
        wait_until(lambda: all(prober.status(name) and prober.status(name).finished for name in crowd.targets))
    finally:
        prober.close()
    # The change, the time of the probe and its end; on a busy machine a few times more, but never all for each.
    assert len(crowd.looked) <= 10 * len(crowd.targets)


def test_tunnels_whose_probes_hang_leave_threads_to_the_others(monkeypatch):
    monkeypatch.setattr(probing, "_FIRST", 0.0)
    monkeypatch.setattr(probing, "_MOST", 4)
    monkeypatch.setattr(probing, "_MOST_FAILING", 2)
    crowd = Crowd(10, interval=0.02)
    crowd.goes_on.set()
    prober = Prober(crowd.look)
    prober.wake(crowd.targets)
    try:
        wait_until(lambda: all(prober.status(name) and prober.status(name).problem for name in crowd.targets))
        crowd.goes_on.clear()
        wait_until(lambda: crowd.count == 2)
        near, far = socket.socketpair()
        far.close()
        crowd.targets["good"] = ProbeTarget("good", "connect", LONG, WAIT, lambda **_: relay.Stream(near))
        prober.wake(["good"])
        wait_until(lambda: prober.status("good") and prober.status("good").finished)
        assert crowd.count <= 2
    finally:
        crowd.goes_on.set()
        prober.close()


def test_a_probe_waits_for_the_thread_of_another_if_the_system_has_none_left(monkeypatch):
    monkeypatch.setattr(probing, "_FIRST", 0.0)
    crowd = Crowd(2)
    prober = Prober(crowd.look)
    start, refused = prober._start, threading.Event()

    def refuse(work, name):
        if name == "relay-probe" and crowd.dials:
            refused.set()
            raise RuntimeError("can't start new thread")
        start(work, name)

    monkeypatch.setattr(prober, "_start", refuse)
    try:
        prober.wake(["0"])
        assert crowd.full.acquire(timeout=WAIT)
        prober.wake(["1"])
        assert refused.wait(WAIT)
        crowd.goes_on.set()
        wait_until(lambda: prober.status("1") and prober.status("1").problem == "no")
    finally:
        crowd.goes_on.set()
        prober.close()


def test_what_waits_for_its_time_is_bounded_however_often_a_route_changes(monkeypatch):
    crowd = Crowd(1)
    prober = Prober(crowd.look)
    try:
        for number in range(50):
            crowd.targets["0"] = ProbeTarget("0", "connect", LONG + number, WAIT, crowd.dial)
            prober.wake(["0"])
            wait_until(lambda: not prober._names)
        wait_until(lambda: len(prober._waiting) <= 2)
    finally:
        crowd.goes_on.set()
        prober.close()
