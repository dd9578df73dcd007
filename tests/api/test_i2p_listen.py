"""``relay.i2p_listen`` and ``i2p:`` addresses: what each argument does, and how the bridge is reached."""

import contextlib
import queue
import time

import pytest
from helpers import WAIT, Thread, closed, exchange, receive_exactly
from listener_rig import make_prompt

import relay
from relay.addresses.destinations import PrivateKey
from relay.errors import can_retry
from relay.testing import SAMBridge
from relay.transports.i2p import inbound, messages
from relay.transports.i2p.listener import I2PListener
from relay.transports.i2p.messages import stream_connect


@pytest.fixture(autouse=True)
def prompt(monkeypatch, times, tmp_path):
    make_prompt(times)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


@pytest.fixture
def bridge():
    yield from closed(SAMBridge())


@contextlib.contextmanager
def listening(*args, **options):
    """A listener that is gone afterwards."""
    with relay.i2p_listen(*args, **options) as made:
        yield made
    assert made.state == "closed"
    made.join(WAIT)


def prove(there, sam):
    """Prove that streams come."""
    with relay.i2p(there.dest, sam=sam) as factory, factory(deadline=time.monotonic() + WAIT) as near:
        far, peer = Thread(there.accept).result()
        with far:
            assert peer == factory.dest
            near.socket.settimeout(WAIT)
            far.socket.settimeout(WAIT)
            exchange(near.socket, far.socket)


def ways(bridge):
    """Return by which commands streams were asked for."""
    return {command.words[1] for command in bridge.commands if command.words[0] == "STREAM"} - {"CONNECT"}


def test_the_arguments_reach_the_bridge(tmp_path):
    told = queue.SimpleQueue()
    path = tmp_path / "me.dat"
    with (
        SAMBridge(personality="java", user="me", password="right") as bridge,
        listening(
            "my site",
            sam=bridge.sam,
            keys=path,
            accept="accept",
            in_depth=1,
            out_depth=2,
            user="me",
            password=lambda: "right",
            on_state=told.put,
            **{"inbound.quantity": 5},
        ) as there,
    ):
        (session,) = [one.options for one in bridge.sessions if one.destination == there.dest]
        assert (session["inbound.length"], session["outbound.length"]) == ("1", "2")
        assert session["inbound.quantity"] == "5"
        assert session["inbound.nickname"] == "my_site"
        assert PrivateKey.from_bytes(path.read_bytes()).destination == there.dest
        assert there.session == "my site"
        assert ways(bridge) == {"ACCEPT"}
        assert [told.get(timeout=WAIT) for _ in range(2)] == ["up", "published"]
    assert told.get(timeout=WAIT) == "closed"


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"accept": "perhaps"}, ValueError, "^accept: must be accept or forward, got 'perhaps'"),
        ({"in_depth": 9}, ValueError, "^in_depth: 9"),
        ({"nonsense": 1}, TypeError, "^nonsense: "),
        ({"password": "p"}, ValueError, "^password: "),
        ({"allow": "nonsense"}, ValueError, "^allow: 'nonsense' is neither a rule nor a file"),
        ({"deny": ["name.i2p"]}, ValueError, r"^deny: .*\.b32\.i2p address"),
        ({"via": "ssh://h"}, TypeError, "^via: expected a list of addresses"),
        ({"sam": "nonsense"}, ValueError, "sam"),
    ],
)
def test_what_cannot_be_right_is_an_error_at_once(options, error, text):
    with pytest.raises(error, match=text):
        relay.i2p_listen(**{"sam": "127.0.0.1:1", **options})


@pytest.mark.parametrize("accept", ["accept", "forward"])
@pytest.mark.parametrize("trouble", ["no router", "no session", "no streams"])
def test_what_a_retry_can_fix_says_so_and_the_next_call_comes_up(bridge, monkeypatch, trouble, accept):
    if trouble == "no router":
        bridge.kill()
    elif trouble == "no session":
        bridge.refuse_sessions(1000, "I2P_ERROR")
    else:
        monkeypatch.setattr(inbound, f"stream_{accept}", lambda session, *_: stream_connect(session, "nobody.i2p"))
    with pytest.raises((relay.ConnectError, relay.SAMError, relay.CarrierError)) as failure:
        relay.i2p_listen("shop", sam=bridge.sam, accept=accept)
    assert can_retry(failure.value)
    bridge.refuse_sessions(0)
    if trouble == "no streams":
        monkeypatch.setattr(inbound, f"stream_{accept}", getattr(messages, f"stream_{accept}"))
    bridge.restart()
    with listening("shop", sam=bridge.sam, accept=accept) as there:
        prove(there, bridge.sam)


@pytest.mark.parametrize("trouble", ["not SAM", "a key that is no good", "a file that is none"])
def test_what_a_retry_cannot_fix_says_so(bridge, echo_server, tmp_path, trouble):
    keys = tmp_path / "me.dat"
    sam = "{}:{}".format(*echo_server.address) if trouble == "not SAM" else bridge.sam
    if trouble == "a key that is no good":
        bridge.refuse_sessions(9, "INVALID_KEY")
    elif trouble == "a file that is none":
        keys.write_bytes(b"no key")
        keys.chmod(0o600)
    with pytest.raises(relay.SAMError) as failure:
        relay.i2p_listen(sam=sam, keys=keys)
    assert not can_retry(failure.value)


def test_it_is_an_address_too(bridge, tmp_path):
    path = tmp_path / "me.dat"
    there = relay.listen(f"i2p:?sam={bridge.sam}&keys={path}&accept=accept")
    with there:
        assert isinstance(there, I2PListener)
        assert ways(bridge) == {"ACCEPT"}
        prove(there, bridge.sam)
    there.join(WAIT)


def test_the_bridge_may_be_behind_an_ssh_server(bridge, ssh_server, spawner_thread):
    with listening(sam=bridge.sam, via=[ssh_server.url]) as there:
        assert ways(bridge) == {"ACCEPT"}, "the router is elsewhere"
        assert there.wait_published(WAIT)
        prove(there, bridge.sam)
    assert ssh_server.logins == 1
    with pytest.raises(relay.SAMError, match="on this machine's loopback"):
        relay.listen(f"i2p:?sam={bridge.sam}&accept=forward", via=[ssh_server.url])


def test_the_bridge_may_be_behind_tls(bridge, certificates):
    front = relay.listen(f"tls://127.0.0.1:0?cert={certificates.cert}&key={certificates.key}")
    with relay.Tunnel(front, relay.tcp(*bridge.address), timeout=None) as tunnel:
        sam = f"tls://localhost:{tunnel.address[1]}?ca={certificates.ca}"
        with listening(sam=sam) as there:
            assert ways(bridge) == {"ACCEPT"}
            prove(there, bridge.sam)


def test_a_tunnel_in_front_of_a_service(bridge, echo_server):
    there = relay.i2p_listen(sam=bridge.sam)
    with relay.Tunnel(there, relay.tcp(*echo_server.address), timeout=None) as tunnel:
        assert tunnel.address == there.b32
        assert ways(bridge) == {"FORWARD"}
        with relay.i2p(there.dest, sam=bridge.sam) as factory, factory(deadline=time.monotonic() + WAIT) as near:
            near.socket.settimeout(WAIT)
            near.socket.sendall(b"hello")
            assert receive_exactly(near.socket, 5) == b"hello"
