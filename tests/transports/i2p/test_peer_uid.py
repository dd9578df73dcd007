"""Whose the other end of a connection is."""

import contextlib
import os
import socket
import struct
import subprocess
import sys
import threading

import pytest
from helpers import WAIT, Thread, closed, receive_exactly, wait_until

from relay.eventloop.sockets import reset
from relay.transports.i2p import peer_uid
from relay.transports.i2p.peer_uid import PeerUidLookup, hold_end, release_end

ME = os.geteuid()
NOBODY = 65534

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")


@pytest.fixture
def owners():
    yield from closed(PeerUidLookup())


@contextlib.contextmanager
def connected(host, family=socket.AF_INET, listen_at=None):
    """Both ends of a connection, the accepted one second."""
    with socket.create_server((listen_at or host, 0), family=family, dualstack_ipv6=listen_at == "::") as listening:
        port = listening.getsockname()[1]
        with socket.create_connection((host, port), WAIT) as near, listening.accept()[0] as far:
            yield near, far


@pytest.mark.parametrize(("host", "family"), [("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)])
def test_both_ends_of_a_connection_within_this_process_are_ours(owners, host, family):
    with connected(host, family) as (near, far):
        assert owners.of(near) == ME
        assert owners.of(far) == ME
        assert owners.between(family, far.getpeername(), far.getsockname()) == ME


def test_an_ipv4_connection_to_a_socket_of_ipv6_is_found_from_both_ends(owners):
    with connected("127.0.0.1", socket.AF_INET6, listen_at="::") as (near, far):
        assert far.getpeername()[0] == "::ffff:127.0.0.1"
        assert owners.of(near) == ME
        assert owners.of(far) == ME


@pytest.mark.skipif(ME != 0, reason="only root can start a program as somebody else")
def test_another_users_end_is_his(owners):
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        subprocess.Popen(
            ["bash", "-c", f"exec 3<>/dev/tcp/127.0.0.1/{listening.getsockname()[1]}; read"],
            stdin=subprocess.PIPE,
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
        ) as client,
    ):
        listening.settimeout(WAIT)
        far, _ = listening.accept()
        with far:
            assert owners.of(far) == NOBODY
            client.communicate(timeout=WAIT)
            assert far.recv(1) == b""
            assert owners.of(far) in (None, NOBODY), "not root, whom old kernels report for what is closed"


def test_where_the_kernel_reports_the_user_of_a_closed_end_it_is_known_until_its_fin_is_acknowledged(owners):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        hold_end(listening)
        near = socket.create_connection(listening.getsockname(), WAIT)
        far, _ = listening.accept()
        with far:
            far.settimeout(WAIT)
            near.sendall(b"all of it")
            near.close()
            assert receive_exactly(far, 9) == b"all of it"
            assert owners.of(far) == (ME if owners.knows_closed else None)
            release_end(far)
            assert far.recv(1) == b""


def test_where_the_kernel_does_not_report_it_a_closed_end_is_nobodys(owners):
    """An old kernel says of it what it says of root's, so root's own end must not be taken for known."""
    owners.knows_closed = False
    with connected("127.0.0.1") as (near, far):
        near.close()
        assert owners.of(far) is None


def test_what_is_closed_is_nobodys_once_its_fin_is_acknowledged(owners):
    """The kernel reports root from then on."""
    with connected("127.0.0.1") as (near, far):
        there = far.family, far.getpeername(), far.getsockname()
        near.close()
        assert far.recv(1) == b""
        wait_until(lambda: owners._query(*there)[2] in (5, 6))
        assert owners._query(*there)[:2] == (0, 0)
        assert owners.of(far) is None


def test_what_is_reset_is_nobodys(owners):
    with connected("127.0.0.1") as (near, far):
        reset(near)
        assert owners.of(far) is None


@pytest.mark.parametrize("call", ["fchown", "setsockopt"])
def test_a_check_that_fails_counts_as_a_kernel_that_does_not_report_it(monkeypatch, call):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(*((os, "fchown", refuse) if call == "fchown" else (peer_uid, "hold_end", refuse)))
    made = PeerUidLookup()
    made.close()
    assert not made.knows_closed


@pytest.mark.parametrize("answer", [b"", OSError(105, "No buffer space available")], ids=["nothing", "an error"])
def test_an_error_of_the_kernel_is_nobodys(owners, monkeypatch, answer):
    def exchange(request):
        if isinstance(answer, OSError):
            raise answer
        return struct.pack("=IHHIIi", 20, 2, 0, 1, 0, -2)  # NLMSG_ERROR

    with connected("127.0.0.1") as (near, _):
        monkeypatch.setattr(owners._kernel, "_exchange", exchange)
        assert owners.of(near) is None


def test_of_what_is_closed_elsewhere_or_no_tcp_nothing_is_known(owners):
    with connected("127.0.0.1") as (near, _):
        near.close()
        assert owners.of(near) is None
    here, there = socket.socketpair()
    with here, there:
        assert owners.of(here) is None
    with socket.socket() as idle:
        assert owners.of(idle) is None


def test_whoever_listens_at_the_port_is_not_taken_for_the_other_end(owners):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        assert owners.between(socket.AF_INET, listening.getsockname(), ("127.0.0.1", 1)) is None


def test_what_is_elsewhere_is_not_known(owners):
    assert owners.between(socket.AF_INET, ("192.0.2.1", 80), ("127.0.0.1", 1)) is None


def test_threads_are_told_their_own_answers(owners):
    with connected("127.0.0.1") as (near, _):
        there = near.getpeername(), near.getsockname()
        stop = threading.Event()

        def ask(place, expected):
            count = 0
            while not stop.is_set():
                assert owners.between(socket.AF_INET, *place) == expected
                count += 1
            return count

        threads = [Thread(ask, there, ME), Thread(ask, (("192.0.2.1", 80), ("127.0.0.1", 1)), None)]
        for _ in range(2000):
            assert owners.of(near) == ME
        stop.set()
        assert all(thread.result() for thread in threads)


def test_after_close_nothing_is_known(owners):
    with connected("127.0.0.1") as (near, _):
        owners.close()
        owners.close()
        assert owners.of(near) is None


def test_a_system_that_does_not_tell_is_said(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(OSError, match="only Linux"):
        PeerUidLookup()
