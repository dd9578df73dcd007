"""``relay.transports.proxies.sni_server``: the name in the first message of a client, which stays as it is."""

import socket
import ssl
import struct

import pytest
from helpers import WAIT, Thread, ending

import relay
from relay.addresses.hops import ProxyListen
from relay.streams.stream import RejectedRequest
from relay.transports.proxies.sni_server import SNIHandshake

HERE = ("127.0.0.1", 443)
ECH, KEY_SHARE = 0xFE0D, 51  # RFC 9849, section 5; RFC 8446, section 4.2


def extension(kind, body):
    return struct.pack("!HH", kind, len(body)) + body


def server_name(name, kind=0):
    return extension(0, struct.pack("!HBH", len(name) + 3, kind, len(name)) + name)


def hello(*extensions, size=1 << 14):
    """A ClientHello with these extensions, in records of so many bytes."""
    rest = b"".join(extensions)
    body = b"\3\3" + bytes(32) + b"\0" + b"\0\2\x13\1" + b"\1\0" + struct.pack("!H", len(rest)) + rest
    data = b"\1" + len(body).to_bytes(3, "big") + body
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    return b"".join(struct.pack("!BHH", 22, 0x0301, len(piece)) + piece for piece in pieces)


def real_hello(name, version=None):
    """The first message of Python's client."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    if version is not None:
        context.maximum_version = version
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


def heard(data, size=None):
    """The outcome, when the client sends so many bytes at a time, and then ends."""
    handshake = SNIHandshake(HERE)
    size = size or len(data) or 1
    fed = b""
    for piece in (*(data[at : at + size] for at in range(0, len(data), size)), b""):
        fed += piece
        assert handshake.feed(piece) == b""
        if handshake.outcome is not None:
            break
    if not isinstance(handshake.outcome, RejectedRequest):
        assert handshake.outcome.early == fed
    return handshake.outcome


@pytest.mark.parametrize("size", [None, 1, 7, 1400])
@pytest.mark.parametrize(
    ("data", "name"),
    [
        (real_hello("www.example.com"), "www.example.com"),
        (real_hello("www.example.com", ssl.TLSVersion.TLSv1_2), "www.example.com"),
        (real_hello("bücher.example"), "xn--bcher-kva.example"),
        (real_hello(None), ""),
        (hello(server_name(b"WWW.Example.COM.")), "www.example.com"),
        (hello(extension(ECH, bytes(200)), server_name(b"outer.example")), "outer.example"),
        (hello(extension(KEY_SHARE, bytes(1300)), server_name(b"a.example")), "a.example"),
        (hello(extension(16, bytes(3000)), server_name(b"a.example"), size=20), "a.example"),
        (hello(server_name(b"a.example")) + b"more than its first message", "a.example"),
        (hello(), ""),
    ],
)
def test_a_name_is_found_however_it_is_cut(data, name, size):
    outcome = heard(data, size)
    assert (outcome.host, outcome.port, outcome.here) == (name, 443, HERE)
    assert (outcome.success_reply, outcome.failure_reply, outcome.login) == (b"", None, None)
    assert str(outcome) == (f"{name}:443" if name else "")
    if size is None:
        assert outcome.early == data


@pytest.mark.parametrize("size", [None, 1, 7])
@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "it does not speak TLS"),
        (b"\5\1\0", "it does not speak TLS"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "it does not speak TLS"),
        (hello(server_name(b"10.0.0.1")), "it asks for an address"),
        (hello(server_name(b"a b")), "it asks for a name that no host has"),
        (hello(server_name(b"")), "it asks for a name that no host has"),
        (hello(server_name("ä".encode())), "it asks for a name that no host has"),
        (hello(server_name(b"a", kind=1)), "its ClientHello cannot be read"),
        (hello(extension(0, b"\0")), "its ClientHello cannot be read"),
        (hello(extension(16, bytes(20000)), server_name(b"a")), "its first message is no ClientHello of up to 16384"),
        (real_hello("a.example")[:-1], "it ended before its ClientHello did"),
        (b"\x16", "it ended before its ClientHello did"),
    ],
)
def test_what_cannot_be_is_reset(data, said, size):
    outcome = heard(data, size)
    assert isinstance(outcome, RejectedRequest)
    assert (outcome.last, outcome.reason, outcome.guessed) == (None, "denied", False)
    assert outcome.problem.startswith(said)


def test_a_client_that_says_nothing_has_only_looked():
    assert heard(b"") == RejectedRequest(b"", "", "done")


def test_without_a_tunnel_the_caller_gets_the_first_message():
    with relay.listen("sni://127.0.0.1:0") as listener:
        assert listener.protected is None
        accepted = Thread(listener.accept)
        with (
            socket.create_connection(listener.address, WAIT) as wrong,
            socket.create_connection(listener.address, WAIT) as client,
        ):
            wrong.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert ending(wrong) == "reset"
            data = real_hello("a.example")
            client.sendall(data)
            stream, _ = accepted.result()
            with stream:
                assert (str(stream.request), stream.request.early) == ("a.example:443", data)
                assert stream.request.here == listener.address


def test_the_listener_has_a_host_and_a_port_over_ipv6_too():
    with relay.listen("sni://[::1]:0") as listener, socket.socket() as client:
        handshake = listener.handshake(client)
        handshake.feed(real_hello("a.example"))
        assert handshake.outcome.here == ("::1", listener.address[1])


@pytest.mark.parametrize("protocol", ["sni", "redirect"])
def test_there_is_no_login(protocol):
    with pytest.raises(ValueError, match=f"^user: the clients of {protocol}:// cannot log in; use allow and deny$"):
        ProxyListen(protocol, "127.0.0.1", 443, "me", password="p")
