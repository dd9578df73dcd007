"""A planned renewal of an SSH connection or I2P session under load: no stream is cut, and no new one fails."""

import contextlib
import os
import socket
import threading
import time

import pytest
from group_rig import running
from helpers import BLOCK, WAIT, Thread, receive_exactly, wait_until
from i2p_restarts import RENEWAL
from sshd import FarEnd

import relay
from relay.carriers.listing import carriers

OFTEN = 0.4  # seconds
RENEWALS = 3
SIZE = 1 << 16


class Load:
    """Streams that are opened one after the other, in several threads; what comes back is compared."""

    def __init__(self, address, threads=3):
        self._address = address
        self._over = threading.Event()
        self.streams = 0
        self.slowest = 0.0
        self._threads = [Thread(self._run) for _ in range(threads)]

    def _run(self):
        while not self._over.is_set():
            begin = time.monotonic()
            with socket.create_connection(self._address, WAIT) as client:
                start = int.from_bytes(os.urandom(2), "big")
                data = BLOCK[start : start + SIZE]
                client.sendall(data)
                assert receive_exactly(client, SIZE) == data
            self.slowest = max(self.slowest, time.monotonic() - begin)
            self.streams += 1

    def end(self):
        """Raises what a client met."""
        self._over.set()
        for thread in self._threads:
            thread.result()


def renewing(tunnel, renewals, record_property, what):
    """Renew several times under load, with one stream that lasts over all of it."""
    with socket.create_connection(tunnel.address, WAIT) as lasting:

        def is_over():
            lasting.sendall(b"ping")
            assert receive_exactly(lasting, 4) == b"ping"
            return renewals() >= RENEWALS

        is_over()  # it is open before the first renewal
        load = Load(tunnel.address)
        try:
            wait_until(is_over)
        finally:
            load.end()
        is_over()
    wait_until(lambda: tunnel.stats().active == 0)
    assert {*tunnel.stats().failed} <= {"linger"}  # I2P has no half-close
    record_property(
        "measured", f"{what}: {load.streams} streams over {renewals()} renewals, the slowest {load.slowest:.2f} s"
    )


def test_ssh_connections_are_renewed_under_load(backend, make_sshd, echo_server, record_property, caplog):
    server = make_sshd()
    url = FarEnd("sshd", backend, server).address(renew_after=OFTEN)
    make_send = relay.target("{}:{}".format(*echo_server.address), via=[url])
    make_send.ready()
    with relay.Tunnel(relay.listen(":0"), make_send, timeout=None) as tunnel:
        renewing(tunnel, lambda: server.logins - 1, record_property, f"SSH by {backend}")
    assert "lost" not in caplog.text


def test_i2p_sessions_are_renewed_under_load(i2p_double, echo_server, record_property, caplog):
    with contextlib.ExitStack() as stack:
        far = stack.enter_context(i2p_double.serve(echo_server.address[1]))
        tunnel = stack.enter_context(i2p_double.reach(far.dest, renew_after=OFTEN))
        seen = [tunnel.dest]
        tunnel._sender.subscribe(lambda state, error: seen.append(tunnel.dest))
        renewing(tunnel, lambda: len(set(seen)) - 1, record_property, "I2P")
    assert "lost" not in caplog.text


@pytest.mark.timeout(1300)
@pytest.mark.parametrize("scenario", RENEWAL)
def test_over_real_routers(i2p_restarts, scenario, record_property):
    slowest, problem = i2p_restarts[scenario]
    if problem:
        pytest.fail(problem, pytrace=False)
    record_property("measured", f"I2P, {scenario.replace('_', ' ')}: the slowest stream {slowest:.2f} s")


TUNNEL = """
[tunnels.one]
listen = ":0"
target = "127.0.0.1:{port}"
via = ["{hop}"]
"""


def test_clients_use_the_old_hop_until_a_reload_has_connected_the_new_one(tmp_path, make_sshd, echo_server, backend):
    old, new = (FarEnd("sshd", backend, make_sshd()) for _ in range(2))
    port = echo_server.address[1]

    def answered(group):
        with group.connect("one") as client:
            client.sendall(b"ping")
            assert receive_exactly(client, 4) == b"ping"

    with running(tmp_path / "relay.toml", TUNNEL.format(port=port, hop=old.url)) as group:
        answered(group)
        new.freeze()
        reload = Thread(group.rewrite, TUNNEL.format(port=port, hop=new.url))
        wait_until(lambda: str(new.server) in [one.name for one in carriers()])
        answered(group)  # the new server says nothing yet
        assert reload.is_alive() and new.logins == 0
        new.rig.thaw()
        assert reload.result() == {"one": "rerouted"}
        wait_until(lambda: new.logins == 1)  # the server's log comes later than its answer
        answered(group)
