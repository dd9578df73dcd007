"""``tor:`` by a real tor in a network of the test's own: names, circuits, ends, reasons, and onion services."""

import base64
import contextlib
import hashlib
import re
import socket

import pytest
from command_rig import commands
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from helpers import WAIT, Thread, echo, receive_all, receive_exactly, send_and_end, wait_until
from tor_network import LOOPBACK, NAME, SLOW, tor_network

import relay

pytestmark = pytest.mark.timeout(300)  # the network takes a while to come up


@pytest.fixture(scope="module")
def network(tmp_path_factory, spawner_thread):
    with tor_network(tmp_path_factory.mktemp("tor")) as made:
        yield made


@pytest.fixture(scope="module")
def tor(network):
    with contextlib.ExitStack() as stack:
        yield network.client(stack)


@pytest.fixture
def hop(tor):
    return tor.hop


def forwarded(address, hop, **options):
    """A tunnel to an address over tor, as the command makes it."""
    factory = relay.target(address, via=[hop])
    return relay.Tunnel(relay.listen(":0"), factory, **{"connect_timeout": 90, "linger": 5, **options})


def connected(tunnel):
    client = socket.create_connection(tunnel.address, WAIT)
    client.settimeout(SLOW)
    return client


def answer_at_the_end(connection):
    """Answer once nothing more comes for a moment, and not at EOF, which does not come before the answer."""
    assert receive_exactly(connection, 8) == b"question"
    connection.settimeout(0.5)
    with pytest.raises(TimeoutError):
        connection.recv(1)
    connection.sendall(b"answer" * 10000)


def test_a_name_is_resolved_by_tor_and_an_end_is_held_back(hop, serve, monkeypatch):
    server = serve(answer_at_the_end)
    look_up = socket.getaddrinfo

    def find(host, *arguments, **more):
        assert host != NAME, "it was looked up here"
        return look_up(host, *arguments, **more)

    monkeypatch.setattr(socket, "getaddrinfo", find)
    with forwarded(f"{NAME}:{server.address[1]}", hop) as tunnel, connected(tunnel) as client:
        send_and_end(client, b"question")
        assert receive_all(client) == b"answer" * 10000


def test_every_byte_arrives_both_ways_at_once(hop, serve):
    data = bytes(range(256)) * 4096
    with forwarded(f"{LOOPBACK}:{serve(echo).address[1]}", hop) as tunnel, connected(tunnel) as client:
        sending = Thread(client.sendall, data)
        assert receive_exactly(client, len(data)) == data
        sending.result(SLOW)


def logins(tor, ports):
    """The login that the circuit of each open stream to these ports of the loopback is for.

    tor may build more than one circuit for a login, and joins several to a set of which one has it (CONFLUX_ID).
    """
    with tor.controlled() as ask:
        streams, circuits = ask("GETINFO stream-status"), ask("GETINFO circuit-status")
    sets, of_sets = {}, {}
    for number, more in re.findall(r"^(\d+) BUILT (.*)$", circuits, re.MULTILINE):
        joined = re.search(r"CONFLUX_ID=(\w+)", more)
        sets[number] = joined[1] if joined else number
        if login := re.search(r'SOCKS_PASSWORD="([^"]+)"', more):
            of_sets[sets[number]] = login[1]
    found = {}
    for circuit, port in re.findall(r"\d+ SUCCEEDED (\d+) 127\.0\.0\.1:(\d+)", streams):
        found.setdefault(int(port), []).append(of_sets[sets[circuit]])
    return [found[port] for port in ports]


def test_each_tunnel_has_circuits_of_its_own(tor, hop, serve):
    servers = [serve(echo) for _ in range(2)]
    ports = [server.address[1] for server in servers]
    one, other = (forwarded(f"{LOOPBACK}:{port}", hop) for port in ports)
    with one, other, connected(one) as first, connected(one) as second, connected(other) as third:
        for client in (first, second, third):
            client.sendall(b"ping")
            assert receive_exactly(client, 4) == b"ping"
        of_one, of_other = logins(tor, ports)
        assert len(of_one) == 2 and len(set(of_one)) == 1, "the streams of one tunnel share circuits"
        assert set(of_one).isdisjoint(of_other)


def test_a_proxy_has_one_login_for_all_that_its_clients_want(tor, hop, serve):
    ports = [serve(echo).address[1] for _ in range(2)]
    with relay.Tunnel(relay.socks_listen(LOOPBACK, 0), relay.dynamic([hop]), connect_timeout=90) as tunnel:
        proxy = "socks5://{}:{}".format(*tunnel.address)
        with (
            relay.connect(f"{LOOPBACK}:{ports[0]}", [proxy], SLOW),
            relay.connect(f"{LOOPBACK}:{ports[1]}", [proxy], SLOW),
        ):
            (first,), (second,) = logins(tor, ports)
            assert first == second


def nowhere():
    """The address of an onion service that does not exist (rend-spec-v3, section 6)."""
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32))).public_key().public_bytes_raw()
    checksum = hashlib.sha3_256(b".onion checksum" + key + b"\3").digest()[:2]
    return base64.b32encode(key + checksum + b"\3").decode().lower() + ".onion"


@pytest.mark.parametrize(
    ("name", "said"), [(nowhere(), "finds no such onion service"), (f"{'a' * 56}.onion", "check its 56 characters")]
)
def test_the_reason_of_an_onion_service(hop, name, said):
    with pytest.raises(relay.ConnectError, match=f"^{name}:80: tor:.*{said}") as failed:
        relay.connect(f"{name}:80", [hop], SLOW)
    assert failed.value.reason == "unreachable"


# -- onion services ----------------------------------------------------------------------------------------------------


def reach(address, hop):
    """Connect to an onion service, once the directories have it."""
    made = []

    def has_connected():
        with contextlib.suppress(relay.ConnectError):
            made.append(relay.connect(address, [hop], SLOW))
        return made

    wait_until(has_connected, SLOW)
    made[0].settimeout(SLOW)
    return made[0]


def check_echo(address, hop):
    with reach(address, hop) as client:
        client.sendall(b"ping" * 1000)
        assert receive_exactly(client, 4000) == b"ping" * 1000


def publishes(tor):
    """Return whether tor has a circuit to an introduction point, as it has for each onion service."""
    with contextlib.suppress(OSError), tor.controlled() as ask:
        return "HS_SERVICE_INTRO" in ask("GETINFO circuit-status")
    return False


@contextlib.contextmanager
def exposed(place, tor, keys):
    """``relay expose --on tor``, and its first line."""
    with commands() as start:
        command = start(place, "--on", f"tor:?control={tor.control}&port=8080", "--keys", str(keys), command="expose")
        yield command, command.process.stdout.readline()


def test_expose_publishes_a_service_that_keeps_its_address(network, hop, serve, tmp_path):
    keys = tmp_path / "site.key"
    place = "{}:{}".format(*serve(echo).address)
    hosts = []
    with contextlib.ExitStack() as stack:
        tor = network.client(stack)
        for number in range(2):
            with exposed(place, tor, keys) as (command, line):
                assert re.fullmatch(rf"[a-z2-7]{{56}}\.onion:8080 → {place}\n", line), line
                hosts.append(line.partition(":")[0])
                if not number:
                    check_echo(f"{hosts[0]}:8080", hop)
                    tor.kill()
                    tor.start()
                    wait_until(lambda: publishes(tor), SLOW)
                assert command.end()[0] == 0
            wait_until(lambda: not publishes(tor), SLOW)
    assert hosts[0] == hosts[1] and keys.stat().st_mode & 0o777 == 0o600


def test_a_service_is_gone_with_a_killed_process(tor, serve, tmp_path):
    keys = tmp_path / "site.key"
    with exposed("{}:{}".format(*serve(echo).address), tor, keys) as (command, _):
        wait_until(lambda: publishes(tor), SLOW)
        command.process.kill()
        command.wait()
    wait_until(lambda: not publishes(tor), SLOW)
