"""``relay.tls``: verified, and every failure named."""

from __future__ import annotations

import contextlib
import datetime
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time

import pytest
import trustme
from helpers import (
    BLOCK,
    WAIT,
    Thread,
    TLSEnd,
    closed,
    ended,
    ending,
    receive_all,
    receive_exactly,
    receive_until_reset,
    refusing,
    wait_until,
)
from tls_rig import VERSIONS, Rig, only

import relay
from relay.streams.promise import Promise
from relay.transports.tls.client import Client


@pytest.fixture(params=VERSIONS)
def version(request):
    return VERSIONS[request.param]


@pytest.fixture
def rig(certificates, listener, version):
    yield from closed(Rig(certificates, listener, only(certificates.server(), version)))


def reason_of(factory, **options):
    options.setdefault("deadline", time.monotonic() + WAIT)
    with pytest.raises(relay.ConnectError) as failed:
        factory(**options)
    return failed.value.reason, str(failed.value)


# -- trust --------------------------------------------------------------------------------------------------------


def shake(listener, context):
    """Let one client in; what goes wrong is the client's to tell."""

    def work():
        connection = listener.accept()[0]
        with contextlib.suppress(OSError), connection:
            connection.settimeout(WAIT)
            with context.wrap_socket(connection, server_side=True) as end:
                receive_all(end)

    return Thread(work)


@pytest.fixture
def served(certificates, listener):
    """Makes a server for one client, ``served(context=None)``; returns its port."""
    threads = []

    def serve(context=None):
        threads.append(shake(listener, context or certificates.server()))
        return listener.getsockname()[1]

    yield serve
    for thread in threads:
        thread.result()


def test_an_unknown_authority_is_denied(served):
    reason, text = reason_of(relay.tls("localhost", served()))
    assert reason == "denied"
    assert "tls://localhost" in text and "ca=" in text


def test_the_authorities_of_ca_are_the_only_ones(served, tmp_path):
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")
    assert reason_of(relay.tls("localhost", served(), ca=tmp_path / "other.pem"))[0] == "denied"


def test_another_name_is_denied(served, certificates):
    factory = relay.tls("localhost", served(), servername="db.internal", ca=certificates.ca)
    reason, text = reason_of(factory)
    assert reason == "denied"
    assert "servername=" in text and "db.internal" in text


def test_another_address_is_denied(listener, tmp_path, served):
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.2").configure_cert(context)
    assert reason_of(relay.tls("127.0.0.1", served(context), ca=tmp_path / "ca.pem"))[0] == "denied"


def test_an_expired_certificate_is_denied(tmp_path, served):
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    long_ago = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    authority.issue_cert("localhost", not_after=long_ago).configure_cert(context)
    reason, text = reason_of(relay.tls("localhost", served(context), ca=tmp_path / "ca.pem"))
    assert reason == "denied"
    assert "expired" in text


@pytest.mark.parametrize(("groups", "curve"), [("X25519", "X25519"), ("P-384", "secp384r1"), (None, "prime256v1")])
def test_keys_are_agreed_on_in_the_groups(served, certificates, groups, curve):
    context = certificates.server()
    context.set_ecdh_curve(curve)
    relay.tls("localhost", served(context), ca=certificates.ca, groups=groups)().close()


@pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)
def test_a_server_without_the_groups_denies(served, certificates, version):
    context = only(certificates.server(), version)
    context.set_ecdh_curve("secp384r1")
    reason, text = reason_of(relay.tls("localhost", served(context), ca=certificates.ca, groups="X25519"))
    assert reason == "denied"
    assert text.endswith("or other groups than X25519")


@pytest.mark.parametrize("servername", ["localhost", "localhost.", "127.0.0.1", "LOCALHOST"])
def test_the_name_of_the_certificate_is_accepted(served, certificates, servername):
    relay.tls("127.0.0.1", served(), servername=servername, ca=certificates.ca)().close()


def test_an_address_is_accepted_where_the_certificate_is_for_it(served, certificates):
    relay.tls("127.0.0.1", served(), ca=certificates.ca)().close()


def test_tls_1_1_is_not_spoken(served, certificates):
    context = certificates.server()
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    reason, text = reason_of(relay.tls("localhost", served(context), ca=certificates.ca))
    assert reason == "unreachable"
    assert "1.2" in text


@pytest.fixture
def wanting(certificates, version):
    """A server's context that wants a client certificate of the tests' own authority."""
    context = certificates.server()
    context.minimum_version = context.maximum_version = version
    context.load_verify_locations(certificates.ca)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


@pytest.mark.parametrize("together", [False, True])
def test_a_client_certificate_is_shown(certificates, listener, wanting, tmp_path, together):
    files = {"cert": certificates.cert, "key": certificates.key}
    if together:
        (tmp_path / "both.pem").write_bytes(certificates.key.read_bytes() + certificates.cert.read_bytes())
        files = {"cert": tmp_path / "both.pem"}
    rig = Rig(certificates, listener, wanting)
    rig.factory = relay.tls("localhost", listener.getsockname()[1], ca=certificates.ca, **files)
    stream, server = rig.connect()
    with contextlib.closing(rig):
        server.sendall(b"welcome")
        assert receive_exactly(stream.socket, 7) == b"welcome"


def test_a_client_certificate_that_is_missing_is_a_denial(certificates, served, wanting):
    factory = relay.tls("localhost", served(wanting), ca=certificates.ca)
    # With TLS 1.3 the server answers after the client's handshake is done.
    try:
        with factory(deadline=time.monotonic() + WAIT) as stream:
            stream.socket.settimeout(WAIT)
            with contextlib.suppress(ConnectionResetError):
                assert receive_all(stream.socket) == b""
            assert stream.failure().reason == "denied", stream.failure()
    except relay.ConnectError as error:
        assert error.reason == "denied"
        assert "cert=" in str(error)


def test_the_second_session_takes_up_the_first_one(rig):
    stream, server = rig.connect()
    assert not server._tls.session_reused
    server.sendall(b"hello")
    assert receive_exactly(stream.socket, 5) == b"hello"
    for _ in range(2):
        stream, server = rig.connect()
        assert server._tls.session_reused
        server.sendall(b"hello")
        assert receive_exactly(stream.socket, 5) == b"hello"


def test_a_session_that_the_server_forgot_is_made_anew(rig, certificates):
    stream, server = rig.connect()
    server.sendall(b"hello")
    assert receive_exactly(stream.socket, 5) == b"hello"
    fresh = certificates.server()
    fresh.minimum_version = fresh.maximum_version = rig.context.maximum_version
    rig.context = fresh
    stream, server = rig.connect()
    assert not server._tls.session_reused
    server.sendall(b"hello")
    assert receive_exactly(stream.socket, 5) == b"hello"


def test_a_server_that_remembers_nothing_is_soon_not_asked(rig, monkeypatch):
    rig.context.options |= ssl.OP_NO_TICKET
    rig.context.num_tickets = 0
    read = []
    session = ssl.SSLObject.session
    monkeypatch.setattr(ssl.SSLObject, "session", session.setter(session.fset).getter(lambda tls: read.append(tls)))
    for _ in range(6):
        stream, server = rig.connect()
        assert not server._tls.session_reused
        server.sendall(b"hello")
        assert receive_exactly(stream.socket, 5) == b"hello"
    assert len(read) == 3


# -- failures -----------------------------------------------------------------------------------------------------


def test_a_refused_connection(certificates):
    with refusing() as (host, port):
        assert reason_of(relay.tls(host, port, ca=certificates.ca))[0] == "refused"


def test_a_silent_server_is_given_up_at_the_deadline(certificates, listener):
    # An address: the connect is over at once, and only the handshake is left for the deadline.
    factory = relay.tls("127.0.0.1", listener.getsockname()[1], servername="localhost", ca=certificates.ca)
    assert reason_of(factory, deadline=time.monotonic() + 0.1)[0] == "connect_timeout"
    with listener.accept()[0] as connection:
        connection.settimeout(WAIT)
        with pytest.raises(ConnectionResetError):
            receive_all(connection)


class Cancel:
    """A cancel token of a tunnel."""

    def __init__(self):
        self.reader, self.writer = socket.socketpair()

    def is_set(self):
        return False

    def fileno(self):
        return self.reader.fileno()

    def close(self):
        self.reader.close()
        self.writer.close()


def test_cancel_ends_the_handshake(certificates, listener):
    factory = relay.tls("localhost", listener.getsockname()[1], ca=certificates.ca)
    with contextlib.closing(Cancel()) as cancel:
        attempt = Thread(reason_of, factory)
        with listener.accept()[0] as connection:
            connection.settimeout(WAIT)
            assert connection.recv(1)  # the ClientHello
            assert attempt.is_alive()
        attempt.result()
        attempt = Thread(lambda: reason_of(factory, cancel=cancel))
        with listener.accept()[0] as connection:
            connection.settimeout(WAIT)
            assert connection.recv(1)
            cancel.writer.send(b"\0")
            assert "given up" in attempt.result()[1]


@pytest.mark.parametrize(
    "answer",
    [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9.2\r\n", bytes(100_000), b"\x16\x03\x03\xff\xff"],
    ids=["nothing", "http", "ssh", "zeroes", "an endless record"],
)
def test_what_does_not_speak_tls_is_named(certificates, serve, answer):
    def handler(connection):
        connection.recv(1)
        connection.sendall(answer)

    server = serve(handler)
    reason, text = reason_of(relay.tls(*server.address, servername="localhost", ca=certificates.ca))
    assert reason == "unreachable"
    assert "127.0.0.1" in text and "TLS" in text


@pytest.mark.parametrize(
    ("error", "arguments", "text"),
    [
        (ValueError, {"port": 0}, ""),
        (TypeError, {"port": "443"}, ""),
        (ValueError, {"host": ""}, ""),
        (ValueError, {"servername": ""}, ""),
        (ValueError, {"servername": "a b"}, ""),
        (ValueError, {"servername": ".internal"}, ""),
        (TypeError, {"servername": 7}, ""),
        (ValueError, {"groups": ""}, ".*names of groups"),
        (ValueError, {"groups": "X25519:P-256"}, ".*names of groups"),
        (ValueError, {"groups": "nonsense"}, ".*Python 3.* OpenSSL 3.* cannot set 'nonsense'; .*X25519 or P-256"),
        (TypeError, {"groups": ("X25519",)}, ".*tuple"),
        (FileNotFoundError, {"ca": "/nowhere/ca.pem"}, "No such file.*nowhere/ca.pem"),
        (IsADirectoryError, {"ca": "/"}, ""),
        (TypeError, {"ca": 7}, ".*int"),
        (ValueError, {"ca": "KEY"}, ".*holds no certificate"),
        (ValueError, {"ca": "EMPTY"}, ".*EMPTY holds no certificate"),
        (FileNotFoundError, {"cert": "/nowhere/cert.pem"}, ""),
        (ValueError, {"cert": "EMPTY"}, ".*EMPTY holds no certificate"),
        (ValueError, {"cert": "CERT"}, ".*holds no private key"),
        (ValueError, {"cert": "BOTH"}, ".*BOTH is encrypted.*openssl pkey"),
        (ValueError, {"key": "KEY"}, ""),  # for what?
        (FileNotFoundError, {"key": "/nowhere/key.pem", "cert": "CERT"}, ""),
        (ValueError, {"key": "EMPTY", "cert": "CERT"}, ".*EMPTY holds no private key"),
        (ValueError, {"key": "OTHER", "cert": "CERT"}, ".*OTHER is not that of the certificate"),
        (ValueError, {"key": "ENCRYPTED", "cert": "CERT"}, ".*ENCRYPTED is encrypted.*openssl pkey"),
    ],
    ids=repr,
)
def test_a_bad_argument_is_named_at_once(certificates, tmp_path, error, arguments, text):
    files = {name: tmp_path / name for name in ("EMPTY", "OTHER", "ENCRYPTED", "BOTH")}
    files |= {"CERT": certificates.cert, "KEY": certificates.key}
    files["EMPTY"].write_text("nothing in PEM form")
    trustme.CA().issue_cert("localhost").private_key_pem.write_to_path(files["OTHER"])
    files["ENCRYPTED"].write_bytes(encrypted(certificates.key))
    files["BOTH"].write_bytes(certificates.cert.read_bytes() + encrypted(certificates.key))
    argument = next(iter(arguments))
    arguments = {name: files.get(value, value) for name, value in arguments.items()}
    with pytest.raises(error, match=f"{argument}{text and ': '}{text}"):
        relay.tls(**{"host": "localhost", "port": 443, **arguments})


def test_several_groups_need_a_newer_python(certificates):
    if sys.version_info < (3, 15):
        with pytest.raises(ValueError, match=r"^groups: Python 3\.\d+ with OpenSSL .* cannot set 'X25519,P-256'; "):
            relay.tls("localhost", 443, groups="X25519,P-256")
    else:
        relay.tls("localhost", 443, groups="X25519,P-256")


def encrypted(key):
    from cryptography.hazmat.primitives import serialization as form

    loaded = form.load_pem_private_key(key.read_bytes(), None)
    return loaded.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.BestAvailableEncryption(b"secret"))


# -- over other streams ----------------------------------------------------------------------------------------------


def wrap(transport, certificates):
    """TLS over a stream, as the last one of a chain is upgraded."""
    client, made = Client("localhost", 443, None, certificates.ca, None, None), Promise()
    deadline = time.monotonic() + WAIT
    client.upgrade(transport, deadline, made.put)
    return made.get(deadline, None)


def test_it_wraps_the_last_stream_of_a_chain(certificates):
    near, far = socket.socketpair()
    near.setblocking(False)
    far.settimeout(WAIT)
    over = threading.Event()
    transport = relay.Stream(near, target="the chain", on_close=over.set)
    server = Thread(TLSEnd, far, certificates.server(), True)
    stream = wrap(transport, certificates)
    with far, stream:
        end = server.result()
        stream.socket.settimeout(WAIT)
        stream.socket.sendall(b"ping")
        assert receive_exactly(end, 4) == b"ping"
        stream.socket.shutdown(socket.SHUT_WR)
        assert receive_all(end) == b""
        end.sendall(b"a late answer")
        end.shutdown(socket.SHUT_WR)
        assert receive_all(stream.socket) == b"a late answer"
        assert not over.is_set()
        stream.close()
        assert over.is_set()


def test_a_failure_under_it_is_told_as_it_is(certificates):
    near, far = socket.socketpair()
    near.setblocking(False)
    far.settimeout(WAIT)
    lost = relay.errors.CarrierError("the carrier was lost")
    server = Thread(TLSEnd, far, certificates.server(), True)
    with wrap(relay.Stream(near, failure=lambda: lost), certificates) as stream:
        stream.socket.settimeout(WAIT)
        server.result().close()
        assert receive_until_reset(stream.socket) == b""
        assert stream.failure() is lost


# -- real servers ---------------------------------------------------------------------------------------------------


@pytest.fixture
def s_server(certificates, version, reserved):
    """``openssl s_server``, which sends what it reads; the process and its port."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    option = "-tls1_2" if version == ssl.TLSVersion.TLSv1_2 else "-tls1_3"
    command = ["openssl", "s_server", "-accept", f"127.0.0.1:{reserved}", "-cert", certificates.cert]
    command += ["-key", certificates.key, option, "-quiet", "-naccept", "1"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    yield process, reserved
    process.stdin.close()
    process.stdout.close()
    process.kill()
    process.wait(WAIT)


def listens(port):
    """Return whether a program listens there, from the kernel: a connection would be counted."""
    with open("/proc/net/tcp") as table:
        return any(line.split()[1:4:2] == [f"0100007F:{port:04X}", "0A"] for line in table)


def test_openssl_s_server_gets_the_bytes_and_the_end(s_server, certificates):
    process, port = s_server
    wait_until(lambda: listens(port))
    with relay.tls("localhost", port, ca=certificates.ca)() as stream:
        stream.socket.settimeout(WAIT)
        process.stdin.write(b"from the server\n")
        process.stdin.flush()
        assert receive_exactly(stream.socket, 16) == b"from the server\n"
        sending = Thread(stream.socket.sendall, BLOCK * 4)
        assert process.stdout.read(4 << 20) == BLOCK * 4
        sending.result()
        stream.socket.shutdown(socket.SHUT_WR)
        assert process.stdout.read() == b""  # it ends at close_notify
        assert receive_all(stream.socket) == b""
        assert stream.failure() is None


# -- in a tunnel ------------------------------------------------------------------------------------------------------


def test_a_tunnel_that_is_closed_ends_the_handshake(certificates, listener):
    factory = relay.tls("127.0.0.1", listener.getsockname()[1], servername="localhost", ca=certificates.ca)
    with relay.Tunnel(relay.listen(":0"), factory) as tunnel:
        with socket.create_connection(tunnel.address, WAIT) as client, listener.accept()[0] as connection:
            connection.settimeout(WAIT)
            assert connection.recv(1)
            tunnel.close()
            assert ending(client) == "reset"
            assert ending(connection) == "reset"
        assert [record.reason for record in tunnel.recent()] == ["closed"]


def test_a_client_that_resets_ends_the_handshake(certificates, listener):
    factory = relay.tls("127.0.0.1", listener.getsockname()[1], servername="localhost", ca=certificates.ca)
    with relay.Tunnel(relay.listen(":0"), factory) as tunnel:
        client = socket.create_connection(tunnel.address, WAIT)
        with listener.accept()[0] as connection:
            connection.settimeout(WAIT)
            assert connection.recv(1)
            relay.eventloop.sockets.reset(client)
            assert ending(connection) == "reset"
        assert ended(tunnel) == ["client_reset"]


@pytest.mark.parametrize(("timeout", "reason"), [(0.2, "connect_timeout"), (None, "denied")])
def test_a_handshake_that_fails_resets_the_client(certificates, listener, timeout, reason):
    factory = relay.tls("127.0.0.1", listener.getsockname()[1], servername="db.internal", ca=certificates.ca)
    with relay.Tunnel(relay.listen(":0"), factory, connect_timeout=timeout) as tunnel:
        with socket.create_connection(tunnel.address, WAIT) as client:
            server = Thread(lambda: None) if timeout else shake(listener, certificates.server())
            assert ending(client) == "reset"
            server.result()
        assert ended(tunnel) == [reason]
