"""SSH servers of other makers than OpenSSH carry what docs/ssh.md says, with both backends."""

import hashlib
import re
import socket

import foreign_ssh
import pytest
from documents import PAGES
from foreign_ssh import COLUMNS, PEERS
from helpers import (
    BLOCK,
    WAIT,
    Thread,
    ended,
    ending,
    exchange,
    fate_of_client,
    receive_all,
    receive_exactly,
    refusing,
    send_all,
    send_and_end,
    wait_until,
)
from sshd import make_key

import relay

MUCH = 64  # blocks of a mebibyte
PATIENT = 6 * WAIT  # seconds that a client waits for a server that comes back


@pytest.fixture(scope="session")
def built(pytestconfig):
    """The directory for what is built for the tests, kept from one run to the next."""
    return pytestconfig.cache.mkdir("foreign_servers")


@pytest.fixture(params=PEERS, scope="session")
def peer(request):
    """Runs a test with each server; what it is and what it supports."""
    made = PEERS[request.param]
    if not made.is_there():
        pytest.skip(f"{request.param} is not installed ({made.packages})")
    return made


@pytest.fixture(scope="session")
def server(peer, built, tmp_path_factory, spawner_thread):
    """A server that no test may end."""
    made = peer.server(tmp_path_factory.mktemp("server"), built)
    try:
        yield made.start()
    finally:
        made.stop()


@pytest.fixture
def mortal(peer, built, tmp_path, spawner_thread):
    """A server of the test's own, which may go down and come back."""
    made = peer.server(tmp_path, built)
    try:
        yield made.start()
    finally:
        made.stop()


@pytest.fixture
def expose(server, backend, serve):
    """Makes tunnels from a listener at the server to a target, ``expose(handler, port=0)``."""
    made = []

    def start(handler, port=0):
        listener = relay.listen(f"{server.url_of(backend)}&listen=127.0.0.1:{port}")
        made.append(relay.Tunnel(listener, serve(handler).factory(), timeout=None))
        return listener.address

    yield start
    for one in made:
        one.close()


def sha256_of_next(end, size):
    """The hash of the next ``size`` bytes, or of fewer if the end of file comes first."""
    seen = hashlib.sha256()
    while size and (data := end.recv(min(size, 1 << 18))):
        seen.update(data)
        size -= len(data)
    return seen.hexdigest()


def log_in(server, backend, over_ssh, login):
    rig = over_ssh(server.url_of(backend, login))
    exchange(*rig.connect())


def test_login_by_key(server, backend, over_ssh):
    log_in(server, backend, over_ssh, "key")


def test_login_by_password(server, backend, over_ssh):
    log_in(server, backend, over_ssh, "password")


@pytest.mark.parametrize("login", ["key", "password"])
def test_another_host_key_is_refused(server, backend, login, tmp_path):
    wrong = make_key(tmp_path / "wrong")
    (tmp_path / "known_hosts").write_text(f"[127.0.0.1]:{server.port} {wrong}\n")
    with pytest.raises(relay.HostKeyError):
        relay.connect("127.0.0.1:1", via=[server.url_of(backend, login, known_hosts=tmp_path / "known_hosts")])


def test_64_mib_each_way(server, backend, over_ssh):
    """One direction after the other: dropbear hardly reads while it has much to write."""
    rig = over_ssh(server.url_of(backend))
    client, far = rig.connect()
    data = BLOCK * MUCH
    for sender, receiver in ((client, far), (far, client)):
        sending = Thread(send_all, sender, data)
        assert sha256_of_next(receiver, len(data)) == hashlib.sha256(data).hexdigest()
        sending.result()
    far.close()
    client.close()
    assert ended(rig.tunnel) == ["done"]


def test_100_streams(server, backend, over_ssh):
    rig = over_ssh(server.url_of(backend))
    clients = [rig.client() for _ in range(100)]
    for number, client in enumerate(clients):
        client.sendall(b"%03d" % number)
    fars = {receive_exactly(far, 3): far for far in (rig.accept() for _ in clients)}
    for number, client in enumerate(clients):
        exchange(client, fars[b"%03d" % number])
    for end in (*fars.values(), *clients):
        end.close()
    assert ended(rig.tunnel, 100) == ["done"] * 100


def test_half_close(peer, server, backend, over_ssh):
    rig = over_ssh(server.url_of(backend))
    client, far = rig.connect()
    send_and_end(client, b"question")
    assert receive_exactly(far, 8) == b"question"
    if peer.supports("half-close"):
        assert far.recv(1) == b""
    else:
        exchange(*rig.connect())  # the server has seen by then what it ignores
        far.setblocking(False)
        with pytest.raises(BlockingIOError):
            far.recv(1)
        far.settimeout(WAIT)
    send_and_end(far, b"answer")
    assert receive_all(client) == b"answer"


def test_target_ends_first(peer, server, backend, over_ssh):
    rig = over_ssh(server.url_of(backend))
    client, far = rig.connect()
    exchange(client, far)
    send_and_end(far, b"answer")
    assert receive_all(client) == b"answer"
    if peer.supports("target ends first"):
        send_and_end(client, BLOCK)
        assert receive_all(far) == BLOCK
    else:
        assert receive_all(far) == b""  # although the client has not ended


def test_refused_target(peer, server, backend, caplog):
    with refusing() as address:
        target = relay.target("{}:{}".format(*address), via=[server.url_of(backend)])
        with relay.Tunnel(relay.listen(":0"), target) as tunnel:
            fate = fate_of_client(tunnel.address)
            (reason,) = ended(tunnel)
    if peer.supports("refused target"):
        assert (fate, reason in ("refused", "unreachable")) == ("reset", True)
        assert "{}:{}".format(*address) in caplog.text
    else:
        assert (fate, reason) == ("end of file", "done")


def test_expose(server, expose, reserved):
    """A hundred at once."""
    address = expose(lambda connection: connection.sendall(receive_exactly(connection, 3)[::-1]), reserved)
    assert address == ("127.0.0.1", reserved)
    clients = [socket.create_connection(address, WAIT) for _ in range(100)]
    try:
        for number, client in enumerate(clients):
            client.sendall(b"%03d" % number)
        answers = [receive_all(client)[::-1] for client in clients]
        assert answers == [b"%03d" % number for number in range(100)]
    finally:
        for client in clients:
            client.close()


def test_expose_any_port(peer, backend, expose, caplog):
    """Conch announces its streams for port 0, of which the OpenSSH client takes none."""
    with socket.create_connection(expose(lambda connection: connection.sendall(b"hello")), WAIT) as client:
        if peer.supports("expose: any port") or backend == "paramiko":
            assert receive_all(client) == b"hello"
        else:
            assert receive_all(client) == b""
            wait_until(lambda: "ssh says: Server requests forwarding for unknown listen_port 0" in caplog.text)


def test_expose_half_close(peer, expose, reserved):
    questions = []

    def answer(connection):
        questions.append(receive_all(connection))
        connection.sendall(b"answer")

    with socket.create_connection(expose(answer, reserved), WAIT) as client:
        send_and_end(client, b"question")
        assert receive_all(client) == (b"answer" if peer.supports("expose: half-close") else b"")
        wait_until(lambda: questions == [b"question"])


def test_restart(mortal, backend, over_ssh, monkeypatch):
    """The open stream is reset, the port stays open, and a client that came meanwhile is served."""
    monkeypatch.setattr("relay.carriers.retry._BACKOFF", (0.05, 1.0))
    monkeypatch.setattr("relay.carriers.retry._MAX_BACKOFF_WITH_WAITERS", 0.1)
    rig = over_ssh(mortal.url_of(backend), connect_timeout=PATIENT)
    client, far = rig.connect()
    exchange(client, far)
    mortal.kill()
    assert ending(client) == "reset"
    assert ended(rig.tunnel) == ["carrier_lost"]
    rig.wait_for_loss()
    waiting = rig.client()
    mortal.start()
    exchange(waiting, rig.accept())


def test_the_table_of_the_documentation_says_what_is_tested():
    assert "\n\n" + "\n".join(foreign_ssh.table()) + "\n\n" in PAGES["ssh"]


def test_every_column_of_the_table_has_a_test():
    tests = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {re.sub(r"\W+", "_", column).lower() for column in COLUMNS} <= tests


def test_every_limit_is_in_a_column():
    assert {limit for peer in PEERS.values() for limit in peer.limits} <= set(COLUMNS)
