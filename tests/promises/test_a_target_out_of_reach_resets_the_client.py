"""A target that is refused, unreachable or timed out resets the client: never a clean empty end, never a hang."""

import contextlib
import errno
import socket
import threading

import pytest
from helpers import WAIT, black_hole, ended, ending, fate_of_client, refusing

import relay


@contextlib.contextmanager
def tunnel(factory, **limits):
    with relay.Tunnel(relay.listen(":0"), factory, **limits) as made:
        yield made


def fate(tunnel):
    """Return how a client ends that sends a request at once."""
    return fate_of_client(tunnel.address, b"request")


def connecting(address):
    """The recipe for high performance of the original: a connect that is under way."""

    @relay.nonblocking
    def make():
        made = socket.socket()
        made.setblocking(False)
        made.connect_ex(address)
        return made

    return make


@pytest.mark.parametrize(
    "make",
    [lambda address: relay.tcp(*address), connecting, lambda address: lambda: socket.create_connection(address)],
    ids=["ours", "non-blocking", "plain callable"],
)
def test_refused(any_engine, make):
    with refusing() as address, tunnel(make(address)) as made:
        assert [fate(made) for _ in range(10)] == ["reset"] * 10
        assert ended(made, 10) == ["refused"] * 10
        assert made.stats().failed == {"refused": 10}


@pytest.mark.parametrize("make", [lambda address: relay.tcp(*address), connecting], ids=["ours", "non-blocking"])
def test_timed_out(any_engine, make):
    with black_hole() as hole, tunnel(make(hole.getsockname()), connect_timeout=0.3) as made:
        assert fate(made) == "reset"
        assert ended(made) == ["connect_timeout"]


def test_a_plain_callable_that_hangs_is_timed_out_and_its_late_stream_closed():
    release = threading.Event()
    near, far = socket.socketpair()

    def make():
        release.wait(WAIT)
        return near

    with far, tunnel(make, connect_timeout=0.3) as made:
        assert fate(made) == "reset"
        assert ended(made) == ["connect_timeout"]
        release.set()
        far.settimeout(WAIT)
        assert far.recv(1) == b""


def test_a_unix_path_that_is_missing_is_unreachable(tmp_path):
    with tunnel(relay.unix(tmp_path / "nobody")) as made:
        assert fate(made) == "reset"
        assert ended(made) == ["unreachable"]


def test_a_unix_socket_that_nobody_serves_is_refused(tmp_path):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead"))
    with tunnel(relay.unix(tmp_path / "dead")) as made:
        assert fate(made) == "reset"
        assert ended(made) == ["refused"]


def test_a_name_that_does_not_resolve_is_unreachable(monkeypatch):
    resolve = socket.getaddrinfo

    def fail(host, *args, **options):
        if host == "no.such.host.invalid":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return resolve(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with tunnel(relay.tcp("no.such.host.invalid", 80)) as made:
        assert fate(made) == "reset"
        assert ended(made) == ["unreachable"]


def test_a_tls_server_that_is_not_trusted_resets_the_client(certificates):
    with socket.create_server(("127.0.0.1", 0)) as server, tunnel(relay.tls(*server.getsockname())) as made:
        client = socket.create_connection(made.address, timeout=WAIT)
        accepted, _ = server.accept()
        with client, accepted:
            accepted.settimeout(WAIT)
            with pytest.raises(OSError):  # noqa: PT011  (an SSLError or a reset, as the client's alert comes)
                certificates.server().wrap_socket(accepted, server_side=True)
            assert ending(client) == "reset"
        assert len(ended(made)) == 1


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConnectionRefusedError(), "refused"),
        (TimeoutError(), "connect_timeout"),
        (OSError("no route"), "factory_error"),
        (OSError(errno.EHOSTUNREACH, "No route to host"), "unreachable"),
        (relay.RelayError("something"), "factory_error"),
        (socket.gaierror(socket.EAI_NONAME, "who?"), "unreachable"),
        (FileNotFoundError(2, "No such file or directory"), "unreachable"),
        (relay.errors.ConnectError("not you", reason="denied"), "denied"),
        (relay.errors.CarrierError("gone"), "carrier_lost"),
        (ValueError("a bug"), "factory_error"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("mark", [relay.nonblocking, lambda factory: factory], ids=["engine", "thread"])
def test_what_a_plain_callable_raises_is_a_reset_with_its_reason(error, reason, mark):
    def make():
        raise error

    with tunnel(mark(make)) as made:
        assert fate(made) == "reset"
        assert ended(made) == [reason]
        assert made.stats().failed == {reason: 1}
