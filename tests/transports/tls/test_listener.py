"""``relay.listen('tls://…')``: handshakes beside the accept path, which delay no other client."""

from __future__ import annotations

import contextlib
import datetime
import errno
import gc
import hashlib
import logging
import os
import shutil
import socket
import ssl
import subprocess
import threading
import weakref

import pytest
import trustme
from helpers import (
    BLOCK,
    WAIT,
    Thread,
    TLSEnd,
    ended,
    ending,
    exchange,
    in_child,
    makes,
    receive_all,
    receive_exactly,
    receive_until_reset,
    wait_until,
)

import relay
from relay.eventloop.background import IOThread
from relay.transports.tls import client as client_module
from relay.transports.tls import listener as module
from relay.transports.tls.listener import SharedTLSListener, listen_tls
from relay.transports.tls.session import Session


@pytest.fixture
def listening(certificates):
    with listen_tls("127.0.0.1", 0, cert=certificates.cert, key=certificates.key) as listener:
        yield listener


@pytest.fixture
def connect():
    """Makes plain connections to a listener."""
    yield from makes(lambda listener: socket.create_connection(listener.address[:2], WAIT))


def test_it_tells_until_when_its_certificate_is_valid(listening, tmp_path):
    assert listening.certificate_end is not None
    made = trustme.CA().issue_cert("localhost", not_after=datetime.datetime(2031, 1, 1, tzinfo=datetime.UTC))
    made.private_key_and_cert_chain_pem.write_to_path(tmp_path / "new.pem")
    listening.set_credentials(module.server_credentials(tmp_path / "new.pem"))
    assert listening.certificate_end == datetime.datetime(2031, 1, 1, tzinfo=datetime.UTC).timestamp()


def accepted(listener):
    stream, peer = Thread(listener.accept).result()
    stream.socket.settimeout(WAIT)
    return stream, peer


def meet(listener, client):
    """Accept a client, and prove that both directions work."""
    with accepted(listener)[0] as stream:
        exchange(client, stream.socket)


def answers(client):
    """Prove that a client of a tunnel is served."""
    client.sendall(b"ping")
    assert receive_exactly(client, 4) == b"ping"


@pytest.fixture
def pair(listening, connect, certificates):
    """A TLS client and the stream that was accepted for it."""
    client = TLSEnd(connect(listening), certificates.client())
    stream, _ = accepted(listening)
    with stream:
        yield client, stream


# -- streams --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize(
    ("offered", "asked", "chosen"),
    [
        ("h2,http/1.1", ["http/1.1", "h2"], "h2"),
        ("h2", ["http/1.1"], None),
        (None, ["http/1.1"], None),
        ("h2", [], None),
    ],
)
def test_the_name_and_the_protocol_that_a_client_asks_for(certificates, connect, version, offered, asked, chosen):
    context = certificates.client()
    context.maximum_version = version
    if asked:
        context.set_alpn_protocols(asked)
    with listen_tls("127.0.0.1", 0, cert=certificates.cert, key=certificates.key, alpn=offered) as listener:
        client = TLSEnd(connect(listener), context)
        stream, _ = accepted(listener)
        with stream:
            exchange(client, stream.socket)
            assert (stream.server_name, stream.tls.selected_alpn_protocol()) == ("localhost", chosen)


@pytest.mark.parametrize(("curve", "is_one"), [("secp384r1", True), ("X25519", False)])
def test_keys_are_agreed_on_in_the_groups(certificates, connect, caplog, curve, is_one):
    context = certificates.client()
    context.set_ecdh_curve(curve)
    url = f"tls://127.0.0.1:0?cert={certificates.cert}&key={certificates.key}&groups=P-384"
    caplog.set_level(logging.INFO, "relay.tls")
    with relay.listen(url) as listener:
        if is_one:
            client = TLSEnd(connect(listener), context)
            meet(listener, client)
        else:
            with pytest.raises(ssl.SSLError):
                TLSEnd(connect(listener), context)
            wait_until(lambda: "NO_SUITABLE" in caplog.text or "NO_SHARED" in caplog.text)


def test_a_name_that_is_not_ascii_disturbs_nothing(listening, connect, capfd):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode, context.maximum_version = False, ssl.CERT_NONE, ssl.TLSVersion.TLSv1_2
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname="abcdef").do_handshake()
    client = connect(listening)
    client.settimeout(WAIT)
    client.sendall(outgoing.read().replace(b"abcdef", b"abc\xff\xfe\n"))
    assert client.recv(1) == b"\x16"  # the handshake goes on
    assert "Traceback" not in capfd.readouterr().err


def test_a_truncated_client_is_a_failure(pair):
    client, stream = pair
    client.sendall(b"half of it")
    client.close()
    assert receive_until_reset(stream.socket) == b"half of it"
    assert stream.failure().reason == "client_reset"


def test_the_two_ends_of_ours_move_much_both_ways_at_once(listening, certificates):
    factory = relay.tls("localhost", listening.address[1], ca=certificates.ca)
    expected = hashlib.sha256(BLOCK * 24).digest()
    with factory() as near, accepted(listening)[0] as far:
        near.socket.settimeout(WAIT)

        def send(end):
            for _ in range(24):
                end.sendall(BLOCK)
            end.shutdown(socket.SHUT_WR)

        sending = [Thread(send, end) for end in (near.socket, far.socket)]
        receiving = [Thread(receive_all, end) for end in (near.socket, far.socket)]
        assert [hashlib.sha256(one.result()).digest() for one in receiving] == [expected] * 2
        for one in sending:
            one.result()
        assert near.failure() is None and far.failure() is None


def early_bird(connection, certificates):
    """Send Finished, data and close_notify in one segment."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = certificates.client().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    connection.sendall(outgoing.read())
    while True:
        incoming.write(connection.recv(1 << 16))
        with contextlib.suppress(ssl.SSLWantReadError):
            tls.do_handshake()
            break
    tls.write(b"early bird")
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.unwrap()
    connection.sendall(outgoing.read())


def test_data_that_come_with_the_handshake_are_not_lost(listening, connect, certificates):
    early_bird(connect(listening), certificates)
    stream, _ = accepted(listening)
    with stream:
        assert receive_all(stream.socket) == b"early bird"
        assert stream.failure() is None


# -- clients that do not behave -------------------------------------------------------------------------------------


def test_a_silent_client_is_reset_in_time(listening, connect):
    listening.handshake_timeout = 0.1
    assert ending(connect(listening)) == "reset"


@pytest.mark.parametrize(
    "garbage",
    [b"GET / HTTP/1.1\r\n\r\n", bytes(100_000), b"\x16\x03\x01\xff\xff" + bytes(70_000), b"\x16\x03\x01\x00\x00" * 500],
    ids=["http", "zeroes", "an endless record", "empty records"],
)
def test_garbage_ends_its_own_connection(listening, connect, certificates, garbage):
    with contextlib.suppress(OSError):
        connection = connect(listening)
        connection.sendall(garbage)
        connection.shutdown(socket.SHUT_WR)
        ending(connection)
    client = TLSEnd(connect(listening), certificates.client())
    meet(listening, client)


def test_a_client_that_leaves_during_the_handshake(listening, connect, certificates):
    connect(listening).close()
    for _ in range(10):
        with contextlib.suppress(ssl.SSLError, OSError):
            certificates.client().wrap_bio(
                ssl.MemoryBIO(), outgoing := ssl.MemoryBIO(), server_hostname="x"
            ).do_handshake()
        connection = connect(listening)
        connection.sendall(outgoing.read())
        connection.close()
    wait_until(lambda: "0 handshakes" in repr(listening))


def test_a_silent_client_has_less_time_than_one_that_has_begun(listening, connect, monkeypatch):
    monkeypatch.setattr(module, "FIRST_BYTE", 1.0)
    listening.handshake_timeout = None
    begun = connect(listening)
    begun.sendall(b"\x16")
    wait_until(lambda: "1 handshakes" in repr(listening))
    assert ending(connect(listening)) == "reset"
    assert "1 handshakes" in repr(listening)


def test_a_client_that_has_begun_has_no_more_time_than_is_allowed(listening, connect, monkeypatch):
    monkeypatch.setattr(module, "FIRST_BYTE", 0.05)
    listening.handshake_timeout = 0.2
    begun = connect(listening)
    begun.sendall(b"\x16")
    assert ending(begun) == "reset"


@pytest.mark.parametrize(("timeout", "seconds"), [(None, 30.0), (4, 4.0)])
def test_a_handshake_has_no_more_time_than_its_connection_and_always_a_limit(listening, timeout, seconds):
    with relay.Tunnel(listening, relay.tcp("127.0.0.1", 1), timeout=timeout, connect_timeout=None):
        assert listening.handshake_timeout == seconds


def test_the_oldest_handshakes_give_way(listening, connect, certificates, monkeypatch, caplog):
    monkeypatch.setattr(module, "_MOST", 2)
    first, second = (connect(listening) for _ in range(2))
    wait_until(lambda: "2 handshakes" in repr(listening))
    client = TLSEnd(connect(listening), certificates.client())
    meet(listening, client)
    assert ending(first) == "reset"
    assert "1 handshakes" in repr(listening)
    assert caplog.text.count("handshakes at a time") == 1
    second.close()


def test_those_that_nobody_accepts_are_bounded_too(listening, connect, certificates, monkeypatch):
    monkeypatch.setattr(module, "_MOST", 2)
    clients = [TLSEnd(connect(listening), certificates.client()) for _ in range(2)]
    third = Thread(TLSEnd, connect(listening), certificates.client())
    third.join(0.1)
    assert third.is_alive()
    for client in clients:
        meet(listening, client)
    client = third.result()
    meet(listening, client)


class Exhausted(socket.socket):
    """A listening socket that has no descriptor for the first client."""

    failures = 1

    def accept(self):
        if self.failures:
            self.failures -= 1
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return super().accept()


def test_no_descriptor_left_is_waited_out(certificates, connect, monkeypatch):
    def make(host, port, **more):
        listening = Exhausted()
        listening.bind((host, port))
        listening.listen()
        return listening

    monkeypatch.setattr(module, "listen_tcp", make)
    with listen_tls("127.0.0.1", 0, cert=certificates.cert, key=certificates.key) as listener:
        client = TLSEnd(connect(listener), certificates.client())
        meet(listener, client)


def test_half_open_clients_give_way_where_there_are_no_descriptors_left(certificates, connect, monkeypatch):
    listening = Exhausted()
    listening.failures = 0

    def make(host, port, **more):
        listening.bind((host, port))
        listening.listen()
        return listening

    monkeypatch.setattr(module, "listen_tcp", make)
    monkeypatch.setattr(module, "FIRST_BYTE", 3600.0)
    with listen_tls("127.0.0.1", 0, cert=certificates.cert, key=certificates.key) as listener:
        listener.handshake_timeout = None
        first = connect(listener)
        wait_until(lambda: "1 handshakes" in repr(listener))
        listening.failures = 1
        client = TLSEnd(connect(listener), certificates.client())
        assert ending(first) == "reset"
        meet(listener, client)


# -- client certificates --------------------------------------------------------------------------------------------


@pytest.fixture(params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["TLS 1.2", "TLS 1.3"])
def asking(certificates, request):
    files = {"cert": certificates.cert, "key": certificates.key, "client_ca": certificates.ca}
    client = certificates.client()
    client.maximum_version = request.param
    with listen_tls("127.0.0.1", 0, **files) as listener:
        yield listener, client


def test_a_client_certificate_is_accepted(asking, connect, certificates):
    listener, context = asking
    context.load_cert_chain(certificates.cert, certificates.key)
    client = TLSEnd(connect(listener), context)
    stream, peer = accepted(listener)
    with stream:
        exchange(client, stream.socket)
        assert (stream.identity.kind, stream.identity.host, stream.identity.port) == ("tls", *peer)
        assert "localhost" in stream.identity.certificate.dns


def test_a_client_whose_certificate_cannot_be_read_is_reset(asking, connect, certificates, monkeypatch, caplog):
    def read(session, peer):
        raise ValueError("it cannot be read")

    caplog.set_level("INFO", "relay")
    monkeypatch.setattr(module, "identity_of_client", read)
    listener, context = asking
    context.load_cert_chain(certificates.cert, certificates.key)
    client = connect(listener)
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        TLSEnd(client, context).recv(1)
    wait_until(lambda: "it cannot be read" in caplog.text)
    assert not listener._queue


@pytest.mark.parametrize("shown", [None, "of another authority"])
def test_a_client_without_the_right_certificate_is_not(asking, connect, shown):
    listener, context = asking
    if shown is not None:
        trustme.CA().issue_cert("client").configure_cert(context)
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        TLSEnd(connect(listener), context).recv(1)
    wait_until(lambda: "0 handshakes" in repr(listener))
    assert not listener._queue


# -- the listener itself --------------------------------------------------------------------------------------------


def test_its_address(listening):
    assert listening.address == listening.getsockname()
    assert listening.address[0] == "127.0.0.1"
    assert str(listening.address[1]) in repr(listening)
    address = listening.address
    listening.close()
    assert listening.address == address
    assert "closed" in repr(listening)


def test_over_ipv6(tmp_path):
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    authority.issue_cert("::1").private_key_and_cert_chain_pem.write_to_path(tmp_path / "both.pem")
    with relay.listen(f"tls://[::1]:0?cert={tmp_path}/both.pem") as listener:
        factory = relay.tls("::1", listener.address[1], ca=tmp_path / "ca.pem")
        assert factory.target.startswith("tls://[::1]:")
        with factory() as near, accepted(listener)[0] as far:
            near.socket.settimeout(WAIT)
            exchange(near.socket, far.socket)


def test_close_wakes_accept(listening):
    waiting = [Thread(listening.accept) for _ in range(3)]
    listening.close()
    for one in waiting:
        with pytest.raises(OSError, match="Bad file descriptor"):
            one.result()


def test_close_in_every_state(listening, connect, certificates):
    silent = connect(listening)
    wait_until(lambda: "1 handshakes" in repr(listening))
    finished = TLSEnd(connect(listening), certificates.client())
    accepted_client = TLSEnd(connect(listening), certificates.client())
    wait_until(lambda: len(listening._queue) == 2)
    first, peer = accepted(listening)
    kept, dropped = finished, accepted_client
    if peer != finished.socket.getsockname():
        kept, dropped = dropped, kept
    with first:
        closing = [Thread(listening.close) for _ in range(3)]
        for one in closing:
            one.result()
        listening.close()
        assert ending(silent) == "reset"
        assert ending(dropped.socket) == "reset"
        with pytest.raises(ConnectionRefusedError):
            connect(listening)
        exchange(kept, first.socket)  # what was accepted lives on


def test_an_address_in_use_is_an_oserror(listening, certificates):
    with pytest.raises(OSError, match=str(listening.address[1])):
        listen_tls(*listening.address, cert=certificates.cert, key=certificates.key)


@pytest.mark.parametrize(
    ("error", "arguments"),
    [
        (ValueError, {"port": -1}),
        (ValueError, {"host": ""}),
        (FileNotFoundError, {"cert": "/nowhere/cert.pem"}),
        (ValueError, {"cert": "EMPTY"}),
        (ValueError, {"cert": "CERT"}),
        (ValueError, {"client_ca": "EMPTY"}),
        (FileNotFoundError, {"client_ca": "/nowhere/ca.pem"}),
        (ValueError, {"key": "EMPTY"}),
        (ValueError, {"alpn": ""}),
        (ValueError, {"alpn": "h2,,http/1.1"}),
        (ValueError, {"alpn": "h 2"}),
        (ValueError, {"alpn": "x" * 256}),
        (TypeError, {"alpn": ("h2",)}),
        (ValueError, {"groups": ""}),
        (ValueError, {"groups": "nonsense"}),
        (TypeError, {"groups": ("X25519",)}),
    ],
    ids=repr,
)
def test_a_bad_argument_is_named_at_once(certificates, tmp_path, error, arguments):
    (tmp_path / "EMPTY").write_text("nothing in PEM form")
    files = {"EMPTY": tmp_path / "EMPTY", "CERT": certificates.cert}
    argument = next(iter(arguments))
    given = {"host": "127.0.0.1", "port": 0, "cert": certificates.cert}
    if argument != "cert":
        given["key"] = certificates.key
    given |= {name: files.get(value, value) for name, value in arguments.items()}
    with pytest.raises(error, match=argument):
        listen_tls(**given)


def test_a_forked_child_leaves_it_alone(listening, connect, certificates):
    client = TLSEnd(connect(listening), certificates.client())
    silent = connect(listening)

    def work():
        listening.close()
        with pytest.raises(OSError, match="Bad file"):
            listening.accept()

    assert in_child(work) == 0
    late = TLSEnd(silent, certificates.client())
    for _ in range(2):
        stream, peer = accepted(listening)
        with stream:
            exchange(client if peer == client.socket.getsockname() else late, stream.socket)


# -- real clients, through a tunnel ---------------------------------------------------------------------------------


def echoing(connection):
    while data := connection.recv(1 << 16):
        connection.sendall(data)


@pytest.mark.parametrize("option", ["-tls1_2", "-tls1_3"])
def test_openssl_s_client_through_a_tunnel(listening, serve, certificates, option):
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    server = serve(echoing)
    with relay.Tunnel(listening, server.factory()) as tunnel:
        command = ["openssl", "s_client", "-connect", "{}:{}".format(*tunnel.address), option, "-quiet"]
        command += ["-CAfile", certificates.ca, "-verify_return_error", "-servername", "localhost", "-no_ign_eof"]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            process.stdin.write(b"a line\n")
            process.stdin.flush()
            assert process.stdout.readline() == b"a line\n"
            process.stdin.close()  # it sends close_notify and leaves
            process.wait(WAIT)
        wait_until(lambda: tunnel.stats().active == 0)


def test_curl_and_nginx_through_a_tunnel(listening, certificates, reserved, tmp_path):
    for program in ("nginx", "curl"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    (tmp_path / "block").write_bytes(BLOCK * 8)
    (tmp_path / "nginx.conf").write_text(f"""
daemon off; master_process off; pid {tmp_path}/pid; error_log stderr;
events {{ }}
http {{
  access_log off;
  client_body_temp_path {tmp_path}; proxy_temp_path {tmp_path}; fastcgi_temp_path {tmp_path};
  uwsgi_temp_path {tmp_path}; scgi_temp_path {tmp_path};
  server {{
    listen 127.0.0.1:{reserved} ssl; root {tmp_path};
    ssl_certificate {certificates.cert}; ssl_certificate_key {certificates.key};
  }}
}}""")
    nginx = subprocess.Popen(["nginx", "-c", tmp_path / "nginx.conf", "-e", "stderr"], stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: (tmp_path / "pid").exists())
        factory = relay.tls("localhost", reserved, ca=certificates.ca)
        with relay.Tunnel(listening, factory) as tunnel:  # TLS in, TLS out
            url = f"https://localhost:{tunnel.address[1]}/block"
            command = ["curl", "-sS", "--cacert", certificates.ca, "--ipv4", url, url, url]
            fetched = subprocess.run(command, stdout=subprocess.PIPE, timeout=WAIT, check=True).stdout
            assert fetched == BLOCK * 24
            wait_until(lambda: tunnel.stats().active == 0)
            assert [record.reason for record in tunnel.recent()] == ["done"]
    finally:
        nginx.terminate()
        nginx.wait(WAIT)


def test_it_delivers_streams_without_a_thread_that_accepts(listening, connect, certificates):
    taken = []
    listening.deliver(lambda stream, peer: taken.append((stream, peer)))
    client = connect(listening)
    end = TLSEnd(client, certificates.client())
    wait_until(lambda: taken)
    stream, peer = taken[0]
    assert peer == client.getsockname()
    stream.socket.settimeout(WAIT)
    end.sendall(b"ping")
    assert receive_exactly(stream.socket, 4) == b"ping"
    stream.reset()
    listening.deliver(None)
    TLSEnd(connect(listening), certificates.client())
    listening.accept()[0].reset()
    assert len(taken) == 1


# -- in a tunnel, which accepts and shakes hands itself ---------------------------------------------------------------


def ready(tunnel):
    """Wait until the tunnel accepts; a client that came before is the I/O thread's."""
    wait_until(lambda: tunnel._relay.listening)
    tunnel._relay.run_in_thread(lambda: None)


@pytest.fixture
def tunneled(listening, serve):
    """Makes a tunnel from the listener to an echo server."""

    def make(**options):
        tunnel = relay.Tunnel(listening, serve(echoing).factory(), name="t", **{"timeout": None, **options})
        ready(tunnel)
        return tunnel

    yield from makes(make)


def test_a_tunnel_needs_no_other_thread(tunneled, listening, connect, certificates):
    tunneled()
    client = TLSEnd(connect(listening), certificates.client())
    answers(client)
    wait_until(lambda: "relay-io" not in {thread.name for thread in threading.enumerate()})
    answers(client)
    again = TLSEnd(connect(listening), certificates.client())
    assert "relay-io" not in {thread.name for thread in threading.enumerate()}
    answers(again)


def test_a_tunnel_is_told_how_many_shake_hands(tunneled, listening, connect, certificates):
    tunneled()
    seen = []
    listening.on_handshakes = seen.append
    with connect(listening):
        wait_until(lambda: seen == [1])
        client = TLSEnd(connect(listening), certificates.client())
        answers(client)
        assert seen == [1, 2, 1]
    wait_until(lambda: seen == [1, 2, 1, 0])


def test_a_client_that_ends_is_done_and_its_bytes_are_counted_in_plain(tunneled, listening, connect, certificates):
    tunnel = tunneled()
    connection = connect(listening)
    client = TLSEnd(connection, certificates.client())
    client.sendall(BLOCK)
    assert receive_exactly(client, len(BLOCK)) == BLOCK
    client.shutdown(socket.SHUT_WR)
    assert receive_all(client) == b""
    assert ended(tunnel) == ["done"]
    (record,) = tunnel.recent()
    assert (record.received, record.sent) == (len(BLOCK), len(BLOCK))
    assert record.peer == connection.getsockname()


def test_what_comes_with_the_handshake_is_passed_on(tunneled, listening, connect, certificates):
    tunnel = tunneled()
    early_bird(connect(listening), certificates)
    assert ended(tunnel) == ["done"]
    assert (tunnel.recent()[0].received, tunnel.recent()[0].sent) == (10, 10)


def test_a_client_that_had_begun_before_the_tunnel_did_is_taken(tunneled, listening, connect, certificates):
    connection = connect(listening)
    wait_until(lambda: "1 handshakes" in repr(listening))
    tunnel = tunneled()
    client = TLSEnd(connection, certificates.client())
    answers(client)
    assert tunnel.stats().active == 1


def test_the_limit_of_connections_holds_and_the_next_client_waits(tunneled, listening, connect, certificates):
    tunnel = tunneled(nconnect=2)
    connections = [connect(listening) for _ in range(3)]
    wait_until(lambda: "3 handshakes" in repr(listening))  # none of them counts
    first, second, third = (TLSEnd(connection, certificates.client()) for connection in connections)
    for client in (first, second):
        answers(client)
    third.sendall(b"ping")
    wait_until(lambda: len(listening._queue) == 1)
    fourth = Thread(TLSEnd, connect(listening), certificates.client())
    assert tunnel.stats().active == 2
    for leaving in (first, second):
        leaving.shutdown(socket.SHUT_WR)
        assert receive_all(leaving) == b""
    assert receive_exactly(third, 4) == b"ping"
    assert receive_exactly(exchanging(fourth.result()), 4) == b"ping"
    assert tunnel.stats().accepted == 4


def exchanging(client):
    client.sendall(b"ping")
    return client


def test_a_paused_tunnel_takes_no_client(tunneled, listening, connect, certificates):
    tunnel = tunneled()
    tunnel.pause()
    shaking = Thread(TLSEnd, connect(listening), certificates.client())
    assert tunnel.stats().accepted == 0
    tunnel.resume()
    client = shaking.result()
    answers(client)


def test_in_a_tunnel_the_oldest_handshakes_give_way(tunneled, listening, connect, certificates, monkeypatch, caplog):
    monkeypatch.setattr(module, "_MOST", 2)
    tunnel = tunneled()
    first, second = (connect(listening) for _ in range(2))
    wait_until(lambda: "2 handshakes" in repr(listening))
    client = TLSEnd(connect(listening), certificates.client())
    answers(client)
    assert ending(first) == "reset"
    assert "1 handshakes" in repr(listening)
    assert caplog.text.count("handshakes at a time") == 1
    assert tunnel.stats().accepted == 1, "half-open clients are no connections"
    second.close()


def test_in_a_tunnel_a_slow_handshake_has_a_deadline(tunneled, listening, connect):
    tunneled(connect_timeout=0.2)
    slow = connect(listening)
    slow.sendall(b"\x16")
    assert ending(slow) == "reset"
    wait_until(lambda: "0 handshakes" in repr(listening))


def test_in_a_tunnel_half_open_clients_give_way_where_there_are_no_descriptors_left(
    certificates, connect, serve, monkeypatch
):
    plain = Exhausted()
    plain.failures = 0
    plain.bind(("127.0.0.1", 0))
    plain.listen()
    monkeypatch.setattr(module, "FIRST_BYTE", 3600.0)
    listener = module.TLSListener(plain, module.server_credentials(certificates.cert, certificates.key))
    with relay.Tunnel(listener, serve(echoing).factory(), timeout=None) as tunnel:
        ready(tunnel)
        first = connect(listener)
        wait_until(lambda: "1 handshakes" in repr(listener))
        plain.failures = 1
        client = TLSEnd(connect(listener), certificates.client())
        assert ending(first) == "reset"
        answers(client)


def test_in_a_tunnel_a_new_certificate_is_shown_from_then_on(tunneled, listening, connect, certificates, tmp_path):
    tunneled()
    before = TLSEnd(connect(listening), certificates.client())
    authority = trustme.CA()
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(tmp_path / "new.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    listening.set_credentials(module.server_credentials(tmp_path / "new.pem"))
    after = TLSEnd(connect(listening), ssl.create_default_context(cafile=tmp_path / "ca.pem"))
    for client in (before, after):
        answers(client)


def test_a_tunnel_that_closes_ends_handshakes_and_streams(tunneled, listening, connect, certificates):
    tunnel = tunneled()
    shaking = connect(listening)
    wait_until(lambda: "1 handshakes" in repr(listening))
    open_one = connect(listening)
    TLSEnd(open_one, certificates.client())
    wait_until(lambda: tunnel.stats().active == 1)
    tunnel.close()
    assert ending(shaking) == ending(open_one) == "reset"
    assert "closed" in repr(listening)


def test_a_fork_disturbs_neither_a_client_nor_its_handshake(tunneled, listening, connect, certificates):
    tunneled()
    shaking = connect(listening)
    client = TLSEnd(connect(listening), certificates.client())
    answers(client)
    assert in_child(lambda: "closed" in repr(listening) and listening.listening.fileno() < 0) == 0
    late = TLSEnd(shaking, certificates.client())
    for one in (client, late):
        answers(one)


@pytest.fixture
def sessions(monkeypatch):
    """References to the sessions that are made, while no collector frees what refers to itself."""
    found = []

    def make(*arguments, **options):
        session = Session(*arguments, **options)
        found.append(weakref.ref(session))
        return session

    monkeypatch.setattr(module, "Session", make)
    monkeypatch.setattr(client_module, "Session", make)
    gc.disable()
    yield found
    gc.enable()


def test_a_session_is_freed_with_its_connection(tunneled, listening, connect, certificates, sessions):
    """It has 50 KB. A flood of clients would fill the memory until the collector looks."""
    tunnel = tunneled()
    garbage = connect(listening)
    garbage.sendall(b"GET / HTTP/1.1\r\n\r\n")
    ending(garbage)
    connect(listening).close()
    listening.handshake_timeout = 0.05
    slow = connect(listening)
    slow.sendall(b"\x16")
    assert ending(slow) == "reset"
    listening.handshake_timeout = None
    client = TLSEnd(connect(listening), certificates.client())
    answers(client)
    client.shutdown(socket.SHUT_WR)
    assert receive_all(client) == b""
    cut = connect(listening)
    TLSEnd(cut, certificates.client()).sendall(b"half")
    wait_until(lambda: tunnel.connections())
    cut.shutdown(socket.SHUT_WR)
    ended(tunnel, 2)
    tunnel._relay.run_in_thread(lambda: None)  # the loop has forgotten its last handler by now
    wait_until(lambda: len(sessions) == 5 and not [one() for one in sessions if one() is not None])


def test_a_session_with_a_target_is_freed_with_its_connection(certificates, serve, listening, sessions):
    target = relay.tls("localhost", listening.address[1], ca=certificates.ca)
    with relay.Tunnel(listening, serve(echoing).factory()), relay.Tunnel(relay.listen(":0"), target) as tunnel:
        with socket.create_connection(tunnel.address, WAIT) as client:
            answers(client)
            client.shutdown(socket.SHUT_WR)
            assert receive_all(client) == b""
        ended(tunnel)
        tunnel._relay.run_in_thread(lambda: None)
        wait_until(lambda: len(sessions) == 2 and not [one() for one in sessions if one() is not None])


def test_it_listens_and_leaves_the_clients_to_others(certificates):
    shared = SharedTLSListener("127.0.0.1", 0, cert=certificates.cert, key=certificates.key, client_ca=None)
    with contextlib.closing(shared):
        assert shared.certificate_end is not None
        assert shared.getsockname() == shared.address == shared.listening.getsockname()
        assert repr(shared) == f"<relay.SharedTLSListener at 127.0.0.1:{shared.address[1]}>"
        with socket.create_connection(shared.address, WAIT) as client:
            assert not IOThread.clients()
            accepted, peer = shared.listening.accept()
            accepted.close()
            assert peer == client.getsockname()
    shared.close()
    assert shared.listening.fileno() < 0


def test_it_names_a_wrong_certificate_before_it_listens(tmp_path):
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("no certificate")
    with pytest.raises(ValueError, match="cert"):
        SharedTLSListener("127.0.0.1", 0, cert=wrong, key=None, client_ca=None)
