"""The server name in the first message of a TLS client, of real clients and of hostile ones."""

import random
import ssl
import struct

import pytest

from relay.transports.tls.client_hello import LONGEST, HelloReader, name_in, server_name_of


def hello(name, *, protocols=(), version=None):
    """Return the first record of Python's client."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    if version is not None:
        context.maximum_version = version
    if protocols:
        context.set_alpn_protocols(protocols)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


def extension(name, kind=0):
    return struct.pack("!HHHBH", 0, len(name) + 5, len(name) + 3, kind, len(name)) + name


def message(*extensions):
    rest = b"".join(extensions)
    body = b"\3\3" + bytes(32) + b"\0" + b"\0\2\x13\1" + b"\1\0" + struct.pack("!H", len(rest)) + rest
    return b"\1" + len(body).to_bytes(3, "big") + body


def records(data, size=1 << 14):
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    return b"".join(struct.pack("!BHH", 22, 0x0301, len(piece)) + piece for piece in pieces)


@pytest.mark.parametrize("version", [None, ssl.TLSVersion.TLSv1_2])
@pytest.mark.parametrize("name", ["localhost", "a.b-c.example", "x" * 63 + ".example", None])
def test_the_name_of_a_real_client_is_found(name, version):
    data = hello(name, protocols=["h2", "http/1.1"], version=version)
    assert server_name_of(data) == name
    assert server_name_of(data + b"what follows") == name
    assert server_name_of(records(data[5:], 7)) == name


def test_a_message_that_is_cut_has_no_name():
    data = hello("db.example")
    assert [server_name_of(data[:end]) for end in range(len(data))] == [None] * len(data)


@pytest.mark.parametrize(
    "name", [b"", b"a b", b"a\nb", b"a\0b", b"\xff", "ä".encode(), b"-a", b"a-", b"[::1]", b"a/b", b"x" * 256], ids=repr
)
def test_a_name_that_is_none_in_the_dns_is_left_out(name):
    assert server_name_of(records(message(extension(name)))) is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        bytes(LONGEST),
        records(message(extension(b"a", kind=1))),
        records(message(struct.pack("!HH", 0, 0))),
        records(message(extension(b"abc")[:-1])),
        records(message(b"\0\0\0\4" + extension(b"abc")[4:])),
        records(b"\2" + message(extension(b"a"))[1:]),
        records(b"\1\xff\xff\xff" + bytes(100)),
        b"\x16\3\1\0\0" * 9,
        records(message(extension(b"a" * 250)), 1),
    ],
    ids=lambda data: repr(data[:12]),
)
def test_another_message_has_no_name(data):
    assert server_name_of(data) is None


def test_the_longest_name_is_found_and_other_extensions_are_passed_over():
    other = struct.pack("!HH", 16, 300) + bytes(300)
    assert server_name_of(records(message(other, extension(b"x" * 255)), 100)) == "x" * 255


@pytest.mark.parametrize("size", [1, 7, 100, 5000])
def test_a_message_is_read_in_whatever_pieces_it_comes(size):
    data = records(message(struct.pack("!HH", 16, 3000) + bytes(3000), extension(b"db.example")), 100) + b"the rest"
    reader, found = HelloReader(), None
    end = 0
    while found is None:
        end += size
        found = reader.feed(data[:end])
    assert name_in(found) == "db.example"
    assert end - size < len(data) - len(b"the rest")  # the message itself is all that is waited for


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"G", "does not speak TLS"),
        (b"\x80\x2e\1", "does not speak TLS"),  # SSL 2
        (records(b"\1") + b"\x17", "does not speak TLS"),
        (b"\x16\3\1\0\0", "too many records"),
        (records(bytes([1, 0, 1, 0]) + bytes(255), 1), "too many records"),
        (records(b"\2\0\0\0"), "no ClientHello of up to 16384 bytes"),
        (records(b"\1" + (LONGEST + 1).to_bytes(3, "big")), "no ClientHello of up to 16384 bytes"),
        (b"\x16\3\1\xff\xff" + bytes(2 * LONGEST), "no ClientHello of up to 16384 bytes"),
    ],
    ids=lambda value: repr(value[:12]),
)
def test_what_is_no_client_hello_is_an_error(data, said):
    with pytest.raises(ValueError, match=said):
        HelloReader().feed(data)


def test_the_longest_message_is_read():
    other = struct.pack("!HH", 16, 16000) + bytes(16000)
    found = HelloReader().feed(records(message(other, extension(b"db.example"))))
    assert name_in(found) == "db.example"


@pytest.mark.parametrize(
    "body", [b"", message(extension(b"a b"))[4:], message(extension(b"abc")[:-1])[4:]], ids=lambda body: repr(body[-5:])
)
def test_a_message_whose_name_cannot_be_one_is_an_error(body):
    with pytest.raises(ValueError, match="^it"):
        name_in(body)


def test_random_changes_do_no_harm():
    data, chosen = hello("db.example"), random.Random(7)
    for _ in range(2000):
        changed = bytearray(data)
        for _ in range(chosen.randrange(1, 4)):
            changed[chosen.randrange(len(data))] = chosen.randrange(256)
        name = server_name_of(bytes(changed))
        assert name is None or (len(name) <= 255 and name.isascii() and name.isprintable())
