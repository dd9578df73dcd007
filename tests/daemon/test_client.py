"""``relay.daemon.client``: requests to a control socket, whose answers the test writes itself."""

import json
import re
import socket
import threading

import pytest
from helpers import WAIT

from relay.daemon.client import Client, ClientError


@pytest.fixture
def control(tmp_path):
    """Makes a control socket that answers with bytes; returns a client, and the requests that came."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "control"))
        listener.listen()
        listener.settimeout(WAIT)
        requests, clients, threads = [], [], []

        def serve(answers):
            with listener.accept()[0] as made:
                made.settimeout(WAIT)
                for answer in answers:
                    requests.append(request(made))
                    made.sendall(answer)

        def answered(*answers):
            threads.append(threading.Thread(target=serve, args=[answers]))
            threads[-1].start()
            clients.append(Client(str(tmp_path / "control"), WAIT))
            return clients[-1], requests

        yield answered
        for client in clients:
            client.close()
        for thread in threads:
            thread.join(WAIT)


def request(made):
    """Read a request with its body."""
    with made.makefile("rb") as lines:
        head = b"".join(iter(lines.readline, b"\r\n")).decode()
        length = re.search(r"Content-Length: (\d+)", head)
        return head + (lines.read(int(length[1])).decode() if length else "")


def http(status, value):
    body = b"" if value is None else value if isinstance(value, bytes) else json.dumps(value).encode()
    return b"HTTP/1.1 %d it\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)


def test_the_parts_of_a_path_are_quoted_and_so_is_the_query(control):
    client, requests = control(http(200, {"a": 1}))
    assert client.get("/tunnels", "a/b c", tunnel="ä&b") == {"a": 1}
    assert requests[0].startswith("GET /tunnels/a%2Fb%20c?tunnel=%C3%A4%26b HTTP/1.1\r\n")


def test_a_body_is_json(control):
    client, requests = control(http(204, None))
    assert client.request("PUT", "/log-level", body={"level": "debug"}) is None
    assert "Content-Type: application/json" in requests[0]
    assert requests[0].endswith('{"level": "debug"}')


def test_one_connection_has_several_requests(control):
    client, requests = control(http(200, 1), http(200, 2))
    client.set_timeout(WAIT / 2)
    assert (client.get("/one"), client.get("/two")) == (1, 2)
    assert len(requests) == 2


@pytest.mark.parametrize(
    ("status", "value", "text", "problems"),
    [
        (
            404,
            {"error": "db: there is no such tunnel"},
            "db: there is no such tunnel",
            ("db: there is no such tunnel",),
        ),
        (422, {"error": "a; b", "problems": ["a", "b"]}, "a; b", ("a", "b")),
        (422, {"error": "a", "problems": "b"}, "a", ("a",)),
        (500, [1], "status 500", ("status 500",)),
        (503, None, "status 503", ("status 503",)),
    ],
)
def test_an_answer_with_an_error(control, status, value, text, problems):
    client, _ = control(http(status, value))
    with pytest.raises(ClientError) as failed:
        client.get("/it")
    assert (str(failed.value), failed.value.status, failed.value.problems) == (text, status, problems)


@pytest.mark.parametrize(
    ("answer", "text", "status"),
    [
        (http(200, b"<html>"), "the answer is not JSON", 200),
        (http(200, b"[" * 200_000), "the answer is not JSON", 200),
        (b"SSH-2.0-it\r\n", "the answer is not HTTP", 0),
    ],
)
def test_an_answer_of_another_program(control, answer, text, status):
    client, _ = control(answer)
    with pytest.raises(ClientError, match=text) as failed:
        client.get("/it")
    assert failed.value.status == status
    assert str(failed.value).startswith(client.path)


def test_no_relay_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        Client(str(tmp_path / "none")).get("/instance")


def test_no_answer_in_time(tmp_path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "control"))
        listener.listen()
        client = Client(str(tmp_path / "control"), 0.05)
        with pytest.raises(TimeoutError):
            client.get("/instance")
        client.close()
