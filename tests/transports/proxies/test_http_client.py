"""``relay.transports.proxies.http_client``: what is said to an HTTP proxy, and what is made of its answers."""

import base64

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from proxy_world import CONNECT, CONNECTED, HTTP, HTTP_LOGIN, PASSWORD, PLACE, USER, converse

import relay
from relay.addresses.values import TCPAddress
from relay.errors import AuthenticationError, ConnectError
from relay.transports.proxies import http_client
from relay.transports.proxies.http_client import LONGEST, connect, log_in

LOGIN = (USER.encode(), PASSWORD.encode())


def through(data, login=None, place=PLACE, step=1000):
    """Ask for a place; returns what the proxy got, and what is unread of what it sent."""
    return converse(connect(HTTP_LOGIN if login else HTTP, place, login), data, step)


def error_of(data, login=None):
    """Return what a proxy's answer comes to."""
    with pytest.raises(relay.RelayError) as failed:
        through(data, login)
    text = str(failed.value)
    assert text.isprintable() and len(text) < 400 and PASSWORD not in text
    return failed.value


def status(line, *headers):
    """A head that begins with a status."""
    return "".join(f"{one}\r\n" for one in (f"HTTP/1.1 {line}", *headers, "")).encode()


@pytest.mark.parametrize("step", [1, 7, 1000])
@pytest.mark.parametrize(
    "head",
    [
        CONNECTED,
        b"HTTP/1.0 200 OK\r\nProxy-agent: tinyproxy/1.11.1\r\n\r\n",
        b"HTTP/1.1 200\r\n\r\n",
        b"HTTP/1.1 299 Why not\r\nContent-Length: 1000\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\nVia: somebody who knows no carriage return\n\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: x\r\n\r\n" + CONNECTED,
        b"HTTP/1.1 200 OK\r\nX: \xff\xfe\r\n\r\n",
    ],
)
def test_a_grant(head, step):
    assert through(head + b"early\r\n\r\ndata", step=step) == (CONNECT, b"early\r\n\r\ndata")


def test_a_head_that_comes_byte_by_byte_is_searched_once(monkeypatch):
    class Counting:
        pattern, searched = http_client._BLANK_LINE, 0

        def search(self, data, start=0):
            self.searched += len(data) - start
            return self.pattern.search(data, start)

    monkeypatch.setattr(http_client, "_BLANK_LINE", counting := Counting())
    head = status("200 OK", f"X: {'x' * 5000}")
    through(head, step=1)
    assert counting.searched < 4 * len(head)


def test_with_a_login():
    credentials = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    said, _ = through(CONNECTED, LOGIN)
    assert said.decode().split("\r\n") == [
        "CONNECT db.internal:5432 HTTP/1.1",
        "Host: db.internal:5432",
        f"Proxy-Authorization: Basic {credentials}",
        "",
        "",
    ]


@pytest.mark.parametrize(("host", "shown"), [("::1", "[::1]"), ("10.0.0.1", "10.0.0.1"), ("x.b32.i2p", "x.b32.i2p")])
def test_how_a_place_is_said(host, shown):
    said, _ = through(CONNECTED, place=TCPAddress(host, 80))
    assert said == f"CONNECT {shown}:80 HTTP/1.1\r\nHost: {shown}:80\r\n\r\n".encode()


@pytest.mark.parametrize(
    ("line", "reason", "words"),
    [
        ("403 Filtered", "denied", "does not allow it (403 Filtered)"),
        ("500 Unable to connect", "unreachable", "says that it cannot be reached (500 Unable to connect)"),
        ("502 Bad Gateway", "unreachable", "says that it cannot be reached (502 Bad Gateway)"),
        ("503 Service Unavailable", "unreachable", "says that it cannot be reached (503 Service Unavailable)"),
        ("504", "connect_timeout", "says that it does not answer in time (504)"),
    ],
)
def test_what_a_proxy_says_of_the_place(line, reason, words):
    error = error_of(status(line))
    assert isinstance(error, ConnectError) and error.reason == reason
    assert str(error) == f"db.internal:5432: http://proxy:3128 {words}"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("501 Not Implemented", "with 501 Not Implemented"),
        ("405 Not Allowed", "with 405 Not Allowed; check that it is a proxy and allows that port"),
        ("300 Multiple", "with 300 Multiple; check that it is a proxy and allows that port"),
        ("301 Moved", "with 301 Moved; check that it is a proxy and allows that port"),
        ("400 " + "x" * 1000, f"with 400 {'x' * 80}; check that it is a proxy and allows that port"),
        ("418 \x1b[31mred\x07", "with 418 \\x1b[31mred\\x07; check that it is a proxy and allows that port"),
    ],
)
def test_what_a_proxy_says_of_itself(line, words):
    error = error_of(status(line, "Content-Length: 5") + b"body!")
    assert type(error) is ConnectError and error.reason == "unreachable"
    assert str(error) == f"http://proxy:3128: it answers CONNECT db.internal:5432 {words}"


@pytest.mark.parametrize(
    ("line", "headers", "login", "words"),
    [
        (
            "407 No",
            ['Proxy-Authenticate: Basic realm="x"'],
            None,
            "proxy:3128: it requires a user and a password; set user@",
        ),
        ("407 No", [], None, "proxy:3128: it requires a user and a password; set user@"),
        ("407 No", ["Proxy-Authenticate: basic"], LOGIN, "me@proxy:3128: it does not accept the user and the password"),
        ("401 No", [], LOGIN, "me@proxy:3128: it does not accept the user and the password; check both (401 No)"),
        ("407 No", ["Proxy-Authenticate: NTLM"], LOGIN, "me@proxy:3128: it wants a login by NTLM, and only Basic"),
        ("407 No", ["Proxy-Authenticate:"], LOGIN, "me@proxy:3128: it does not accept the user and the password"),
    ],
)
def test_a_login_that_fails(line, headers, login, words):
    error = error_of(status(line, *headers), login)
    assert isinstance(error, AuthenticationError) and str(error).startswith(f"http://{words}")
    assert "No)" in str(error)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "it says SSH-2.0-OpenSSH_9.2\\r\\n)"),
        (b"\x05\xff", "; it may be a SOCKS5 proxy, socks5://"),
        (b"\r\n\r\n", "does not speak HTTP"),
        (b"HTTQ", "it says HTTQ)"),
        (b"HTTP/2 200\r\n\r\n", "does not speak HTTP"),
        (b"HTTP/1.1 abc\r\n\r\n", "does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\nno header\r\n\r\n", "does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "does not speak HTTP"),
        (b"HTTP/1.1 101 Switching\r\n\r\n", "does not speak HTTP"),
        (b"HTTP/1.1 abc\r\nX: " + b"x" * (LONGEST - 21) + b"\r\n\r\n", "does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * LONGEST, "its answer has no end; 32768 bytes are allowed"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 100, "it answers CONNECT with nothing but 1xx"),
    ],
)
def test_who_does_not_speak_it(data, words):
    error = error_of(data)
    assert type(error) is ConnectError and error.reason == "unreachable"
    assert str(error).startswith("http://proxy:3128: ") and words in str(error)
    hint = "); it may be a SOCKS5 proxy, socks5://"
    assert str(error).endswith(hint if data[:1] == b"\x05" else (")", " are allowed", " 1xx"))


def test_a_head_as_long_as_is_allowed():
    head = b"HTTP/1.1 200 OK\r\nX: "
    head += b"x" * (LONGEST - len(head) - 4) + b"\r\n\r\n"
    assert through(head + b"rest")[1] == b"rest"
    assert through(head[:-4] + b"xxxx\r\n\r\nrest", step=LONGEST)[1] == b"rest", "its end comes with what follows"


@given(st.binary(max_size=400), st.integers(1, 100), st.booleans())
@example(b"\r\n\r\n", 1, False)
@example(b"200 OK\r\n \r\n\r\n", 1, False)
def test_whatever_a_proxy_says(data, step, has_login):
    """It is an error of relay, or a stream."""
    for start in (b"", b"HTTP/1.1 ", b"HTTP/1.1 200 ", b"HTTP/1.1 407 No\r\n", b"HTTP/1.1 200 OK\r\n"):
        for end in (b"", b"\r\n\r\n"):
            try:
                _, rest = through(start + data + end, LOGIN if has_login else None, step=step)
            except (AuthenticationError, ConnectError) as error:
                assert str(error).isprintable() and len(str(error)) < 400
            except EOFError:
                assert start + data == b"" or (start + data + end).startswith(b"HTTP/"[: len(start + data + end)])
            else:
                assert (start + data + end).endswith(rest)


def test_there_is_nothing_to_say_before_the_place_is_known():
    assert converse(log_in(HTTP, LOGIN), b"rest") == (b"", b"rest")


def test_silence_belongs_to_the_place():
    with pytest.raises(EOFError) as ended:
        through(b"")
    assert str(ended.value) == "db.internal:5432: http://proxy:3128 has not answered in time"
