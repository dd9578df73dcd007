"""``relay.listen('tls://…')``: handshakes beside the accept path, which delay no other client."""

from __future__ import annotations

import contextlib
import datetime
import errno
import hashlib
import os
import shutil
import socket
import ssl
import subprocess
import threading

import pytest
import trustme
from helpers import (
    BLOCK,
    WAIT,
    Thread,
    TLSEnd,
    ending,
    exchange,
    receive_all,
    receive_exactly,
    receive_until_reset,
    wait_until,
)

import relay
from relay.transports.tls import listener as module
from relay.transports.tls.listener import listen_tls


@pytest.fixture
def listening(certificates):
    with listen_tls("127.0.0.1", 0, cert=certificates.cert, key=certificates.key) as listener:
        yield listener


@pytest.fixture
def connect():
    """Makes plain connections to a listener."""
    with contextlib.ExitStack() as stack:

        def make(listener):
            return stack.enter_context(socket.create_connection(listener.address[:2], WAIT))

        yield make


def test_it_tells_until_when_its_certificate_is_valid(listening, tmp_path):
    assert listening.certificate_end is not None
    made = trustme.CA().issue_cert("localhost", not_after=datetime.datetime(2031, 1, 1, tzinfo=datetime.UTC))
    made.private_key_and_cert_chain_pem.write_to_path(tmp_path / "new.pem")
    listening.set_context(module.server_context(tmp_path / "new.pem"))
    assert listening.certificate_end == datetime.datetime(2031, 1, 1, tzinfo=datetime.UTC).timestamp()


def accepted(listener):
    stream, peer = Thread(listener.accept).result()
    stream.socket.settimeout(WAIT)
    return stream, peer


@pytest.fixture
def pair(listening, connect, certificates):
    """A TLS client and the stream that was accepted for it."""
    client = TLSEnd(connect(listening), certificates.client())
    stream, _ = accepted(listening)
    with stream:
        yield client, stream


# -- streams --------------------------------------------------------------------------------------------------------


def test_it_accepts_streams(listening, connect, certificates):
    connection = connect(listening)
    client = TLSEnd(connection, certificates.client())
    stream, peer = accepted(listening)
    with stream:
        assert peer == connection.getsockname()
        exchange(client, stream.socket)
        assert stream.half_close


def test_half_close_by_the_client(pair):
    client, stream = pair
    client.sendall(b"question")
    client.shutdown(socket.SHUT_WR)
    assert receive_all(stream.socket) == b"question"
    assert stream.failure() is None
    sending = Thread(stream.socket.sendall, BLOCK)
    assert receive_exactly(client, len(BLOCK)) == BLOCK
    sending.result()
    stream.socket.shutdown(socket.SHUT_WR)
    assert receive_all(client) == b""


def test_half_close_by_the_holder(pair):
    client, stream = pair
    stream.socket.sendall(b"enough")
    stream.socket.shutdown(socket.SHUT_WR)
    assert receive_all(client) == b"enough"
    sending = Thread(receive_exactly, stream.socket, len(BLOCK))
    client.sendall(BLOCK)
    client.shutdown(socket.SHUT_WR)
    assert sending.result() == BLOCK
    assert receive_all(stream.socket) == b""


def test_a_truncated_client_is_a_failure(pair):
    client, stream = pair
    client.sendall(b"half of it")
    client.close()
    assert receive_until_reset(stream.socket) == b"half of it"
    assert stream.failure().reason == "client_reset"


def test_a_reset_goes_to_the_client(pair):
    client, stream = pair
    stream.reset()
    with pytest.raises(ConnectionResetError):
        client.recv(1)


def test_a_client_that_resets_is_a_failure(pair):
    client, stream = pair
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()
    assert ending(stream.socket) in ("end of file", "reset")
    assert stream.failure().reason == "client_reset"


def test_data_that_come_with_the_handshake_are_not_lost(listening, connect, certificates):
    connection = connect(listening)
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
    connection.sendall(outgoing.read())  # Finished, data and close_notify in one segment
    stream, _ = accepted(listening)
    with stream:
        assert receive_all(stream.socket) == b"early bird"
        assert stream.failure() is None


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


# -- clients that do not behave -------------------------------------------------------------------------------------


def test_a_silent_client_holds_up_nobody(listening, connect, certificates):
    silent = [connect(listening) for _ in range(20)]
    client = TLSEnd(connect(listening), certificates.client())
    stream, _ = accepted(listening)
    with stream:
        exchange(client, stream.socket)
    assert len(silent) == 20


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
    stream, _ = accepted(listening)
    with stream:
        exchange(client, stream.socket)


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


def test_a_tunnel_without_limits_gives_handshakes_one(listening):
    with relay.Tunnel(listening, relay.tcp("127.0.0.1", 1), timeout=None, connect_timeout=None):
        assert listening.handshake_timeout == 30.0


def test_a_handshake_has_no_more_time_than_its_connection(listening):
    with relay.Tunnel(listening, relay.tcp("127.0.0.1", 1), timeout=4, connect_timeout=None):
        assert listening.handshake_timeout == 4.0


def test_the_oldest_handshakes_give_way(listening, connect, certificates, monkeypatch, caplog):
    monkeypatch.setattr(module, "_MOST", 2)
    first, second = (connect(listening) for _ in range(2))
    wait_until(lambda: "2 handshakes" in repr(listening))
    client = TLSEnd(connect(listening), certificates.client())
    stream, _ = accepted(listening)
    with stream:
        exchange(client, stream.socket)
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
        stream, _ = accepted(listening)
        with stream:
            exchange(client, stream.socket)
    client = third.result()
    stream, _ = accepted(listening)
    with stream:
        exchange(client, stream.socket)


class Exhausted(socket.socket):
    """A listening socket that has no descriptor for the first client."""

    failures = 1

    def accept(self):
        if self.failures:
            self.failures -= 1
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return super().accept()


def test_no_descriptor_left_is_waited_out(certificates, connect, monkeypatch):
    def make(host, port):
        listening = Exhausted()
        listening.bind((host, port))
        listening.listen()
        return listening

    monkeypatch.setattr(module, "listen_tcp", make)
    with listen_tls("127.0.0.1", 0, cert=certificates.cert, key=certificates.key) as listener:
        client = TLSEnd(connect(listener), certificates.client())
        stream, _ = accepted(listener)
        with stream:
            exchange(client, stream.socket)


def test_half_open_clients_give_way_where_there_are_no_descriptors_left(certificates, connect, monkeypatch):
    listening = Exhausted()
    listening.failures = 0

    def make(host, port):
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
        stream, _ = accepted(listener)
        with stream:
            exchange(client, stream.socket)


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
    stream, _ = accepted(listener)
    with stream:
        exchange(client, stream.socket)


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
        with relay.tls("::1", listener.address[1], ca=tmp_path / "ca.pem")() as near, accepted(listener)[0] as far:
            near.socket.settimeout(WAIT)
            exchange(near.socket, far.socket)


def test_it_is_on_the_loopback_unless_told_otherwise(certificates):
    with relay.listen(f"tls://:0?cert={certificates.cert}&key={certificates.key}") as listener:
        assert listener.address[0] == "127.0.0.1"


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


def test_close_at_once(certificates):
    for _ in range(20):
        listen_tls("127.0.0.1", 0, cert=certificates.cert, key=certificates.key).close()


def test_the_port_is_free_after_close(listening, certificates):
    listening.close()
    listen_tls(*listening.address, cert=certificates.cert, key=certificates.key).close()


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
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            listening.close()
            with contextlib.suppress(OSError):
                listening.accept()
                status = 2
            status = status if status == 2 else 0
        finally:
            os._exit(status)
    wait_until(lambda: os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
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


def test_a_tunnel_has_no_thread_that_accepts(listening, serve, connect, certificates):
    with relay.Tunnel(listening, serve(echoing).factory()):
        end = TLSEnd(connect(listening), certificates.client())
        end.sendall(b"ping")
        assert receive_exactly(end, 4) == b"ping"
        assert not [thread for thread in threading.enumerate() if thread.name.endswith(" accept")]
