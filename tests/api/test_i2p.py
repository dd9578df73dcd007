"""The way out to I2P: what each argument does, and how the bridge is reached."""

import http.client
import socket

import pytest
from helpers import WAIT, Thread, closed, exchange, receive_exactly
from sam_rig import DEST, KEY, ScriptedBridge

import relay
from relay.addresses.destinations import b32_of
from relay.testing import SAMBridge

DEPTHS = {"in_depth": 0, "out_depth": 2}
NAME = "name.i2p"


@pytest.fixture
def bridge():
    yield from closed(ScriptedBridge())


def created(bridge):
    """The requests for sessions."""
    return [line for line in bridge.asked if line.startswith("SESSION CREATE")]


def answer_stream(bridge, client):
    """Prove that a stream of relay leads to the bridge's."""
    client.setblocking(True)
    client.settimeout(WAIT)
    exchange(client, bridge.stream())


def test_nothing_is_opened_before_the_first_call(bridge):
    factory = relay.i2p(DEST, sam=bridge.name)
    assert (bridge.hellos, factory.state, factory.dest) == ([], "closed", "")
    with factory:
        factory.ready(WAIT)
        assert (factory.state, factory.dest) == ("up", KEY.destination)
    assert factory.state == "closed"


def test_a_tunnel_may_start_before_its_router():
    """Its clients wait, and each attempt says that a retry can fix it."""
    with SAMBridge() as bridge, relay.i2p_listen(sam=bridge.sam) as there:
        late = SAMBridge(network=bridge)
        late.kill()
        factory = relay.i2p(there.dest, sam=late.sam)
        with relay.Tunnel(relay.listen(":0"), factory, timeout=None, connect_timeout=WAIT) as tunnel:
            with pytest.raises(relay.ConnectError, match="no SAM bridge there"):
                factory.ready(WAIT)
            with socket.create_connection(tunnel.address, WAIT) as client:
                late.restart()
                far, _ = there.accept()
                with far:
                    far.socket.setblocking(True)
                    exchange(client, far.socket)
        late.close()


def test_the_arguments_reach_the_bridge(bridge):
    options = {"inbound.quantity": 2, "i2cp.dontPublishLeaseSet": True}
    login = {"user": "me", "password": "p w"}
    with relay.i2p(DEST, port=81, sam=bridge.name, session="my site", **login, **DEPTHS, **options) as factory:
        with factory() as stream:
            answer_stream(bridge, stream.socket)
    [hello, *_] = bridge.hellos
    assert hello.endswith(' USER=me PASSWORD="p w"')
    [session] = created(bridge)
    for option in (
        "DESTINATION=TRANSIENT",
        "inbound.length=0",
        "outbound.length=2",
        "inbound.quantity=2",
        "i2cp.dontPublishLeaseSet=true",
        "inbound.nickname=my_site",
    ):
        assert f" {option}" in session
    [connect] = [line for line in bridge.asked if line.startswith("STREAM CONNECT")]
    assert f" DESTINATION={DEST} " in connect
    assert connect.endswith(" TO_PORT=81")


def test_a_file_of_keys_is_made_and_used(bridge, tmp_path):
    keys = tmp_path / "me.dat"
    with relay.i2p(DEST, sam=bridge.name, keys=keys) as factory:
        factory.ready(WAIT)
    assert keys.stat().st_mode & 0o777 == 0o600
    assert "DESTINATION=TRANSIENT" not in created(bridge)[0]


def test_a_password_may_be_in_a_file(bridge, tmp_path):
    file = tmp_path / "password"
    file.touch(0o600)
    file.write_text("hunter2\n")
    with relay.i2p(DEST, sam=bridge.name, user="me", password_file=file) as factory:
        factory.ready(WAIT)
    assert bridge.hellos[0].endswith(" USER=me PASSWORD=hunter2")


def test_who_asks_for_the_same_shares_a_session(bridge):
    same = [relay.i2p(DEST, sam=bridge.name), relay.i2p(NAME, port=5, sam=f"tcp://{bridge.name}", session="")]
    others = [relay.i2p(DEST, sam=bridge.name, session="other"), relay.i2p(DEST, sam=bridge.name, in_depth=1)]
    for factory in (*same, *others):
        factory.ready(WAIT)
    assert len(created(bridge)) == 3
    for factory in (*same, *others):
        factory.close()


BAD = [
    ({"dest": "x"}, ValueError, "^dest: this has 1 characters and does not end in .i2p"),
    ({"sam": "h"}, ValueError, "^sam 'h': no port"),
    ({"sam": "tls://h:1?ca=/nowhere"}, OSError, "/nowhere"),
    ({"keys": 3}, TypeError, "^keys: "),
    ({"password": "x"}, ValueError, "^password: no user is given"),
    ({"depth": 1}, TypeError, "^depth: unexpected keyword argument"),
    ({"via": "ssh://h"}, TypeError, "^via: expected a list of addresses"),
    ({"via": ["i2p:"]}, ValueError, "127.0.0.1:7656: what follows i2p: has a name in .i2p; the hop i2p:"),
]


@pytest.mark.parametrize(("given", "error", "said"), BAD, ids=str)
def test_what_is_wrong_is_told_at_the_call(given, error, said):
    given = {"dest": NAME, **given}
    with pytest.raises(error, match=said):
        relay.i2p(given.pop("dest"), **given)


def test_the_bridge_may_speak_tls(bridge, certificates):
    listen = f"tls://127.0.0.1:0?cert={certificates.cert}&key={certificates.key}"
    with relay.Tunnel(relay.listen(listen), relay.tcp(*bridge.address)) as before:
        sam = f"tls://localhost:{before.address[1]}?ca={certificates.ca}"
        with relay.i2p(DEST, sam=sam) as factory, factory() as stream:
            answer_stream(bridge, stream.socket)
        with relay.connect(f"i2p://{NAME}?sam={sam}", timeout=WAIT) as connected:
            answer_stream(bridge, connected)


@pytest.mark.parametrize("scheme", ["", "i2p://"])
@pytest.mark.parametrize("dest", [NAME, b32_of(DEST), DEST], ids=["name", "b32", "base64"])
def test_every_form_of_an_address_leads_there(bridge, scheme, dest):
    scheme = scheme if dest.endswith(".i2p") else "i2p://"  # only a name shows what it is
    with relay.connect(f"{scheme}{dest}:81?sam={bridge.name}", timeout=WAIT) as connected:
        assert type(connected) is socket.socket
        answer_stream(bridge, connected)
    [connect] = [line for line in bridge.asked if line.startswith("STREAM CONNECT")]
    assert f" DESTINATION={dest} " in connect


def test_a_unix_socket_leads_there(bridge):
    with relay.local(f"i2p://{NAME}?sam={bridge.name}") as path:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            answer_stream(bridge, client)


def test_a_child_process_leads_there(bridge, spawner_thread):
    with relay.spawn(":0", f"{NAME}?sam={bridge.name}") as child:
        with socket.create_connection(child.address, timeout=WAIT) as client:
            answer_stream(bridge, client)


def test_a_tunnel_takes_it(bridge):
    with relay.Tunnel(relay.listen(":0"), relay.i2p(NAME, sam=bridge.name)) as tunnel:
        client = http.client.HTTPConnection(*tunnel.address, timeout=WAIT)
        asking = Thread(client.request, "GET", "/")
        far = bridge.stream()
        assert receive_exactly(far, 5) == b"GET /"
        far.sendall(b"HTTP/1.0 200 OK\r\n\r\nhello")
        asking.result()
        far.close()
        assert client.getresponse().read() == b"hello"
        client.close()
