"""A hop ``resume:ADDRESS`` keeps its streams when the connection to ADDRESS is lost: TLS, WebSockets, I2P, programs."""

import random
import signal
import socket

import pytest
from helpers import Thread, echo, ending, receive_all, receive_exactly, send_and_end, wait_until
from listener_rig import make_prompt
from resume_carriers import KINDS, Carrier
from resume_rig import Cutter

import relay
from relay.eventloop.sockets import reset
from relay.transports.resume.wire import KNOWN, NEW, UNKNOWN, Hello, read_answer

MIB = 1 << 20


@pytest.fixture(params=KINDS)
def carrier(request, tmp_path, spawner_thread, times):
    make_prompt(times)
    made = Carrier(request.param, tmp_path)
    yield made
    made.close()


def test_carriers_are_cut_while_bytes_flow_both_ways(carrier, serve):
    stream = carrier.dial(serve(echo).address)
    data = random.Random(36).randbytes(2 * MIB)
    sending = Thread(send_and_end, stream.socket, data)
    got, cuts = bytearray(), 0
    while piece := stream.socket.recv(1 << 16):
        got += piece
        if len(got) > (cuts + 1) * MIB // 2 and cuts < 3:
            carrier.cutter.cut()
            cuts += 1
    sending.result()
    assert cuts == 3
    assert bytes(got) == data
    assert stream.failure() is None
    assert stream.resumes.count > 0


def test_the_ends_of_both_directions_outlive_a_cut(carrier, serve):
    def late(connection):
        asked = receive_all(connection)
        carrier.cutter.cut()
        connection.sendall(asked[::-1])

    stream = carrier.dial(serve(late).address)
    send_and_end(stream.socket, b"question")
    assert receive_all(stream.socket) == b"noitseuq"
    assert stream.failure() is None


def test_a_reset_of_the_target_arrives_over_another_carrier(carrier, serve):
    def resets(connection):
        receive_exactly(connection, 1)
        carrier.cutter.cut()
        reset(connection)

    stream = carrier.dial(serve(resets).address)
    stream.socket.sendall(b"x")
    assert ending(stream.socket) == "reset"
    assert stream.failure().reason == "target_reset"


def test_a_reset_of_the_client_reaches_the_target(carrier, serve):
    ends = []

    def watch(connection):
        connection.sendall(b"x")
        ends.append(ending(connection))

    stream = carrier.dial(serve(watch).address)
    assert receive_exactly(stream.socket, 1) == b"x"
    carrier.cutter.cut()
    stream.reset()
    wait_until(lambda: ends)
    assert ends == ["reset"]


def test_a_far_end_that_was_restarted_ends_the_stream_at_once(carrier, serve):
    stream = carrier.dial(serve(echo).address)
    stream.socket.sendall(b"hello")
    assert receive_exactly(stream.socket, 5) == b"hello"
    carrier.restart()
    assert ending(stream.socket) == "reset"
    assert stream.failure().reason == "resume_lost"
    again = carrier.dial(serve(echo).address)
    again.socket.sendall(b"hello")
    assert receive_exactly(again.socket, 5) == b"hello"


def test_a_token_is_of_use_to_its_own_identity_only(carrier):
    def say(hello, identity):
        with carrier.carrier(identity) as end:
            end.socket.setblocking(True)
            end.socket.sendall(hello.encode())
            got = b""
            while (found := read_answer(got)) is None:
                got += end.socket.recv(100)
            return found[0]

    new = say(Hello(1 << 18), "one")
    assert (new.kind, new.kept) == (NEW, 300 if carrier.kind == "i2p" else 120)
    if carrier.kind in ("tls", "wss", "i2p"):  # a test has no other user
        assert say(Hello(1 << 18, new.token, 0), "other").kind == UNKNOWN
    assert say(Hello(1 << 18, new.token, 0), "one").kind == KNOWN


@pytest.mark.parametrize("kind", ["tls", "wss"])
def test_a_client_with_a_certificate_of_nobody_is_told(kind, tmp_path):
    import trustme

    made = Carrier(kind, tmp_path)
    try:
        stranger = trustme.CA().issue_cert("one")
        stranger.private_key_and_cert_chain_pem.write_to_path(f"{tmp_path}/one.pem")
        with socket.create_server(("127.0.0.1", 0)) as target, pytest.raises(relay.ConnectError) as caught:
            made.dial(target.getsockname())
        assert str(caught.value).startswith(f"resume:{kind}://localhost:")
        assert caught.value.reason == "denied"
    finally:
        made.close()


def test_a_file_serves_them_and_a_command_asks_for_them(start, tmp_path, serve):
    far, near = tmp_path / "far.sock", tmp_path / "near.sock"
    file = tmp_path / "relay.toml"
    file.write_text(f"""
        [tunnels.far]
        listen = "resume:unix://{far}"
        rule = ["127.0.0.0/8=direct"]
    """)
    up = start(str(file), command="up")
    up.hear("1 of 1 tunnels listen")
    cutter = Cutter(str(near), str(far))
    try:
        host, port = serve(echo).address
        forward = start("0", f"{host}:{port}", "--via", f"unix://{near}", "--resume")
        with socket.create_connection(forward.address(), 60) as client:
            for word in (b"one", b"two", b"three"):
                client.sendall(word)
                assert receive_exactly(client, len(word)) == word
                cutter.cut()
            client.shutdown(socket.SHUT_WR)
            assert receive_all(client) == b""
        denied = start("0", "203.0.113.1:80", "--via", f"unix://{near}", "--resume")
        with socket.create_connection(denied.address(), 60) as client:
            assert ending(client) == "reset"
        file.write_text(file.read_text().replace("127.0.0.0/8", "*"))
        up.process.send_signal(signal.SIGHUP)
        up.hear("reload: 1 of 1 tunnels changed")
        assert forward.end()[0] == denied.end()[0] == up.end()[0] == 0
    finally:
        cutter.close()
