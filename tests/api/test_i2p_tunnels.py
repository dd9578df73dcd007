"""``TunnelServer`` and ``TunnelClient``: their arguments, their properties, and what they raise."""

import base64
import inspect
import socket
import threading

import pytest
from helpers import WAIT, closed, exchange, wait_until
from sam_rig import DEST, KEY, ScriptedBridge

import relay
from relay.access.proxy_header import DESTINATION, HeaderReader
from relay.addresses.destinations import b32_of
from relay.testing import SAMBridge

NAME = "name.i2p"


@pytest.fixture
def bridge():
    made = ScriptedBridge()
    made.sam = made.name
    yield made
    made.close()


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch, times):
    """The directory for the keys of sessions."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    # these bridges do not remember old sessions
    times(remembered=(0.1, 0.1))
    return tmp_path / "data" / "relay" / "i2p"


@pytest.fixture
def router():
    yield from closed(SAMBridge())


def make_server(bridge, session="", port=80, **options):
    return relay.TunnelServer(session, port, bridge.sam, **options)


def make_client(bridge, session="", port=0, dest=NAME, **options):
    return relay.TunnelClient(session, port, dest, bridge.sam, **options)


def test_the_originals_order_and_defaults_are_kept():
    server = inspect.signature(relay.TunnelServer)
    client = inspect.signature(relay.TunnelClient)
    assert str(server).startswith(
        "(session: 'str', port: 'int', samaddr: 'str | Sequence[str]' = '127.0.0.1:7656', "
        "nconnect: 'int' = -1, "
        "timeout: 'float | None' = None, *, "
    )
    assert str(client).startswith(
        "(session: 'str', port: 'int', dest: 'str', samaddr: 'str | Sequence[str]' = '127.0.0.1:7656', "
        "nconnect: 'int' = -1, "
        "timeout: 'float | None' = None, *, "
    )
    for signature in (server, client):
        defaults = {name: one.default for name, one in signature.parameters.items()}
        assert (defaults["linger"], defaults["connect_timeout"]) == (5.0, 90.0)
    assert issubclass(relay.TunnelServer, relay.Tunnel)
    assert issubclass(relay.TunnelClient, relay.Tunnel)


# The client.


def test_a_client_leads_to_the_destination(bridge):
    with make_client(bridge, "me", dest=DEST) as tunnel, socket.create_connection(tunnel.address) as client:
        client.settimeout(WAIT)
        exchange(client, bridge.stream())
        assert tunnel.address[0] == "127.0.0.1"
        assert (tunnel.dest, tunnel.b32) == (KEY.destination, KEY.b32)
        assert (tunnel.remotedest, tunnel.session, tunnel.state) == (DEST, "me", "up")
        assert tunnel.connections()[0].target == f"i2p://{b32_of(DEST)}"
        assert repr(tunnel).startswith("<TunnelClient 'me' at 127.0.0.1:")
    assert (tunnel.dest, tunnel.remotedest, tunnel.state) == (KEY.destination, DEST, "closed")


def test_a_client_has_warm_streams(bridge):
    with make_client(bridge, dest=DEST, warm=1, warm_for=60) as tunnel:
        wait_until(lambda: (warm := tunnel.metrics().warm) is not None and warm.ready == 1)
        far = bridge.stream()
        with socket.create_connection(tunnel.address) as client:
            client.settimeout(WAIT)
            exchange(client, far)
        assert tunnel.stats().warm_hits == 1


def test_a_client_calls_on_end(bridge):
    seen = []
    with make_client(bridge, dest=DEST, on_end=seen.append, linger=0.1) as tunnel:
        with socket.create_connection(tunnel.address) as client:
            client.settimeout(WAIT)
            exchange(client, bridge.stream())
        wait_until(lambda: tunnel.recent())
    assert seen == tunnel.recent()


def test_a_client_of_a_name_looks_it_up_when_it_is_asked(bridge):
    bridge.names[NAME] = DEST
    with make_client(bridge) as tunnel:
        assert not [line for line in bridge.asked if line.startswith("NAMING")]
        assert tunnel.remotedest == DEST
        assert tunnel.remotedest == DEST
    assert len([line for line in bridge.asked if line.startswith("NAMING")]) == 1
    assert tunnel.remotedest == DEST


def test_a_client_of_a_name_that_nobody_knows_says_so_when_it_is_asked(bridge):
    with make_client(bridge) as tunnel:
        with pytest.raises(relay.ConnectError, match="^name.i2p: the router does not know this name") as failure:
            _ = tunnel.remotedest
        assert failure.value.reason == "unreachable"
        bridge.names[NAME] = DEST
        assert tunnel.remotedest == DEST


def test_a_closed_client_asks_no_more(bridge):
    with make_client(bridge) as tunnel:
        pass
    with pytest.raises(relay.ConnectError, match="closed before the name was looked up"):
        _ = tunnel.remotedest
    assert tunnel.state == "closed"


def test_a_client_gets_a_new_destination_after_a_loss_and_says_so(bridge):
    states = []
    with make_client(bridge, on_state=states.append) as tunnel:
        wait_until(lambda: "up" in states)
        bridge.controls[0].socket.shutdown(socket.SHUT_RDWR)
        wait_until(lambda: states.count("up") == 2)
        assert tunnel.dest == KEY.destination
    assert states[-4:] == ["backing off", "connecting", "up", "closed"]


def test_a_client_knows_its_last_destination_although_nobody_asked_before_the_loss(bridge):
    states = []
    with make_client(bridge, on_state=states.append) as tunnel:
        bridge.close()
        wait_until(lambda: "backing off" in states)
        assert (tunnel.dest, tunnel.b32) == (KEY.destination, KEY.b32)


def test_a_closed_client_knows_its_destination_although_nobody_asked_before(bridge):
    with make_client(bridge, dest=DEST), make_client(bridge, dest=DEST) as sharing:
        pass
    assert (sharing.dest, sharing.b32) == (KEY.destination, KEY.b32)


def test_a_client_blocks_until_it_is_ready(bridge):
    made = threading.Event()
    go_on = threading.Event()

    def create(end):
        made.set()
        go_on.wait(WAIT)
        bridge.create(end)

    bridge.answers.append(create)
    tunnels = []
    thread = threading.Thread(target=lambda: tunnels.append(make_client(bridge)))
    thread.start()
    assert made.wait(WAIT)
    thread.join(0.1)
    assert thread.is_alive()
    go_on.set()
    thread.join(WAIT)
    tunnels[0].close()


# The server.


def test_a_server_publishes_a_local_service(router, listener):
    with (
        make_server(router, port=listener.getsockname()[1]) as server,
        make_client(router, dest=server.b32, port=0) as tunnel,
        socket.create_connection(tunnel.address, timeout=WAIT) as client,
    ):
        service, _ = listener.accept()
        with service:
            service.settimeout(WAIT)
            exchange(client, service)
            record = server.connections()[0]
            assert (record.peer, record.peer.b32) == (tunnel.dest, tunnel.b32)
            assert record.target == "{}:{}".format(*listener.getsockname())
        assert tunnel.remotedest == server.dest
        assert server.b32 == server.address == b32_of(server.dest)
        assert server.session == ""
        assert f"at {server.b32}" in repr(server)
    assert (b32_of(server.dest), server.state) == (server.b32, "closed")


def test_a_server_is_published_once_it_can_be_reached(router):
    states = []
    with make_server(router, on_state=states.append) as server:
        assert server.wait_published(WAIT)
        assert server.state == "published"
    assert not server.wait_published(WAIT)
    assert [state for state in states if state != "connecting"] == ["up", "published", "closed"]


def test_a_servers_name_has_keys_in_the_users_data_directory(router, home):
    with make_server(router, "web") as first:
        assert first.session == "web"
        assert (home / "web.dat").stat().st_mode & 0o777 == 0o600
        with pytest.raises(relay.SAMError, match=r"web\.dat: the key is in use by another session"):
            make_server(router, "web")
    with make_server(router, "web") as second, make_server(router, "other") as other:
        assert second.dest == first.dest != other.dest


# What they raise, and that nothing is left then: the fixture of all tests looks.

WRONG = [
    ({"session": 3}, TypeError, "^session: expected a str"),
    ({"port": "80"}, TypeError, "^port: expected an int"),
    ({"port": 70000}, ValueError, "^port: 70000 is out of range"),
    ({"linger": float("nan")}, ValueError, "^linger: "),
    ({"depth": 3}, TypeError, "^depth: unexpected keyword argument"),
    ({"in_depth": 9}, ValueError, "^in_depth: 9 is out of range"),
    ({"send_proxy": "v3"}, ValueError, "^send_proxy: expected v1 or v2, got 'v3'"),
    ({"limit": [{"per": "ip"}]}, ValueError, "^limit: there is nothing to limit"),
    ({"via": ["tcp://h:1"]}, ValueError, "^hop 'tcp://h:1': tcp:// is a target, not a hop"),
    ({"password": "hunter2"}, ValueError, "^password: no user is given"),
]
WRONG_SERVER = [
    *WRONG,
    ({"port": 0}, ValueError, "^port: 0 is out of range; a port is a number from 1"),
    ({"host": ""}, ValueError, "^host: "),
    ({"accept": "both"}, ValueError, "^accept: must be accept or forward, got 'both'"),
    ({"allow": "nowhere"}, ValueError, "^allow: 'nowhere' is neither a rule nor a file"),
    ({"deny": [NAME]}, ValueError, "^deny: .*a name may be reassigned"),
]
WRONG_CLIENT = [
    *WRONG,
    ({"dest": "name"}, ValueError, "^dest: this has 4 characters"),
    ({"dest": 3}, TypeError, "^dest: expected a str"),
    ({"host": "h"}, TypeError, "^host: unexpected keyword argument"),
]


@pytest.mark.parametrize(
    ("make", "given", "error", "said"),
    [(make_server, *one) for one in WRONG_SERVER] + [(make_client, *one) for one in WRONG_CLIENT],
    ids=lambda value: value.__name__ if callable(value) else str(value),
)
def test_what_is_wrong_is_told_before_anything_is_opened(bridge, home, make, given, error, said):
    with pytest.raises(error, match=said) as failure:
        make(bridge, **given)
    assert "hunter2" not in str(failure.value)
    assert bridge.hellos == []
    assert not home.exists()


def test_a_bridge_that_is_named_wrongly_is_told_at_once():
    for make in (lambda sam: relay.TunnelServer("", 80, sam), lambda sam: relay.TunnelClient("", 0, NAME, sam)):
        with pytest.raises(relay.AddressError, match="^sam 'h': no port"):
            make("h")
        with pytest.raises(TypeError, match="^sam: expected a str such as"):
            make(("127.0.0.1", 7656))


def test_a_service_sees_an_address_for_each_destination(router, listener):
    port = listener.getsockname()[1]
    with (
        make_server(router, port=port, source="peer") as server,
        make_client(router, "one", dest=server.b32) as one,
        make_client(router, "other", dest=server.b32) as other,
    ):
        seen = []
        for tunnel in (one, other):
            with socket.create_connection(tunnel.address) as client, listener.accept()[0] as far:
                client.settimeout(WAIT)
                exchange(client, far)
                seen.append(far.getpeername()[0])
    # 127 and the first bytes of the hash, as i2pd has it.
    digests = [base64.b32decode(tunnel.b32.partition(".")[0].upper() + "====") for tunnel in (one, other)]
    assert seen == ["127.{}.{}.{}".format(*digest) for digest in digests]


def test_a_service_and_a_destination_get_the_client_in_a_header(router, listener):
    with (
        make_server(router, port=listener.getsockname()[1], send_proxy="v2") as server,
        make_client(router, dest=server.b32, send_proxy="v1") as tunnel,
        socket.create_connection(tunnel.address) as client,
        listener.accept()[0] as far,
    ):
        far.settimeout(WAIT)
        reader = HeaderReader()
        while reader.header is None:
            seen = far.recv(4096, socket.MSG_PEEK)
            assert seen
            far.recv(reader.feed(seen))
        assert (reader.header.is_local, reader.header.text(DESTINATION)) == (True, tunnel.b32)
        own, relays = client.getsockname(), tunnel.address
        header = f"PROXY TCP4 {own[0]} {relays[0]} {own[1]} {relays[1]}\r\n".encode()
        assert far.recv(len(header), socket.MSG_WAITALL) == header
        client.settimeout(WAIT)
        exchange(client, far)


@pytest.mark.parametrize("answer", [False, relay.Limit(name="none", quota="1B/day")], ids=["no", "limit"])
def test_a_service_decides_about_each_destination(router, listener, answer):
    seen = []

    def admit(identity):
        seen.append(identity.destination)
        return answer

    with (
        make_server(router, port=listener.getsockname()[1], admit=admit) as server,
        make_client(router, dest=server.b32) as tunnel,
        socket.create_connection(tunnel.address) as client,
    ):
        client.sendall(b"too much")
        rule = ("denied", "admit") if answer is False else ("quota", "limit none")
        wait_until(lambda: [(record.reason, record.rule) for record in server.recent()] == [rule])
        assert seen == [tunnel.b32]


def test_where_the_port_is_taken(bridge, listener):
    with pytest.raises(OSError, match="another program listens there"):
        make_client(bridge, port=listener.getsockname()[1])
    assert bridge.hellos == []
