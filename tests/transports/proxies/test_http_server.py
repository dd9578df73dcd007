"""``relay.http_listen``: clients of an HTTP proxy that ask for CONNECT, and those who ask for anything else."""

import base64
import shutil
import socket
import subprocess
from http import HTTPStatus

import pytest
from helpers import (
    BLOCK,
    WAIT,
    Thread,
    ended,
    makes,
    page,
    receive_all,
    receive_exactly,
    refusing,
    send_and_end,
    wait_until,
)
from hypothesis import given
from hypothesis import strategies as st

import relay
from relay.streams.stream import RejectedRequest, Request
from relay.transports.dynamic import dynamic
from relay.transports.proxies.http_server import HTTPHandshake
from relay.transports.proxies.listener import Login
from relay.transports.proxies.protocols import http_listen

GRANTED = b"HTTP/1.1 200 Connection established\r\n\r\n"
LOGIN = Login("me", "sec:ret")
KNOWS = "This proxy knows CONNECT alone, as for https:// addresses; curl -p asks for it."
PROBLEMS = {
    400: ("it names no host and port", "its request cannot be read: "),
    405: ("it asks for another method than CONNECT",),
    407: ("it shows no user and password", "a wrong user or password"),
    431: ("its request cannot be read: ",),
}


def connect_to(place, *headers, version="1.1"):
    lines = [f"CONNECT {place} HTTP/{version}", f"Host: {place}", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1")


def basic(text="me:sec:ret", scheme="Basic"):
    return f"Proxy-Authorization: {scheme} {base64.b64encode(text.encode()).decode()}"


def heard(text, who=None, size=None):
    greeting = HTTPHandshake(who)
    for start in range(0, len(text), size or len(text)):
        if greeting.outcome is None:
            assert greeting.feed(text[start : start + (size or len(text))]) == b""
    return greeting.outcome


@pytest.mark.parametrize("size", [None, 1, 7])
@pytest.mark.parametrize(
    ("text", "who", "place"),
    [
        (connect_to("db.internal:5432"), None, "db.internal:5432"),
        (connect_to("127.0.0.1:80"), None, "127.0.0.1:80"),
        (connect_to("[::1]:443"), None, "[::1]:443"),
        (connect_to("site.i2p:80"), None, "site.i2p:80"),
        (b"CONNECT a:1 HTTP/1.0\r\n\r\n", None, "a:1"),  # as nc -X connect
        (connect_to("a:1", "Content-Length: 0"), None, "a:1"),
        (connect_to("a:1", basic()), None, "a:1"),
        (connect_to("a:1", basic()), LOGIN, "a:1"),
        (connect_to("a:1", basic(scheme="BASIC ")), LOGIN, "a:1"),
    ],
)
def test_a_request_is_understood_however_it_is_cut(text, who, place, size):
    outcome = heard(text, who, size)
    assert isinstance(outcome, Request), outcome
    assert (str(outcome), outcome.early, outcome.success_reply) == (place, b"", GRANTED)
    assert outcome.login == (("http", "me") if who else None)


@pytest.mark.parametrize(
    ("text", "who", "status"),
    [
        (b"GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n", None, 405),
        (b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", None, 405),
        (b"\5\1\0\r\n\r\n", None, 400),
        (b"\x16\3\1\2\0\r\n\r\n", None, 400),
        (b"CONNECT a:1 HTTP/1.1\r\n\r\n", None, 400),  # no Host
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\nbroken\r\n\r\n", None, 400),
        (connect_to("a"), None, 400),
        (connect_to("a:"), None, 400),
        (connect_to("a:0"), None, 400),
        (connect_to("a:65536"), None, 400),
        (connect_to("a:x"), None, 400),
        (connect_to("http://a:1/"), None, 400),
        (connect_to("::1:80"), None, 400),
        (connect_to("me@a:1"), None, 400),
        (connect_to("-oX:1"), None, 400),
        (connect_to(f"{'x' * 256}:1"), None, 400),
        (connect_to("a:1"), LOGIN, 407),
        (connect_to("a:1", basic("me:wrong")), LOGIN, 407),
        (connect_to("a:1", basic("me")), LOGIN, 407),
        (connect_to("a:1", basic(scheme="Bearer")), LOGIN, 407),
        (connect_to("a:1", "Proxy-Authorization: Basic !!!"), LOGIN, 407),
        (connect_to("a:1", "Proxy-Authorization: Basic"), LOGIN, 407),
        (connect_to("a:1", basic().replace("Basic ", "Basic !")), LOGIN, 407),
        (connect_to("a:1", basic(), basic("me:wrong")), LOGIN, 407),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", LOGIN, 405),
        (connect_to("a:1", f"X: {'x' * 40000}"), None, 431),
        (b"CONNECT " + b"x" * 40000, None, 431),
    ],
)
def test_what_cannot_be_is_answered_by_the_book(text, who, status):
    outcome = heard(text, who, 4096)
    assert isinstance(outcome, RejectedRequest), outcome
    head, _, body = outcome.last.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0].startswith(f"HTTP/1.1 {status} ")
    assert f"Content-Length: {len(body)}" in lines
    assert "Content-Type: text/plain; charset=utf-8" in lines
    assert body.decode() == (KNOWS if status == 405 else HTTPStatus(status).description) + "\n"
    assert outcome.problem.startswith(PROBLEMS[status])
    assert "Connection: close" in lines
    assert ("Allow: CONNECT" in lines) == (status == 405)
    assert outcome.guessed == (status == 407 and b"authorization" in text.lower())
    assert ('Proxy-Authenticate: Basic realm="relay", charset="UTF-8"' in lines) == (status == 407)
    assert "ret" not in outcome.problem and "wrong\n" not in outcome.problem


def test_what_follows_the_request_is_kept_whatever_its_header_says():
    assert heard(connect_to("a:1") + b"early").early == b"early"
    assert heard(connect_to("a:1", "Content-Length: 2") + b"early").early == b"early"
    assert heard(connect_to("a:1", "Transfer-Encoding: chunked") + b"early").early == b"early"


@pytest.mark.parametrize(
    ("reason", "status"),
    [("refused", 502), ("unreachable", 502), ("connect_timeout", 504), ("denied", 403), ("carrier_lost", 502)],
)
def test_a_failure_is_told_by_its_number(reason, status):
    assert heard(connect_to("a:1")).failure_reply(reason).startswith(f"HTTP/1.1 {status} ".encode())


def test_a_client_that_says_nothing_is_no_failure():
    greeting = HTTPHandshake()
    greeting.feed(b"")
    assert greeting.outcome == RejectedRequest(b"", "", "done")
    cut = HTTPHandshake()
    cut.feed(b"CONN")
    cut.feed(b"")
    assert cut.outcome.reason == "denied"


@given(
    start=st.sampled_from([b"", b"CONNECT ", connect_to("a:1")[:-2], b"CONNECT a:1 HTTP/1.1\r\nHost:"]),
    pieces=st.lists(st.binary(max_size=600) | st.sampled_from([b"\r\n", b"\r\n\r\n", b": "]), max_size=20),
    who=st.sampled_from([None, LOGIN]),
)
def test_garbage_in_any_pieces_is_understood_or_ended(start, pieces, who):
    greeting = HTTPHandshake(who)
    for piece in [start, *filter(None, pieces), b""]:
        if greeting.outcome is None:
            assert greeting.feed(piece) == b""
    assert greeting.outcome is not None


# -- with a tunnel ----------------------------------------------------------------------------------------------------


@pytest.fixture
def proxy():
    yield from makes(lambda listener=None: relay.Tunnel(listener or http_listen("127.0.0.1", 0), dynamic()))


@pytest.fixture
def connect():
    def make(tunnel, text=b""):
        client = socket.create_connection(tunnel.address[:2], WAIT)
        client.sendall(text)
        return client

    yield from makes(make)


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_it_leads_where_each_client_wants(proxy, connect, echo_server, name):
    tunnel = proxy()
    client = connect(tunnel)
    sending = Thread(send_and_end, client, connect_to(f"{name}:{echo_server.address[1]}") + BLOCK)
    assert receive_exactly(client, len(GRANTED)) == GRANTED
    assert receive_all(client) == BLOCK
    sending.result()
    assert ended(tunnel) == ["done"]
    assert tunnel.recent()[0].target == f"{name}:{echo_server.address[1]}"
    assert tunnel.recent()[0].received == len(BLOCK)


def test_a_target_that_refuses(proxy, connect):
    with refusing() as address:
        answer = receive_all(connect(proxy(), connect_to("{}:{}".format(*address)) + BLOCK[:1000]))
    assert answer.startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
    assert answer.endswith(b"\r\n\r\nThere is no connection: refused.\n")


def test_a_header_without_end_is_ended_at_once(proxy, connect):
    tunnel = proxy()
    client = connect(tunnel, b"CONNECT a:1 HTTP/1.1\r\nX: ")
    sending = Thread(client.sendall, b"x" * 100_000)
    assert receive_all(client).startswith(b"HTTP/1.1 431 ")
    sending.result()
    client.close()
    assert ended(tunnel) == ["denied"]


# -- real clients -----------------------------------------------------------------------------------------------------


def run(program, *arguments):
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    return subprocess.run([program, *arguments], capture_output=True, timeout=WAIT, check=False)


def test_curl(proxy, serve):
    tunnel = proxy()
    where, url = "http://{}:{}".format(*tunnel.address), f"http://localhost:{serve(page).address[1]}/"
    done = run("curl", "-sS", "--noproxy", "", "--proxytunnel", "--proxy", where, url)
    assert done.stdout == BLOCK, done.stderr
    plain = run("curl", "-sS", "--noproxy", "", "-o", "/dev/null", "-w", "%{http_code}", "--proxy", where, url)
    assert plain.stdout == b"405", plain.stderr
    wait_until(lambda: not tunnel.stats().active)


@pytest.mark.parametrize("how", ["--proxy-basic", "--proxy-anyauth"])
def test_curl_with_a_password(proxy, serve, how):
    tunnel = proxy(listener=http_listen("127.0.0.1", 0, user="me", password="secret"))
    url = f"http://localhost:{serve(page).address[1]}/"
    common = ["curl", "-sS", "--noproxy", "", "--proxytunnel", how, "--proxy"]
    assert run(*common, "http://me:secret@{}:{}".format(*tunnel.address), url).stdout == BLOCK
    wrong = run(*common, "http://me:wrong@{}:{}".format(*tunnel.address), url)
    assert wrong.returncode == 56 and b"407" in wrong.stderr


def test_netcat(proxy, echo_server):
    tunnel = proxy()
    host, port = echo_server.address
    command = ["nc", "-N", "-X", "connect", "-x", "{}:{}".format(*tunnel.address), host, str(port)]
    if shutil.which("nc") is None:
        pytest.skip("nc is not installed")
    assert subprocess.run(command, input=b"hello", capture_output=True, timeout=WAIT, check=True).stdout == b"hello"
