"""``relay.engine.tunnel`` and ``relay.engine.paused_tunnel`` step by step: what is checked, and who gets it."""

from __future__ import annotations

import socket
from types import SimpleNamespace

import pytest

import relay
from relay.access.proxy_header import build_local
from relay.access.senders import parse_senders
from relay.engine import paused_tunnel, warm_pool
from relay.engine import tunnel as module
from relay.engine.paused_tunnel import PausedTunnel
from relay.engine.tunnel import Tunnel, address_of, check_reads_headers, check_streams, introduce_probes
from relay.streams import peer_source
from relay.streams.dialer import Dialer
from relay.streams.proxy_handshake import HandshakeListener
from relay.streams.upgrade_listener import UpgradeListener

NOW = 1234.5


class Thread:
    """A relay thread that notes its calls."""

    made: list[Thread]
    count, state = 3, "open"

    def __init__(self, *given):
        self.given, self.calls = given, []
        Thread.made.append(self)

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)

        def call(*arguments):
            self.calls.append((name, *arguments))
            return f"the {name}"

        return call


def listener(**more):
    return SimpleNamespace(accept=print, close=print, **more)


def factory():
    """Make a stream."""


@pytest.fixture
def checks(monkeypatch):
    """Notes what is checked, and with what."""
    Thread.made = []
    found = {}
    monkeypatch.setattr(module, "RelayThread", Thread)
    names = ("check_listener", "check_warm", "check_reads_headers", "check_streams", "introduce_probes")
    for name in (*names, "check_callback", "check_count"):
        monkeypatch.setattr(module, name, note(found, name))
    monkeypatch.setattr(module, "check_policy", lambda **given: found.__setitem__("policy", given) or "the policy")
    monkeypatch.setattr(warm_pool, "check_factory", note(found, "check_factory"))
    return found


def note(found, name):
    return lambda *given: found.__setitem__(name, given)


def test_all_is_checked_and_the_thread_gets_it(checks):
    receive = listener(address="here")
    tunnel = Tunnel(
        receive,
        factory,
        8,
        50,
        connect_timeout=20,
        idle_timeout=30,
        linger=0,
        warm=4,
        warm_for=15.0,
        source="a source",
        limit="a limit",
        accept_proxy="senders",
        send_proxy="v2",
        name="it",
        allow="some",
        deny="others",
        admit="asked",
        on_end=print,
    )
    (thread,) = Thread.made
    got, make, count, limits, name, on_end, policy = thread.given
    assert (got, make, count, name, on_end, policy) == (receive, factory, 8, "it", print, "the policy")
    assert (limits.lifetime, limits.connect, limits.idle, limits.linger) == (50.0, 20.0, 30.0, 0.0)
    assert checks.pop("policy") == {
        "allow": "some",
        "deny": "others",
        "admit": "asked",
        "limit": "a limit",
        "source": "a source",
        "accept_proxy": "senders",
        "send_proxy": "v2",
    }
    assert checks == {
        "check_listener": (receive,),
        "check_warm": (4, 15.0),
        "check_reads_headers": (receive, "the policy"),
        "check_factory": (factory,),
        "check_streams": (factory, "a source", "v2", 4),
        "introduce_probes": (factory, "v2"),
        "check_callback": (print,),
        "check_count": (8,),
    }
    assert thread.calls == [("keep_warm", 4, 15.0)]
    assert (tunnel.name, tunnel.address) == ("it", "here")
    assert repr(tunnel) == "<Tunnel 'it' at here, 3 connections, open>"


def test_what_it_is_without_options(checks):
    first, second = Tunnel(listener(), factory), Tunnel(listener(), factory)
    _, _, count, limits, name, on_end, _ = Thread.made[0].given
    assert (count, on_end) == (-1, None)
    assert (limits.lifetime, limits.connect, limits.idle, limits.linger) == (60.0, 30.0, None, 60.0)
    assert set(checks.pop("policy").values()) == {None}
    assert checks["check_warm"] == (0, 30.0)
    assert "check_factory" not in checks
    assert Thread.made[0].calls == []
    number = int(name.removeprefix("relay tunnel "))
    assert (first.name, second.name) == (f"relay tunnel {number}", f"relay tunnel {number + 1}")


@pytest.mark.parametrize(
    ("option", "value", "text"),
    [
        ("timeout", 0, "^timeout: "),
        ("connect_timeout", 0, "^connect_timeout: "),
        ("idle_timeout", 0, "^idle_timeout: "),
        ("linger", -1, "^linger: "),
    ],
)
def test_a_time_that_cannot_be(checks, option, value, text):
    with pytest.raises(ValueError, match=text):
        Tunnel(listener(), factory, **{option: value})
    assert Thread.made == []


def test_a_name_that_is_no_text(checks):
    with pytest.raises(TypeError, match="^name: expected text, got int$"):
        Tunnel(listener(), factory, name=5)
    assert Tunnel(listener(), factory, name="").name.startswith("relay tunnel ")


def test_its_members_are_those_of_the_thread(checks):
    tunnel = Tunnel(listener(), factory)
    (thread,) = Thread.made
    assert tunnel.connections() == "the connections"
    assert tunnel.recent() == "the recent"
    assert tunnel.stats() == "the stats"
    assert tunnel.metrics() == "the metrics"
    assert tunnel.kill("an id") == "the kill"
    assert tunnel.ping(print) == "the ping"
    tunnel.pause()
    tunnel.pause(True)
    tunnel.resume()
    tunnel.close(5)
    tunnel.join()
    tunnel.join(2.0)
    with tunnel as entered:
        assert entered is tunnel
    assert thread.calls[4:] == [
        ("kill", "an id"),
        ("ping", print),
        ("pause", False),
        ("pause", True),
        ("resume",),
        ("close", 5.0),
        ("join", None),
        ("join", 2.0),
        ("close", 0.0),
    ]
    with pytest.raises(ValueError, match="^drain: "):
        tunnel.close(-1)


# -- factories -----------------------------------------------------------------------------------------------------


async def coroutine():
    """Make a stream, some time."""


async def generator():
    yield


class Later:
    """A factory whose call is a coroutine function."""

    async def __call__(self):
        """Make a stream, some time."""


@pytest.mark.parametrize("wrong", [coroutine, generator, Later()])
def test_a_factory_must_not_be_a_coroutine_function(checks, wrong):
    text = "^make_send: a coroutine function cannot be called from a thread; give a plain callable$"
    with pytest.raises(TypeError, match=text):
        Tunnel(listener(), wrong)


def test_a_factory_must_be_callable(checks):
    with pytest.raises(TypeError, match="^make_send: expected a callable, got int$"):
        Tunnel(listener(), 5)


class Dialing(Dialer):
    """A dialer, whose handshake may begin with a header."""

    introduces, alternatives = True, ()

    def introduce_probes(self, header):
        self.header = header


def test_streams_from_a_source(monkeypatch):
    found = {}
    monkeypatch.setattr(peer_source, "check_source", note(found, "source"))
    check_streams(factory, None, None, 0)
    assert found == {}
    check_streams(factory, "127.0.0.2", None, 4)
    assert found == {"source": ("127.0.0.2", factory, 4)}


def test_a_header_that_goes_before_a_handshake_and_streams_that_wait():
    dialer = Dialing("db:5432")
    text = (
        "^warm: the header of send_proxy goes before the TLS handshake, so that no stream can be opened before its "
        "client is there; set warm to 0$"
    )
    with pytest.raises(ValueError, match=text):
        check_streams(dialer, None, "v1", 1)
    check_streams(dialer, None, None, 1)
    check_streams(dialer, None, "v1", 0)
    check_streams(factory, None, "v1", 1)
    dialer.introduces = False
    check_streams(dialer, None, "v1", 1)


def test_probes_of_several_targets_begin_with_a_header_too():
    dialer = Dialing("db:5432")
    introduce_probes(dialer, "v1")
    assert not hasattr(dialer, "header")
    dialer.alternatives = ("another",)
    for version in ("v1", "v2"):
        introduce_probes(dialer, version)
        assert dialer.header == build_local(version)
    introduce_probes(dialer, None)
    assert dialer.header == b""
    introduce_probes(SimpleNamespace(alternatives=("another",)), "v2")


# -- listeners -----------------------------------------------------------------------------------------------------


class Senders:
    """Senders that note what is checked."""

    def __init__(self):
        self.calls = []

    def check(self, **given):
        self.calls.append(given)


class Upgrading(UpgradeListener):
    """A listener whose clients shake hands."""

    listening = None

    def __init__(self, listening):
        self.listening = listening


class Shaking(HandshakeListener):
    """A listener of proxy clients."""

    def __init__(self, listening):
        self.listening = listening


@pytest.mark.parametrize("wrap", [lambda plain: plain, Upgrading, Shaking])
def test_the_senders_must_fit_the_listener(wrap):
    policy = SimpleNamespace(accept_proxy=(senders := Senders()))
    with socket.create_server(("127.0.0.1", 0)) as plain, socket.socket(socket.AF_UNIX) as unix:
        check_reads_headers(wrap(plain), policy)
        check_reads_headers(wrap(unix), policy)
    assert senders.calls == [{"is_unix": False, "host": "127.0.0.1"}, {"is_unix": True, "host": ""}]


def test_a_listener_without_headers():
    check_reads_headers(listener(), SimpleNamespace(accept_proxy=None))
    with pytest.raises(ValueError, match=f"^accept_proxy: {module.NO_HEADERS}$"):
        check_reads_headers(listener(), SimpleNamespace(accept_proxy=parse_senders(["127.0.0.1"])))


def test_the_address_of_a_listener():
    assert address_of(SimpleNamespace(getsockname=lambda: "a name", address="an address")) == "a name"
    assert address_of(SimpleNamespace(getsockname="no call", address="an address")) == "an address"
    assert address_of(object()) is None


# -- a tunnel that is paused at first ------------------------------------------------------------------------------


def test_a_paused_tunnel_has_a_thread_of_its_own(monkeypatch):
    monkeypatch.setattr(paused_tunnel, "_PausedRelayThread", lambda *given: ("paused", *given))
    assert PausedTunnel._start(None, 1, 2) == ("paused", 1, 2)


@pytest.mark.parametrize("upgrades", [True, False])
def test_it_accepts_no_client_yet(monkeypatch, upgrades):
    delivered, paused = [], []
    receive = Upgrading(None) if upgrades else object()
    monkeypatch.setattr(Upgrading, "deliver", lambda self, *given: delivered.append(given))
    thread = paused_tunnel._PausedRelayThread.__new__(paused_tunnel._PausedRelayThread)
    thread._receive, thread.workspace = receive, "the workspace"
    monkeypatch.setattr(thread, "_pause", lambda close: paused.append(close))
    thread.on_start(NOW)
    assert paused == [False]
    assert delivered == ([(None, "the workspace")] if upgrades else [])


def test_it_is_a_tunnel():
    assert issubclass(PausedTunnel, relay.Tunnel)
