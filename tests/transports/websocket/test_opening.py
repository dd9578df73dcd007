"""Opening handshakes of WebSockets: what a client and a server ask of each other."""

import re

import pytest

pytest.importorskip("wsproto")

from relay.addresses.values import is_ip_address
from relay.errors import AuthenticationError, ConnectError
from relay.transports.websocket.opening import (
    LONGEST,
    RELAY,
    ClientOpening,
    NotSpokenError,
    Requirements,
    ServerOpening,
    client_behind,
    host_header,
    parse_headers,
)


def both(offers, wants, cut=7, headers=()):
    """Let a client and a server of relay agree; return both."""
    client = ClientOpening("server", "h", wants.path, offers, headers)
    server = ServerOpening(wants)
    asked = client.reply + b"early"
    for at in range(0, len(asked), cut):
        server.feed(asked[at : at + cut])
        if server.outcome or server.problem:
            break
    answered = server.reply + b"first"
    for at in range(0, len(answered), cut):
        client.feed(answered[at : at + cut])
        if client.outcome:
            break
    return client, server


@pytest.mark.parametrize("cut", [1, 7, 10000])
def test_two_relays_agree_and_lose_no_byte(cut):
    client, server = both((RELAY, "other"), Requirements("/p", subprotocol="other"), cut)
    assert client.outcome.is_relay
    assert server.outcome.is_relay
    assert b"early".startswith(server.outcome.rest)
    assert b"first".startswith(client.outcome.rest)


def meaning(reply):
    """Return the status and the names of the headers; versions of wsproto differ in phrases and capitals."""
    status, *headers = reply.split(b"\r\n")
    return status.split()[1], [line.partition(b":")[0] for line in headers]


@pytest.mark.parametrize("wants", [Requirements("/p"), Requirements("/p", ("h",)), Requirements("/p", ("other",))])
def test_the_heads_of_two_relays_mean_the_same_when_they_are_parsed(wants):
    """They are compared with what a relay sends; a header more and they are not the same, and wsproto parses them."""
    servers = [ServerOpening(wants), ServerOpening(wants)]
    clients = [ClientOpening("server", "h", "/p", (RELAY,), more) for more in ((), ((b"X-One", b"more"),))]
    for client, server in zip(clients, servers, strict=True):
        server.feed(client.reply)
    assert servers[0].problem == servers[1].problem
    assert ("hosts=" in servers[0].problem) is (wants.hosts == ("other",))
    assert meaning(servers[0].reply) == meaning(servers[1].reply)
    if not servers[0].problem:
        clients[0].feed(servers[0].reply)
        clients[1].feed(re.sub(b"101 .*?(?=\r)", b"101 Fine", servers[1].reply, count=1))
        assert [one.outcome for one in (*clients, *servers)] == [(True, b"")] * 4


def test_the_heads_of_two_relays_are_not_parsed(monkeypatch):
    def parse(*_):
        raise AssertionError("it is parsed")

    monkeypatch.setattr("wsproto.handshake.H11Handshake.receive_data", parse)
    for spelling in (b"websocket", b"WebSocket"):  # by the version of wsproto
        client, server = ClientOpening("server", "h", "/p", (RELAY,)), ServerOpening(Requirements("/p"))
        server.feed(re.sub(b"(?i)websocket(?=\r)", spelling, client.reply))
        client.feed(server.reply)
        assert client.outcome.is_relay and server.outcome.is_relay


def test_an_answer_for_another_request_is_none():
    client, server = ClientOpening("server", "h", "/p", (RELAY,)), ServerOpening(Requirements("/p"))
    server.feed(ClientOpening("server", "h", "/p", (RELAY,)).reply)
    with pytest.raises(ConnectError, match="no valid handshake"):
        client.feed(server.reply)


def test_another_subprotocol_is_answered_if_it_is_wanted():
    for wanted in ("other", None):
        client, server = both(("other",), Requirements("/p", subprotocol=wanted))
        assert not client.outcome.is_relay
        assert not server.outcome.is_relay
        assert (b"Sec-WebSocket-Protocol: other" in server.reply) is (wanted is not None)


ACCEPTED = "HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {}\r\n{}\r\n"


def answered(text, offers=(RELAY,)):
    client = ClientOpening("ws://h/", "h", "/", offers)
    if "{}" in text:
        from wsproto.utilities import generate_accept_token

        key = client.reply.partition(b"Sec-WebSocket-Key: ")[2].partition(b"\r\n")[0]
        text = text.replace("{}", generate_accept_token(key).decode(), 1).replace("{}", "")
    client.feed(text.encode())
    return client


def test_a_server_that_repeats_the_subprotocol_does_not_speak_it():
    with pytest.raises(NotSpokenError, match="repeats the subprotocol"):
        answered(
            ACCEPTED.replace("{}\r\n\r\n", "{}\r\n").replace(
                "{}\r\n", f"{{}}\r\nSec-WebSocket-Protocol: {RELAY}\r\n\r\n", 1
            )
        )


@pytest.mark.parametrize(
    ("answer", "error", "said"),
    [
        ("HTTP/1.1 400 no\r\n\r\n", NotSpokenError, "^ws://h/: 400: no$"),
        ("HTTP/1.1 401 \r\n\r\n", AuthenticationError, "^ws://h/: 401: Unauthorized; check header_file$"),
        (
            "HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n",
            ConnectError,
            "^ws://h/: 302: Found; check the host and the path",
        ),
        ("HTTP/1.1 503\r\n\r\n", ConnectError, "^ws://h/: 503: Service Unavailable; check the server behind"),
        ("HTTP/1.1 418 \x1b[1m\r\n\r\n", ConnectError, r"^ws://h/: 418: \S+; check the address"),
        ("HTTP/1.1 999 \r\n\r\n", ConnectError, "^ws://h/: 999: an unknown status; "),
        ("SSH-2.0-OpenSSH\r\n\r\n", ConnectError, "does not speak HTTP"),
        ("HTTP/1.1 101 x\r\n\r\n", ConnectError, "no valid handshake"),
        (ACCEPTED.replace("{}", "x", 1).replace("{}", ""), ConnectError, "no valid handshake"),
        (
            ACCEPTED.replace("{}\r\n{}", "{}\r\nSec-WebSocket-Extensions: permessage-deflate\r\n"),
            ConnectError,
            "no valid",
        ),
        (ACCEPTED.replace("{}\r\n{}", "{}\r\nSec-WebSocket-Protocol: other\r\n"), ConnectError, "no valid handshake"),
        ("", NotSpokenError, "closed the connection instead of an answer"),
        ("x" * 20000, ConnectError, "does not speak HTTP"),
    ],
)
def test_answers_are_explained_in_one_line(answer, error, said):
    with pytest.raises(error, match=said) as raised:
        answered(answer)
    assert str(raised.value).isprintable()


ADDRESS, BEHIND = "check the host and the path of the address", "check the server behind the proxy"
OTHER = "check the address, and that the server takes WebSockets there"


@pytest.mark.parametrize(
    ("status", "advice", "reason"),
    [
        *((status, "check header_file", "auth") for status in (401, 407)),
        (403, "check header_file and the path", "denied"),
        *((status, ADDRESS, "unreachable") for status in (200, 204, 299, 300, 399, 404, 405, 426)),
        *((status, BEHIND, "unreachable") for status in (500, 501, 503)),
        (504, BEHIND, "connect_timeout"),
        *((status, OTHER, "unreachable") for status in (199, 400, 402, 406, 408, 427, 499)),
    ],
)
def test_each_status_has_its_advice(status, advice, reason):
    with pytest.raises((ConnectError, AuthenticationError), match=f"^ws://h/: {status}: why; {advice}$") as raised:
        answered(f"HTTP/1.1 {status} why\r\n\r\n", offers=())
    found = "auth" if isinstance(raised.value, AuthenticationError) else raised.value.reason
    assert found == reason and not isinstance(raised.value, NotSpokenError)


def test_another_offer_beside_the_question_does_not_hide_it():
    for text in ("HTTP/1.1 400 no\r\n\r\n", ""):
        with pytest.raises(NotSpokenError):
            answered(text, offers=(RELAY, "other"))


def test_what_is_said_in_no_known_encoding_is_shown():
    client = ClientOpening("ws://h/", "h", "/", ())
    with pytest.raises(ConnectError, match=r"does not speak HTTP \(it says SSH-\ufffd"):
        client.feed(b"SSH-\xff\n\n")
    with pytest.raises(ConnectError, match="^ws://h/: 418: \ufffd; "):
        ClientOpening("ws://h/", "h", "/", ()).feed(b"HTTP/1.1 418 \xff\r\n\r\n")


def test_headers_of_the_user_are_in_the_request():
    assert b"\r\nX-One: more\r\n" in ClientOpening("ws://h/", "h", "/", (), [(b"X-One", b"more")]).reply


def test_without_the_question_a_refusal_is_one():
    with pytest.raises(ConnectError, match="check the address") as refused:
        answered("HTTP/1.1 400 no\r\n\r\n", offers=())
    assert not isinstance(refused.value, NotSpokenError)


ASKED = (
    "GET /p HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
)


def asked(text, wants):
    server = ServerOpening(wants)
    assert (server.reply, server.problem, server.outcome, server.forwarded) == (b"", "", None, ())
    server.feed(text.encode("latin-1"))
    return server


@pytest.mark.parametrize(
    ("text", "wants", "status", "problem"),
    [
        ("", {}, None, "it closed the connection before its request"),
        (
            f"{ASKED}X: {'x' * LONGEST}",
            {},
            "431 Request Header Fields Too Large",
            "the head of its request is too long",
        ),
        (f"{ASKED}X: \r\n\r\n".replace("13", "12"), {}, "426 Upgrade Required", "its request is none of a WebSocket"),
        ("\n\n", {}, "400 Bad Request", "its request is none of a WebSocket"),
        (f"{ASKED}\r\n".replace("Host: h", "Host: \xff"), {}, "400 Bad Request", "its request cannot be read"),
        (f"{ASKED}\r\n".replace("/p", "/q"), {}, "404 Not Found", "it asks for the path /q, which is not that of"),
        (f"{ASKED}\r\n", {"hosts": ("a",)}, "404 Not Found", "it asks for the host h, which hosts= does not name"),
        (f"{ASKED}Origin: https://a\r\n\r\n", {}, "403 Forbidden", "it comes from a page of https://a, which origin="),
        (f"{ASKED}Origin: b\r\n\r\n", {"origins": ("a",)}, "403 Forbidden", "it comes from a page of b, which origin="),
        (f"{ASKED}Origin: a\r\nOrigin: a\r\n\r\n", {"origins": ("a",)}, "403 Forbidden", "it comes from a page of a"),
    ],
)
def test_a_request_that_is_not_for_the_listener_is_rejected(text, wants, status, problem):
    server = asked(text, Requirements("/p", **wants))
    assert server.problem.startswith(problem) and server.problem.isprintable()
    version = "Sec-WebSocket-Version: 13\r\n" if status and status.startswith("426") else ""
    rest = f"{version}Content-Length: 0\r\nConnection: close\r\n\r\n"
    assert server.reply == (f"HTTP/1.1 {status}\r\n{rest}".encode() if status else b"")
    assert server.outcome is None


@pytest.mark.parametrize(
    ("text", "wants"),
    [
        (f"{ASKED}\r\n", {"hosts": ("x", "h"), "subprotocol": "other"}),
        (f"{ASKED}\r\n".replace("Host: h", "Host: H"), {"hosts": ("h",)}),
        (f"{ASKED}Origin: a\r\n\r\n", {"origins": ("a", "b")}),
        (f"{ASKED}Origin: a\r\nOrigin: b\r\n\r\n", {"origins": ("*",)}),
        (f"{ASKED}X: {'x' * (LONGEST - len(ASKED) - 7)}\r\n\r\n", {}),
    ],
)
def test_a_request_that_the_listener_wants_is_answered(text, wants):
    server = asked(text, Requirements("/p", **wants))
    assert (server.outcome, server.problem) == ((False, b""), "")
    assert server.reply.startswith(b"HTTP/1.1 101 ") and b"Relay-Stream" not in server.reply
    assert b"Sec-WebSocket-Protocol" not in server.reply


def test_what_proxies_say_of_the_client_is_kept_in_its_order():
    server = asked(f"{ASKED}X-Forwarded-For: a, b\r\nX: y\r\nX-Forwarded-For: c\r\n\r\n", Requirements("/p"))
    assert server.forwarded == (b"a, b", b"c")
    server = asked(f"{ASKED}Sec-WebSocket-Protocol: {RELAY}\r\nX: y\r\n\r\n", Requirements("/p"))
    assert server.outcome.is_relay and b"relay-stream: v1" in server.reply.lower()


def test_a_head_that_is_as_long_as_it_may_be_is_waited_for():
    server, client = ServerOpening(Requirements("/p")), ClientOpening("ws://h/", "h", "/", ())
    server.feed(b"x" * LONGEST)
    client.feed(b"x" * LONGEST)
    assert (server.problem, server.outcome, client.outcome) == ("", None, None)


def test_a_refusal_of_a_listener_ends_the_connection():
    _, server = both((), Requirements("/p")), ServerOpening(Requirements("/p"))
    server.feed(b"POST /p HTTP/1.1\r\nHost: h\r\n\r\n")
    assert server.reply.startswith(b"HTTP/1.1 400 ")
    assert server.reply.endswith(b"Content-Length: 0\r\nConnection: close\r\n\r\n")
    assert "GET" in server.problem


@pytest.mark.parametrize(
    ("forwarded", "found"),
    [
        ([b"192.0.2.1"], "192.0.2.1"),
        ([b"192.0.2.9, 192.0.2.1"], "192.0.2.1"),
        ([b"192.0.2.9", b"192.0.2.1, 10.0.0.1,10.0.0.2"], "192.0.2.1"),
        ([b"10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        ([b"192.0.2.9, unknown, 10.0.0.1"], "10.0.0.1"),
        ([b"[2001:db8::1]"], "2001:db8::1"),
        ([b"evil"], None),
        ([b"X192.0.2.1X"], None),
        ([b"\xff"], None),
        ([], None),
    ],
)
def test_the_client_is_the_last_one_that_no_trusted_proxy_is(forwarded, found):
    assert client_behind(forwarded, lambda host: host.startswith("10."), is_ip_address) == found


def test_lines_of_a_header_file():
    assert parse_headers("\ufeff# a comment\n\nA: b: c \r\nX-y:\n") == [(b"A", b"b: c"), (b"X-y", b"")]
    for text in ("Upgrade: x", "sec-websocket-key: x", "A b: c", "secret", ": x", "A: secret\x00"):
        with pytest.raises(ValueError, match="^line 1") as wrong:
            parse_headers(text)
        assert "secret" not in str(wrong.value)


def test_the_usual_port_is_left_out():
    assert [host_header(*one) for one in (("h", 443, 443), ("h", 80, 443), ("fe80::1%eth0", 443, 443))] == [
        "h",
        "h:80",
        "[fe80::1]",
    ]
