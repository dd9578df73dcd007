"""Multipath TCP from the client to relay and from relay to the target, by the command and in Python."""

import contextlib
import errno
import socket

import pytest
from command_rig import commands, run
from group_rig import running
from helpers import BLOCK, WAIT, Thread, ending, receive_all, send_and_end

import relay
from relay.eventloop import sockets
from relay.eventloop.sockets import MPTCP, check_mptcp
from relay.transports.tcp import listen_tcp

_SOL_MPTCP, _MPTCP_INFO = 284, 1  # linux/mptcp.h


def _has_mptcp():
    with contextlib.suppress(ValueError):
        check_mptcp()
        return True
    return False


needs_mptcp = pytest.mark.skipif(not _has_mptcp(), reason="the kernel has no MPTCP")


def is_multipath(end):
    """Return whether both ends of a connection speak MPTCP; the kernel falls back to TCP if one does not."""
    try:
        return bool(end.getsockopt(_SOL_MPTCP, _MPTCP_INFO, 16))
    except OSError as error:
        assert error.errno == errno.EOPNOTSUPP
        return False


@contextlib.contextmanager
def connected(address, protocol=MPTCP):
    """A client over MPTCP, closed at the end, also if it is reset before it is connected."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, protocol) as client:
        client.settimeout(WAIT)
        client.connect(address)
        yield client


@pytest.fixture
def target():
    """A server over MPTCP, which sends back all that has come, and what it has seen of each connection."""
    seen = []
    with listen_tcp("127.0.0.1", 0, mptcp=True) as server:

        def work():
            with contextlib.suppress(OSError):
                while True:
                    end, _ = server.accept()
                    with end:
                        end.settimeout(WAIT)
                        seen.append(is_multipath(end))
                        end.sendall(receive_all(end))

        worker = Thread(work)
        try:
            yield "{}:{}".format(*server.getsockname()), seen
        finally:
            server.shutdown(socket.SHUT_RDWR)
            worker.result()


def both_ways(client, data=BLOCK):
    sender = Thread(send_and_end, client, data)
    assert receive_all(client) == data
    sender.result()


@needs_mptcp
def test_both_sides_are_multipath_and_their_bytes_are_spliced(target):
    place, seen = target
    with relay.Tunnel(relay.listen(":0?mptcp=yes"), relay.target(f"tcp://{place}?mptcp=yes"), timeout=None) as tunnel:
        with connected(tunnel.address) as client:
            assert is_multipath(client)
            both_ways(client)
        with connected(tunnel.address, protocol=0) as client:  # plain TCP is taken, too
            both_ways(client)
    assert seen == [True, True]
    assert [record.engine for record in tunnel.recent()] == ["splice", "splice"]


@needs_mptcp
def test_a_target_without_it_gets_plain_tcp_and_a_reset_is_passed_on(echo_server):
    with (
        relay.Tunnel(relay.listen(":0"), relay.tcp(*echo_server.address, mptcp=True)) as tunnel,
        connected(tunnel.address) as client,
    ):
        assert not is_multipath(client)
        both_ways(client)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = closed.getsockname()
    with relay.Tunnel(relay.listen(":0?mptcp=yes"), relay.tcp(*address, mptcp=True)) as tunnel:
        with contextlib.suppress(ConnectionResetError), connected(tunnel.address) as client:
            assert ending(client) == "reset"


@needs_mptcp
def test_tls_and_a_bandwidth_over_it(target, certificates):
    place, seen = target
    listen = relay.listen(f"tls://127.0.0.1:0?cert={certificates.cert}&key={certificates.key}&mptcp=yes")
    limit = [{"per": "connection", "bandwidth": "100MB/s"}]
    with relay.Tunnel(listen, relay.target(f"tcp://{place}?mptcp=yes"), limit=limit, timeout=None) as tunnel:
        client = relay.connect(f"tls://localhost:{tunnel.address[1]}?ca={certificates.ca}&mptcp=yes")
        with client:
            client.settimeout(WAIT)
            both_ways(client)
    assert seen == [True]


@needs_mptcp
def test_the_key_of_the_file_and_a_reload_that_changes_it(target, tmp_path, reserved):
    """The kernel cannot change a socket, so the old listener closes before the new one opens at its port."""
    place, seen = target
    text = f'[tunnels.one]\nlisten = ":{reserved}"\ntarget = "{place}"\n'
    with running(tmp_path / "relay.toml", text + "mptcp = true\n") as group:
        for is_on in (True, False, True):
            with connected(("127.0.0.1", reserved)) as client:
                assert is_multipath(client) == is_on
                both_ways(client, b"hello")
            assert group.rewrite(text + ("" if is_on else "mptcp = true\n"))["one"] == "moved"
    assert seen == [True, False, True]


@needs_mptcp
@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_option_of_the_command_also_in_workers(target, workers):
    place, seen = target
    with commands() as start:
        command = start(":0", place, "--mptcp", "--workers", workers)
        with connected(command.address()) as client:
            assert is_multipath(client)
            both_ways(client)
        assert command.end()[0] == 0
    assert seen == [True]


def test_the_option_needs_a_connection_over_tcp(tmp_path):
    line = "relay: --mptcp: relay neither listens nor connects over TCP here; leave it out\n"
    assert run("forward", f"unix://{tmp_path}/a", f"unix://{tmp_path}/b", "--mptcp").stderr == line


@pytest.mark.parametrize("number", [errno.ENOPROTOOPT, errno.EPROTONOSUPPORT, errno.EINVAL])
def test_a_kernel_without_it_is_an_error_before_anything_listens_or_connects(monkeypatch, number):
    def refuse(*arguments):
        raise OSError(number, "not here")

    monkeypatch.setattr(sockets.sockets, "socket", refuse)
    for function in (listen_tcp, relay.tcp):
        with pytest.raises(ValueError, match=r"^mptcp: this system does not have it \(not here\); set the sysctl net"):
            function("127.0.0.1", 1, mptcp=True)
    with pytest.raises(TypeError, match="^mptcp: expected True or False, got str$"):
        relay.tcp("127.0.0.1", 1, mptcp="yes")
