"""The server of operators against hostile clients: each gets an error or is closed, and no other client notices."""

import asyncio
import contextlib
import dataclasses
import errno
import gc
import json
import logging
import os
import re
import select
import socket
import threading

import pytest
from helpers import WAIT, answer_to
from instance_double import served

from relay.daemon.client import Client, ClientError
from relay.daemon.sockets import open_control
from relay.daemon.waiting import Stop
from relay.operations import server
from relay.testing import Leaks


@pytest.fixture
def app(double, tmp_path):
    with served(double, tmp_path) as app:
        yield app


def connect(app, *, at_status=False):
    made = socket.socket(socket.AF_INET if at_status else socket.AF_UNIX)
    made.settimeout(WAIT)
    made.connect(app.address if at_status else app.control.path)
    return made


@pytest.mark.parametrize("at_status", [False, True], ids=["control", "status"])
@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(512),
        b"\n" * 100_000,
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: " + b"y" * 100_000,
        b"A" * 10_000_000,
        b"POST /reload HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000\r\n\r\n" + bytes(10_000_000),
        b"POST /log-level HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n" + bytes(1_000_000),
    ],
    ids=["TLS", "newlines", "length", "long head", "10 MB", "long body", "chunk"],
)
def test_garbage_gets_an_error_or_the_end(app, monkeypatch, data, at_status):
    monkeypatch.setattr(server, "REQUEST_TIME", 0.5)  # for the rest of a body that is never read
    with connect(app, at_status=at_status) as client:
        answer = answer_to(client, data)
        assert not answer or answer.startswith(b"HTTP/1.1 4"), answer[:100]
    assert app.get("/instance").status_code == 200


@pytest.mark.parametrize(
    "data",
    [b"", b"GET /inst", b"PUT /log-level HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n{"],
    ids=["nothing", "half a head", "half a body"],
)
def test_a_client_that_goes_silent_is_closed(app, monkeypatch, data):
    monkeypatch.setattr(server, "REQUEST_TIME", 0.05)
    with connect(app) as client:
        client.sendall(data)
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b""
    assert app.get("/instance").status_code == 200


def test_a_request_that_is_answered_slowly_is_not_cut(app, double, monkeypatch):
    """The deadline is about the client's part."""
    monkeypatch.setattr(server, "REQUEST_TIME", 0.05)
    release = threading.Event()
    threading.Timer(0.3, release.set).start()
    double.at_reload = lambda: release.wait(WAIT)
    assert app.http.post("/reload").status_code == 200


@pytest.mark.parametrize("at_status", [False, True], ids=["control", "status"])
@pytest.mark.parametrize(
    "head",
    [b"GET /instance?" + b"x" * 17_000, b"GET /" + b"x" * 17_000, b"GET /instance HTTP/1.1\r\nX: " + b"x" * 17_000],
    ids=["query", "path", "header"],
)
def test_a_head_that_comes_in_one_piece_has_the_same_limit(app, at_status, head):
    version = b"" if b"HTTP" in head else b" HTTP/1.1"
    with connect(app, at_status=at_status) as client:
        answer = answer_to(client, head + version + b"\r\nHost: 127.0.0.1\r\n\r\n")
    assert re.match(rb"HTTP/1.1 (400|431) ", answer), answer[:100]
    assert len(answer) < 1000, "it does not repeat the request"


@pytest.mark.parametrize(("fields", "status"), [(b"", b"200"), (b"Host:\r\n", b"421")], ids=["none", "empty"])
def test_a_check_of_a_balancer_names_no_host(app, fields, status):
    """HAProxy's ``option httpchk``. Each browser names one, also to a page that uses DNS rebinding."""
    with connect(app, at_status=True) as client:
        answer = answer_to(client, b"GET /readyz HTTP/1.0\r\n" + fields + b"\r\n")
    assert answer.split()[1] == status, answer


@pytest.mark.parametrize("sizes", [(64 << 10, 64 << 10), (100_000,)], ids=["two chunks", "one chunk"])
def test_a_body_in_chunks_that_is_too_long_is_refused(app, caplog, sizes):
    chunks = b"".join(b"%x\r\n%s\r\n" % (size, bytes(size)) for size in sizes)
    head = b"PUT /log-level HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    with connect(app) as client:
        answer = answer_to(client, head + chunks + b"0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ") and b"\r\nconnection: close\r\n" in answer.lower(), answer[:100]
    assert b"the body has more than 65536 bytes" in answer
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert app.get("/instance").status_code == 200


def test_a_client_that_takes_nothing_of_its_answer_is_closed(app, double, monkeypatch):
    monkeypatch.setattr(server, "ANSWER_TIME", 0.05)
    tunnel = double.all["a"]
    double.all = {str(number): dataclasses.replace(tunnel, problem="x" * 1000) for number in range(2000)}
    with connect(app) as client:
        client.sendall(b"GET /tunnels HTTP/1.1\r\nHost: x\r\n\r\n")
        closed = select.poll()
        closed.register(client, 0)  # the end alone
        assert closed.poll(WAIT * 1000)
    double.all = {"a": tunnel}
    assert app.get("/instance").status_code == 200


def test_a_client_that_reads_slowly_gets_all_of_its_answer(app, double, monkeypatch):
    monkeypatch.setattr(server, "ANSWER_TIME", WAIT)
    tunnel = double.all["a"]
    double.all = {str(number): dataclasses.replace(tunnel, problem="x" * 1000) for number in range(500)}
    with connect(app) as client:
        client.sendall(b"GET /tunnels HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        received = b""
        while piece := client.recv(4000):
            received += piece
    assert received.count(b"x" * 1000) == 500


@pytest.mark.parametrize("rest", [b"zz\r\n\r\n", b"A" * 100_000])
def test_garbage_after_the_answer_is_the_end_and_no_error_of_the_server(app, caplog, rest):
    """The app answers before the body has come."""
    with connect(app) as client:
        client.sendall(b"POST /reload HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert client.recv(12) == b"HTTP/1.1 200"
        answer_to(client, rest)
    assert app.get("/instance").status_code == 200
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.mark.parametrize(
    "fields",
    [
        b"Content-Length: 4\r\nContent-Length: 40",
        b"Content-Length: 4, 40",
        b"Content-Length : 4",
        b"Content-Length: +4",
        b"Transfer-Encoding: gzip, chunked",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        b"X: a\rb",
        b"\0: x",
    ],
)
def test_a_body_whose_end_is_not_certain_is_rejected(app, double, fields):
    """Source: RFC 9112, section 6.3: another server may see the next request elsewhere."""
    with connect(app) as client:
        data = b"POST /tunnels/a/pause HTTP/1.1\r\nHost: x\r\n" + fields + b"\r\n\r\n"
        answer = answer_to(client, data + b"POST /stop HTTP/1.1\r\nHost: x\r\n\r\n")
    assert re.match(rb"HTTP/1.1 (400|501) ", answer), answer
    assert answer.count(b"HTTP/1.1") == 1
    assert (double.all["a"].state, double.facts.draining) == ("listening", False)


def test_many_reloads_and_health_checks_that_wait_leave_room_for_the_others(app, double):
    entered, release = threading.Event(), threading.Event()
    double.at_reload = double.at_check = lambda: (entered.set(), release.wait(WAIT))
    with contextlib.ExitStack() as stack:
        stack.callback(release.set)
        for path in [b"POST /reload", b"GET /livez"] * 30:
            client = stack.enter_context(connect(app))
            client.sendall(path + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        assert entered.wait(WAIT)
        assert app.get("/instance").status_code == 200
        assert app.get("/readyz").status_code == 200
        release.set()
        assert client.recv(12) == b"HTTP/1.1 200"


def test_a_hundred_idle_clients_do_not_delay_a_reload(app):
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(connect(app))
        assert app.http.post("/reload").status_code == 200


def test_with_too_many_clients_the_oldest_idle_ones_leave(app, monkeypatch):
    monkeypatch.setattr(server, "MOST_CLIENTS", 5)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(app)) for _ in range(12)]
        assert app.get("/instance").status_code == 200
        for client in clients[:7]:
            with contextlib.suppress(ConnectionResetError):
                assert client.recv(1) == b""
        clients[-1].sendall(b"GET /instance HTTP/1.1\r\nHost: x\r\n\r\n")
        assert clients[-1].recv(12) == b"HTTP/1.1 200"


def test_those_of_the_status_address_do_not_count_at_the_control_socket(app, monkeypatch):
    monkeypatch.setattr(server, "MOST_CLIENTS", 3)
    with connect(app) as client, contextlib.ExitStack() as stack:
        for _ in range(9):
            stack.enter_context(connect(app, at_status=True))
        client.sendall(b"GET /instance HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(12) == b"HTTP/1.1 200"


def test_without_a_descriptor_for_a_successor_both_sides_say_so(app, double, monkeypatch, caplog):
    def dup(_):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with connect(app) as client:
        client.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(12) == b"HTTP/1.1 200"  # the server runs
    monkeypatch.setattr(server.os, "dup", dup)
    why = "the process that runs has no descriptor left for it: Too many open files"
    with connect(app) as client:
        assert json.loads(answer_to(client, b'{"upgrade": 1}\n')) == {"failed": why}
    assert [one.message for one in caplog.records if one.levelno > logging.DEBUG] == [
        f"upgrade: {why}; nothing has changed"
    ]
    assert double.done == []


def test_another_user_is_closed_whatever_the_file_allows(app, monkeypatch):
    monkeypatch.setattr(server.os, "geteuid", lambda: 12345)
    monkeypatch.setattr(server, "ROOT", 54321)
    with connect(app) as client:
        assert answer_to(client, b"GET /instance HTTP/1.1\r\nHost: x\r\n\r\n") == b""
    with connect(app, at_status=True) as client:
        client.sendall(b"GET /instance HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert client.recv(12) == b"HTTP/1.1 200"


def test_only_the_control_socket_hands_over(app, double, monkeypatch):
    """A line of JSON is no request: at the control socket the instance takes the connection, not so after a request."""
    monkeypatch.setattr(server, "REQUEST_TIME", 2.0)  # for the rest of those that are none
    with connect(app) as client:
        assert answer_to(client, b'{"upgrade": 1}\n') == b"yes"
    assert double.done == [("hand_over", b'{"upgrade": 1}\n')]
    with connect(app, at_status=True) as client:
        assert answer_to(client, b'{"upgrade": 1}\n') == b""
    with connect(app) as client:
        client.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(12) == b"HTTP/1.1 200"
        answer_to(client, b'{"upgrade": 1}\n')
    assert len(double.done) == 1


def test_clients_that_leave_in_the_middle_leave_nothing(app, double):
    """The test's check for leaks sees what is left."""
    entered, release = threading.Event(), threading.Event()
    double.at_reload = lambda: (entered.set(), release.wait(WAIT))
    with connect(app) as client:
        client.sendall(b"POST /reload HTTP/1.1\r\nHost: x\r\n\r\n")
        assert entered.wait(WAIT)
    release.set()
    assert app.get("/instance").status_code == 200


def test_its_log_is_that_of_relay_and_quiet(app, caplog):
    caplog.set_level(logging.DEBUG, "relay.operations")
    with connect(app) as client:
        answer_to(client, b"garbage\r\n\r\n")
    ours = [record for record in caplog.records if record.name == "relay.operations"]
    assert "status server: Invalid HTTP request received." in [record.message for record in ours]
    assert {record.levelname for record in ours} == {"DEBUG"}
    assert not logging.getLogger("uvicorn").propagate


def test_a_request_that_the_end_overtakes_gets_an_error(double, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(server, "LAST_ANSWERS", 0)
    stop, release = Stop(), threading.Event()
    endpoint = open_control(str(tmp_path / "c.sock"))

    def reload():
        stop.set()
        release.wait(WAIT)

    double.at_reload = reload
    serving = threading.Thread(target=server.serve, args=(double, [endpoint], stop))
    serving.start()
    try:
        with contextlib.closing(Client(endpoint.path, WAIT)) as client:
            with pytest.raises(ClientError, match="^relay is ending; start it again$") as caught:
                client.request("POST", "/reload")
            assert caught.value.status == 409
    finally:
        release.set()
        serving.join(WAIT)
    passed_on = [record for record in caplog.records if record.name.startswith("relay")]
    assert [record.message for record in passed_on if record.levelno > logging.DEBUG] == []


@pytest.mark.parametrize("turns", range(4))
def test_a_client_that_comes_in_the_last_turns_is_closed(double, tmp_path, monkeypatch, turns):
    """Asyncio does not close one that it accepts in one turn of its loop and shows to a closed server in the next."""
    real, stack = server._EndpointServer.shutdown, contextlib.ExitStack()

    async def shutdown(self, sockets=None):
        client = stack.enter_context(socket.socket(socket.AF_UNIX))
        client.settimeout(WAIT)
        client.connect(str(tmp_path / "c.sock"))
        for _ in range(turns):
            await asyncio.sleep(0)
        await real(self, sockets)

    monkeypatch.setattr(server._EndpointServer, "shutdown", shutdown)
    stop, endpoint = Stop(), open_control(str(tmp_path / "c.sock"))
    stop.set()
    leaks = Leaks()
    gc.disable()  # it would close what is left
    try:
        server.serve(double, [endpoint], stop)
        stack.close()
        assert leaks.left(timeout=0) == []
    finally:
        gc.enable()


def test_without_a_descriptor_a_client_waits_and_the_log_says_so_once(app, monkeypatch, caplog):
    """Asyncio itself would print thousands of lines a second."""
    monkeypatch.setattr(asyncio.constants, "ACCEPT_RETRY_DELAY", 0.01)
    accept, failures = app.control.socket.accept, []

    def fail():
        if len(failures) < 3:
            failures.append(1)
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return accept()

    monkeypatch.setattr(app.control.socket, "accept", fail, raising=False)
    assert app.get("/instance").status_code == 200
    assert [record.message for record in caplog.records if record.levelno > logging.DEBUG] == [
        "status server: cannot accept a client: Too many open files"
    ]
    assert len(failures) == 3
